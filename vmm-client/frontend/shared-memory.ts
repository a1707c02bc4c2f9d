/**
 * One region of guest memory as a front end owns it: a memfd with sealed size (so that a back end need not fear
 * truncation), mapped here, with an allocator for rings and buffers. Positions are byte offsets into the region; the
 * guest address of an offset is `guestAddress + offset`, its user address (what ring addresses are told in) is
 * `userAddress + offset`. Behind an IOMMU it has an I/O virtual address too, which is what descriptors say.
 */

import { MAX_VIEW_BYTES, SharedMapping } from '../../protocol/sys/mapping.ts';
import { createSealedMemfd, type OwnedFd } from '../../protocol/sys/owned-fd.ts';
import type { MemoryRegion } from '../../protocol/vhost-user/payloads.ts';
import type { SharedRegion } from './hand-over.ts';
import { RangeAllocator } from './range-allocator.ts';

const PAGE_BYTES = 4096;
const CACHE_LINE_BYTES = 64;
/** Above 4 GiB, so that the upper half of every 64-bit address field is in use. */
const DEFAULT_GUEST_ADDRESS = 0x1_0000_0000;

export class SharedMemory implements SharedRegion {
  /** The address that descriptors say for offset 0: the I/O virtual one of memory that has one. */
  readonly guestAddress: number;
  readonly iova: number | undefined;
  /** Bytes; a multiple of the page size. */
  readonly length: number;
  readonly memfd: OwnedFd;
  readonly bytes: Uint8Array;
  /** The same memory in units of 2 and 4 bytes. */
  readonly halfwords: Uint16Array;
  readonly words: Uint32Array;
  readonly #physicalAddress: number;
  readonly #mapping: SharedMapping;
  readonly #ranges: RangeAllocator;

  /**
   * Allocates `length` bytes, rounded up to pages, at most 1 GiB (one view). With `iova`, a front end that has an IOMMU
   * maps it there for as long as the device has the region.
   * @throws RangeError - too long
   * @throws SysError - the host has no memory or no descriptors left
   */
  constructor(length: number, guestAddress: number = DEFAULT_GUEST_ADDRESS, iova?: number) {
    this.length = Math.ceil(length / PAGE_BYTES) * PAGE_BYTES;
    if (this.length > MAX_VIEW_BYTES) {
      throw new RangeError(`shared memory of ${length} bytes: at most ${MAX_VIEW_BYTES} are possible`);
    }
    this.#physicalAddress = guestAddress;
    this.guestAddress = iova ?? guestAddress;
    this.iova = iova;
    this.memfd = createSealedMemfd('ringside-memory', this.length);
    try {
      this.#mapping = new SharedMapping(this.memfd.fd, 0, this.length);
    } catch (error) {
      this.memfd.close();
      throw error;
    }
    const view = this.#mapping.view(0, this.length);
    this.bytes = new Uint8Array(view);
    this.halfwords = new Uint16Array(view);
    this.words = new Uint32Array(view);
    this.#ranges = new RangeAllocator(this.length);
  }

  /** The address that this process, and so vhost-user, knows the region by. */
  get userAddress(): number {
    return this.#mapping.address;
  }

  /** The region as SET_MEM_TABLE and ADD_MEM_REG describe it. */
  get region(): MemoryRegion {
    return { guestAddress: this.#physicalAddress, size: this.length, userAddress: this.userAddress, mmapOffset: 0 };
  }

  /**
   * Takes `length` bytes, zeroed at first use only. Returns their offset.
   * @throws RangeError - the region is full
   */
  allocate(length: number, alignment: number = CACHE_LINE_BYTES): number {
    const offset = this.#ranges.take(length, alignment);
    if (offset === -1) {
      throw new RangeError(`no ${length} bytes left in shared memory: ${this.#ranges.freeBytes} are free`);
    }
    return offset;
  }

  /** Gives back what `allocate` returned. The caller proves that the device does not use it any more. */
  release(offset: number): void {
    this.#ranges.release(offset);
  }

  /** The bytes at an offset, as a Buffer over the memory itself. Not to be used after `close`. */
  slice(offset: number, length: number): Buffer {
    return Buffer.from(this.bytes.buffer as ArrayBuffer, offset, length);
  }

  /** Ends the mapping and closes the memfd. A back end that still has the region keeps it alive for itself. Idempotent. */
  close(): void {
    this.#mapping.retire();
    this.memfd.close();
  }
}
