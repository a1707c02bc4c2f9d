/**
 * The file or block device behind the device: opened, locked, measured. The lock is on the open file that requests use,
 * so it lasts until the kernel has finished the last of them, also those of a daemon that was killed: a successor that
 * resubmits them cannot be overtaken by their originals.
 */

import { EACCES, EINVAL, EISDIR, EPERM, EROFS, SysError } from '../../protocol/sys/errors.ts';
import { type OwnedFd, openFile, S_IFBLK, S_IFIFO, S_IFREG, statFd } from '../../protocol/sys/owned-fd.ts';
import {
  blockDeviceSizes,
  O_DIRECT,
  O_PATH,
  O_RDONLY,
  O_RDWR,
  storageSize,
  tryLock,
} from '../../protocol/sys/storage.ts';
import { VIRTIO_BLK_SECTOR_BYTES } from '../../protocol/virtio/blk.ts';
import type { Logger } from '../core/logging.ts';
import { UsageError } from '../core/options.ts';

/** How long to wait for the lock of a daemon that just died and has requests in the kernel. */
const LOCK_PATIENCE_MS = 3000;
const LOCK_RETRY_MS = 20;

export interface DiskOptions {
  readonly path: string;
  readonly readOnly: boolean;
  readonly direct: boolean;
  /** Another daemon has the disk locked, and gives it up before a guest comes: it is locked then. */
  readonly incoming: boolean;
}

/** A disk as those see it who read and write it, on any thread. */
export interface DiskFiles {
  /** The descriptor for transfers, and the one through the page cache: the same without O_DIRECT. */
  readonly fds: readonly [main: number, buffered: number];
  readonly path: string;
  readonly readOnly: boolean;
  readonly direct: boolean;
  readonly isBlockDevice: boolean;
  /** Alignment in bytes that O_DIRECT wants of buffers, and of offsets and lengths; 1 without it. */
  readonly memoryAlign: number;
  readonly offsetAlign: number;
}

/** A disk and its owner. */
export interface Disk {
  readonly files: DiskFiles;
  readonly main: OwnedFd;
  readonly buffered: OwnedFd;
  /** Logical and physical block size in bytes of a block device; 512 and 4096 for files. */
  readonly logicalBlock: number;
  readonly physicalBlock: number;
}

/** @throws UsageError - opening it would wait for somebody to write */
function refuseFifo(path: string): void {
  const fd = openFile(path, O_PATH);
  try {
    if (statFd(fd.fd).type === S_IFIFO) throw notADisk(path);
  } finally {
    fd.close();
  }
}

function open(path: string, readOnly: boolean, direct: boolean): OwnedFd {
  refuseFifo(path);
  try {
    return openFile(path, (readOnly ? O_RDONLY : O_RDWR) | (direct ? O_DIRECT : 0));
  } catch (error) {
    if (error instanceof SysError && error.errno === EISDIR) throw notADisk(path);
    if (direct && error instanceof SysError && error.errno === EINVAL) {
      throw new UsageError(`--direct: the file system of ${path} has no O_DIRECT`);
    }
    throw error;
  }
}

function notADisk(path: string): UsageError {
  return new UsageError(`${path} is neither a file nor a block device`);
}

/** Opens for writing, or for reading where writing is not allowed. */
function openMain(options: DiskOptions, log: Logger): { fd: OwnedFd; readOnly: boolean } {
  const { path, readOnly, direct } = options;
  if (readOnly) return { fd: open(path, true, direct), readOnly };
  try {
    return { fd: open(path, false, direct), readOnly };
  } catch (error) {
    if (!(error instanceof SysError) || ![EACCES, EPERM, EROFS].includes(error.errno)) throw error;
    const fd = open(path, true, direct);
    log.warn(`${path} cannot be written (${error.code}): the device is read-only`);
    return { fd, readOnly: true };
  }
}

/**
 * Opens and locks the disk.
 * @throws UsageError - not a file or block device, in use, or smaller than a sector
 * @throws SysError - it cannot be opened
 */
export async function openDisk(options: DiskOptions, log: Logger): Promise<Disk> {
  const { path, direct } = options;
  const { fd: main, readOnly } = openMain(options, log);
  const stat = statFd(main.fd);
  const isBlockDevice = stat.type === S_IFBLK;
  if (!isBlockDevice && stat.type !== S_IFREG) throw notADisk(path);
  const size = storageSize(main.fd);
  if (size < VIRTIO_BLK_SECTOR_BYTES) throw new UsageError(`${path} has ${size} bytes, less than one sector (512)`);
  if (size % VIRTIO_BLK_SECTOR_BYTES !== 0) {
    log.warn(
      `${path} has ${size} bytes: the last ${size % VIRTIO_BLK_SECTOR_BYTES} are not part of a sector and unused`,
    );
  }
  if (!options.incoming) await lockDisk(main, readOnly, path);
  const sizes = isBlockDevice ? blockDeviceSizes(main.fd) : { logical: VIRTIO_BLK_SECTOR_BYTES, physical: 4096 };
  // By descriptor, not by name: the file may have been renamed while we waited for the lock.
  const buffered = direct ? open(`/proc/self/fd/${main.fd}`, readOnly, false) : main;
  // Kernels before 6.1 do not tell what O_DIRECT wants; a page suits every device.
  const files = {
    fds: [main.fd, buffered.fd] as const,
    path,
    readOnly,
    direct,
    isBlockDevice,
    memoryAlign: direct ? stat.dioMemoryAlign || 4096 : 1,
    offsetAlign: direct ? stat.dioOffsetAlign || 4096 : 1,
  };
  return { files, main, buffered, logicalBlock: sizes.logical, physicalBlock: sizes.physical };
}

/** Waits for the lock of the disk. @throws UsageError - another process keeps it */
export async function lockDisk(fd: OwnedFd, readOnly: boolean, path: string): Promise<void> {
  const deadline = performance.now() + LOCK_PATIENCE_MS;
  while (!tryLock(fd.fd, !readOnly)) {
    if (performance.now() > deadline) {
      throw new UsageError(`${path} is in use by another process (${readOnly ? 'it writes' : 'it is locked'})`);
    }
    await new Promise((resolve) => setTimeout(resolve, LOCK_RETRY_MS));
  }
}

/** The size as the driver sees it: whole sectors, in bytes. @throws SysError */
export function diskCapacity(disk: Disk): number {
  const size = storageSize(disk.main.fd);
  return size - (size % VIRTIO_BLK_SECTOR_BYTES);
}
