/** `ringside vsock listen`: accepts connections in the guest's place. */

import type { VsockDriver, VsockType } from '../driver/vsock-driver.ts';
import type { VsockListener } from '../driver/vsock-listener.ts';
import type { VsockSocket } from '../driver/vsock-socket.ts';
import type { CliContext } from './context.ts';
import { type VsockOptions, withVsock } from './vsock-context.ts';
import { copyBothWays, copyFrom, echo } from './vsock-copy.ts';

export interface VsockListenOptions extends VsockOptions {
  readonly seqpacket?: boolean;
  readonly once?: boolean;
  readonly echo?: boolean;
}

/** @throws VsockError - with --once: the connection was reset */
export async function listenVsock(
  context: CliContext,
  socket: string,
  port: number,
  options: VsockListenOptions,
): Promise<void> {
  const { interrupted } = context;
  const type = options.seqpacket === true ? 'seqpacket' : 'stream';
  await withVsock(context, socket, options, {}, async (driver) => {
    const listener = driver.listen(port, type);
    context.stderr.write(`ringside: listening at port ${port} of CID ${driver.cid}\n`);
    const onInterrupt = () => listener.close();
    interrupted.addEventListener('abort', onInterrupt);
    try {
      interrupted.throwIfAborted();
      if (options.once === true) await serveOnce(context, listener, type, options);
      else await serveAll(context, driver, listener, type, options);
    } catch (error) {
      interrupted.throwIfAborted();
      throw error;
    } finally {
      interrupted.removeEventListener('abort', onInterrupt);
      listener.close();
    }
  });
}

async function serveOnce(
  context: CliContext,
  listener: VsockListener,
  type: VsockType,
  options: VsockListenOptions,
): Promise<void> {
  const socket = await listener.accept();
  listener.close();
  if (options.echo === true) {
    await untilInterrupted(context, socket, () => echo(socket, type));
    return;
  }
  const { stdin, stdout, interrupted } = context;
  await copyBothWays(socket, type, { stdin, stdout, interrupted });
}

/** Until interrupted: echoes side by side, or one connection after the other to standard output. */
async function serveAll(
  context: CliContext,
  driver: VsockDriver,
  listener: VsockListener,
  type: VsockType,
  options: VsockListenOptions,
): Promise<void> {
  for (;;) {
    const socket = await listener.accept();
    const complain = (error: Error) => {
      // What ended all of them is told once.
      if (driver.failure === undefined) context.stderr.write(`ringside: ${error.message}\n`);
    };
    if (options.echo === true) {
      void echo(socket, type).catch(complain);
      continue;
    }
    await untilInterrupted(context, socket, async () => {
      await socket.shutdown();
      await copyFrom(socket, type, context.stdout);
      await socket.close();
    }).catch(complain);
  }
}

async function untilInterrupted(context: CliContext, socket: VsockSocket, use: () => Promise<void>): Promise<void> {
  const { interrupted } = context;
  const onInterrupt = () => socket.reset();
  interrupted.addEventListener('abort', onInterrupt);
  try {
    await use();
    interrupted.throwIfAborted();
  } finally {
    interrupted.removeEventListener('abort', onInterrupt);
  }
}
