/** The source's end of a migration's connection: it dials, and finds out who answers. */

import { connect, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { EAGAIN, SysError } from '../../../protocol/sys/errors.ts';
import { UnixStream } from '../../../protocol/sys/unix-socket.ts';
import { VmError } from '../errors.ts';
import { nameOfPeer, type PeerAddress } from '../urls.ts';
import { greet } from './greeting.ts';
import { type Line, TcpLine, UnixLine } from './line.ts';

const CONNECT_TIMEOUT_MS = 10_000;
const RETRY_MS = 10;

/**
 * Connects to a destination that waits. `memory`: descriptors that it gets, which stay the caller's.
 * @throws VmError - nobody waits there, or somebody else @throws what `signal` was aborted with
 */
export async function connectPeer(
  to: PeerAddress,
  signal: AbortSignal,
  memory: readonly number[] = [],
): Promise<Socket> {
  signal.throwIfAborted();
  let end: (reason: Error) => void = () => undefined;
  const onAbort = () => end(signal.reason as Error);
  signal.addEventListener('abort', onAbort);
  const timer = setTimeout(() => end(new VmError(`no answer within ${CONNECT_TIMEOUT_MS} ms`)), CONNECT_TIMEOUT_MS);
  try {
    const line = await dial(to, (each) => {
      end = each;
    });
    end = (reason) => line.destroy(reason);
    try {
      await greet(line, memory);
      return line.toSocket();
    } catch (error) {
      line.destroy(error as Error);
      throw error;
    }
  } catch (error) {
    if (signal.aborted) throw signal.reason;
    throw new VmError(`connecting to ${nameOfPeer(to)}: ${(error as Error).message}`, { cause: error });
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', onAbort);
  }
}

/** `onDial` gets what ends the attempt. */
function dial(to: PeerAddress, onDial: (end: (reason: Error) => void) => void): Promise<Line> {
  return to.kind === 'unix' ? dialUnix(to.path, onDial) : dialTcp(to, onDial);
}

/** A listener that others are in front of is waited for. */
async function dialUnix(path: string, onDial: (end: (reason: Error) => void) => void): Promise<Line> {
  let ended: Error | undefined;
  onDial((reason) => {
    ended = reason;
  });
  for (;;) {
    try {
      return new UnixLine(UnixStream.connect(path));
    } catch (error) {
      if (!(error instanceof SysError) || error.errno !== EAGAIN) throw error;
      await delay(RETRY_MS);
      if (ended !== undefined) throw ended;
    }
  }
}

function dialTcp(
  to: { readonly host: string; readonly port: number },
  onDial: (end: (reason: Error) => void) => void,
): Promise<Line> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host: to.host, port: to.port });
    const fail = (error: Error): void => {
      socket.destroy();
      reject(error);
    };
    onDial(fail);
    socket.on('error', fail);
    socket.once('connect', () => {
      socket.off('error', fail);
      resolve(new TcpLine(socket));
    });
  });
}
