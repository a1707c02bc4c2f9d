/**
 * Mappings of shared memory, and their lifetime. A view (ArrayBuffer) of a mapping cannot be detached on Node 20, and
 * touching one after munmap would be a crash; so a retired mapping is first replaced by anonymous memory at the same
 * address (which releases the file and its pages), and unmapped when the last view of it was collected.
 *
 * A mapping belongs to the thread that made it. Others of the process borrow it: they make views of their own over the same
 * addresses, and drop them before the owner retires it.
 */

import { SysError } from './errors.ts';
import { guard, hasFaulted, installFaultGuard, unguard } from './fault-guard.ts';
import { checked, lastErrno, libc, viewMemory } from './libc.ts';
import { allocatePinned, MAP_FAILED, mappedAddress } from './pinned.ts';

const PROT_NONE = 0;
const PROT_READ = 1;
const PROT_READ_WRITE = 3;
const MAP_SHARED = 0x01;
const MAP_PRIVATE = 0x02;
const MAP_FIXED = 0x10;
const MAP_ANONYMOUS = 0x20;
const MAP_NORESERVE = 0x4000;
const MREMAP_MAYMOVE = 1;
const MREMAP_FIXED = 2;

/** Views are at most this long: Node 20 aborts on longer ones than 4 GiB. */
export const MAX_VIEW_BYTES = 0x4000_0000;

/** linux/magic.h */
const HUGETLBFS_MAGIC = 0x9584_58f6;
/** struct statfs: f_type u64 @0. */
const statfs = allocatePinned(128);

/** Whether a file is of huge pages only, which are mapped whole or not at all. @throws SysError */
export function isHugePageFile(fd: number): boolean {
  checked(libc.fstatfs(fd, statfs.address), 'fstatfs', `fd ${fd}`);
  return statfs.data.getUint32(0, true) === HUGETLBFS_MAGIC;
}

/**
 * Takes `length` bytes of a file of huge pages from the host's pool, so that none is missing when it is touched: they stay
 * the file's. @throws SysError - ENOMEM: there are not so many
 */
export function reserveHugePages(fd: number, length: number): void {
  const address = mappedAddress(
    libc.mmap(0, length, PROT_READ_WRITE, MAP_SHARED, fd, 0),
    `${length} bytes of huge pages`,
  );
  checked(libc.munmap(address, length), 'munmap');
}

/** Memory that a peer shares. */
export interface Mapping {
  readonly address: number;
  readonly length: number;
  /** Whether the peer took pages of this mapping away: what is read from it now is zero. */
  readonly faulted: boolean;
  /** A view of at most MAX_VIEW_BYTES of the mapping. Each call makes a new one: keep it, but not past `retire`. */
  view(offset: number, length: number): ArrayBuffer;
  /** What another thread of this process needs to know to borrow it. */
  share(): SharedExtent;
  /** Ends the mapping, for an owner; for a borrower, only that views can be had. Idempotent. */
  retire(): void;
}

/** A mapping as plain numbers, for a message to another thread. `faultSlot` is where its faults are noted. */
export interface SharedExtent {
  readonly address: number;
  readonly length: number;
  readonly faultSlot: number;
}

/** A part of a shared mapping, which is guarded as a whole. The caller has checked that it lies inside. */
export function partOf({ address, faultSlot }: SharedExtent, offset: number, length: number): SharedExtent {
  return { address: address + offset, length, faultSlot };
}

interface Extent {
  readonly address: number;
  readonly length: number;
  liveViews: number;
  retired: boolean;
}

let mappedExtents = 0;

function unmapWhenUnused(extent: Extent): void {
  if (!extent.retired || extent.liveViews > 0) return;
  checked(libc.munmap(extent.address, extent.length), 'munmap');
  mappedExtents -= 1;
}

const collected = new FinalizationRegistry<Extent>((extent) => {
  extent.liveViews -= 1;
  unmapWhenUnused(extent);
});

/** How many mappings this thread owns, retired ones with uncollected views included. For tests and statistics. */
export function countMappings(): number {
  return mappedExtents;
}

function checkView(mapping: Mapping, retired: boolean, offset: number, length: number): void {
  if (retired || length > MAX_VIEW_BYTES || offset < 0 || length > mapping.length - offset) {
    throw new RangeError(`view of ${length} bytes at ${offset} of a mapping of ${mapping.length} bytes`);
  }
}

/** A mapping that this thread owns, whatever is mapped there. */
class OwnedMapping implements Mapping {
  readonly address: number;
  readonly length: number;
  readonly #extent: Extent;
  readonly #slot: number;
  #retired = false;

  /** Takes over an address range that is mapped. @throws SysError - ENOMEM: too many mappings; it is unmapped then */
  constructor(address: number, length: number) {
    this.address = address;
    this.length = length;
    this.#extent = { address, length, liveViews: 0, retired: false };
    mappedExtents += 1;
    try {
      installFaultGuard();
      this.#slot = guard(address, length);
    } catch (error) {
      this.#extent.retired = true;
      unmapWhenUnused(this.#extent);
      throw error;
    }
  }

  view(offset: number, length: number): ArrayBuffer {
    checkView(this, this.#retired, offset, length);
    const buffer = viewMemory(this.address + offset, length);
    this.#extent.liveViews += 1;
    collected.register(buffer, this.#extent);
    return buffer;
  }

  get faulted(): boolean {
    return hasFaulted(this.#slot);
  }

  share(): SharedExtent {
    return { address: this.address, length: this.length, faultSlot: this.#slot };
  }

  /** Ends the mapping: the file's pages are released now, the address range when no view is left. Idempotent. */
  retire(): void {
    if (this.#retired) return;
    this.#retired = true;
    const flags = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_NORESERVE;
    // Writable memory is charged where memory is not overcommitted, and may be refused; nobody should write here any more.
    const writable = libc.mmap(this.address, this.length, PROT_READ_WRITE, flags, -1, 0);
    if (writable === MAP_FAILED) mappedAddress(libc.mmap(this.address, this.length, PROT_READ, flags, -1, 0));
    unguard(this.#slot);
    this.#extent.retired = true;
    unmapWhenUnused(this.#extent);
  }
}

/** A shared mapping of a file descriptor. The descriptor may be closed after construction. */
export class SharedMapping extends OwnedMapping {
  /**
   * Maps `length` bytes of `fd` from `offset` (a multiple of the page size), readable and writable.
   * @throws SysError - the descriptor cannot be mapped; ENOMEM also when there are too many mappings
   */
  constructor(fd: number, offset: number, length: number) {
    const flags = MAP_SHARED | MAP_NORESERVE;
    super(mappedAddress(libc.mmap(0, length, PROT_READ_WRITE, flags, fd, offset)), length);
  }
}

/** A part of a shared mapping: whole pages, by their host address. Not of a file of huge pages. */
export interface MappingPiece {
  readonly address: number;
  readonly length: number;
}

/** Maps the pages of `pieces` a second time, one piece behind the other. Returns where, and how much it is in all. */
function stitch(pieces: readonly MappingPiece[]): MappingPiece {
  const length = pieces.reduce((sum, piece) => sum + piece.length, 0);
  const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  const address = mappedAddress(libc.mmap(0, length, PROT_NONE, flags, -1, 0), `${length} bytes of addresses`);
  let at = address;
  for (const piece of pieces) {
    // An old size of 0 leaves the pages where they are and maps them again: mremap(2).
    const moved = libc.mremap(piece.address, 0, piece.length, MREMAP_MAYMOVE | MREMAP_FIXED, at);
    if (moved === MAP_FAILED) {
      const errno = lastErrno();
      libc.munmap(address, length);
      throw new SysError('mremap', errno, `${piece.length} bytes of shared memory`);
    }
    at += piece.length;
  }
  return { address, length };
}

/** Scattered pages of shared mappings at consecutive addresses, which stay mapped where they were too. */
export class StitchedMapping extends OwnedMapping {
  /**
   * The mappings of the pieces have to be there only while this runs.
   * @throws SysError - ENOMEM: too many mappings
   */
  constructor(pieces: readonly MappingPiece[]) {
    const { address, length } = stitch(pieces);
    super(address, length);
  }
}

/** A mapping of another thread of this process, or of another owner on this one. */
export class BorrowedMapping implements Mapping {
  readonly address: number;
  readonly length: number;
  readonly #slot: number;
  #retired = false;

  constructor({ address, length, faultSlot }: SharedExtent) {
    if (faultSlot !== -1) installFaultGuard();
    this.address = address;
    this.length = length;
    this.#slot = faultSlot;
  }

  view(offset: number, length: number): ArrayBuffer {
    checkView(this, this.#retired, offset, length);
    return viewMemory(this.address + offset, length);
  }

  get faulted(): boolean {
    return hasFaulted(this.#slot);
  }

  share(): SharedExtent {
    return { address: this.address, length: this.length, faultSlot: this.#slot };
  }

  retire(): void {
    this.#retired = true;
  }
}
