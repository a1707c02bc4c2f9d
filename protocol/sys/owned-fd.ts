/** File descriptors with one owner each, and the questions the suite asks of a descriptor that a peer sent. */

import { close as closeFile } from 'node:fs';
import { EPERM, SysError } from './errors.ts';
import { checked, lastErrno, libc } from './libc.ts';
import { allocatePinned } from './pinned.ts';

const O_CLOEXEC = 0x80000;
const EPOLL_CLOEXEC = 0x80000;
const EPOLL_CTL_ADD = 1;
const EPOLLIN = 1;
const EFD_CLOEXEC = 0x80000;
const EFD_NONBLOCK = 0x800;
const MFD_CLOEXEC = 1;
const MFD_ALLOW_SEALING = 2;
const MFD_HUGETLB = 4;
const F_ADD_SEALS = 1033;
const F_GET_SEALS = 1034;
const F_DUPFD_CLOEXEC = 1030;
const F_GETFL = 3;
const F_SETFL = 4;
const O_NONBLOCK = 0x800;
const F_SEAL_SHRINK = 2;
const F_SEAL_GROW = 4;
const AT_EMPTY_PATH = 0x1000;
const STATX_BASIC = 0x7ff;
const STATX_DIOALIGN = 0x2000;
const S_IFMT = 0o170000;

export const S_IFREG = 0o100000;
export const S_IFBLK = 0o060000;
export const S_IFSOCK = 0o140000;
export const S_IFCHR = 0o020000;
export const S_IFIFO = 0o010000;

/** What statx says of a descriptor. Sizes in bytes; dioAlign fields are 0 where O_DIRECT is not supported or unknown. */
export interface FdStat {
  /** S_IFREG and so on; 0 for descriptors without a type (eventfd). */
  readonly type: number;
  readonly size: number;
  readonly blockSize: number;
  readonly dioMemoryAlign: number;
  readonly dioOffsetAlign: number;
}

const statBuffer = allocatePinned(256);
const epollEvent = allocatePinned(16);

/** A file descriptor with exactly one owner. `close` is idempotent; `take` hands the number to a new owner. */
export class OwnedFd {
  #fd: number;

  constructor(fd: number) {
    this.#fd = fd;
  }

  /** The descriptor's number. @throws Error - it was closed or taken (our mistake) */
  get fd(): number {
    if (this.#fd < 0) throw new Error('use of a closed file descriptor');
    return this.#fd;
  }

  get isOpen(): boolean {
    return this.#fd >= 0;
  }

  /** Gives the descriptor up without closing it. */
  take(): number {
    const fd = this.fd;
    this.#fd = -1;
    return fd;
  }

  /** A second descriptor of the same open file. */
  duplicate(): OwnedFd {
    return duplicateFd(this.fd);
  }

  close(): void {
    if (this.#fd < 0) return;
    libc.close(this.#fd);
    this.#fd = -1;
  }

  /** The same on the thread pool, for the last one of a large file without a name: all of its pages are given back. */
  closeLater(): void {
    if (this.#fd < 0) return;
    closeFile(this.take(), () => undefined);
  }
}

/** A second, close-on-exec descriptor of the open file that `fd` names. @throws SysError - EMFILE */
export function duplicateFd(fd: number): OwnedFd {
  return new OwnedFd(checked(libc.fcntl(fd, F_DUPFD_CLOEXEC, 0), 'fcntl', 'F_DUPFD_CLOEXEC'));
}

/** Opens a path with the given O_ flags (O_CLOEXEC is added). @throws SysError - named after the path */
export function openFile(path: string, flags: number, mode = 0o600): OwnedFd {
  return new OwnedFd(checked(libc.open(path, flags | O_CLOEXEC, mode), 'open', path));
}

/** A new eventfd with counter 0, non-blocking. */
export function createEventFd(): OwnedFd {
  return new OwnedFd(checked(libc.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), 'eventfd'));
}

/**
 * A new memfd of `length` bytes whose size is sealed: nobody who gets it can truncate it under a mapping. With `hugePages`
 * it is made of the host's default huge pages, and `length` is a multiple of their size.
 * @throws SysError - ENOSYS, EMFILE; EINVAL where the length does not fit or the kernel has no huge pages
 */
export function createSealedMemfd(name: string, length: number, hugePages = false): OwnedFd {
  const flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | (hugePages ? MFD_HUGETLB : 0);
  const memfd = new OwnedFd(checked(libc.memfd_create(name, flags), 'memfd_create'));
  try {
    setFileSize(memfd.fd, length, name);
    checked(libc.fcntl(memfd.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 'fcntl', 'F_ADD_SEALS');
    return memfd;
  } catch (error) {
    memfd.close();
    throw error;
  }
}

/** Whether a descriptor is of a memfd whose size nobody can change. */
export function isSizeSealed(fd: number): boolean {
  const seals = libc.fcntl(fd, F_GET_SEALS, 0);
  const wanted = F_SEAL_SHRINK | F_SEAL_GROW;
  return seals !== -1 && (seals & wanted) === wanted;
}

/** Makes a file `length` bytes long, sparse where it grows. @throws SysError - named after `name` */
export function setFileSize(fd: number, length: number, name: string): void {
  checked(libc.ftruncate(fd, length), 'ftruncate', `${name} to ${length} bytes`);
}

/** Stats a descriptor. @throws SysError - EBADF and the like */
export function statFd(fd: number): FdStat {
  checked(libc.statx(fd, '', AT_EMPTY_PATH, STATX_BASIC | STATX_DIOALIGN, statBuffer.address), 'statx', `fd ${fd}`);
  const d = statBuffer.data;
  const hasDio = (d.getUint32(0, true) & STATX_DIOALIGN) !== 0;
  return {
    type: d.getUint16(28, true) & S_IFMT,
    size: Number(d.getBigUint64(40, true)),
    blockSize: d.getUint32(4, true),
    dioMemoryAlign: hasDio ? d.getUint32(152, true) : 0,
    dioOffsetAlign: hasDio ? d.getUint32(156, true) : 0,
  };
}

/** The file status flags (O_NONBLOCK and so on) of a descriptor. */
export function statusFlags(fd: number): number {
  return checked(libc.fcntl(fd, F_GETFL, 0), 'fcntl', 'F_GETFL');
}

/** Clears O_NONBLOCK, for a descriptor that goes to a peer which expects that. @throws SysError */
export function makeBlocking(fd: number): void {
  checked(libc.fcntl(fd, F_SETFL, statusFlags(fd) & ~O_NONBLOCK), 'fcntl', 'F_SETFL');
}

/** Sets O_NONBLOCK, for everyone who has the open file. @throws SysError */
export function makeNonBlocking(fd: number): void {
  checked(libc.fcntl(fd, F_SETFL, statusFlags(fd) | O_NONBLOCK), 'fcntl', 'F_SETFL');
}

/** Whether the event loop can watch this descriptor: false for regular files and directories (epoll says EPERM). */
export function isPollable(fd: number): boolean {
  const epoll = new OwnedFd(checked(libc.epoll_create1(EPOLL_CLOEXEC), 'epoll_create1'));
  try {
    epollEvent.data.setUint32(0, EPOLLIN, true);
    if (libc.epoll_ctl(epoll.fd, EPOLL_CTL_ADD, fd, epollEvent.address) === 0) return true;
    const errno = lastErrno();
    if (errno === EPERM) return false;
    throw new SysError('epoll_ctl', errno, `fd ${fd}`);
  } finally {
    epoll.close();
  }
}
