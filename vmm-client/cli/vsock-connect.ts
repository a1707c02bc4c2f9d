/** `ringside vsock connect`: a connection from the guest's place to a port, joined to standard input and output. */

import type { CliContext } from './context.ts';
import { type VsockOptions, withVsock } from './vsock-context.ts';
import { copyBothWays } from './vsock-copy.ts';

export interface VsockConnectOptions extends VsockOptions {
  readonly cid: number;
  readonly seqpacket?: boolean;
}

/** @throws VsockError - nobody accepts, or the connection was reset */
export async function connectVsock(
  context: CliContext,
  socket: string,
  port: number,
  options: VsockConnectOptions,
): Promise<void> {
  const type = options.seqpacket === true ? 'seqpacket' : 'stream';
  await withVsock(context, socket, options, {}, async (driver) => {
    const connection = await driver.connect(port, { cid: options.cid, type });
    const { stdin, stdout, interrupted } = context;
    await copyBothWays(connection, type, { stdin, stdout, interrupted });
  });
}
