/**
 * Guest memory as a front end shares it, and the only translator of addresses into it. A region is one mapping; reads
 * and writes by JavaScript go through windows, overlapping views of at most 1 GiB each, 512 MiB apart, so that any
 * range up to 512 MiB lies in one window whatever the region's size. Source: vhost-user, Memory region description.
 *
 *     region   |-------------------------------------------------------------|
 *     window 0 |----- 1 GiB ------|
 *     window 1          |----- 1 GiB ------|
 *     window 2                   |----- 1 GiB ------| ...
 *
 * Three address spaces meet here: guest addresses (in descriptors), user addresses (the front end's, in ring
 * addresses) and host addresses (ours, for system calls). The peer may write to the memory at any time: read a value
 * once, check the copy, use the copy.
 */

import { BorrowedMapping, isHugePageFile, type Mapping, type SharedExtent, SharedMapping } from '../sys/mapping.ts';
import { type OwnedFd, S_IFREG, statFd } from '../sys/owned-fd.ts';
import { MemoryError } from './memory-error.ts';

/** Regions a table can have: what libvhost-user and rust-vmm offer too. */
export const MAX_MEMORY_REGIONS = 509;

const WINDOW_STRIDE = 0x2000_0000;
const WINDOW_BYTES = 0x4000_0000;
const PAGE_BYTES = 4096;

/** One region as a front end describes it. Addresses and sizes in bytes; `mmapOffset` is where it starts in the file. */
export interface RegionDescription {
  readonly guestAddress: number;
  readonly size: number;
  readonly userAddress: number;
  readonly mmapOffset: number;
}

/** A mapped region as plain data, for a message to another thread. `offset` is where it starts in the extent. */
export interface SharedRegion {
  readonly description: RegionDescription;
  readonly extent: SharedExtent;
  readonly offset: number;
  readonly hugePages: boolean;
}

/** A mapped region. Owned by its GuestMemory. */
export class MemoryRegion {
  readonly description: RegionDescription;
  readonly start: number;
  readonly end: number;
  readonly userStart: number;
  /** Add to a guest address of this region to get its host address. */
  readonly hostDelta: number;
  readonly mapping: Mapping;
  /** Its file is of huge pages: smaller ones of it cannot be mapped elsewhere. */
  readonly hugePages: boolean;
  readonly #mappingOffset: number;
  readonly #windows: (DataView | undefined)[] = [];

  constructor(description: RegionDescription, mapping: Mapping, mappingOffset: number, hugePages: boolean) {
    this.hugePages = hugePages;
    this.description = description;
    this.start = description.guestAddress;
    this.end = description.guestAddress + description.size;
    this.userStart = description.userAddress;
    this.mapping = mapping;
    this.#mappingOffset = mappingOffset;
    this.hostDelta = mapping.address + mappingOffset - description.guestAddress;
  }

  /** For another thread of this process: it borrows the mapping and is to be done with it before this one ends. */
  share(): SharedRegion {
    return {
      description: this.description,
      extent: this.mapping.share(),
      offset: this.#mappingOffset,
      hugePages: this.hugePages,
    };
  }

  /** Whether this is the region that `share` described. */
  is({ description, extent, offset }: SharedRegion): boolean {
    const own = this.mapping.share();
    return (
      own.address === extent.address &&
      own.length === extent.length &&
      own.faultSlot === extent.faultSlot &&
      offset === this.#mappingOffset &&
      description.guestAddress === this.start &&
      description.size === this.end - this.start &&
      description.userAddress === this.userStart
    );
  }

  /** The window that holds 512 MiB from the given offset, as far as the region goes. */
  window(index: number): DataView {
    return this.#windows[index] ?? this.#openWindow(index);
  }

  #openWindow(index: number): DataView {
    const offset = index * WINDOW_STRIDE;
    const length = Math.min(WINDOW_BYTES, this.end - this.start - offset);
    const view = new DataView(this.mapping.view(this.#mappingOffset + offset, length));
    this.#windows[index] = view;
    return view;
  }

  /** A view of its own over a part of the region, for rings. */
  view(guestAddress: number, length: number): ArrayBuffer {
    return this.mapping.view(this.#mappingOffset + guestAddress - this.start, length);
  }
}

function borrow({ description, extent, offset, hugePages }: SharedRegion): MemoryRegion {
  return new MemoryRegion(description, new BorrowedMapping(extent), offset, hugePages);
}

export class GuestMemory {
  /** What the last successful `locate` found: the view, and the byte offset in it. */
  view: DataView = new DataView(new ArrayBuffer(0));
  offset = 0;

  /** Changes whenever a region comes or goes: what was resolved before must be resolved again. */
  generation = 0;

  /** Sorted by guest address. */
  #regions: MemoryRegion[] = [];
  #byUser: MemoryRegion[] = [];
  #last: MemoryRegion | undefined;

  get regions(): readonly MemoryRegion[] {
    return this.#regions;
  }

  /**
   * Maps one more region. The descriptor stays the caller's and may be closed afterwards.
   * @throws MemoryError - overlap, size 0, overflow, too many regions, or a descriptor that is not a file of that size
   * @throws SysError - it cannot be mapped
   */
  add(description: RegionDescription, fd: OwnedFd): MemoryRegion {
    this.#check(description);
    const { guestAddress, size, mmapOffset } = description;
    const what = `memory region at guest address 0x${guestAddress.toString(16)}`;
    const stat = statFd(fd.fd);
    if (stat.type !== S_IFREG) throw new MemoryError(`${what}: its descriptor is not a file that can be shared memory`);
    if (stat.size < mmapOffset || stat.size - mmapOffset < size) {
      throw new MemoryError(
        `${what}: ${size} bytes at offset ${mmapOffset} of a file of ${stat.size} bytes, beyond its end`,
      );
    }
    // hugetlbfs maps whole huge pages only, and says their size as its block size.
    const page = Math.max(PAGE_BYTES, stat.blockSize);
    const lead = mmapOffset % page;
    const length = Math.ceil((lead + size) / page) * page;
    const mapped = mmapOffset - lead + length <= stat.size ? length : lead + size;
    const hugePages = isHugePageFile(fd.fd);
    const region = new MemoryRegion(description, new SharedMapping(fd.fd, mmapOffset - lead, mapped), lead, hugePages);
    this.#set([...this.#regions, region]);
    return region;
  }

  /**
   * Borrows the regions of another GuestMemory of this process, in the place of what was here; a region that stays keeps its
   * views. Their owner keeps them mapped until this has let go of them.
   */
  adopt(regions: readonly SharedRegion[]): void {
    const old = this.#regions;
    const kept = new Set<MemoryRegion>();
    this.#set(
      regions.map((shared) => {
        const same = old.find((region) => region.is(shared));
        const region = same ?? borrow(shared);
        kept.add(region);
        return region;
      }),
    );
    for (const region of old) if (!kept.has(region)) region.mapping.retire();
  }

  #set(regions: MemoryRegion[]): void {
    this.#regions = regions.sort((a, b) => a.start - b.start);
    this.#byUser = [...regions].sort((a, b) => a.userStart - b.userStart);
    this.#last = undefined;
    this.view = new DataView(new ArrayBuffer(0));
    this.generation += 1;
  }

  #check({ guestAddress, size, userAddress, mmapOffset }: RegionDescription): void {
    const what = `memory region at guest address 0x${guestAddress.toString(16)}`;
    if (size === 0) throw new MemoryError(`${what}: size 0`);
    for (const base of [guestAddress, userAddress, mmapOffset]) {
      if (size > Number.MAX_SAFE_INTEGER - base)
        throw new MemoryError(`${what}: ${size} bytes overflow the address space`);
    }
    if (this.#regions.length >= MAX_MEMORY_REGIONS) {
      throw new MemoryError(`${what}: there are ${MAX_MEMORY_REGIONS} regions already, the limit`);
    }
    for (const other of this.#regions) {
      const otherSize = other.end - other.start;
      if (guestAddress < other.end && other.start < guestAddress + size) {
        throw new MemoryError(`${what}: overlaps the one at 0x${other.start.toString(16)}`);
      }
      if (userAddress < other.userStart + otherSize && other.userStart < userAddress + size) {
        throw new MemoryError(`${what}: user address 0x${userAddress.toString(16)} overlaps another region's`);
      }
    }
  }

  /** The region with exactly these addresses and size (the offset does not count), or undefined. */
  findExact({ guestAddress, size, userAddress }: RegionDescription): MemoryRegion | undefined {
    return this.#regions.find(
      (r) => r.start === guestAddress && r.end - r.start === size && r.userStart === userAddress,
    );
  }

  /** Unmaps a region. The caller has drained what uses it. */
  remove(region: MemoryRegion): void {
    this.#set(this.#regions.filter((r) => r !== region));
    region.mapping.retire();
  }

  /** Unmaps everything. The caller has drained what uses it. */
  clear(): void {
    const regions = this.#regions;
    this.#set([]);
    for (const region of regions) region.mapping.retire();
  }

  /** The first guest address above all regions. */
  get end(): number {
    return this.#regions.at(-1)?.end ?? 0;
  }

  /** Whether a front end took pages of a mapped region away. */
  get faulted(): boolean {
    const regions = this.#regions;
    for (let i = 0; i < regions.length; i += 1) if ((regions[i] as MemoryRegion).mapping.faulted) return true;
    return false;
  }

  /** The region of a guest address, or undefined. Remembers the last one: most accesses stay in one region. */
  find(guestAddress: number): MemoryRegion | undefined {
    const last = this.#last;
    if (last !== undefined && guestAddress >= last.start && guestAddress < last.end) return last;
    const regions = this.#regions;
    let low = 0;
    let high = regions.length - 1;
    while (low <= high) {
      const middle = (low + high) >> 1;
      const region = regions[middle] as MemoryRegion;
      if (guestAddress < region.start) high = middle - 1;
      else if (guestAddress >= region.end) low = middle + 1;
      else {
        this.#last = region;
        return region;
      }
    }
    return undefined;
  }

  /** The region of a user address of the front end, or undefined. */
  findUser(userAddress: number): MemoryRegion | undefined {
    const regions = this.#byUser;
    let low = 0;
    let high = regions.length - 1;
    while (low <= high) {
      const middle = (low + high) >> 1;
      const region = regions[middle] as MemoryRegion;
      const offset = userAddress - region.userStart;
      if (offset < 0) high = middle - 1;
      else if (offset >= region.end - region.start) low = middle + 1;
      else return region;
    }
    return undefined;
  }

  /**
   * Finds `length` bytes (at most 512 MiB) at a guest address in one window and leaves it in `view` and `offset`.
   * False when the range is not inside one region.
   */
  locate(guestAddress: number, length: number): boolean {
    const region = this.find(guestAddress);
    if (region === undefined || length > region.end - guestAddress) return false;
    const inRegion = guestAddress - region.start;
    if (inRegion < WINDOW_STRIDE) {
      this.view = region.window(0);
      this.offset = inRegion;
    } else {
      const index = Math.floor(inRegion / WINDOW_STRIDE);
      this.view = region.window(index);
      this.offset = inRegion - index * WINDOW_STRIDE;
    }
    return true;
  }

  /** Copies from guest memory, across adjacent regions too. False, with part copied, when some of it is not mapped. */
  copyOut(guestAddress: number, target: Uint8Array): boolean {
    return this.#copy(guestAddress, target, (guest, part) => part.set(guest));
  }

  /** Copies into guest memory, across adjacent regions too. False, with part copied, when some of it is not mapped. */
  copyIn(guestAddress: number, source: Uint8Array): boolean {
    return this.#copy(guestAddress, source, (guest, part) => guest.set(part));
  }

  #copy(guestAddress: number, bytes: Uint8Array, move: (guest: Uint8Array, part: Uint8Array) => void): boolean {
    let done = 0;
    while (done < bytes.length) {
      const region = this.find(guestAddress + done);
      if (region === undefined) return false;
      const step = Math.min(bytes.length - done, region.end - guestAddress - done, WINDOW_STRIDE);
      this.locate(guestAddress + done, step);
      move(
        new Uint8Array(this.view.buffer, this.view.byteOffset + this.offset, step),
        bytes.subarray(done, done + step),
      );
      done += step;
    }
    return true;
  }

  /**
   * The guest address that a user address of the front end stands for, when `length` bytes from there lie in one region.
   * @throws MemoryError - they do not
   */
  fromUserAddress(userAddress: number, length: number, what: string): number {
    const region = this.findUser(userAddress);
    if (region !== undefined) {
      const guestAddress = region.start + (userAddress - region.userStart);
      if (length <= region.end - guestAddress) return guestAddress;
    }
    throw new MemoryError(
      `${what}: ${length} bytes at user address 0x${userAddress.toString(16)} are not in one region`,
    );
  }
}
