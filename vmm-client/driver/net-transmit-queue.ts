/**
 * One transmit queue of a network device: slots of shared memory that are filled with a header and a packet, given to
 * the device, and taken back. Nothing here allocates or waits per packet. Source: VIRTIO 1.3, 5.1.6.2 Packet Transmission.
 *
 *     slot: header (12 bytes), packet; in descriptors of at most `segmentBytes`
 */

import { VIRTIO_NET_HDR, VIRTIO_NET_HDR_BYTES } from '../../protocol/virtio/net.ts';
import type { SharedMemory } from '../frontend/shared-memory.ts';
import { DriverQueue, type DriverQueueOptions } from './driver-queue.ts';
import { RING_FAULT, type RingFeatures } from './virtqueue.ts';

const CACHE_LINE_BYTES = 64;

export interface NetTransmitQueueOptions extends RingFeatures {
  readonly index: number;
  /** Entries of the ring, and slots. */
  readonly size: number;
  /** Bytes of the largest packet, without its header. */
  readonly maxPacketBytes: number;
  /** Bytes of one descriptor, at most. */
  readonly segmentBytes: number;
}

export class NetTransmitQueue {
  readonly queue: DriverQueue;
  /** Bytes of the largest packet, without its header. */
  readonly maxPacketBytes: number;
  readonly #memory: SharedMemory;
  readonly #segmentBytes: number;
  readonly #stride: number;
  readonly #slots: number;
  readonly #freeSlots: Uint16Array;
  #freeCount: number;
  #fault = '';

  /** Allocates rings and slots in `memory`, which outlives the queue. @throws RangeError - memory or sizes */
  constructor(memory: SharedMemory, options: NetTransmitQueueOptions) {
    const { size } = options;
    this.#memory = memory;
    // What a dead back end has sent must not be sent again.
    this.queue = new DriverQueue(memory, options.index, ringOptions(options), () => this.reap(size));
    this.maxPacketBytes = options.maxPacketBytes;
    this.#segmentBytes = options.segmentBytes;
    this.#stride = strideOf(options.maxPacketBytes);
    this.#slots = memory.allocate(size * this.#stride, CACHE_LINE_BYTES);
    this.#freeSlots = Uint16Array.from({ length: size }, (_, i) => size - 1 - i);
    this.#freeCount = size;
  }

  /** Bytes of shared memory that a queue with these options takes, alignment included. */
  static memoryBytes(options: NetTransmitQueueOptions): number {
    return (
      DriverQueue.memoryBytes(ringOptions(options)) +
      options.size * strideOf(options.maxPacketBytes) +
      2 * CACHE_LINE_BYTES
    );
  }

  /** What the device did wrong when `reap` said RING_FAULT. */
  get fault(): string {
    return this.#fault;
  }

  /** Packets that the device has, or will have after `queue.flush`. */
  get outstanding(): number {
    return this.queue.ring.outstanding;
  }

  /** Where the packet of a slot begins, as an offset into shared memory. What is written there stays until overwritten. */
  packetOffset(slot: number): number {
    return this.#slots + slot * this.#stride + VIRTIO_NET_HDR_BYTES;
  }

  /** The free slot that `push` will take; -1 when the device has all. */
  peekSlot(): number {
    return this.#freeCount === 0 ? -1 : this.#freeSlots[this.#freeCount - 1]!;
  }

  /** Writes a slot's header. All zeroes, as it is at first, is a packet that is complete as it is. */
  setHeader(
    slot: number,
    flags: number,
    gsoType: number,
    headerBytes: number,
    gsoSize: number,
    csumStart: number,
    csumOffset: number,
  ): void {
    const { bytes, halfwords } = this.#memory;
    const at = this.#slots + slot * this.#stride;
    bytes[at + VIRTIO_NET_HDR.flags] = flags;
    bytes[at + VIRTIO_NET_HDR.gso_type] = gsoType;
    halfwords[(at + VIRTIO_NET_HDR.hdr_len) / 2] = headerBytes;
    halfwords[(at + VIRTIO_NET_HDR.gso_size) / 2] = gsoSize;
    halfwords[(at + VIRTIO_NET_HDR.csum_start) / 2] = csumStart;
    halfwords[(at + VIRTIO_NET_HDR.csum_offset) / 2] = csumOffset;
    halfwords[(at + VIRTIO_NET_HDR.num_buffers) / 2] = 0;
  }

  /**
   * Stages the packet of `packetBytes` in the slot of `peekSlot`; the device gets it by `queue.flush`, and the slot is
   * the device's until `reap`. Returns false when there is no slot, or no room for its descriptors.
   * @throws RangeError - the packet is longer than a slot (our mistake)
   */
  push(packetBytes: number): boolean {
    if (this.#freeCount === 0) return false;
    if (packetBytes > this.maxPacketBytes) {
      throw new RangeError(`a packet of ${packetBytes} bytes in a slot for ${this.maxPacketBytes}`);
    }
    const { ring } = this.queue;
    const slot = this.#freeSlots[this.#freeCount - 1]!;
    const length = VIRTIO_NET_HDR_BYTES + packetBytes;
    const guestAddress = this.#memory.guestAddress + this.#slots + slot * this.#stride;
    ring.startChain();
    for (let done = 0; done < length; done += this.#segmentBytes) {
      ring.addBuffer(guestAddress + done, Math.min(this.#segmentBytes, length - done), false);
    }
    if (!ring.pushChain(slot)) return false;
    this.#freeCount -= 1;
    return true;
  }

  /** Takes back at most `limit` slots that the device is done with. Returns how many, or RING_FAULT. */
  reap(limit: number): number {
    const { ring } = this.queue;
    for (let count = 0; count < limit; count++) {
      const slot = ring.reap();
      if (slot < 0) {
        if (slot !== RING_FAULT) return count;
        this.#fault = ring.fault;
        return RING_FAULT;
      }
      this.#freeSlots[this.#freeCount] = slot;
      this.#freeCount += 1;
      if (ring.usedLength !== 0) {
        this.#fault = `the device says it wrote ${ring.usedLength} bytes to a packet that it may only read`;
        return RING_FAULT;
      }
    }
    return limit;
  }
}

function strideOf(maxPacketBytes: number): number {
  return Math.ceil((VIRTIO_NET_HDR_BYTES + maxPacketBytes) / CACHE_LINE_BYTES) * CACHE_LINE_BYTES;
}

function ringOptions(options: NetTransmitQueueOptions): DriverQueueOptions {
  const maxChain = Math.ceil((VIRTIO_NET_HDR_BYTES + options.maxPacketBytes) / options.segmentBytes);
  // As Linux does: a packet of one descriptor gains nothing by a table.
  return {
    ...options,
    maxChain: Math.min(maxChain, options.size),
    indirect: options.indirect && maxChain > 1,
  };
}
