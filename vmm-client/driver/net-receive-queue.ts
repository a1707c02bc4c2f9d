/**
 * One receive queue of a network device: buffers out, packets in. A packet may be spread over several buffers
 * (MRG_RXBUF); it is complete in here before anyone sees it. Nothing is allocated or waited for per packet. Everything
 * the device wrote is checked; a device that breaks a rule is a RING_FAULT and `fault` is the sentence.
 * Source: VIRTIO 1.3, 5.1.6.3 Setting Up Receive Buffers, 5.1.6.4 Processing of Incoming Packets.
 *
 *     first buffer: header (12 bytes, num_buffers at 10), packet ...     further buffers: packet ...
 */

import {
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_HDR,
  VIRTIO_NET_HDR_BYTES,
  VIRTIO_NET_HDR_F_NEEDS_CSUM,
  VIRTIO_NET_HDR_GSO_ECN,
  VIRTIO_NET_HDR_GSO_NONE,
  VIRTIO_NET_HDR_GSO_TCPV4,
  VIRTIO_NET_HDR_GSO_TCPV6,
} from '../../protocol/virtio/net.ts';
import { hasFeature } from '../../protocol/virtio/reserved-features.ts';
import type { SharedMemory } from '../frontend/shared-memory.ts';
import { DriverQueue, type DriverQueueOptions } from './driver-queue.ts';
import { ringFeaturesOf } from './ring-features.ts';
import { RING_FAULT } from './virtqueue.ts';

const CACHE_LINE_BYTES = 64;

export interface NetReceiveQueueOptions {
  readonly index: number;
  /** Entries of the ring, and buffers. */
  readonly size: number;
  /** Bytes of one buffer, header included. */
  readonly bufferBytes: number;
  /** Whether MRG_RXBUF was negotiated, and the whole mask. */
  readonly mergeable: boolean;
  readonly features: bigint;
}

export class NetReceiveQueue {
  readonly queue: DriverQueue;
  readonly #memory: SharedMemory;
  readonly #bufferBytes: number;
  readonly #stride: number;
  readonly #mergeable: boolean;
  readonly #needsCsumAllowed: boolean;
  readonly #tso4Allowed: boolean;
  readonly #tso6Allowed: boolean;
  readonly #buffers: number;
  readonly #buffersGuestAddress: number;

  /** Used buffers and their used lengths in the order of the device: first those of the packet in hand. */
  readonly #bufferAt: Uint16Array;
  readonly #lengthAt: Uint32Array;
  #first = 0;
  #count = 0;
  #fault = '';

  // Of the packet in hand, as `receive` read them from its header.
  flags = 0;
  gsoType = 0;
  gsoSize = 0;
  csumStart = 0;
  csumOffset = 0;
  /** Buffers that it is spread over; 0 while there is no packet in hand. */
  buffers = 0;
  /** Bytes without the header. */
  packetBytes = 0;

  /** Packets of which only the beginning had come when the back end died, for statistics. */
  cutOff = 0;

  /** Allocates rings and buffers in `memory`, which outlives the queue. @throws RangeError - memory or sizes */
  constructor(memory: SharedMemory, options: NetReceiveQueueOptions) {
    const { size, features } = options;
    this.#memory = memory;
    this.queue = new DriverQueue(memory, options.index, ringOptions(options), () => this.#onResume());
    this.#bufferBytes = options.bufferBytes;
    this.#stride = strideOf(options.bufferBytes);
    this.#mergeable = options.mergeable;
    this.#needsCsumAllowed = hasFeature(features, VIRTIO_NET_F_GUEST_CSUM);
    this.#tso4Allowed = hasFeature(features, VIRTIO_NET_F_GUEST_TSO4);
    this.#tso6Allowed = hasFeature(features, VIRTIO_NET_F_GUEST_TSO6);
    this.#buffers = memory.allocate(size * this.#stride, CACHE_LINE_BYTES);
    this.#buffersGuestAddress = memory.guestAddress + this.#buffers;
    this.#bufferAt = new Uint16Array(size);
    this.#lengthAt = new Uint32Array(size);
    for (let buffer = 0; buffer < size; buffer++) this.#post(buffer);
    // No kick: the ring belongs to nobody yet.
    this.queue.ring.publish();
  }

  /** Bytes of shared memory that a queue with these options takes, alignment included. */
  static memoryBytes(options: NetReceiveQueueOptions): number {
    return (
      DriverQueue.memoryBytes(ringOptions(options)) +
      options.size * strideOf(options.bufferBytes) +
      2 * CACHE_LINE_BYTES
    );
  }

  /** What the device did wrong when `receive` said RING_FAULT. */
  get fault(): string {
    return this.#fault;
  }

  /**
   * Takes the next packet in hand; the one before must have been released. Returns its length in bytes without the
   * header, NOTHING_USED when none is complete, or RING_FAULT.
   */
  receive(): number {
    if (this.#count === 0) {
      const taken = this.#take();
      if (taken !== 0) return taken;
    }
    const firstLength = this.#lengthAt[this.#first]!;
    if (firstLength < VIRTIO_NET_HDR_BYTES) {
      return this.#fail(`a packet's first buffer has ${firstLength} bytes, its header alone ${VIRTIO_NET_HDR_BYTES}`);
    }
    const needed = this.#numBuffersOf(this.#first);
    if (!this.#mergeable && needed !== 1) return this.#fail(`num_buffers is ${needed} without MRG_RXBUF`);
    if (needed === 0 || needed > this.queue.ring.size) {
      return this.#fail(`num_buffers is ${needed} in a queue of ${this.queue.ring.size} entries`);
    }
    while (this.#count < needed) {
      const taken = this.#take();
      if (taken !== 0) return taken;
    }
    let packetBytes = -VIRTIO_NET_HDR_BYTES;
    for (let i = 0; i < needed; i++) {
      const length = this.#lengthAt[this.#behind(i)]!;
      if (i < needed - 1 && length !== this.#bufferBytes) {
        return this.#fail(`buffer ${i + 1} of ${needed} has ${length} bytes; all but the last must be full`);
      }
      packetBytes += length;
    }
    if (!this.#readHeader()) return RING_FAULT;
    this.buffers = needed;
    this.packetBytes = packetBytes;
    return packetBytes;
  }

  /** Copies the packet in hand, without its header, as far as the target has room. Returns how many bytes. */
  copyTo(target: Uint8Array): number {
    let copied = 0;
    for (let i = 0; i < this.buffers && copied < target.length; i++) {
      const at = this.#behind(i);
      const skipped = i === 0 ? VIRTIO_NET_HDR_BYTES : 0;
      const start = this.#buffers + this.#bufferAt[at]! * this.#stride + skipped;
      const length = Math.min(this.#lengthAt[at]! - skipped, target.length - copied);
      target.set(this.#memory.bytes.subarray(start, start + length), copied);
      copied += length;
    }
    return copied;
  }

  /** Stages the buffers of the packet in hand for the device, which gets them by `queue.flush`. */
  release(): void {
    this.#drop(this.buffers);
    this.buffers = 0;
    this.packetBytes = 0;
  }

  /** Moves one used buffer behind those that wait. Returns 0, NOTHING_USED or RING_FAULT. */
  #take(): number {
    const { ring } = this.queue;
    const buffer = ring.reap();
    if (buffer < 0) {
      if (buffer === RING_FAULT) this.#fault = ring.fault;
      return buffer;
    }
    if (ring.usedLength > this.#bufferBytes) {
      return this.#fail(`the device says it wrote ${ring.usedLength} bytes to a buffer of ${this.#bufferBytes}`);
    }
    const at = this.#behind(this.#count);
    this.#bufferAt[at] = buffer;
    this.#lengthAt[at] = ring.usedLength;
    this.#count += 1;
    return 0;
  }

  /** Where the used buffer is that has `index` others before it; the next one to come has all of them. */
  #behind(index: number): number {
    const at = this.#first + index;
    return at < this.#bufferAt.length ? at : at - this.#bufferAt.length;
  }

  #numBuffersOf(at: number): number {
    return this.#memory.halfwords[
      (this.#buffers + this.#bufferAt[at]! * this.#stride + VIRTIO_NET_HDR.num_buffers) / 2
    ]!;
  }

  /** Reads the header of the first packet once. Returns false when it says what was not negotiated. */
  #readHeader(): boolean {
    const { bytes, halfwords } = this.#memory;
    const at = this.#buffers + this.#bufferAt[this.#first]! * this.#stride;
    const flags = bytes[at + VIRTIO_NET_HDR.flags]!;
    const gsoType = bytes[at + VIRTIO_NET_HDR.gso_type]!;
    this.flags = flags;
    this.gsoType = gsoType;
    this.gsoSize = halfwords[(at + VIRTIO_NET_HDR.gso_size) / 2]!;
    this.csumStart = halfwords[(at + VIRTIO_NET_HDR.csum_start) / 2]!;
    this.csumOffset = halfwords[(at + VIRTIO_NET_HDR.csum_offset) / 2]!;
    if ((flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) !== 0 && !this.#needsCsumAllowed) {
      this.#fault = 'a packet has NEEDS_CSUM, and GUEST_CSUM was not negotiated';
      return false;
    }
    const segments = gsoType & ~VIRTIO_NET_HDR_GSO_ECN;
    const allowed =
      segments === VIRTIO_NET_HDR_GSO_NONE ||
      (segments === VIRTIO_NET_HDR_GSO_TCPV4 && this.#tso4Allowed) ||
      (segments === VIRTIO_NET_HDR_GSO_TCPV6 && this.#tso6Allowed);
    if (!allowed) this.#fault = `a packet has gso_type ${gsoType}, which was not negotiated`;
    return allowed;
  }

  #fail(sentence: string): number {
    this.#fault = sentence;
    return RING_FAULT;
  }

  /** Stages the first `count` of the used buffers for the device. */
  #drop(count: number): void {
    for (let i = 0; i < count; i++) {
      this.#post(this.#bufferAt[this.#first]!);
      this.#first = this.#behind(1);
    }
    this.#count -= count;
  }

  #post(buffer: number): void {
    const { ring } = this.queue;
    ring.startChain();
    ring.addBuffer(this.#buffersGuestAddress + buffer * this.#stride, this.#bufferBytes, true);
    ring.pushChain(buffer);
  }

  /**
   * Takes what the dead back end had used. A packet whose beginning alone had come will never be complete: its buffers
   * go to the next back end.
   */
  #onResume(): void {
    while (this.#take() === 0);
    let whole = 0;
    while (whole < this.#count) {
      // Of 0 and other nonsense `receive` will speak.
      const needed = Math.max(1, this.#numBuffersOf(this.#behind(whole)));
      if (needed > this.#count - whole) break;
      whole += needed;
    }
    if (whole === this.#count) return;
    this.cutOff += 1;
    for (let i = whole; i < this.#count; i++) this.#post(this.#bufferAt[this.#behind(i)]!);
    this.#count = whole;
  }
}

function strideOf(bufferBytes: number): number {
  return Math.ceil(bufferBytes / CACHE_LINE_BYTES) * CACHE_LINE_BYTES;
}

function ringOptions({ size, features }: NetReceiveQueueOptions): DriverQueueOptions {
  // Buffers of one descriptor gain nothing by a table.
  return { ...ringFeaturesOf(features), size, maxChain: 1, indirect: false };
}
