/** Descriptors as a front end makes them: memory files, eventfds, and the wrong kinds of descriptor on purpose. */

import { checked, libc } from '../../../protocol/sys/libc.ts';
import { createEventFd, OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import { allocatePinned } from '../../../protocol/sys/pinned.ts';
import { watchReadable } from '../../../protocol/sys/readiness.ts';

const O_RDWR = 2;
const O_NONBLOCK = 0x800;
const O_CLOEXEC = 0x80000;
const F_SETFL = 4;
const MFD_CLOEXEC = 1;
const SYS_pipe2 = 293;
const POLLIN = 1;

const word = allocatePinned(8);
/** struct pollfd: fd i32 @0, events i16 @4, revents i16 @6. */
const pollfd = allocatePinned(8);

/** A memfd whose size nobody sealed: it can be truncated under a mapping. */
export const createMemfd = (lengthBytes: number): OwnedFd => {
  const memfd = new OwnedFd(checked(libc.memfd_create('test-ram', MFD_CLOEXEC), 'memfd_create'));
  truncate(memfd, lengthBytes);
  return memfd;
};

export const truncate = (file: OwnedFd, lengthBytes: number): void => {
  checked(libc.ftruncate(file.fd, lengthBytes), 'ftruncate', `to ${lengthBytes} bytes`);
};

/** An eventfd whose reads and writes block, as some front ends hand them over. */
export const createBlockingEventFd = (): OwnedFd => setBlocking(createEventFd());

/** Clears O_NONBLOCK of the open file, for everybody who has it. */
export const setBlocking = (fd: OwnedFd): OwnedFd => {
  checked(libc.fcntl(fd.fd, F_SETFL, O_RDWR), 'fcntl', 'F_SETFL');
  return fd;
};

/** Read end and write end. */
export const createPipe = (nonBlocking = true): [OwnedFd, OwnedFd] => {
  const flags = O_CLOEXEC | (nonBlocking ? O_NONBLOCK : 0);
  checked(libc.syscall(SYS_pipe2, word.address, flags, 0, 0, 0, 0), 'pipe2');
  return [new OwnedFd(word.data.getInt32(0, true)), new OwnedFd(word.data.getInt32(4, true))];
};

export const openPath = (path: string, flags = O_RDWR): OwnedFd =>
  new OwnedFd(checked(libc.open(path, flags | O_CLOEXEC, 0), 'open', path));

/** Adds `value` to an eventfd (or writes 8 bytes to a pipe). */
export const writeEvent = (fd: OwnedFd, value = 1n): void => {
  word.data.setBigUint64(0, value, true);
  checked(libc.write(fd.fd, word.address, 8), 'write', 'eventfd');
};

/** The counter of a non-blocking eventfd, which becomes 0; 0 when it was 0. */
export const takeEvent = (fd: OwnedFd): bigint => {
  if (libc.read(fd.fd, word.address, 8) !== 8) return 0n;
  return word.data.getBigUint64(0, true);
};

/** Resolves when `fd` is readable. @throws Error - after deadlineMs, naming `what` */
export const waitReadable = (fd: OwnedFd, deadlineMs: number, what: string): Promise<void> =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      watch.close();
      reject(new Error(`no ${what} within ${deadlineMs} ms`));
    }, deadlineMs);
    const watch = watchReadable(fd.fd, () => {
      clearTimeout(timer);
      watch.close();
      resolve();
    });
  });

/** Sleeps in the kernel, and this thread with it, until `fd` is readable. Returns whether it is before the deadline. */
export const pollReadable = (fd: OwnedFd, deadlineMs: number): boolean => {
  pollfd.data.setInt32(0, fd.fd, true);
  pollfd.data.setInt32(4, POLLIN, true);
  return checked(libc.poll(pollfd.address, 1, deadlineMs), 'poll') === 1;
};
