/**
 * The C library through koffi: the only module of the suite that imports it. Pointers are plain numbers (user addresses
 * are below 2^47, exact in a double); every function returns the C result, and `checked` turns -1 into a SysError.
 *
 * Memory handed to a call must stay where it is while the call runs, and for io_uring while the request runs: pass only
 * addresses of mappings (pinned.ts, mapping.ts), never of a Buffer, since small ones move at garbage collection.
 */

import koffi from 'koffi';
import { SysError } from './errors.ts';

type Fn<A extends unknown[], R = number> = ((...args: A) => R) & {
  async: (...args: [...A, (error: Error | null, result: R) => void]) => void;
};

const library = koffi.load(null);

function bind<A extends unknown[], R = number>(name: string, result: string, args: string[]): Fn<A, R> {
  return library.func(name, result, args) as unknown as Fn<A, R>;
}

const fd = 'int';
const ptr = 'uintptr_t';

export const libc = {
  accept4: bind<[number, number, number, number]>('accept4', 'int', [fd, ptr, ptr, 'int']),
  bind: bind<[number, number, number]>('bind', 'int', [fd, ptr, 'uint32_t']),
  close: bind<[number]>('close', 'int', [fd]),
  connect: bind<[number, number, number]>('connect', 'int', [fd, ptr, 'uint32_t']),
  epoll_create1: bind<[number]>('epoll_create1', 'int', ['int']),
  epoll_ctl: bind<[number, number, number, number]>('epoll_ctl', 'int', [fd, 'int', fd, ptr]),
  epoll_wait: bind<[number, number, number, number]>('epoll_wait', 'int', ['int', ptr, 'int', 'int']),
  eventfd: bind<[number, number]>('eventfd', 'int', ['uint32_t', 'int']),
  fallocate: bind<[number, number, number, number]>('fallocate', 'int', [fd, 'int', 'int64_t', 'int64_t']),
  fcntl: bind<[number, number, number]>('fcntl', 'int', [fd, 'int', ptr]),
  fdatasync: bind<[number]>('fdatasync', 'int', [fd]),
  fstatfs: bind<[number, number]>('fstatfs', 'int', [fd, ptr]),
  ftruncate: bind<[number, number]>('ftruncate', 'int', [fd, 'int64_t']),
  ioctl: bind<[number, number, number]>('ioctl', 'int', [fd, 'uint64_t', ptr]),
  listen: bind<[number, number]>('listen', 'int', [fd, 'int']),
  lseek: bind<[number, number, number]>('lseek', 'int64_t', [fd, 'int64_t', 'int']),
  madvise: bind<[number, number, number]>('madvise', 'int', [ptr, 'size_t', 'int']),
  memfd_create: bind<[string, number]>('memfd_create', 'int', ['str', 'uint32_t']),
  mmap: bind<[number, number, number, number, number, number], number | bigint>('mmap', ptr, [
    ptr,
    'size_t',
    'int',
    'int',
    fd,
    'int64_t',
  ]),
  mprotect: bind<[number, number, number]>('mprotect', 'int', [ptr, 'size_t', 'int']),
  mremap: bind<[number, number, number, number, number], number | bigint>('mremap', ptr, [
    ptr,
    'size_t',
    'size_t',
    'int',
    ptr,
  ]),
  munmap: bind<[number, number]>('munmap', 'int', [ptr, 'size_t']),
  open: bind<[string, number, number]>('open', 'int', ['str', 'int', 'uint32_t']),
  poll: bind<[number, number, number]>('poll', 'int', [ptr, 'uint64_t', 'int']),
  preadv2: bind<[number, number, number, number, number]>('preadv2', 'int64_t', [fd, ptr, 'int', 'int64_t', 'int']),
  pwritev2: bind<[number, number, number, number, number]>('pwritev2', 'int64_t', [fd, ptr, 'int', 'int64_t', 'int']),
  pwrite: bind<[number, number, number, number]>('pwrite', 'int64_t', [fd, ptr, 'size_t', 'int64_t']),
  read: bind<[number, number, number]>('read', 'int64_t', [fd, ptr, 'size_t']),
  readv: bind<[number, number, number]>('readv', 'int64_t', [fd, ptr, 'int']),
  recv: bind<[number, number, number, number]>('recv', 'int64_t', [fd, ptr, 'size_t', 'int']),
  recvmsg: bind<[number, number, number]>('recvmsg', 'int64_t', [fd, ptr, 'int']),
  send: bind<[number, number, number, number]>('send', 'int64_t', [fd, ptr, 'size_t', 'int']),
  sendmsg: bind<[number, number, number]>('sendmsg', 'int64_t', [fd, ptr, 'int']),
  shutdown: bind<[number, number]>('shutdown', 'int', [fd, 'int']),
  sigaction: bind<[number, number, number]>('sigaction', 'int', ['int', ptr, ptr]),
  socket: bind<[number, number, number]>('socket', 'int', ['int', 'int', 'int']),
  getsockopt: bind<[number, number, number, number, number]>('getsockopt', 'int', [fd, 'int', 'int', ptr, ptr]),
  setsockopt: bind<[number, number, number, number, number]>('setsockopt', 'int', [fd, 'int', 'int', ptr, 'uint32_t']),
  socketpair: bind<[number, number, number, number]>('socketpair', 'int', ['int', 'int', 'int', ptr]),
  statx: bind<[number, string, number, number, number]>('statx', 'int', [fd, 'str', 'int', 'uint32_t', ptr]),
  syscall: bind<[number, number, number, number, number, number, number]>('syscall', 'int64_t', [
    'int64_t',
    ptr,
    ptr,
    ptr,
    ptr,
    ptr,
    ptr,
  ]),
  write: bind<[number, number, number]>('write', 'int64_t', [fd, ptr, 'size_t']),
  writev: bind<[number, number, number]>('writev', 'int64_t', [fd, ptr, 'int']),
};

/** Flag of preadv2, pwritev2 and of reads and writes by io_uring: fail with EAGAIN instead of waiting. */
export const RWF_NOWAIT = 8;

/** errno of the last call on this thread; valid only right after a call that failed. */
export function lastErrno(): number {
  return koffi.errno();
}

/**
 * The result of a call, or an error when it is -1.
 * @throws SysError - the call failed
 */
export function checked(result: number, syscall: string, what?: string): number {
  if (result === -1) throw new SysError(syscall, koffi.errno(), what);
  return result;
}

/** An ArrayBuffer over `length` bytes at `address`, no copy. At most 4 GiB on Node 20; the memory must outlive it. */
export function viewMemory(address: number, length: number): ArrayBuffer {
  return koffi.view(BigInt(address), length);
}

/** koffi's readiness watcher over libuv. */
export const pollHandle = koffi.node.poll;
export type PollHandle = ReturnType<typeof koffi.node.poll>;
