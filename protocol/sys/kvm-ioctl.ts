/** ioctl as all of KVM is asked. */

import { EINTR, SysError } from './errors.ts';
import { lastErrno, libc } from './libc.ts';

/** ioctl with an argument in memory or a number; EINTR is tried again. @throws SysError */
export function kvmIoctl(fd: number, request: number, argument: number, name: string): number {
  for (;;) {
    const result = libc.ioctl(fd, request, argument);
    if (result !== -1) return result;
    const errno = lastErrno();
    if (errno !== EINTR) throw new SysError('ioctl', errno, name);
  }
}
