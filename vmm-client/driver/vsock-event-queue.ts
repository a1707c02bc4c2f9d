/**
 * The event queue of a socket device: buffers out, events in, which are rare. Source: VIRTIO 1.3, 5.10.6.7 Device Events.
 *
 *     buffer: id u32
 */

import { VIRTIO_VSOCK_EVENT_BYTES, VIRTIO_VSOCK_EVENT_TRANSPORT_RESET } from '../../protocol/virtio/vsock.ts';
import type { SharedMemory } from '../frontend/shared-memory.ts';
import { DriverQueue } from './driver-queue.ts';
import { RING_FAULT, type RingFeatures } from './virtqueue.ts';

/** Entries. */
const SIZE = 8;
const SHAPE = { size: SIZE, maxChain: 1, indirect: false };

/** `poll`: nothing that matters came, or a reset of the transport did. */
export const NO_EVENT = 0;
export const TRANSPORT_RESET = 1;

export class VsockEventQueue {
  readonly queue: DriverQueue;
  readonly #memory: SharedMemory;
  readonly #buffers: number;
  #fault = '';

  /** Allocates ring and buffers in `memory`, which outlives the queue. @throws RangeError - memory */
  constructor(memory: SharedMemory, index: number, ring: RingFeatures) {
    this.#memory = memory;
    // An event of the back end that died is about connections that ended with it.
    this.queue = new DriverQueue(memory, index, { ...ring, ...SHAPE }, () => this.#drain());
    this.#buffers = memory.allocate(SIZE * VIRTIO_VSOCK_EVENT_BYTES, VIRTIO_VSOCK_EVENT_BYTES);
    for (let buffer = 0; buffer < SIZE; buffer++) this.#post(buffer);
    this.queue.ring.publish();
  }

  /** Bytes of shared memory that the queue takes, alignment included. */
  static memoryBytes(): number {
    return DriverQueue.memoryBytes(SHAPE) + 256;
  }

  /** What the device did wrong when `poll` said RING_FAULT. */
  get fault(): string {
    return this.#fault;
  }

  /** Takes all events. Returns NO_EVENT, TRANSPORT_RESET or RING_FAULT. Events of other kinds are left alone. */
  poll(): number {
    const { ring } = this.queue;
    let found = NO_EVENT;
    for (;;) {
      const buffer = ring.reap();
      if (buffer === RING_FAULT) {
        this.#fault = ring.fault;
        return RING_FAULT;
      }
      if (buffer < 0) break;
      if (ring.usedLength !== VIRTIO_VSOCK_EVENT_BYTES) {
        this.#fault = `an event has ${ring.usedLength} bytes instead of ${VIRTIO_VSOCK_EVENT_BYTES}`;
        return RING_FAULT;
      }
      const id = this.#memory.words[this.#buffers / 4 + buffer];
      if (id === VIRTIO_VSOCK_EVENT_TRANSPORT_RESET) found = TRANSPORT_RESET;
      this.#post(buffer);
    }
    this.queue.flush();
    return found;
  }

  #drain(): void {
    const { ring } = this.queue;
    for (let buffer = ring.reap(); buffer >= 0; buffer = ring.reap()) this.#post(buffer);
  }

  #post(buffer: number): void {
    const { ring } = this.queue;
    const at = this.#buffers + buffer * VIRTIO_VSOCK_EVENT_BYTES;
    ring.startChain();
    ring.addBuffer(this.#memory.guestAddress + at, VIRTIO_VSOCK_EVENT_BYTES, true);
    ring.pushChain(buffer);
  }
}
