/**
 * The receive queue of a socket device: buffers out, packets in, one packet a buffer. Nothing is allocated or waited for
 * per packet. What the device wrote is checked; a device that breaks a rule is a RING_FAULT and `fault` is the sentence.
 * Source: VIRTIO 1.3, 5.10.6.1 Virtqueue Flow Control, 5.10.6.4 Receive and Transmit.
 *
 *     buffer: header (44 bytes), payload ...
 */

import { VIRTIO_VSOCK_HDR_BYTES } from '../../protocol/virtio/vsock.ts';
import type { SharedMemory } from '../frontend/shared-memory.ts';
import { DriverQueue, type DriverQueueOptions } from './driver-queue.ts';
import { RING_FAULT, type RingFeatures } from './virtqueue.ts';
import { VsockHeader } from './vsock-header.ts';

const CACHE_LINE_BYTES = 64;

export interface VsockReceiveQueueOptions extends RingFeatures {
  readonly index: number;
  /** Entries of the ring, and buffers. */
  readonly size: number;
  /** Bytes of payload that one buffer has room for. */
  readonly payloadBytes: number;
}

export class VsockReceiveQueue {
  readonly queue: DriverQueue;
  /** Of the packet in hand. */
  readonly header = new VsockHeader();
  readonly #memory: SharedMemory;
  readonly #bufferBytes: number;
  readonly #stride: number;
  readonly #buffers: number;
  #inHand = 0;
  #fault = '';

  /** Allocates rings and buffers in `memory`, which outlives the queue. @throws RangeError - memory or sizes */
  constructor(memory: SharedMemory, options: VsockReceiveQueueOptions) {
    const { size } = options;
    this.#memory = memory;
    this.queue = new DriverQueue(memory, options.index, ringOptions(options), () => this.#onResume());
    this.#bufferBytes = VIRTIO_VSOCK_HDR_BYTES + options.payloadBytes;
    this.#stride = strideOf(options.payloadBytes);
    this.#buffers = memory.allocate(size * this.#stride, CACHE_LINE_BYTES);
    for (let buffer = 0; buffer < size; buffer++) this.#post(buffer);
    // No kick: the ring belongs to nobody yet.
    this.queue.ring.publish();
  }

  /** Bytes of shared memory that a queue with these options takes, alignment included. */
  static memoryBytes(options: VsockReceiveQueueOptions): number {
    const buffers = options.size * strideOf(options.payloadBytes);
    return DriverQueue.memoryBytes(ringOptions(options)) + buffers + 2 * CACHE_LINE_BYTES;
  }

  /** What the device did wrong when `receive` said RING_FAULT. */
  get fault(): string {
    return this.#fault;
  }

  /** Where the payload of the packet in hand begins, as an offset into shared memory. */
  get payloadOffset(): number {
    return this.#buffers + this.#inHand * this.#stride + VIRTIO_VSOCK_HDR_BYTES;
  }

  /**
   * Takes the next packet in hand; the one before must have been released. Returns the bytes of its payload,
   * NOTHING_USED or RING_FAULT.
   */
  receive(): number {
    const { ring } = this.queue;
    const buffer = ring.reap();
    if (buffer < 0) {
      if (buffer === RING_FAULT) this.#fault = ring.fault;
      return buffer;
    }
    const { usedLength } = ring;
    if (usedLength < VIRTIO_VSOCK_HDR_BYTES || usedLength > this.#bufferBytes) {
      this.#fault = `the device says it wrote ${usedLength} bytes: a packet here has from ${VIRTIO_VSOCK_HDR_BYTES} to ${this.#bufferBytes}`;
      return RING_FAULT;
    }
    this.#inHand = buffer;
    const { header } = this;
    header.read(this.#memory.words, (this.#buffers + buffer * this.#stride) / 4);
    if (header.length > usedLength - VIRTIO_VSOCK_HDR_BYTES) {
      this.#fault = `a packet says it has ${header.length} bytes of payload, ${usedLength - VIRTIO_VSOCK_HDR_BYTES} are there`;
      return RING_FAULT;
    }
    return header.length;
  }

  /** Stages the buffer of the packet in hand for the device, which gets it by `queue.flush`. */
  release(): void {
    this.#post(this.#inHand);
  }

  #post(buffer: number): void {
    const { ring } = this.queue;
    ring.startChain();
    ring.addBuffer(this.#memory.guestAddress + this.#buffers + buffer * this.#stride, this.#bufferBytes, true);
    ring.pushChain(buffer);
  }

  /** What the dead back end used and nobody took is of connections that ended with it. */
  #onResume(): void {
    for (let buffer = this.queue.ring.reap(); buffer >= 0; buffer = this.queue.ring.reap()) this.#post(buffer);
  }
}

function strideOf(payloadBytes: number): number {
  return Math.ceil((VIRTIO_VSOCK_HDR_BYTES + payloadBytes) / CACHE_LINE_BYTES) * CACHE_LINE_BYTES;
}

function ringOptions(options: VsockReceiveQueueOptions): DriverQueueOptions {
  // Buffers of one descriptor gain nothing by a table.
  return { ...options, maxChain: 1, indirect: false };
}
