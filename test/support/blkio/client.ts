/**
 * Compiles blkio-client.c against the unpacked libblkio and runs it. The pattern it writes is computed here a second
 * time, so that the host can say what must be in the image.
 */

import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, renameSync, statSync } from 'node:fs';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Child } from '../child.ts';
import type { Cleanup } from '../cleanup.ts';
import { cacheDirectory, type PeerName, peerPath } from '../peers.ts';

const SOURCE = fileURLToPath(new URL('blkio-client.c', import.meta.url));

export const blkioPeers: readonly PeerName[] = ['libblkio', 'gcc'];

export interface BlkioSettings {
  readonly queues?: number;
  readonly depth?: number;
  /** Length of a request in bytes. */
  readonly block?: number;
  /** Poll the used rings instead of waiting for call eventfds. */
  readonly poll?: boolean;
  /** Number of memory regions that the buffers are spread over. */
  readonly regions?: number;
  /** Makes one region of so many GiB instead, with each buffer across another multiple of 1 GiB. */
  readonly memoryGiB?: number;
}

/** Runs operations, as blkio-client.c lists them. Returns what it printed. @throws Error - when one failed. */
export const runBlkio = async (
  cleanup: Cleanup,
  socket: string,
  settings: BlkioSettings,
  operations: readonly string[],
  deadlineMs = 60_000,
): Promise<string> => {
  const child = new Child(compile(), [
    socket,
    `queues=${settings.queues ?? 1}`,
    `depth=${settings.depth ?? 1}`,
    `block=${settings.block ?? 4096}`,
    ...(settings.poll === true ? ['poll'] : []),
    ...(settings.regions === undefined ? [] : [`regions=${settings.regions}`]),
    ...(settings.memoryGiB === undefined ? [] : [`memory=${settings.memoryGiB}`]),
    ...operations,
  ]);
  cleanup.add(() => child.stop());
  const exit = await child.waitForClose(deadlineMs);
  if (exit.code !== 0) throw new Error(`blkio-client ${operations.join(' ')}: ${exit.signal ?? child.output()}`);
  return child.output();
};

/** What `fill:offset:length:seed` leaves on the disk. */
export const blkioPattern = (offset: number, lengthBytes: number, seed: number): Buffer => {
  const words = new Uint32Array(lengthBytes / 4);
  for (let index = 0; index < words.length; index++) {
    const i = offset / 4 + index;
    words[index] = (Math.imul(i, 2654435761) + seed) ^ (i >>> 13);
  }
  return Buffer.from(words.buffer);
};

const compile = (): string => {
  const library = peerPath('libblkio');
  const directory = join(cacheDirectory, 'blkio');
  const path = join(directory, 'blkio-client');
  if (existsSync(path) && statSync(path).mtimeMs > statSync(SOURCE).mtimeMs) return path;
  mkdirSync(directory, { recursive: true });
  const libraries = join(library, 'lib/x86_64-linux-gnu');
  execFileSync(
    peerPath('gcc'),
    [
      ...['-std=gnu11', '-O2', '-Wall', '-Werror', '-pthread', `-I${join(library, 'include')}`, SOURCE],
      ...[
        `-L${libraries}`,
        '-lblkio',
        `-Wl,-rpath,$ORIGIN/${relative(directory, libraries)}`,
        '-o',
        `${path}.${process.pid}`,
      ],
    ],
    { stdio: 'pipe' },
  );
  renameSync(`${path}.${process.pid}`, path);
  return path;
};
