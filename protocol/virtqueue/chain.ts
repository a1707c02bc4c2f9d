/**
 * One descriptor chain, walked and checked, of a split or a packed ring. An instance is refilled for every chain: nothing
 * is allocated. Each descriptor is read once, because the driver can change it in between. Source: VIRTIO 1.3, 2.7.5 The
 * Virtqueue Descriptor Table, 2.7.5.3 and 2.8.7 Indirect Descriptors, 2.8.6 Next Flag: Descriptor Chaining.
 *
 * Segments are the chain's buffers in host addresses, readable ones first; a buffer that spans adjacent regions becomes
 * several segments, an empty one none. Behind an IOMMU the addresses in descriptors are I/O virtual addresses (IOVA).
 */

import type { GuestMemory, MemoryRegion } from '../memory/guest-memory.ts';
import { IOTLB_DENIED, IOTLB_HIT, IOTLB_MISS, type Iotlb, MissingPages } from '../memory/iotlb.ts';
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
  FAULT_TRANSLATION_MISSING,
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
  /** The chain's token: its name while it is in flight and when it goes back to the driver. */
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
  /** I/O virtual address of each segment, where descriptors contain such. */
  readonly iova: Float64Array;
  /** Slots of a packed ring that the chain takes. */
  slots = 0;
  /** The descriptors in those slots as they were read, four words each: address (low, high), length, id and flags << 16. */
  readonly copies: Uint32Array;
  /** With FAULT_TRANSLATION_MISSING: what to ask the front end for. */
  readonly missing = new MissingPages();

  readonly #memory: GuestMemory;
  readonly #iotlb: Iotlb | undefined;
  readonly #directLimit: number;
  readonly #indirectLimit: number;
  /** For an indirect table that is not in one piece. */
  readonly #tableCopy: DataView;
  /** The indirect table that was opened last: where its descriptors are read. */
  #table: DataView;
  #tableOffset = 0;

  /** @param iotlb when given, descriptors contain I/O virtual addresses */
  constructor(memory: GuestMemory, queueSize: number, iotlb?: Iotlb) {
    this.#memory = memory;
    this.#iotlb = iotlb;
    this.#directLimit = queueSize;
    this.#indirectLimit = Math.max(queueSize, MAX_INDIRECT_CHAIN);
    const capacity = this.#indirectLimit + 64;
    this.address = new Float64Array(capacity);
    this.guest = new Float64Array(capacity);
    this.length = new Uint32Array(capacity);
    this.iova = new Float64Array(iotlb === undefined ? 0 : capacity);
    this.copies = new Uint32Array(4 * queueSize);
    this.#tableCopy = new DataView(new ArrayBuffer(this.#indirectLimit * VIRTQ_DESC_BYTES));
    this.#table = this.#tableCopy;
  }

  /** Walks the chain that starts at `head` of a split ring's own table. Sets the fields above, except those of packed rings. */
  walk(head: number, ring: DataView, queueSize: number, allowIndirect: boolean): void {
    this.#walkSplit(head, ring, queueSize, allowIndirect);
    if (this.fault <= LAST_SOFT_FAULT && this.missing.count > 0) this.fault = FAULT_TRANSLATION_MISSING;
    if (this.fault > LAST_SOFT_FAULT) this.lastWritable = -1;
  }

  /** Walks a chain of a packed ring, named `token`, whose `slots` descriptors are in `copies`. Sets the other fields above. */
  walkCopies(token: number, slots: number, allowIndirect: boolean): void {
    this.#walkPacked(token, slots, allowIndirect);
    if (this.fault <= LAST_SOFT_FAULT && this.missing.count > 0) this.fault = FAULT_TRANSLATION_MISSING;
    if (this.fault > LAST_SOFT_FAULT) this.lastWritable = -1;
  }

  #walkSplit(head: number, ring: DataView, queueSize: number, allowIndirect: boolean): void {
    // As in #walkPacked: a call here costs a quarter of the walk.
    this.head = head;
    this.fault = NO_FAULT;
    this.readableSegments = 0;
    this.segments = 0;
    this.readableBytes = 0;
    this.writableBytes = 0;
    this.lastWritable = -1;
    this.missing.count = 0;

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
        let fault = this.#checkIndirect(flagsAndNext, length, indirect, allowIndirect);
        if (fault === NO_FAULT) fault = this.#openTable(address, length);
        if (fault !== NO_FAULT) {
          this.fault = fault;
          return;
        }
        indirect = true;
        budget += this.#indirectLimit - this.#directLimit;
        table = this.#table;
        tableOffset = this.#tableOffset;
        tableSize = length / VIRTQ_DESC_BYTES;
        if (table === this.#tableCopy) tableSize = Math.min(tableSize, this.#indirectLimit);
        index = 0;
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

  #walkPacked(token: number, slots: number, allowIndirect: boolean): void {
    this.head = token;
    this.fault = NO_FAULT;
    this.readableSegments = 0;
    this.segments = 0;
    this.readableBytes = 0;
    this.writableBytes = 0;
    this.lastWritable = -1;
    this.missing.count = 0;
    this.slots = slots;

    const { copies } = this;
    for (let i = 0; i < slots; i += 1) {
      const at = 4 * i;
      const flags = (copies[at + 3] as number) >>> 16;
      const length = copies[at + 2] as number;
      const address = (copies[at + 1] as number) * TWO_32 + (copies[at] as number);
      if ((flags & VIRTQ_DESC_F_INDIRECT) !== 0) {
        // A list has descriptors of one kind.
        const linked = slots > 1 ? VIRTQ_DESC_F_NEXT : 0;
        this.fault = this.#checkIndirect(linked, length, false, allowIndirect);
        if (this.fault === NO_FAULT) this.#walkPackedTable(address, length);
        return;
      }
      if (!this.#append(address, length, (flags & VIRTQ_DESC_F_WRITE) !== 0)) return;
    }
  }

  /** All of its descriptors are the chain, and WRITE is the only flag there. */
  #walkPackedTable(address: number, length: number): void {
    const descriptors = length / VIRTQ_DESC_BYTES;
    // As in a split ring, the descriptor that refers to the table counts.
    if (descriptors >= this.#indirectLimit) {
      this.fault = FAULT_CHAIN_TOO_LONG;
      return;
    }
    this.fault = this.#openTable(address, length);
    if (this.fault !== NO_FAULT) return;
    const table = this.#table;
    let at = this.#tableOffset;
    for (let i = 0; i < descriptors; i += 1) {
      const low = table.getUint32(at, true);
      const high = table.getUint32(at + 4, true);
      const writable = (table.getUint16(at + 14, true) & VIRTQ_DESC_F_WRITE) !== 0;
      if (!this.#append(high * TWO_32 + low, table.getUint32(at + 8, true), writable)) return;
      at += VIRTQ_DESC_BYTES;
    }
  }

  /** Leaves an indirect table in #table and #tableOffset. Returns a fault code. */
  #openTable(address: number, length: number): number {
    const iotlb = this.#iotlb;
    if (iotlb !== undefined) return this.#openTranslatedTable(iotlb, address, length);
    if (this.#memory.locate(address, length)) {
      this.#table = this.#memory.view;
      this.#tableOffset = this.#memory.offset;
      return NO_FAULT;
    }
    // A table that spans regions is copied, as far as a legal chain can reach.
    const bytes = Math.min(length, this.#tableCopy.byteLength);
    if (!this.#memory.copyOut(address, new Uint8Array(this.#tableCopy.buffer, 0, bytes)))
      return FAULT_INDIRECT_UNMAPPED;
    this.#table = this.#tableCopy;
    this.#tableOffset = 0;
    return NO_FAULT;
  }

  #openTranslatedTable(iotlb: Iotlb, iova: number, length: number): number {
    const memory = this.#memory;
    if (iotlb.lookup(iova, false) === IOTLB_HIT && length <= iotlb.length && memory.locate(iotlb.guest, length)) {
      this.#table = memory.view;
      this.#tableOffset = memory.offset;
      return NO_FAULT;
    }
    const bytes = Math.min(length, this.#tableCopy.byteLength);
    const found = iotlb.collectMissing(iova, bytes, false, this.missing);
    if (found === IOTLB_DENIED) return FAULT_INDIRECT_UNMAPPED;
    if (found !== IOTLB_HIT) return FAULT_TRANSLATION_MISSING;
    for (let done = 0; done < bytes; ) {
      iotlb.lookup(iova + done, false);
      const part = Math.min(bytes - done, iotlb.length);
      memory.copyOut(iotlb.guest, new Uint8Array(this.#tableCopy.buffer, done, part));
      done += part;
    }
    this.#table = this.#tableCopy;
    this.#tableOffset = 0;
    return NO_FAULT;
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
    const iotlb = this.#iotlb;
    if (iotlb !== undefined) return this.#appendTranslated(iotlb, address, length, writable);
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

  /** A buffer of I/O virtual addresses: one segment for each piece that is translated as a whole. */
  #appendTranslated(iotlb: Iotlb, iova: number, length: number, writable: boolean): boolean {
    let last = -1;
    for (let done = 0; done < length; ) {
      const found = iotlb.lookup(iova + done, writable);
      const region = found === IOTLB_HIT ? this.#memory.find(iotlb.guest) : undefined;
      if (region === undefined) {
        this.#noteUntranslated(iotlb, iova + done, length - done, writable);
        if (writable) this.lastWritable = -1;
        return true;
      }
      const step = Math.min(length - done, iotlb.length);
      if (this.segments < this.iova.length) this.iova[this.segments] = iova + done;
      if (!this.#addSegment(region, iotlb.guest, step, writable)) return false;
      last = iotlb.guest + step - 1;
      done += step;
    }
    if (writable) this.lastWritable = last;
    return true;
  }

  /** The rest of the chain is walked all the same, so that all that is missing is asked for at once. */
  #noteUntranslated(iotlb: Iotlb, iova: number, length: number, writable: boolean): void {
    const noted = this.missing.count;
    if (iotlb.collectMissing(iova, length, writable, this.missing) === IOTLB_MISS) return;
    this.missing.count = noted;
    this.fault = FAULT_UNMAPPED;
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
