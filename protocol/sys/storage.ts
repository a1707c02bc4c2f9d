/** What block back ends ask of a file or block device besides reading and writing it. Sizes and offsets in bytes. */

import { EACCES, EAGAIN, SysError } from './errors.ts';
import { checked, lastErrno, libc } from './libc.ts';
import { S_IFBLK, statFd } from './owned-fd.ts';
import { allocatePinned } from './pinned.ts';

export const O_RDONLY = 0;
/** For a look at what a path names, which opens nothing. */
export const O_PATH = 0o10000000;
export const O_RDWR = 2;
export const O_DIRECT = process.arch === 'arm64' ? 0x10000 : 0x4000;
export const FALLOC_FL_KEEP_SIZE = 1;
export const FALLOC_FL_PUNCH_HOLE = 2;
export const FALLOC_FL_ZERO_RANGE = 16;

const BLKGETSIZE64 = 0x8008_1272;
const BLKSSZGET = 0x1268;
const BLKPBSZGET = 0x127b;
const BLKDISCARD = 0x1277;
const F_OFD_SETLK = 37;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;

const scratch = allocatePinned(64);

/** The size of a regular file or block device. @throws SysError */
export function storageSize(fd: number): number {
  const stat = statFd(fd);
  if (stat.type !== S_IFBLK) return stat.size;
  checked(libc.ioctl(fd, BLKGETSIZE64, scratch.address), 'ioctl', 'BLKGETSIZE64');
  return Number(scratch.data.getBigUint64(0, true));
}

/** Logical and physical block size of a block device. @throws SysError */
export function blockDeviceSizes(fd: number): { logical: number; physical: number } {
  checked(libc.ioctl(fd, BLKSSZGET, scratch.address), 'ioctl', 'BLKSSZGET');
  const logical = scratch.data.getInt32(0, true);
  checked(libc.ioctl(fd, BLKPBSZGET, scratch.address), 'ioctl', 'BLKPBSZGET');
  return { logical, physical: scratch.data.getUint32(0, true) };
}

/**
 * Takes an open-file-description lock of the whole file: exclusive for writers, shared for readers. It ends when the
 * last reference to this open file does, also the references of requests still in the kernel after the process died.
 * Returns false when somebody else holds a conflicting lock.
 * @throws SysError - the file system has no locks
 */
export function tryLock(fd: number, exclusive: boolean): boolean {
  // struct flock: l_type i16 @0, l_whence i16 @2, l_start @8, l_len @16 (0 = to the end), l_pid @24 (0 for OFD locks).
  scratch.bytes.fill(0);
  scratch.data.setInt16(0, exclusive ? F_WRLCK : F_RDLCK, true);
  if (libc.fcntl(fd, F_OFD_SETLK, scratch.address) === 0) return true;
  const errno = lastErrno();
  if (errno === EAGAIN || errno === EACCES) return false;
  throw new SysError('fcntl', errno, 'F_OFD_SETLK');
}

/** Writes at an offset, here and now. Returns bytes or a negative errno; nothing is thrown, this is on the data path. */
export function pwriteNow(fd: number, address: number, length: number, offset: number): number {
  const result = libc.pwrite(fd, address, length, offset);
  return result === -1 ? -lastErrno() : result;
}

/** The same from `count` iovecs. */
export function pwritevNow(fd: number, iovecs: number, count: number, offset: number): number {
  const result = libc.pwritev2(fd, iovecs, count, offset, 0);
  return result === -1 ? -lastErrno() : result;
}

/** Gives the lock back at once: closing would, but only when the kernel has let go of the file's last user. */
export function unlock(fd: number): void {
  scratch.bytes.fill(0);
  scratch.data.setInt16(0, F_UNLCK, true);
  checked(libc.fcntl(fd, F_OFD_SETLK, scratch.address), 'fcntl', 'F_UNLCK');
}

type Later = (result: number) => void;

/** Turns the end of an asynchronous call into bytes or a negative errno (koffi keeps errno per call). */
function later(callback: Later): (error: Error | null, result: number) => void {
  return (error, result) => {
    if (error !== null) throw error;
    callback(result === -1 ? -lastErrno() : result);
  };
}

/** preadv2 on the thread pool. The iovecs and what they point to stay valid until the callback. */
export function preadvLater(
  fd: number,
  iovecs: number,
  count: number,
  offset: number,
  flags: number,
  done: Later,
): void {
  libc.preadv2.async(fd, iovecs, count, offset, flags, later(done));
}

/** pwritev2 on the thread pool. The iovecs and what they point to stay valid until the callback. */
export function pwritevLater(
  fd: number,
  iovecs: number,
  count: number,
  offset: number,
  flags: number,
  done: Later,
): void {
  libc.pwritev2.async(fd, iovecs, count, offset, flags, later(done));
}

/** fdatasync on the thread pool. */
export function fdatasyncLater(fd: number, done: Later): void {
  libc.fdatasync.async(fd, later(done));
}

/** BLKDISCARD on the thread pool. `range` points to { offset u64, length u64 } and stays valid until the callback. */
export function discardLater(fd: number, range: number, done: Later): void {
  libc.ioctl.async(fd, BLKDISCARD, range, later(done));
}

/** fallocate on the thread pool. */
export function fallocateLater(fd: number, mode: number, offset: number, length: number, done: Later): void {
  libc.fallocate.async(fd, mode, offset, length, later(done));
}
