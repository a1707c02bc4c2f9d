/**
 * Mappings of shared memory, and their lifetime. A view (ArrayBuffer) of a mapping cannot be detached on Node 20, and
 * touching one after munmap would be a crash; so a retired mapping is first replaced by anonymous memory at the same
 * address (which releases the file and its pages), and unmapped when the last view of it was collected.
 */

import { guard, hasFaulted, installFaultGuard, unguard } from './fault-guard.ts';
import { checked, libc, viewMemory } from './libc.ts';
import { MAP_FAILED, mappedAddress } from './pinned.ts';

const PROT_READ = 1;
const PROT_READ_WRITE = 3;
const MAP_SHARED = 0x01;
const MAP_PRIVATE = 0x02;
const MAP_FIXED = 0x10;
const MAP_ANONYMOUS = 0x20;
const MAP_NORESERVE = 0x4000;

/** Views are at most this long: Node 20 aborts on longer ones than 4 GiB. */
export const MAX_VIEW_BYTES = 0x4000_0000;

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

/** How many mappings exist, retired ones with uncollected views included. For tests and statistics. */
export function countMappings(): number {
  return mappedExtents;
}

/** A shared mapping of a file descriptor. The descriptor may be closed after construction. */
export class SharedMapping {
  readonly address: number;
  readonly length: number;
  readonly #extent: Extent;
  readonly #slot: number;
  #retired = false;

  /**
   * Maps `length` bytes of `fd` from `offset` (a multiple of the page size), readable and writable.
   * @throws SysError - the descriptor cannot be mapped; ENOMEM also when there are too many mappings
   */
  constructor(fd: number, offset: number, length: number) {
    installFaultGuard();
    this.address = mappedAddress(libc.mmap(0, length, PROT_READ_WRITE, MAP_SHARED | MAP_NORESERVE, fd, offset));
    this.length = length;
    this.#extent = { address: this.address, length, liveViews: 0, retired: false };
    mappedExtents += 1;
    try {
      this.#slot = guard(this.address, length);
    } catch (error) {
      this.#extent.retired = true;
      unmapWhenUnused(this.#extent);
      throw error;
    }
  }

  /** A view of at most MAX_VIEW_BYTES of the mapping. Each call makes a new one: keep it, but not past `retire`. */
  view(offset: number, length: number): ArrayBuffer {
    if (this.#retired || length > MAX_VIEW_BYTES || offset < 0 || length > this.length - offset) {
      throw new RangeError(`view of ${length} bytes at ${offset} of a mapping of ${this.length} bytes`);
    }
    const buffer = viewMemory(this.address + offset, length);
    this.#extent.liveViews += 1;
    collected.register(buffer, this.#extent);
    return buffer;
  }

  /** Whether the peer took pages of this mapping away: what is read from it now is zero. */
  get faulted(): boolean {
    return hasFaulted(this.#slot);
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
