/**
 * One request queue of a block device: slots for headers and status bytes, requests in, completions out. The hot path of
 * benchmarks; nothing here allocates or waits per request. Source: VIRTIO 1.3, 5.2.6 Device Operation.
 *
 *     slot (64 bytes): header @0 (type u32, reserved u32, sector u64), status u8 @16, discard segment @32 (16 bytes)
 */

import { VIRTIO_BLK_HEADER_BYTES, VIRTIO_BLK_SEGMENT_BYTES, VIRTIO_BLK_T_OUT } from '../../protocol/virtio/blk.ts';
import type { SharedMemory } from '../frontend/shared-memory.ts';
import type { Vring } from '../frontend/vring.ts';
import { DriverQueue } from './driver-queue.ts';
import { RING_FAULT, type RingFeatures, type VirtqueueDriver } from './virtqueue.ts';

const SLOT_BYTES = 64;
const STATUS_AT = 16;
const SEGMENT_AT = 32;
/** What the status byte is before the device writes it; no device writes it. */
export const STATUS_UNWRITTEN = 0xff;

export interface BlkQueueOptions extends RingFeatures {
  readonly index: number;
  /** Entries of the ring, and requests in flight at most. */
  readonly size: number;
  /** Bytes of one descriptor and data descriptors of one request, at most. */
  readonly segmentBytes: number;
  readonly maxSegments: number;
}

export class BlkQueue {
  readonly #queue: DriverQueue;
  readonly #ring: VirtqueueDriver;
  readonly #memory: SharedMemory;
  readonly #segmentBytes: number;
  readonly #slots: number;
  readonly #slotsGuestAddress: number;
  readonly #tokens: Int32Array;
  readonly #freeSlots: Uint16Array;
  #freeSlotCount: number;
  #onComplete: (token: number, status: number) => void = () => undefined;

  /** Allocates rings and slots in `memory`, which outlives the queue. @throws RangeError - memory or sizes */
  constructor(memory: SharedMemory, options: BlkQueueOptions) {
    const { size, maxSegments } = options;
    this.#memory = memory;
    this.#segmentBytes = options.segmentBytes;
    // What the dead back end completed is taken first: it must not be done again.
    this.#queue = new DriverQueue(memory, options.index, { ...options, maxChain: maxSegments + 2 }, () =>
      this.poll(size),
    );
    this.#ring = this.#queue.ring;
    this.#slots = memory.allocate(size * SLOT_BYTES, SLOT_BYTES);
    this.#slotsGuestAddress = memory.guestAddress + this.#slots;
    this.#tokens = new Int32Array(size);
    this.#freeSlots = Uint16Array.from({ length: size }, (_, i) => i);
    this.#freeSlotCount = size;
  }

  /** Bytes of shared memory that a queue with these options takes, alignment included. */
  static memoryBytes({ size, maxSegments }: Omit<BlkQueueOptions, 'index'>): number {
    return size * ((maxSegments + 2) * 16 + SLOT_BYTES + 16 + 8 + 2) + 6 * 4096;
  }

  get index(): number {
    return this.#queue.index;
  }

  get vring(): Vring {
    return this.#queue.vring;
  }

  /** Where a back end begins that gets the ring first. */
  get base(): number {
    return this.#queue.base;
  }

  /** Kicks sent, for statistics. */
  get kicks(): number {
    return this.#queue.kicks;
  }

  /** Descriptor to watch: readable when the device has completed something after `arm`. */
  get callFd(): number {
    return this.#queue.callFd;
  }

  /** Descriptor to watch: readable when the device declared the ring broken. */
  get errorFd(): number {
    return this.#queue.errorFd;
  }

  get size(): number {
    return this.#ring.size;
  }

  /** Requests in flight, staged ones included. */
  get outstanding(): number {
    return this.#ring.outstanding;
  }

  /** What the device did wrong when `poll` said RING_FAULT. */
  get fault(): string {
    return this.#ring.fault;
  }

  /** Who gets completions: `token` is that of `submit`, `status` a VIRTIO_BLK_S_ number or STATUS_UNWRITTEN. */
  setCompletion(onComplete: (token: number, status: number) => void): void {
    this.#onComplete = onComplete;
  }

  /**
   * Stages a request with `length` bytes of data (may be 0) at a guest address; the device gets it by `flush`. The data
   * is the device's until the completion. Returns false when the queue is full.
   */
  submit(type: number, sector: number, guestAddress: number, length: number, token: number): boolean {
    const slot = this.#takeSlot(type, sector);
    if (slot === -1) return false;
    const isWrite = type === VIRTIO_BLK_T_OUT;
    for (let done = 0; done < length; done += this.#segmentBytes) {
      this.#ring.addBuffer(guestAddress + done, Math.min(this.#segmentBytes, length - done), !isWrite);
    }
    return this.#push(slot, token);
  }

  /** Like `submit`, for DISCARD and WRITE_ZEROES of one range in sectors, with VIRTIO_BLK_SEGMENT_F_ flags. */
  submitRange(type: number, sector: number, sectors: number, flags: number, token: number): boolean {
    const slot = this.#takeSlot(type, 0);
    if (slot === -1) return false;
    const at = (this.#slots + slot * SLOT_BYTES + SEGMENT_AT) / 4;
    const { words } = this.#memory;
    words[at] = sector >>> 0;
    words[at + 1] = (sector / 0x1_0000_0000) >>> 0;
    words[at + 2] = sectors;
    words[at + 3] = flags;
    const segment = this.#slotsGuestAddress + slot * SLOT_BYTES + SEGMENT_AT;
    this.#ring.addBuffer(segment, VIRTIO_BLK_SEGMENT_BYTES, false);
    return this.#push(slot, token);
  }

  /** Fills a free slot's header and starts its chain. Returns -1 when there is none. */
  #takeSlot(type: number, sector: number): number {
    if (this.#freeSlotCount === 0) return -1;
    const slot = this.#freeSlots[this.#freeSlotCount - 1]!;
    const { words, bytes } = this.#memory;
    const at = this.#slots + slot * SLOT_BYTES;
    words[at / 4] = type;
    words[at / 4 + 1] = 0;
    words[at / 4 + 2] = sector >>> 0;
    words[at / 4 + 3] = (sector / 0x1_0000_0000) >>> 0;
    bytes[at + STATUS_AT] = STATUS_UNWRITTEN;
    this.#ring.startChain();
    this.#ring.addBuffer(this.#slotsGuestAddress + slot * SLOT_BYTES, VIRTIO_BLK_HEADER_BYTES, false);
    return slot;
  }

  #push(slot: number, token: number): boolean {
    this.#ring.addBuffer(this.#slotsGuestAddress + slot * SLOT_BYTES + STATUS_AT, 1, true);
    if (!this.#ring.pushChain(slot)) return false;
    this.#freeSlotCount -= 1;
    this.#tokens[slot] = token;
    return true;
  }

  /** Gives the device what was staged, and kicks it where it wants that. */
  flush(): void {
    this.#queue.flush();
  }

  /** Hands at most `limit` completions to their receiver. Returns how many, or RING_FAULT. */
  poll(limit: number): number {
    for (let count = 0; count < limit; count++) {
      const slot = this.#ring.reap();
      if (slot < 0) return slot === RING_FAULT ? RING_FAULT : count;
      const status = this.#memory.bytes[this.#slots + slot * SLOT_BYTES + STATUS_AT]!;
      this.#freeSlots[this.#freeSlotCount] = slot;
      this.#freeSlotCount += 1;
      this.#onComplete(this.#tokens[slot]!, status);
    }
    return limit;
  }

  /** Asks for a signal on `callFd`. Returns false when there is something to poll already. */
  arm(): boolean {
    return this.#queue.arm();
  }

  disarm(): void {
    this.#queue.disarm();
  }

  /** Takes a signal off `callFd`. */
  drainCall(): void {
    this.#queue.drainCall();
  }

  /** Closes the descriptors. The caller proves that the device has let go of the ring. */
  close(): void {
    this.#queue.close();
  }
}
