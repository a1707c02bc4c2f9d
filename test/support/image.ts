/**
 * Disk images from the host's side: made, hashed and looked into without the daemon under test.
 */

import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { closeSync, openSync, readSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { peerPath } from './peers.ts';

const MiB = 1 << 20;

/** Makes a sparse image. */
export const createImage = (path: string, sizeBytes: number): string => {
  writeFileSync(path, '');
  truncateSync(path, sizeBytes);
  return path;
};

/** Makes an image full of random data. */
export const randomImage = (path: string, sizeBytes: number): string => {
  writeFileSync(path, randomBytes(sizeBytes));
  return path;
};

/** SHA-256 of bytes, in hexadecimal. */
export const sha256Of = (bytes: string | Buffer): string => createHash('sha256').update(bytes).digest('hex');

/** SHA-256 of a range of a file, in hexadecimal. */
export const sha256OfFile = (path: string, offset = 0, lengthBytes = statSync(path).size - offset): string => {
  const hash = createHash('sha256');
  const chunk = Buffer.alloc(MiB);
  const fd = openSync(path, 'r');
  try {
    for (let done = 0; done < lengthBytes; ) {
      const read = readSync(fd, chunk, 0, Math.min(chunk.length, lengthBytes - done), offset + done);
      if (read === 0) throw new Error(`${path} ends at ${offset + done}`);
      hash.update(chunk.subarray(0, read));
      done += read;
    }
  } finally {
    closeSync(fd);
  }
  return hash.digest('hex');
};

/**
 * Space that a file occupies, in MiB. Rounded: a file system counts blocks of its own with the file's, such as those
 * that list where the holes are.
 */
export const allocatedMiB = (path: string): number => Math.round((statSync(path).blocks * 512) / MiB);

/** SHA-256 of a file inside an ext2, 3 or 4 image, as e2fsprogs reads it. */
export const sha256InExtImage = (image: string, file: string): string => {
  const content = execFileSync(peerPath('debugfs'), ['-R', `cat ${file}`, image], {
    maxBuffer: 1 << 30,
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  return createHash('sha256').update(content).digest('hex');
};

/** @throws Error - with what e2fsck says when the file system in the image has a fault. */
export const checkExtImage = (image: string): void => {
  execFileSync(peerPath('e2fsck'), ['-f', '-n', image], { encoding: 'utf8', stdio: 'pipe' });
};
