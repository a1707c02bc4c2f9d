/**
 * The destination's end of a migration's connection: it listens for one source. Others may come first (a scan of ports, a
 * health check): they are sent away, and it goes on listening.
 */

import { createServer, type Socket } from 'node:net';
import type { OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import { watchReadable } from '../../../protocol/sys/readiness.ts';
import { UnixListener } from '../../../protocol/sys/unix-socket.ts';
import { VmError } from '../errors.ts';
import { nameOfPeer, type PeerAddress } from '../urls.ts';
import { hearSource, welcome } from './greeting.ts';
import { type Line, TcpLine, UnixLine } from './line.ts';

/** A source that was taken. Both are the receiver's. */
export interface Source {
  readonly socket: Socket;
  /** What it hands over, one for each range of RAM; none where it sends memory. */
  readonly memory: readonly OwnedFd[];
}

export interface AcceptOptions {
  readonly signal: AbortSignal;
  readonly onListening: () => void;
  /** Gets a line for each of the first who came and were no source. */
  readonly warn: (line: string) => void;
  /** How long somebody who has connected may say nothing, in milliseconds. Default 5000. */
  readonly greetingMs?: number;
}

const GREETING_MS = 5000;
/** So many at once have not said who they are. One more takes the place of the first of them. */
const MAX_STRANGERS = 8;
const BACKLOG = 8;
const TAKEN = 'nobody is waited for any more';
/** A health check comes every other second. */
const MAX_WARNINGS = 20;

/** Called whenever somebody connects. Returns what ends the listening. @throws Error - the address is not to be had */
type Listen<T> = (
  at: T,
  onLine: (line: Line) => void,
  onListening: () => void,
  onError: (error: Error) => void,
) => () => void;

const listenUnix: Listen<{ readonly path: string }> = ({ path }, onLine, onListening, onError) => {
  // The file is made within this call, for the owner of this process alone: a chmod afterwards would leave a moment.
  const umask = process.umask(0o177);
  let listener: UnixListener;
  try {
    listener = UnixListener.listen(path, undefined, BACKLOG);
  } finally {
    process.umask(umask);
  }
  const watch = watchReadable(listener.fd, () => {
    try {
      const stream = listener.accept();
      if (stream !== undefined) onLine(new UnixLine(stream));
    } catch (error) {
      onError(error as Error);
    }
  });
  onListening();
  return () => {
    watch.close();
    listener.close();
  };
};

const listenTcp: Listen<{ readonly host: string; readonly port: number }> = (at, onLine, onListening, onError) => {
  const server = createServer((socket) => onLine(new TcpLine(socket)));
  server.once('listening', onListening);
  server.once('error', onError);
  server.listen({ host: at.host, port: at.port, backlog: BACKLOG });
  return () => server.close();
};

/**
 * Listens at an address (a Unix socket: for the owner of this process alone), says so, and takes the first source that
 * connects; then, or when `signal` is aborted, nobody listens there any more.
 * @throws VmError - the address is not to be had @throws what `signal` was aborted with
 */
export async function acceptPeer(at: PeerAddress, options: AcceptOptions): Promise<Source> {
  const { signal, onListening, warn, greetingMs = GREETING_MS } = options;
  signal.throwIfAborted();
  const strangers = new Set<Line>();
  let isOpen = true;
  let warnings = 0;
  let stop: () => void = () => undefined;
  let onAbort: () => void = () => undefined;
  try {
    return await new Promise<Source>((resolve, reject) => {
      onAbort = () => reject(signal.reason);
      signal.addEventListener('abort', onAbort);
      const meet = async (line: Line): Promise<void> => {
        const [first] = strangers;
        if (strangers.size >= MAX_STRANGERS) first?.destroy(new VmError('too many others have connected since'));
        strangers.add(line);
        const late = new VmError(`the peer does not say what it is within ${greetingMs} ms`);
        const timer = setTimeout(() => line.destroy(late), greetingMs);
        try {
          const memory = await hearSource(line);
          try {
            if (!isOpen) throw new VmError(TAKEN);
            welcome(line);
          } catch (error) {
            for (const fd of memory) fd.close();
            throw error;
          }
          isOpen = false;
          resolve({ socket: line.toSocket(), memory });
        } catch (error) {
          line.destroy(error as Error);
          warnings += 1;
          if (isOpen && warnings <= MAX_WARNINGS)
            warn(`a connection to ${nameOfPeer(at)} was closed: ${(error as Error).message}`);
        } finally {
          clearTimeout(timer);
          strangers.delete(line);
        }
      };
      const onLine = (line: Line): void => void meet(line);
      const onError = (error: Error): void => {
        reject(new VmError(`listening at ${nameOfPeer(at)}: ${error.message}`, { cause: error }));
      };
      try {
        stop =
          at.kind === 'unix'
            ? listenUnix(at, onLine, onListening, onError)
            : listenTcp(at, onLine, onListening, onError);
      } catch (error) {
        onError(error as Error);
      }
    });
  } finally {
    isOpen = false;
    signal.removeEventListener('abort', onAbort);
    stop();
    for (const line of strangers) line.destroy(new VmError(TAKEN));
  }
}
