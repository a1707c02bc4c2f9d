/**
 * A channel over which device state goes from one process to another: a pipe, a socket or a file, read or written from
 * one end to the other. Its end is the end of the state. Source: vhost-user, Migrating back-end state.
 */

import { readSync, writeSync } from 'node:fs';
import { isPollable, makeNonBlocking, type OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { type Watch, watchReadable, watchWritable } from '../../protocol/sys/readiness.ts';
import { PeerError } from '../../protocol/vhost-user/errors.ts';

/** State that is longer is not taken: no device has so much, and it would fill this process. */
export const MAX_STATE_BYTES = 256 * 1024 * 1024;

const CHUNK_BYTES = 64 * 1024;

/**
 * Reads all that comes until the other side closes its end. Closes the descriptor in any case.
 * @throws PeerError - not at its end by the deadline, or too long
 */
export async function readState(fd: OwnedFd, timeoutMs: number): Promise<Uint8Array> {
  const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
  const chunks: Buffer[] = [];
  let length = 0;
  await transfer(fd, timeoutMs, watchReadable, () => {
    const got = readSync(fd.fd, chunk);
    length += got;
    if (length > MAX_STATE_BYTES) throw new PeerError(`the back end sends more than ${MAX_STATE_BYTES} bytes of state`);
    if (got > 0) chunks.push(Buffer.from(chunk.subarray(0, got)));
    return got === 0;
  });
  return new Uint8Array(Buffer.concat(chunks, length));
}

/**
 * Writes all of `state`, then closes the descriptor, which is what tells the other side that it was all.
 * @throws PeerError - not taken by the deadline
 * @throws Error - EPIPE: the other side is gone
 */
export async function writeState(fd: OwnedFd, state: Uint8Array, timeoutMs: number): Promise<void> {
  let written = 0;
  await transfer(fd, timeoutMs, watchWritable, () => {
    if (written < state.length) written += writeSync(fd.fd, state, written);
    return written === state.length;
  });
}

/** Repeats `step`, which says whether it was the last one, as often as the descriptor allows. */
function transfer(
  fd: OwnedFd,
  timeoutMs: number,
  watch: (fd: number, callback: () => void) => Watch,
  step: () => boolean,
): Promise<void> {
  let watching: Watch | undefined;
  let timer: NodeJS.Timeout | undefined;
  return new Promise<void>((resolve, reject) => {
    const proceed = (repeat: boolean) => {
      try {
        let isLast = step();
        while (repeat && !isLast) isLast = step();
        if (isLast) resolve();
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') reject(error);
      }
    };
    // Files are always ready, and cannot be watched.
    if (!isPollable(fd.fd)) {
      proceed(true);
      return;
    }
    makeNonBlocking(fd.fd);
    timer = setTimeout(() => {
      reject(new PeerError(`the device state was not transferred within ${timeoutMs} ms`));
    }, timeoutMs);
    watching = watch(fd.fd, () => proceed(false));
  }).finally(() => {
    clearTimeout(timer);
    watching?.close();
    fd.close();
  });
}
