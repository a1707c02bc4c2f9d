/**
 * The host's side of `ringside vsock bench`, on a thread of its own: listens at the Unix sockets that a daemon for hybrid
 * sockets connects to, as a sink, a source and an echo; or connects to the guest. Source: Firecracker, docs/vsock.md.
 *
 *     guest to host, port P: the daemon connects to U_P       host to guest: connect to U, send "CONNECT P\n", get "OK n\n"
 */

import { createServer, type Server, type Socket, connect as unixConnect } from 'node:net';
import { parentPort, workerData } from 'node:worker_threads';
import { removeStaleSocket } from '../../protocol/sys/unix-socket.ts';

export interface VsockPeerData {
  readonly udsPath: string;
  readonly port: number;
  /** Connections to keep opening to the guest; 0: listen. */
  readonly connectors: number;
}

/** What the thread says: it is ready, with socket files of its own, or what went wrong. */
export type VsockPeerMessage = { readonly paths: readonly string[] } | { readonly error: string };

const CHUNK = Buffer.alloc(64 * 1024);

function sink(socket: Socket): void {
  socket.resume();
}

function source(socket: Socket): void {
  const fill = () => {
    while (!socket.destroyed && socket.write(CHUNK));
  };
  socket.on('drain', fill);
  socket.resume();
  fill();
}

function echo(socket: Socket): void {
  socket.pipe(socket);
}

function listen(path: string, serve: (socket: Socket) => void): Promise<Server> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => {
      // Resets at the end of a run are nothing to speak of.
      socket.on('error', () => socket.destroy());
      serve(socket);
    });
    server.once('error', reject);
    server.listen(path, () => resolve(server));
  });
}

/** Connects to the guest, again and again; the guest counts. */
function connectForEver(data: VsockPeerData, say: (message: VsockPeerMessage) => void): void {
  const socket = unixConnect(data.udsPath);
  let answer = '';
  socket.setEncoding('latin1');
  socket.on('connect', () => socket.write(`CONNECT ${data.port}\n`));
  socket.on('data', (text) => {
    answer += text;
    if (answer.startsWith('OK ') && answer.endsWith('\n')) socket.end();
  });
  socket.on('error', (error) => say({ error: `${data.udsPath}: ${error.message}` }));
  socket.on('close', (hadError) => {
    if (hadError) return;
    if (!answer.startsWith('OK ')) say({ error: `${data.udsPath}: CONNECT ${data.port} was not answered with OK` });
    else connectForEver(data, say);
  });
}

async function main(data: VsockPeerData, say: (message: VsockPeerMessage) => void): Promise<void> {
  if (data.connectors > 0) {
    for (let i = 0; i < data.connectors; i++) connectForEver(data, say);
    say({ paths: [] });
    return;
  }
  const servers: Server[] = [];
  const paths: string[] = [];
  try {
    for (const [place, serve] of [sink, source, echo].entries()) {
      const path = `${data.udsPath}_${data.port + place}`;
      removeStaleSocket(path);
      servers.push(await listen(path, serve));
      paths.push(path);
    }
    say({ paths });
  } catch (error) {
    for (const server of servers) server.close();
    say({ error: `the peer cannot listen: ${(error as Error).message}` });
  }
}

if (parentPort !== null) {
  const port = parentPort;
  await main(workerData as VsockPeerData, (message) => port.postMessage(message));
}
