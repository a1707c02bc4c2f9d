/**
 * The RAM of a guest: one region below the hole and one above 4 GiB, and pieces of more that come and go while it runs, each
 * a memfd (or a file) that this process, KVM and the back ends map. Sparse: the host gives a page when it is first touched.
 */

import { statSync } from 'node:fs';
import { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { SysError } from '../../protocol/sys/errors.ts';
import { reserveHugePages } from '../../protocol/sys/mapping.ts';
import {
  createSealedMemfd,
  isSizeSealed,
  type OwnedFd,
  openFile,
  setFileSize,
  statFd,
} from '../../protocol/sys/owned-fd.ts';
import { fillHoles, nextFileData, punchHole } from '../../protocol/sys/sparse-file.ts';
import { O_RDWR } from '../../protocol/sys/storage.ts';
import type { MemoryRegion } from '../../protocol/vhost-user/payloads.ts';
import type { MemoryConfig } from './config.ts';
import { VmConfigError, VmError } from './errors.ts';
import { HOLE_END, HOLE_START } from './layout.ts';

const O_CREAT = 0o100;
const O_TMPFILE = 0o20200000;
/** What lies in one window of GuestMemory, wherever it starts. */
const MAX_BYTES = 2 ** 29;

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
  /** Bytes of RAM that the machine starts with, and where they are; pieces are not counted. */
  readonly sizeBytes: number;
  readonly ranges: readonly RamRange[];
  readonly memory = new GuestMemory();
  readonly #config: MemoryConfig;
  /** By guest address. */
  #regions: readonly RamRegion[] = [];
  /** Those of them that are on their way out. */
  readonly #withdrawn = new Set<RamRegion>();
  #closed = false;

  private constructor(config: MemoryConfig) {
    this.#config = config;
    this.sizeBytes = config.size;
    this.ranges = ramRanges(config.size);
  }

  /**
   * Allocates RAM, whole pages, that ends below `addressLimit` (bytes that a guest physical address can reach here), and
   * the `pieces` that a machine had elsewhere. Where `given` has a memfd for a range (by guest address) RAM is that one, with
   * what is in it; the caller closes them when it throws.
   * @throws VmConfigError - the host's processors do not reach that far, or there are no such huge pages
   * @throws SysError - the host has not got it
   */
  static allocate(
    config: MemoryConfig,
    addressLimit: number,
    pieces: readonly RamRange[] = [],
    given: ReadonlyMap<number | undefined, OwnedFd> = new Map(),
  ): GuestRam {
    const ram = new GuestRam(config);
    const last = ram.ranges.at(-1);
    if (last !== undefined && last.start + last.length > addressLimit) {
      throw new VmConfigError(
        `memory: size ${config.size} ends at guest address 0x${(last.start + last.length).toString(16)}, ` +
          `above the 0x${addressLimit.toString(16)} that this host's processors reach`,
      );
    }
    try {
      if (config.file !== undefined) emptyFile(config.file);
      let fileOffset = 0;
      for (const range of ram.ranges) {
        ram.#add(range, fileOffset, given.get(range.start) ?? 'whole');
        fileOffset += range.length;
      }
      // What has been plugged there is to be filled, so that no page may be missing.
      for (const piece of pieces) ram.#add(piece, piece.start, given.get(piece.start) ?? 'whole');
      return ram;
    } catch (error) {
      ram.close();
      throw error;
    }
  }

  /** All that is there now, as KVM and back ends get it. */
  get regions(): readonly RamRegion[] {
    return this.#withdrawn.size === 0 ? this.#regions : this.#regions.filter((region) => !this.#withdrawn.has(region));
  }

  /** What of it was added to the RAM that the machine started with. */
  get pieces(): readonly RamRange[] {
    const ranges = this.regions.map(({ region }) => ({ start: region.guestAddress, length: region.size }));
    return ranges.filter(({ start }) => !this.ranges.some((range) => range.start === start));
  }

  /**
   * Adds a piece, above all RAM that the machine started with. Of huge pages none are there before `reserve`.
   * @throws SysError, VmConfigError - the host has not got it @throws VmError - RAM is closed
   */
  addRegion(start: number, length: number): RamRegion {
    if (this.#closed) throw new VmError('RAM is gone: the machine has ended');
    // In a named file no other region is there: guest addresses of RAM are not below its offsets in the file.
    return this.#add({ start, length }, start, 'sparse');
  }

  /** Nobody gets a piece (the same object) from now on. Who has it uses it still. */
  withdrawRegion(piece: RamRegion): void {
    if (this.#regions.includes(piece)) this.#withdrawn.add(piece);
  }

  /**
   * Unmaps and closes a piece (the same object). KVM and the devices have let go of it. What a named file has of it stays
   * there: `discard` it before.
   */
  removeRegion(removed: RamRegion): void {
    if (!this.#regions.includes(removed)) return;
    this.#withdrawn.delete(removed);
    this.#regions = this.#regions.filter((region) => region !== removed);
    const mapped = this.memory.find(removed.region.guestAddress);
    if (mapped !== undefined) this.memory.remove(mapped);
    removed.memfd.close();
  }

  #add({ start, length }: RamRange, fileOffset: number, from: 'whole' | 'sparse' | OwnedFd): RamRegion {
    const memfd =
      typeof from === 'string'
        ? openMemory(this.#config, length, fileOffset + length, from === 'whole')
        : checkGiven(from, length);
    const mmapOffset = this.#config.file === undefined ? 0 : fileOffset;
    // No back end looks at the user addresses of our own mapping; it gets those of this process below.
    const described = { guestAddress: start, size: length, userAddress: start, mmapOffset };
    try {
      const userAddress = this.memory.add(described, memfd).hostDelta + start;
      const added = { region: { ...described, userAddress }, memfd };
      this.#regions = [...this.#regions, added].sort((a, b) => a.region.guestAddress - b.region.guestAddress);
      return added;
    } catch (error) {
      memfd.close();
      throw error;
    }
  }

  #regionOf(guestAddress: number, length: number): RamRegion {
    const found = this.#regions.find(
      ({ region }) => guestAddress >= region.guestAddress && guestAddress < region.guestAddress + region.size,
    );
    if (found === undefined || length > found.region.guestAddress + found.region.size - guestAddress) {
      throw new RangeError(
        `${length} bytes at guest address 0x${guestAddress.toString(16)} are not in one region of RAM`,
      );
    }
    return found;
  }

  /** The address in this process of `length` bytes at a guest address; undefined where they are not in one region. */
  hostAddress(guestAddress: number, length: number): number | undefined {
    const region = this.memory.find(guestAddress);
    if (region === undefined || length > region.end - guestAddress) return undefined;
    return guestAddress + region.hostDelta;
  }

  /**
   * A view of at most 512 MiB of guest memory, in one region. The guest writes to it meanwhile; it is not to be used past
   * the removal of its region. @throws RangeError - it is not in one region, or too long
   */
  bytes(guestAddress: number, length: number): Uint8Array {
    if (length > MAX_BYTES || !this.memory.locate(guestAddress, length)) {
      throw new RangeError(`no view of ${length} bytes of RAM at guest address 0x${guestAddress.toString(16)}`);
    }
    const { view, offset } = this.memory;
    return new Uint8Array(view.buffer, view.byteOffset + offset, length);
  }

  /**
   * The first bytes at or above a guest address that the host has pages for, in one region; all others are zero. Undefined
   * where there are no more. @throws SysError
   */
  nextData(from: number): RamRange | undefined {
    for (const { region, memfd } of this.#regions) {
      const { guestAddress, size, mmapOffset } = region;
      const end = mmapOffset + size;
      const data = nextFileData(memfd.fd, mmapOffset + Math.max(0, from - guestAddress), end);
      if (data !== undefined) return { start: guestAddress + data.start - mmapOffset, length: data.length };
    }
    return undefined;
  }

  /**
   * Gives whole pages back to the host, on the thread pool: they read as zero then, and cost nothing until they are written.
   * @throws RangeError - they are not in one region @throws SysError - EOPNOTSUPP: the file of RAM has no holes
   */
  async discard(guestAddress: number, length: number): Promise<void> {
    await this.#onFile(guestAddress, length, punchHole);
  }

  async #onFile(
    guestAddress: number,
    length: number,
    step: (fd: number, offset: number, length: number) => Promise<void>,
  ): Promise<void> {
    const { region, memfd } = this.#regionOf(guestAddress, length);
    // Open until it is done, whoever removes the region meanwhile.
    const fd = memfd.duplicate();
    try {
      await step(fd.fd, region.mmapOffset + guestAddress - region.guestAddress, length);
    } finally {
      fd.close();
    }
  }

  /**
   * Takes the huge pages of a part from the host's pool, so that none is missing when it is touched, until `discard`; nothing
   * to do where RAM is of small ones. Some may be taken where it fails.
   * @throws RangeError - it is not in one region @throws SysError - ENOSPC: there are not so many
   */
  async reserve(guestAddress: number, length: number): Promise<void> {
    if (this.#hasHugePages) await this.#onFile(guestAddress, length, fillHoles);
  }

  get #hasHugePages(): boolean {
    return this.#config.hugepages === true && this.#config.file === undefined;
  }

  /** Unmaps and closes everything. KVM and the rings have let go of it. Idempotent. */
  close(): void {
    this.#closed = true;
    const regions = this.#regions;
    this.#regions = [];
    this.#withdrawn.clear();
    this.memory.clear();
    for (const { memfd } of regions) memfd.closeLater();
  }
}

/** @throws VmError - it is no memory of so many bytes, or somebody could truncate it under the mapping */
function checkGiven(memfd: OwnedFd, length: number): OwnedFd {
  const { size } = statFd(memfd.fd);
  if (size === length && isSizeSealed(memfd.fd)) return memfd;
  throw new VmError(`${length} bytes of RAM come as a file of ${size} bytes, or as one whose size is not sealed`);
}

/**
 * The descriptor of one region. A named file is one file for all of them, `end` is where this one ends in it. Huge pages
 * are taken from the host at once where the `whole` of them is.
 */
function openMemory({ file, hugepages }: MemoryConfig, length: number, end: number, whole: boolean): OwnedFd {
  if (file === undefined) {
    return hugepages === true ? openHugePages(length, whole) : createSealedMemfd('ringside-ram', length);
  }
  const isDirectory = statSync(file, { throwIfNoEntry: false })?.isDirectory() === true;
  const fd = openFile(file, O_RDWR | (isDirectory ? O_TMPFILE : O_CREAT));
  try {
    if (statFd(fd.fd).size < end) setFileSize(fd.fd, end, file);
    return fd;
  } catch (error) {
    fd.close();
    throw error;
  }
}

/** RAM is zero at the start, whatever a file had in it. */
function emptyFile(file: string): void {
  if (statSync(file, { throwIfNoEntry: false })?.isFile() !== true) return;
  const fd = openFile(file, O_RDWR);
  try {
    setFileSize(fd.fd, 0, file);
  } finally {
    fd.close();
  }
}

function openHugePages(length: number, whole: boolean): OwnedFd {
  let memfd: OwnedFd | undefined;
  try {
    memfd = createSealedMemfd('ringside-ram', length, true);
    if (whole) reserveHugePages(memfd.fd, length);
    return memfd;
  } catch (error) {
    memfd?.close();
    if (!(error instanceof SysError)) throw error;
    throw new VmConfigError(`memory: the host has not enough huge pages: ${error.message}`);
  }
}
