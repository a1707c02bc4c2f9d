/** Stands between the source and the destination of a migration and keeps each answer back for a while, so that it does not end. */
import { createConnection, createServer, type Socket } from 'node:net';
import { CommandError } from '../children.ts';

/**
 * Listens at `path` for one source. What it sends goes on to the destination at `target` at once; what comes from there is
 * `delayMs` late.
 * @returns what ends both connections
 */
export async function listenBetween(path: string, target: string, delayMs: number): Promise<() => void> {
  const sockets: Socket[] = [];
  const server = createServer((source) => {
    server.close();
    const destination = createConnection(target);
    sockets.push(source, destination);
    const end = () => {
      for (const socket of sockets) socket.destroy();
    };
    for (const socket of sockets) socket.on('error', end).on('close', end);
    source.pipe(destination);
    destination.on('data', (chunk: Buffer) => {
      setTimeout(() => {
        if (!source.destroyed) source.write(chunk);
      }, delayMs);
    });
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => reject(new CommandError(`${path}: ${error.message}`)));
    server.listen(path, resolve);
  });
  return () => {
    server.close();
    for (const socket of sockets) socket.destroy();
  };
}
