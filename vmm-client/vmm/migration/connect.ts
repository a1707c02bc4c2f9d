/** The two ends of a migration's connection: one that dials, one that listens for a single peer. */

import { connect, createServer, type Server, type Socket } from 'node:net';
import { removeStaleSocket } from '../../../protocol/sys/unix-socket.ts';
import { VmError } from '../errors.ts';
import type { PeerAddress } from '../urls.ts';

const CONNECT_TIMEOUT_MS = 10_000;

function nameOf(address: PeerAddress): string {
  return address.kind === 'unix' ? address.path : `${address.host} port ${address.port}`;
}

function fail(what: string, address: PeerAddress, error: Error): VmError {
  return new VmError(`${what} ${nameOf(address)}: ${error.message}`, { cause: error });
}

/** Connects to a destination. @throws VmError - nobody listens there @throws what `signal` was aborted with */
export function connectPeer(to: PeerAddress, signal: AbortSignal): Promise<Socket> {
  signal.throwIfAborted();
  return new Promise((resolve, reject) => {
    const socket = to.kind === 'unix' ? connect({ path: to.path }) : connect({ host: to.host, port: to.port });
    const settle = (error?: Error): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', onAbort);
      socket.removeAllListeners();
      if (error === undefined) {
        resolve(socket);
        return;
      }
      socket.on('error', () => undefined);
      socket.destroy();
      reject(error);
    };
    const onAbort = () => settle(signal.reason as Error);
    const timer = setTimeout(
      () => settle(fail('connecting to', to, new Error(`no answer within ${CONNECT_TIMEOUT_MS} ms`))),
      CONNECT_TIMEOUT_MS,
    );
    signal.addEventListener('abort', onAbort);
    socket.once('connect', () => settle());
    socket.once('error', (error) => settle(fail('connecting to', to, error)));
  });
}

/**
 * Listens at an address (a Unix socket: for the owner of this process alone), says so, and takes the first peer that
 * connects; then, or when `signal` is aborted, nobody listens there any more.
 * @throws VmError - the address is not to be had @throws what `signal` was aborted with
 */
export function acceptPeer(at: PeerAddress, signal: AbortSignal, onListening: () => void): Promise<Socket> {
  signal.throwIfAborted();
  return new Promise((resolve, reject) => {
    let taken: Socket | undefined;
    const server = createServer((socket) => {
      if (taken === undefined) taken = socket;
      else socket.destroy();
      end(() => resolve(taken as Socket));
    });
    const end = (settle: () => void): void => {
      signal.removeEventListener('abort', onAbort);
      server.close();
      settle();
    };
    const onAbort = () => end(() => reject(signal.reason));
    signal.addEventListener('abort', onAbort);
    server.once('listening', onListening);
    server.once('error', (error) => end(() => reject(fail('listening at', at, error))));
    try {
      listen(server, at);
    } catch (error) {
      end(() => reject(fail('listening at', at, error as Error)));
    }
  });
}

function listen(server: Server, at: PeerAddress): void {
  if (at.kind === 'tcp') {
    server.listen({ host: at.host, port: at.port, backlog: 1 });
    return;
  }
  removeStaleSocket(at.path);
  // The file is made within this call: a chmod afterwards would leave a moment for others.
  const umask = process.umask(0o177);
  try {
    server.listen({ path: at.path, backlog: 1 });
  } finally {
    process.umask(umask);
  }
}
