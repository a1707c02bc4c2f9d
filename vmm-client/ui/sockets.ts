/** Which API sockets the page shows, and what their machines are called: as short as they can be told apart. */

import { createHash } from 'node:crypto';
import { readdirSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import type { MachineName } from './machine-view.ts';

/** Of a directory. */
const MAX_SOCKETS = 256;

/** The sockets in a directory, by name. @throws Error - it cannot be read */
export function findSockets(directory: string): string[] {
  return readdirSync(directory)
    .sort()
    .map((name) => join(directory, name))
    .filter(isSocket)
    .slice(0, MAX_SOCKETS);
}

/** What cannot be looked at (a link to itself, say) is none. */
function isSocket(path: string): boolean {
  try {
    return statSync(path).isSocket();
  } catch {
    return false;
  }
}

/**
 * What lists the sockets that there are: those that are `named`, and those in `directories`. `log` hears once of a directory
 * that cannot be read, and again when that has changed in between.
 */
export function socketList(
  named: readonly string[],
  directories: readonly string[],
  log: (line: string) => void,
): () => string[] {
  const unreadable = new Set<string>();
  const find = (directory: string): string[] => {
    try {
      const found = findSockets(directory);
      unreadable.delete(directory);
      return found;
    } catch (error) {
      if (!unreadable.has(directory)) log((error as Error).message);
      unreadable.add(directory);
      return [];
    }
  };
  return () => [...named, ...directories.flatMap(find)];
}

/** The last `count` parts of a path, without the ending that says that it is a socket. */
function tail(path: string, count: number): string {
  const parts = path.split('/').filter((part) => part !== '');
  const name = parts.slice(-count).join('/');
  return name.replace(/(.)\.(?:sock|socket|api)$/, '$1');
}

/** Names for machines: the file's, with as many directories before it as tell it from the others. */
export function nameMachines(sockets: readonly string[]): MachineName[] {
  const paths = [...new Set(sockets.map((socket) => resolve(socket)))];
  return paths.map((socket) => {
    let parts = 1;
    const deepest = socket.split('/').length;
    while (parts < deepest && paths.some((other) => other !== socket && tail(other, parts) === tail(socket, parts))) {
      parts += 1;
    }
    const key = createHash('sha256').update(socket).digest('hex').slice(0, 12);
    return { key, name: tail(socket, parts), socket };
  });
}
