/**
 * Memory whose address is kept: a slab of anonymous mappings that never moves. Everything a system call reads or writes
 * through a pointer (iovecs, msghdrs, control buffers, eventfd values) is a PinnedMemory.
 */

import { SysError } from './errors.ts';
import { lastErrno, libc, viewMemory } from './libc.ts';

const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_PRIVATE = 0x02;
const MAP_ANONYMOUS = 0x20;
/** asm-generic/mman-common.h */
const MADV_DONTNEED = 4;
const SLAB_BYTES = 256 * 1024;
const ALIGNMENT = 64;
/** What mmap returns when it failed; addresses come as numbers, this as a bigint. */
export const MAP_FAILED = 0xffff_ffff_ffff_ffffn;

/** Turns what mmap returned into an address. @throws SysError - mmap failed */
export function mappedAddress(result: number | bigint, what?: string): number {
  if (result === MAP_FAILED) throw new SysError('mmap', lastErrno(), what);
  return Number(result);
}

/** A piece of memory at a fixed address. Owned by whoever allocated it; slab pieces live as long as the process. */
export class PinnedMemory {
  readonly address: number;
  readonly length: number;
  readonly bytes: Uint8Array;
  readonly data: DataView;

  constructor(address: number, buffer: ArrayBuffer, offset: number, length: number) {
    this.address = address;
    this.length = length;
    this.bytes = new Uint8Array(buffer, offset, length);
    this.data = new DataView(buffer, offset, length);
  }

  /** Stores an address or another unsigned number below 2^53 as a native u64. */
  setU64(offset: number, value: number): void {
    this.data.setUint32(offset, value >>> 0, true);
    this.data.setUint32(offset + 4, Math.floor(value / 0x1_0000_0000), true);
  }
}

let slab: ArrayBuffer | undefined;
let slabAddress = 0;
let slabUsed = SLAB_BYTES;

function mapAnonymous(length: number): number {
  return mappedAddress(libc.mmap(0, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

/** Zeroed memory, 64-byte aligned, never freed: for scratch space and pools that live as long as the process. */
export function allocatePinned(length: number): PinnedMemory {
  if (length > SLAB_BYTES / 4) {
    const address = mapAnonymous(length);
    return new PinnedMemory(address, viewMemory(address, length), 0, length);
  }
  const size = (length + ALIGNMENT - 1) & ~(ALIGNMENT - 1);
  if (slab === undefined || slabUsed + size > SLAB_BYTES) {
    slabAddress = mapAnonymous(SLAB_BYTES);
    slab = viewMemory(slabAddress, SLAB_BYTES);
    slabUsed = 0;
  }
  const offset = slabUsed;
  slabUsed += size;
  return new PinnedMemory(slabAddress + offset, slab, offset, length);
}

/**
 * Gives the pages of a mapping of its own back to the host: it reads as zero then, and costs nothing until it is written.
 * Memory of a slab is left as it is.
 */
export function discardPinned(memory: PinnedMemory): void {
  if (memory.length > SLAB_BYTES / 4) libc.madvise(memory.address, memory.length, MADV_DONTNEED);
}
