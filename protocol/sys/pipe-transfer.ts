/**
 * Bytes through a pipe or stream socket that the peer has too: it can make it blocking, and take or put bytes behind our
 * back, at any time. So readiness is no promise, and no call here waits.
 */

import { EAGAIN, EOPNOTSUPP, SysError } from './errors.ts';
import { checked, lastErrno, libc, RWF_NOWAIT } from './libc.ts';
import { allocatePinned } from './pinned.ts';

/** A pipe that is writable takes as much without blocking: PIPE_BUF, pipe(7). */
const PIECE_BYTES = 4096;
const piece = allocatePinned(PIECE_BYTES);
const iovec = allocatePinned(16);
iovec.setU64(0, piece.address);

/** Returns -1 when there is nothing to be done now. Pipes before Linux 6.5 have no RWF_NOWAIT: they are used as they are. */
function transferred(result: number, what: string, plain: () => number): number {
  if (result >= 0) return result;
  const errno = lastErrno();
  if (errno === EAGAIN) return -1;
  if (errno !== EOPNOTSUPP) throw new SysError(what, errno, 'of a pipe');
  return checked(plain(), what, 'of a pipe');
}

/** Reads what is there, at most 4096 bytes: no bytes at the end, undefined when there are none now. @throws SysError */
export function readPiece(fd: number): Uint8Array | undefined {
  iovec.setU64(8, PIECE_BYTES);
  const length = transferred(libc.preadv2(fd, iovec.address, 1, -1, RWF_NOWAIT), 'read', () =>
    libc.read(fd, piece.address, PIECE_BYTES),
  );
  return length < 0 ? undefined : piece.bytes.slice(0, length);
}

/** Writes the beginning of `bytes`. Returns how many bytes went, 0 when there is no room now. @throws SysError */
export function writePiece(fd: number, bytes: Uint8Array): number {
  const part = bytes.subarray(0, PIECE_BYTES);
  piece.bytes.set(part);
  iovec.setU64(8, part.length);
  const length = transferred(libc.pwritev2(fd, iovec.address, 1, -1, RWF_NOWAIT), 'write', () =>
    libc.write(fd, piece.address, part.length),
  );
  return Math.max(length, 0);
}
