/**
 * Which parts of a file are there, and which are holes that read as zeros; how to make holes. Source: lseek(2), SEEK_DATA;
 * fallocate(2).
 */

import { EINVAL, ENXIO, SysError } from './errors.ts';
import { checked, lastErrno, libc } from './libc.ts';
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, fallocateLater } from './storage.ts';

const SEEK_DATA = 3;
const SEEK_HOLE = 4;

/** Bytes of a file, from `start` on. */
export interface FileExtent {
  readonly start: number;
  readonly length: number;
}

/**
 * The first data of a file at or after `from`, and before `end`. Undefined where there is none. A file system that does not
 * know holes says that all is data.
 * @throws SysError
 */
export function nextFileData(fd: number, from: number, end: number): FileExtent | undefined {
  if (from >= end) return undefined;
  const start = libc.lseek(fd, from, SEEK_DATA);
  if (start === -1) {
    const errno = lastErrno();
    // Nothing but a hole up to the end of the file.
    if (errno === ENXIO) return undefined;
    // No such question can be asked here.
    if (errno === EINVAL) return { start: from, length: end - from };
    throw new SysError('lseek', errno, 'SEEK_DATA');
  }
  if (start >= end) return undefined;
  const hole = checked(libc.lseek(fd, start, SEEK_HOLE), 'lseek', 'SEEK_HOLE');
  return { start, length: Math.min(hole, end) - start };
}

/**
 * Gives a part of a file back, on the thread pool: it reads as zeros then, also where it is mapped. The descriptor stays
 * open until that is done. @throws SysError - EOPNOTSUPP: the file system has no holes
 */
export function punchHole(fd: number, offset: number, length: number): Promise<void> {
  return allocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length, `a hole of ${length} bytes`);
}

/** Fills the holes of a part of a file with zeros that are there, on the thread pool. @throws SysError - ENOSPC */
export function fillHoles(fd: number, offset: number, length: number): Promise<void> {
  return allocate(fd, 0, offset, length, `${length} bytes`);
}

function allocate(fd: number, mode: number, offset: number, length: number, what: string): Promise<void> {
  return new Promise((resolve, reject) => {
    fallocateLater(fd, mode, offset, length, (result) => {
      if (result === 0) resolve();
      else reject(new SysError('fallocate', -result, what));
    });
  });
}
