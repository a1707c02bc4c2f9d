/**
 * The RAM of a guest: one region below the hole and one above 4 GiB, each a memfd (or a file) that this process, KVM and
 * the back ends map. Sparse: the host gives a page when it is first touched.
 */

import { statSync } from 'node:fs';
import { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { SysError } from '../../protocol/sys/errors.ts';
import { reserveHugePages } from '../../protocol/sys/mapping.ts';
import { createSealedMemfd, type OwnedFd, openFile, setFileSize } from '../../protocol/sys/owned-fd.ts';
import { O_RDWR } from '../../protocol/sys/storage.ts';
import type { MemoryRegion } from '../../protocol/vhost-user/payloads.ts';
import type { MemoryConfig } from './config.ts';
import { VmConfigError } from './errors.ts';
import { HOLE_END, HOLE_START } from './layout.ts';

const O_CREAT = 0o100;
const O_TMPFILE = 0o20200000;

/** A region as it is told to back ends. */
export interface RamRegion {
  readonly region: MemoryRegion;
  readonly memfd: OwnedFd;
}

export interface RamRange {
  /** Guest address. */
  readonly start: number;
  /** Bytes. */
  readonly length: number;
}

/** Where RAM of so many bytes is in the guest's address space. Pure. */
export function ramRanges(sizeBytes: number): RamRange[] {
  const low = Math.min(sizeBytes, HOLE_START);
  const high = sizeBytes - low;
  return [{ start: 0, length: low }, ...(high > 0 ? [{ start: HOLE_END, length: high }] : [])];
}

export class GuestRam {
  readonly sizeBytes: number;
  readonly ranges: readonly RamRange[];
  readonly regions: readonly RamRegion[];
  readonly memory: GuestMemory;

  private constructor(sizeBytes: number, ranges: RamRange[], regions: RamRegion[], memory: GuestMemory) {
    this.sizeBytes = sizeBytes;
    this.ranges = ranges;
    this.regions = regions;
    this.memory = memory;
  }

  /**
   * Allocates RAM, whole pages, that ends below `addressLimit` (bytes that a guest physical address can reach here).
   * @throws VmConfigError - the host's processors do not reach that far, or there are no such huge pages
   * @throws SysError - the host has not got it
   */
  static allocate(config: MemoryConfig, addressLimit: number): GuestRam {
    const { size } = config;
    const ranges = ramRanges(size);
    const last = ranges.at(-1);
    if (last !== undefined && last.start + last.length > addressLimit) {
      throw new VmConfigError(
        `memory: size ${size} ends at guest address 0x${(last.start + last.length).toString(16)}, ` +
          `above the 0x${addressLimit.toString(16)} that this host's processors reach`,
      );
    }
    const memory = new GuestMemory();
    const regions: RamRegion[] = [];
    try {
      let fileOffset = 0;
      for (const { start, length } of ranges) {
        const memfd = openMemory(config, length, fileOffset + length);
        const mmapOffset = config.file === undefined ? 0 : fileOffset;
        // No back end looks at the user addresses of our own mapping; it gets those of this process below.
        const described = { guestAddress: start, size: length, userAddress: start, mmapOffset };
        try {
          const userAddress = memory.add(described, memfd).hostDelta + start;
          regions.push({ region: { ...described, userAddress }, memfd });
        } catch (error) {
          memfd.close();
          throw error;
        }
        fileOffset += length;
      }
      return new GuestRam(size, ranges, regions, memory);
    } catch (error) {
      memory.clear();
      for (const { memfd } of regions) memfd.close();
      throw error;
    }
  }

  /** The address in this process of `length` bytes at a guest address; undefined where they are not in one region. */
  hostAddress(guestAddress: number, length: number): number | undefined {
    const region = this.memory.find(guestAddress);
    if (region === undefined || length > region.end - guestAddress) return undefined;
    return guestAddress + region.hostDelta;
  }

  /** Unmaps and closes everything. KVM and the rings have let go of it. Idempotent. */
  close(): void {
    this.memory.clear();
    for (const { memfd } of this.regions) memfd.close();
  }
}

/** The descriptor of one region. Regions of a named file lie one after the other in it, `end` is where this one ends. */
function openMemory({ file, hugepages }: MemoryConfig, length: number, end: number): OwnedFd {
  if (file === undefined) return hugepages === true ? openHugePages(length) : createSealedMemfd('ringside-ram', length);
  const isDirectory = statSync(file, { throwIfNoEntry: false })?.isDirectory() === true;
  const fd = openFile(file, O_RDWR | (isDirectory ? O_TMPFILE : O_CREAT));
  try {
    setFileSize(fd.fd, end, file);
    return fd;
  } catch (error) {
    fd.close();
    throw error;
  }
}

function openHugePages(length: number): OwnedFd {
  let memfd: OwnedFd | undefined;
  try {
    memfd = createSealedMemfd('ringside-ram', length, true);
    reserveHugePages(memfd.fd, length);
    return memfd;
  } catch (error) {
    memfd?.close();
    if (!(error instanceof SysError)) throw error;
    throw new VmConfigError(`memory: the host has not enough huge pages: ${error.message}`);
  }
}
