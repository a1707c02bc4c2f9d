/**
 * The transmit queue of a socket device: slots of shared memory that are filled with a header and payload, given to the
 * device, and taken back. A part of the slots has no room for payload: what keeps connections going can be said however
 * much data waits. Nothing here allocates or waits per packet. Source: VIRTIO 1.3, 5.10.6.1 Virtqueue Flow Control,
 * 5.10.6.4 Receive and Transmit.
 *
 *     slot: header (44 bytes), payload ...     one descriptor
 */

import { VIRTIO_VSOCK_HDR_BYTES, VIRTIO_VSOCK_OP_RST, VIRTIO_VSOCK_OP_RW } from '../../protocol/virtio/vsock.ts';
import type { SharedMemory } from '../frontend/shared-memory.ts';
import { DriverQueue, type DriverQueueOptions } from './driver-queue.ts';
import { RING_FAULT, type RingFeatures } from './virtqueue.ts';
import { rewriteVsockOperation, type VsockEnds, writeVsockHeader } from './vsock-header.ts';

const CACHE_LINE_BYTES = 64;

export interface VsockTransmitQueueOptions extends RingFeatures {
  readonly index: number;
  /** Entries of the ring, and slots: a quarter of them without room for payload. */
  readonly size: number;
  /** Bytes of payload of one packet, at most. */
  readonly payloadBytes: number;
}

export class VsockTransmitQueue {
  readonly queue: DriverQueue;
  /** Bytes of payload of one packet, at most. */
  readonly payloadBytes: number;
  readonly #memory: SharedMemory;
  readonly #dataStride: number;
  readonly #data: number;
  readonly #control: number;
  /** Slots below are for data, the others for control. */
  readonly #dataSlots: number;
  readonly #freeData: Uint16Array;
  #freeDataCount: number;
  readonly #freeControl: Uint16Array;
  #freeControlCount: number;
  readonly #isOut: Uint8Array;
  #fault = '';

  /** Allocates rings and slots in `memory`, which outlives the queue. @throws RangeError - memory or sizes */
  constructor(memory: SharedMemory, options: VsockTransmitQueueOptions) {
    const { size } = options;
    this.#memory = memory;
    this.queue = new DriverQueue(memory, options.index, ringOptions(options), () => this.#onResume());
    this.payloadBytes = options.payloadBytes;
    this.#dataStride = strideOf(options.payloadBytes);
    const controlSlots = controlSlotsOf(size);
    this.#dataSlots = size - controlSlots;
    this.#data = memory.allocate(this.#dataSlots * this.#dataStride, CACHE_LINE_BYTES);
    this.#control = memory.allocate(controlSlots * CACHE_LINE_BYTES, CACHE_LINE_BYTES);
    this.#freeData = Uint16Array.from({ length: this.#dataSlots }, (_, i) => this.#dataSlots - 1 - i);
    this.#freeDataCount = this.#dataSlots;
    this.#freeControl = Uint16Array.from({ length: controlSlots }, (_, i) => size - 1 - i);
    this.#freeControlCount = controlSlots;
    this.#isOut = new Uint8Array(size);
  }

  /** Bytes of shared memory that a queue with these options takes, alignment included. */
  static memoryBytes(options: VsockTransmitQueueOptions): number {
    const control = controlSlotsOf(options.size);
    const slots = (options.size - control) * strideOf(options.payloadBytes) + control * CACHE_LINE_BYTES;
    return DriverQueue.memoryBytes(ringOptions(options)) + slots + 4 * CACHE_LINE_BYTES;
  }

  /** What the device did wrong when `reap` said RING_FAULT. */
  get fault(): string {
    return this.#fault;
  }

  /** Packets that the device has, or will have after `queue.flush`. */
  get outstanding(): number {
    return this.queue.ring.outstanding;
  }

  /** The free slot that `pushData` will take; -1 when the device has all. */
  peekData(): number {
    if (this.#freeDataCount === 0) this.reap();
    return this.#freeDataCount === 0 ? -1 : this.#freeData[this.#freeDataCount - 1]!;
  }

  /** Whether `pushControl` would succeed. */
  get hasControlSlot(): boolean {
    if (this.#freeControlCount === 0) this.reap();
    return this.#freeControlCount > 0;
  }

  /** Where the payload of a slot begins, as an offset into shared memory. What is written there stays until overwritten. */
  payloadOffset(slot: number): number {
    return this.#data + slot * this.#dataStride + VIRTIO_VSOCK_HDR_BYTES;
  }

  /** Stages an RW packet with the first `length` bytes of the slot of `peekData`, which must not be -1. */
  pushData(ends: VsockEnds, length: number, flags: number, bufAlloc: number, fwdCnt: number): void {
    this.#freeDataCount -= 1;
    const slot = this.#freeData[this.#freeDataCount]!;
    const at = this.#data + slot * this.#dataStride;
    writeVsockHeader(this.#memory.words, at / 4, ends, VIRTIO_VSOCK_OP_RW, flags, length, bufAlloc, fwdCnt);
    this.#push(slot, at, VIRTIO_VSOCK_HDR_BYTES + length);
  }

  /** Stages a packet without payload. Returns false when there is no slot. */
  pushControl(ends: VsockEnds, op: number, flags: number, bufAlloc: number, fwdCnt: number): boolean {
    if (!this.hasControlSlot) return false;
    this.#freeControlCount -= 1;
    const slot = this.#freeControl[this.#freeControlCount]!;
    const at = this.#offsetOf(slot);
    writeVsockHeader(this.#memory.words, at / 4, ends, op, flags, 0, bufAlloc, fwdCnt);
    this.#push(slot, at, VIRTIO_VSOCK_HDR_BYTES);
    return true;
  }

  /** Takes back what the device is done with. Returns how many slots, or RING_FAULT, from then on. */
  reap(): number {
    if (this.#fault !== '') return RING_FAULT;
    const { ring } = this.queue;
    for (let count = 0; ; count++) {
      const slot = ring.reap();
      if (slot < 0) {
        if (slot !== RING_FAULT) return count;
        this.#fault = ring.fault;
        return RING_FAULT;
      }
      this.#isOut[slot] = 0;
      if (slot < this.#dataSlots) this.#freeData[this.#freeDataCount++] = slot;
      else this.#freeControl[this.#freeControlCount++] = slot;
      if (ring.usedLength !== 0) {
        this.#fault = `the device says it wrote ${ring.usedLength} bytes to a packet that it may only read`;
        return RING_FAULT;
      }
    }
  }

  #offsetOf(slot: number): number {
    if (slot < this.#dataSlots) return this.#data + slot * this.#dataStride;
    return this.#control + (slot - this.#dataSlots) * CACHE_LINE_BYTES;
  }

  #push(slot: number, at: number, length: number): void {
    const { ring } = this.queue;
    this.#isOut[slot] = 1;
    ring.startChain();
    ring.addBuffer(this.#memory.guestAddress + at, length, false);
    ring.pushChain(slot);
  }

  /**
   * What the dead back end did not take, the next one gets. It is of connections that ended: a reset of a connection that
   * the next one does not know of is the packet that nobody answers.
   */
  #onResume(): void {
    this.reap();
    for (let slot = 0; slot < this.#isOut.length; slot++) {
      if (this.#isOut[slot] === 1) {
        rewriteVsockOperation(this.#memory.words, this.#offsetOf(slot) / 4, VIRTIO_VSOCK_OP_RST);
      }
    }
  }
}

function controlSlotsOf(size: number): number {
  return Math.max(1, Math.floor(size / 4));
}

function strideOf(payloadBytes: number): number {
  return Math.ceil((VIRTIO_VSOCK_HDR_BYTES + payloadBytes) / CACHE_LINE_BYTES) * CACHE_LINE_BYTES;
}

function ringOptions(options: VsockTransmitQueueOptions): DriverQueueOptions {
  return { ...options, maxChain: 1, indirect: false };
}
