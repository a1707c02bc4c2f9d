/** Bytes through a pipe or stream socket whose other end may have made it blocking: a piece at a time, when it is ready. */

import { checked, libc } from './libc.ts';
import { allocatePinned } from './pinned.ts';

/** A pipe that is writable takes as much without blocking: PIPE_BUF, pipe(7). */
const PIECE_BYTES = 4096;
const piece = allocatePinned(PIECE_BYTES);

/** Reads what is there of a readable descriptor, at most 4096 bytes. Returns no bytes at its end. @throws SysError */
export function readPiece(fd: number): Uint8Array {
  const length = checked(libc.read(fd, piece.address, PIECE_BYTES), 'read', 'of a pipe');
  return piece.bytes.slice(0, length);
}

/** Writes the beginning of `bytes` to a writable descriptor. Returns how many bytes it took. @throws SysError */
export function writePiece(fd: number, bytes: Uint8Array): number {
  const part = bytes.subarray(0, PIECE_BYTES);
  piece.bytes.set(part);
  return checked(libc.write(fd, piece.address, part.length), 'write', 'to a pipe');
}
