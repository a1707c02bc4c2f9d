/**
 * Userfaultfd: accesses to pages that are not there yet wait until somebody brings them. A front end that resumes a
 * migrated guest before all of its memory has arrived needs that of every process which maps the memory: the back end
 * opens the descriptor and registers its mappings, the front end reads what is waited for and wakes those who wait. Source:
 * Linux, Documentation/admin-guide/mm/userfaultfd.rst; vhost-user, Migration.
 *
 *     struct uffdio_api       api u64 @0, features u64 @8, ioctls u64 @16
 *     struct uffdio_range     start u64 @0, len u64 @8
 *     struct uffdio_register  range @0, mode u64 @16, ioctls u64 @24
 *
 * A thread that waits does so in the kernel, wherever it touched the page: in JavaScript, or in a system call that was
 * given the page's address. It goes on when the page came, when its range is unregistered, and when the last descriptor of
 * the userfaultfd is closed.
 */

import { ENOSYS, EOPNOTSUPP, EPERM, SysError } from './errors.ts';
import { checked, lastErrno, libc } from './libc.ts';
import { OwnedFd, openFile } from './owned-fd.ts';
import { allocatePinned, mappedAddress } from './pinned.ts';

const SYS_userfaultfd = 323;
const O_RDWR = 2;
const O_CLOEXEC = 0x80000;
const O_NONBLOCK = 0x800;
const DEVICE = '/dev/userfaultfd';

const USERFAULTFD_IOC_NEW = 0xaa00;
const UFFD_API = 0xaa;
const UFFDIO_API = 0xc018_aa3f;
const UFFDIO_REGISTER = 0xc020_aa00;
const UFFDIO_UNREGISTER = 0x8010_aa01;
const UFFDIO_WAKE = 0x8010_aa02;
const UFFDIO_REGISTER_MODE_MISSING = 1;
const UFFD_FEATURE_MISSING_SHMEM = 1 << 5;
const MADV_DONTNEED = 4;
const MFD_CLOEXEC = 1;
const PROT_READ_WRITE = 3;
const MAP_SHARED_FIXED = 0x11;

const argument = allocatePinned(32);

/**
 * A new userfaultfd that serves faults of the kernel too: system calls on guest memory are how the back ends work. Not
 * everybody may have one (sysctl vm.unprivileged_userfaultfd): then the device file says who may.
 */
function createDescriptor(): OwnedFd {
  const flags = O_CLOEXEC | O_NONBLOCK;
  const fd = libc.syscall(SYS_userfaultfd, flags, 0, 0, 0, 0, 0);
  if (fd !== -1) return new OwnedFd(fd);
  const errno = lastErrno();
  if (errno !== EPERM && errno !== ENOSYS) throw new SysError('userfaultfd', errno);
  const device = openFile(DEVICE, O_RDWR);
  try {
    return new OwnedFd(checked(libc.ioctl(device.fd, USERFAULTFD_IOC_NEW, flags), 'ioctl', 'USERFAULTFD_IOC_NEW'));
  } finally {
    device.close();
  }
}

export class UserFault {
  /** For the peer, which gets a copy: it reads struct uffd_msg from it. */
  readonly fd: OwnedFd;

  /** @throws SysError - EPERM, EACCES, ENOENT: not for this process; EOPNOTSUPP: not for shared memory */
  constructor() {
    this.fd = createDescriptor();
    try {
      argument.setU64(0, UFFD_API);
      argument.setU64(8, 0);
      argument.setU64(16, 0);
      this.#ioctl(UFFDIO_API, 'UFFDIO_API');
      const features = argument.data.getUint32(8, true);
      if ((features & UFFD_FEATURE_MISSING_SHMEM) === 0) {
        throw new SysError('userfaultfd', EOPNOTSUPP, 'of shared memory');
      }
    } catch (error) {
      this.fd.close();
      throw error;
    }
  }

  /**
   * From now on an access to a page of this range that its file does not have waits. The range is one of whole pages, huge
   * ones where they are, in shared mappings.
   * @throws SysError - EINVAL: there are no such mappings; EBUSY: another userfaultfd has it
   */
  register(address: number, length: number): void {
    // Pages that the file has lost since this mapping saw them would not be missed.
    checked(libc.madvise(address, length, MADV_DONTNEED), 'madvise', 'MADV_DONTNEED');
    argument.setU64(0, address);
    argument.setU64(8, length);
    argument.setU64(16, UFFDIO_REGISTER_MODE_MISSING);
    argument.setU64(24, 0);
    this.#ioctl(UFFDIO_REGISTER, `UFFDIO_REGISTER of ${length} bytes`);
  }

  /**
   * Ends that, when every page has come. Somebody who waits still would find zeros: `abandonFaults` is for that.
   * @throws SysError
   */
  unregister(address: number, length: number): void {
    argument.setU64(0, address);
    argument.setU64(8, length);
    this.#ioctl(UFFDIO_UNREGISTER, `UFFDIO_UNREGISTER of ${length} bytes`);
  }

  #ioctl(request: number, what: string): void {
    checked(libc.ioctl(this.fd.fd, request, argument.address), 'ioctl', what);
  }

  /** Ranges stay registered as long as the peer has a copy of the descriptor: `unregister` them. */
  close(): void {
    this.fd.close();
  }
}

/** An empty file. Of a mapping of it, nothing is there. @throws SysError - EMFILE */
export function createEmptyFile(): OwnedFd {
  return new OwnedFd(checked(libc.memfd_create('abandoned', MFD_CLOEXEC), 'memfd_create'));
}

/**
 * Lets those go on who wait for pages that will never come, by failure: system calls get EFAULT, JavaScript finds the page
 * truncated (fault-guard.ts). Going on with zeros would have them written to a disk. For another thread than those that
 * wait: the range is one that was registered with the userfaultfd `fd`, and is of no more use.
 * @param empty a file of createEmptyFile
 * @throws SysError
 */
export function abandonFaults(fd: number, empty: number, address: number, length: number): void {
  mappedAddress(libc.mmap(address, length, PROT_READ_WRITE, MAP_SHARED_FIXED, empty, 0));
  argument.setU64(0, address);
  argument.setU64(8, length);
  checked(libc.ioctl(fd, UFFDIO_WAKE, argument.address), 'ioctl', 'UFFDIO_WAKE');
}

/** Whether this process may have a userfaultfd for shared memory that serves system calls too. */
export function userFaultsAvailable(): boolean {
  try {
    new UserFault().close();
    return true;
  } catch (error) {
    if (error instanceof SysError) return false;
    throw error;
  }
}
