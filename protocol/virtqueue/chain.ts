/**
 * One descriptor chain, walked and checked. An instance is refilled for every chain: nothing is allocated. Each
 * descriptor is read once into locals, because the driver can change it in between. Source: VIRTIO 1.3, 2.7.5 The
 * Virtqueue Descriptor Table, 2.7.5.3 Indirect Descriptors.
 *
 * Segments are the chain's buffers in host addresses, readable ones first; a buffer that spans adjacent regions becomes
 * several segments, an empty one none.
 */

import type { GuestMemory, MemoryRegion } from '../memory/guest-memory.ts';
import {
  VIRTQ_DESC_BYTES,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_WRITE,
} from '../virtio/split-ring.ts';
import {
  FAULT_CHAIN_TOO_LONG,
  FAULT_INDIRECT_AND_NEXT,
  FAULT_INDIRECT_LENGTH,
  FAULT_INDIRECT_NOT_NEGOTIATED,
  FAULT_INDIRECT_UNMAPPED,
  FAULT_NESTED_INDIRECT,
  FAULT_NEXT_OUT_OF_RANGE,
  FAULT_ORDER,
  FAULT_TOO_MANY_BYTES,
  FAULT_UNMAPPED,
  LAST_SOFT_FAULT,
  NO_FAULT,
} from './faults.ts';

/**
 * Descriptors a chain may have when it uses an indirect table. The standard says the queue size; Linux takes it for the
 * ring's slots only and fills a table up to what the device's seg_max allows, on short queues too.
 */
export const MAX_INDIRECT_CHAIN = 1024;

const TWO_32 = 0x1_0000_0000;

export class DescriptorChain {
  /** Index of the chain's first descriptor: its name when it goes back to the driver. */
  head = 0;
  /** NO_FAULT or a chain fault code of faults.ts. */
  fault = NO_FAULT;
  /** Segments of the device-readable part, at indices 0 to readableSegments - 1. */
  readableSegments = 0;
  /** All segments; the device-writable ones start at index readableSegments. */
  segments = 0;
  readableBytes = 0;
  writableBytes = 0;
  /**
   * Guest address of the last byte of the last device-writable buffer; -1 when there is none, when it is not mapped, or
   * after a hard fault, when nobody knows which buffer is the last.
   */
  lastWritable = -1;
  /** Host address of each segment. */
  readonly address: Float64Array;
  /** Guest address of each segment. */
  readonly guest: Float64Array;
  /** Length in bytes of each segment. */
  readonly length: Uint32Array;

  readonly #memory: GuestMemory;
  readonly #directLimit: number;
  readonly #indirectLimit: number;
  readonly #copy: DataView;

  constructor(memory: GuestMemory, queueSize: number) {
    this.#memory = memory;
    this.#directLimit = queueSize;
    this.#indirectLimit = Math.max(queueSize, MAX_INDIRECT_CHAIN);
    const capacity = this.#indirectLimit + 64;
    this.address = new Float64Array(capacity);
    this.guest = new Float64Array(capacity);
    this.length = new Uint32Array(capacity);
    this.#copy = new DataView(new ArrayBuffer(this.#indirectLimit * VIRTQ_DESC_BYTES));
  }

  /** Walks the chain that starts at `head` of the ring's own table. Sets every field above. */
  walk(head: number, ring: DataView, queueSize: number, allowIndirect: boolean): void {
    this.#walk(head, ring, queueSize, allowIndirect);
    if (this.fault > LAST_SOFT_FAULT) this.lastWritable = -1;
  }

  #walk(head: number, ring: DataView, queueSize: number, allowIndirect: boolean): void {
    this.head = head;
    this.fault = NO_FAULT;
    this.readableSegments = 0;
    this.segments = 0;
    this.readableBytes = 0;
    this.writableBytes = 0;
    this.lastWritable = -1;

    let table = ring;
    let tableOffset = 0;
    let tableSize = queueSize;
    let index = head;
    let budget = this.#directLimit;
    let indirect = false;
    for (;;) {
      if (budget === 0) {
        this.fault = FAULT_CHAIN_TOO_LONG;
        return;
      }
      budget -= 1;
      const at = tableOffset + index * VIRTQ_DESC_BYTES;
      const low = table.getUint32(at, true);
      const high = table.getUint32(at + 4, true);
      const length = table.getUint32(at + 8, true);
      const flagsAndNext = table.getUint32(at + 12, true);
      const address = high * TWO_32 + low;

      if ((flagsAndNext & VIRTQ_DESC_F_INDIRECT) !== 0) {
        const fault = this.#checkIndirect(flagsAndNext, length, indirect, allowIndirect);
        if (fault !== NO_FAULT) {
          this.fault = fault;
          return;
        }
        indirect = true;
        budget += this.#indirectLimit - this.#directLimit;
        tableSize = length / VIRTQ_DESC_BYTES;
        index = 0;
        if (this.#memory.locate(address, length)) {
          table = this.#memory.view;
          tableOffset = this.#memory.offset;
        } else if (this.#copyTable(address, length)) {
          table = this.#copy;
          tableOffset = 0;
          tableSize = Math.min(tableSize, this.#indirectLimit);
        } else {
          this.fault = FAULT_INDIRECT_UNMAPPED;
          return;
        }
        continue;
      }

      if (!this.#append(address, length, (flagsAndNext & VIRTQ_DESC_F_WRITE) !== 0)) return;
      if ((flagsAndNext & VIRTQ_DESC_F_NEXT) === 0) return;
      index = flagsAndNext >>> 16;
      if (index >= tableSize) {
        this.fault = FAULT_NEXT_OUT_OF_RANGE;
        return;
      }
    }
  }

  #checkIndirect(flags: number, length: number, nested: boolean, allowed: boolean): number {
    if (!allowed) return FAULT_INDIRECT_NOT_NEGOTIATED;
    if (nested) return FAULT_NESTED_INDIRECT;
    if ((flags & VIRTQ_DESC_F_NEXT) !== 0) return FAULT_INDIRECT_AND_NEXT;
    if (length === 0 || length % VIRTQ_DESC_BYTES !== 0) return FAULT_INDIRECT_LENGTH;
    return NO_FAULT;
  }

  /** A table that spans regions is copied, as far as a legal chain can reach. */
  #copyTable(address: number, length: number): boolean {
    const bytes = Math.min(length, this.#copy.byteLength);
    return this.#memory.copyOut(address, new Uint8Array(this.#copy.buffer, 0, bytes));
  }

  /** Adds one buffer. False after a hard fault; soft faults are noted and the walk goes on. */
  #append(address: number, length: number, writable: boolean): boolean {
    if (writable) {
      this.writableBytes += length;
    } else {
      this.readableBytes += length;
      if (this.segments > this.readableSegments) this.fault = FAULT_ORDER;
    }
    if (this.readableBytes + this.writableBytes >= TWO_32) {
      this.fault = FAULT_TOO_MANY_BYTES;
      return false;
    }
    if (length === 0) return true;
    const region = this.#memory.find(address);
    if (region === undefined || length > region.end - address) {
      return this.#appendAcross(address, length, writable, region);
    }
    if (!this.#addSegment(region, address, length, writable)) return false;
    if (writable) this.lastWritable = address + length - 1;
    return true;
  }

  /** A buffer that leaves its region: legal when the next region follows without a gap. */
  #appendAcross(start: number, length: number, writable: boolean, first: MemoryRegion | undefined): boolean {
    let address = start;
    let left = length;
    let region = first;
    while (left > 0) {
      if (region === undefined) {
        this.fault = FAULT_UNMAPPED;
        if (writable) this.lastWritable = -1;
        return true;
      }
      const step = Math.min(left, region.end - address);
      if (!this.#addSegment(region, address, step, writable)) return false;
      address += step;
      left -= step;
      if (left > 0) region = this.#memory.find(address);
    }
    if (writable) this.lastWritable = start + length - 1;
    return true;
  }

  #addSegment(region: MemoryRegion, address: number, length: number, writable: boolean): boolean {
    const i = this.segments;
    if (i === this.address.length) {
      this.fault = FAULT_CHAIN_TOO_LONG;
      return false;
    }
    this.address[i] = address + region.hostDelta;
    this.guest[i] = address;
    this.length[i] = length;
    this.segments = i + 1;
    if (!writable) this.readableSegments += 1;
    return true;
  }
}
