/**
 * A failed system call: which call, on what, and the kernel's errno. This is the "host's fault" class of error; what a
 * peer or a guest did wrong has classes of its own.
 */

import { getSystemErrorMap } from 'node:util';

/** errno numbers this suite compares with (asm-generic/errno-base.h, errno.h; the same on x86-64 and arm64). */
export const EPERM = 1;
export const ENOENT = 2;
export const EINTR = 4;
export const EIO = 5;
export const ENXIO = 6;
export const EBADF = 9;
export const EAGAIN = 11;
export const EACCES = 13;
export const ENOMEM = 12;
export const EFAULT = 14;
export const EBUSY = 16;
export const EEXIST = 17;
export const ENODEV = 19;
export const EISDIR = 21;
export const EINVAL = 22;
export const EMFILE = 24;
export const ENOSPC = 28;
export const EROFS = 30;
export const EPIPE = 32;
export const ENAMETOOLONG = 36;
export const ENOSYS = 38;
export const EBADFD = 77;
export const EMSGSIZE = 90;
export const EPROTOTYPE = 91;
export const EOPNOTSUPP = 95;
export const EADDRINUSE = 98;
export const ECONNABORTED = 103;
export const ECONNRESET = 104;
export const ENOBUFS = 105;
export const ECONNREFUSED = 111;

const errnoTable = getSystemErrorMap();

/** The name of an errno (`ENOSPC`), or `errno N` where the platform has none. */
export function errnoName(errno: number): string {
  return errnoTable.get(-errno)?.[0] ?? `errno ${errno}`;
}

/** The kernel's sentence for an errno, such as `no space left on device`. */
export function errnoText(errno: number): string {
  // The table speaks of sockets; most of ours are files.
  if (errno === EOPNOTSUPP) return 'operation not supported';
  return errnoTable.get(-errno)?.[1] ?? `error ${errno}`;
}

/** A system call failed. `code` is the errno's name, `errno` its number, `syscall` the call's name. */
export class SysError extends Error {
  override readonly name = 'SysError';
  readonly code: string;
  readonly errno: number;
  readonly syscall: string;
  /** On what. */
  readonly what: string | undefined;

  constructor(syscall: string, errno: number, what?: string) {
    const where = what === undefined ? syscall : `${syscall} ${what}`;
    super(`${where}: ${errnoText(errno)} (${errnoName(errno)})`);
    this.code = errnoName(errno);
    this.errno = errno;
    this.syscall = syscall;
    this.what = what;
  }
}
