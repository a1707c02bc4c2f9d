/**
 * Device side of one split virtqueue. Heads are taken with `pop`; used entries are staged with `push`, made visible
 * together with `publish`, and then the driver is told if it wants to be. Source: VIRTIO 1.3, 2.7 Split Virtqueues;
 * layout in virtio/split-ring.ts.
 *
 * Ordering. The driver is another process: what must not be reordered goes through Atomics, which are sequentially
 * consistent (full barriers) in JavaScript. avail.idx is loaded atomically before the ring entries it announces; used
 * entries are plain stores before the atomic store of used.idx; avail_event is stored atomically before avail.idx is
 * looked at again, and used.idx before used_event is read: these two pairs are what keeps a notification from being lost.
 */

import {
  availRingBytes,
  descriptorTableBytes,
  usedRingBytes,
  VIRTQ_AVAIL_ALIGN,
  VIRTQ_AVAIL_F_NO_INTERRUPT,
  VIRTQ_DESC_ALIGN,
  VIRTQ_MAX_SIZE,
  VIRTQ_USED_ALIGN,
  VIRTQ_USED_F_NO_NOTIFY,
} from '../virtio/split-ring.ts';
import type { DescriptorChain } from './chain.ts';
import { FAULT_AVAIL_INDEX, FAULT_HEAD_IN_FLIGHT, FAULT_HEAD_OUT_OF_RANGE } from './faults.ts';
import { RingError, type RingPlacer, type Virtqueue, type VirtqueueOptions } from './virtqueue.ts';

/** Whether a split queue can have this size. */
export function isSplitQueueSize(size: number): boolean {
  return size > 0 && size <= VIRTQ_MAX_SIZE && (size & (size - 1)) === 0;
}

export class SplitQueue implements Virtqueue {
  readonly size: number;
  /** Next index of the available ring to take, free-running 16 bits. */
  nextAvail = 0;
  /** Next index of the used ring to fill, free-running 16 bits; entries before it may still be unpublished. */
  nextUsed: number;
  /** Heads taken and not pushed back. */
  inFlight = 0;

  readonly #mask: number;
  readonly #indirect: boolean;
  readonly #eventIdx: boolean;
  readonly #descriptors: DataView;
  readonly #avail: Uint16Array;
  readonly #used16: Uint16Array;
  readonly #used32: Uint32Array;
  readonly #usedEventAt: number;
  readonly #availEventAt: number;
  readonly #taken: Uint8Array;
  #publishedUsed: number;
  #signalledUsed: number;
  #availSeen = 0;

  /** @throws RingError, MemoryError, and what `place` throws - the ring cannot lie there */
  constructor(place: RingPlacer, { size, addresses, indirect, eventIdx }: VirtqueueOptions) {
    if (!isSplitQueueSize(size)) {
      throw new RingError(`queue size ${size}: a power of two up to ${VIRTQ_MAX_SIZE} is possible`);
    }
    this.size = size;
    this.#mask = size - 1;
    this.#indirect = indirect;
    this.#eventIdx = eventIdx;
    const descriptors = place(
      addresses.descriptor,
      descriptorTableBytes(size),
      VIRTQ_DESC_ALIGN,
      'descriptor table',
      false,
    );
    const avail = place(addresses.available, availRingBytes(size), VIRTQ_AVAIL_ALIGN, 'available ring', false);
    const used = place(addresses.used, usedRingBytes(size), VIRTQ_USED_ALIGN, 'used ring', true);
    this.#descriptors = new DataView(descriptors);
    this.#avail = new Uint16Array(avail);
    this.#used16 = new Uint16Array(used);
    this.#used32 = new Uint32Array(used, 0, 1 + 2 * size);
    this.#usedEventAt = 2 + size;
    this.#availEventAt = 2 + 4 * size;
    this.#taken = new Uint8Array(size);
    this.nextUsed = Atomics.load(this.#used16, 1);
    this.#publishedUsed = this.nextUsed;
    this.#signalledUsed = this.nextUsed;
  }

  /** used.idx as it is in memory. */
  get publishedUsed(): number {
    return this.#publishedUsed;
  }

  /** The next available index; the used index is in memory. */
  get base(): number {
    return this.nextAvail;
  }

  get hasPast(): boolean {
    return this.nextAvail !== 0 || this.nextUsed !== 0;
  }

  get position(): number {
    return this.nextAvail;
  }

  seek(base: number): void {
    this.nextAvail = base & 0xffff;
    this.#availSeen = this.nextAvail;
  }

  pop(chain: DescriptorChain): number {
    if (this.#availSeen === this.nextAvail) {
      // Acquire: ring entries up to this index are visible. Loaded once for all heads it announces.
      const available = Atomics.load(this.#avail, 1);
      if (available === this.nextAvail) return 0;
      if (((available - this.nextAvail) & 0xffff) > this.size) return FAULT_AVAIL_INDEX;
      this.#availSeen = available;
    }
    const head = this.#avail[2 + (this.nextAvail & this.#mask)] as number;
    if (head >= this.size) return FAULT_HEAD_OUT_OF_RANGE;
    if (this.#taken[head] !== 0) return FAULT_HEAD_IN_FLIGHT;
    this.nextAvail = (this.nextAvail + 1) & 0xffff;
    this.take(head, chain);
    return 1;
  }

  /** Takes a head that was fetched in an earlier life of the back end and walks its chain. */
  take(head: number, chain: DescriptorChain): void {
    this.#taken[head] = 1;
    this.inFlight += 1;
    chain.walk(head, this.#descriptors, this.size, this.#indirect);
  }

  untake(head: number): void {
    this.nextAvail = (this.nextAvail - 1) & 0xffff;
    this.release(head);
  }

  release(head: number): void {
    this.#taken[head] = 0;
    this.inFlight -= 1;
  }

  offers(count: number): boolean {
    return ((Atomics.load(this.#avail, 1) - this.nextAvail) & 0xffff) >= count;
  }

  push(head: number, length: number): void {
    this.#taken[head] = 0;
    this.inFlight -= 1;
    const at = 1 + 2 * (this.nextUsed & this.#mask);
    this.#used32[at] = head;
    this.#used32[at + 1] = length;
    this.nextUsed = (this.nextUsed + 1) & 0xffff;
  }

  publish(): void {
    if (this.#publishedUsed === this.nextUsed) return;
    this.#publishedUsed = this.nextUsed;
    // Release: the entries are visible before the index.
    Atomics.store(this.#used16, 1, this.nextUsed);
  }

  needsNotification(): boolean {
    const old = this.#signalledUsed;
    const now = this.#publishedUsed;
    if (old === now) return false;
    if (this.#eventIdx) {
      const event = Atomics.load(this.#avail, this.#usedEventAt);
      this.#signalledUsed = now;
      return ((now - event - 1) & 0xffff) < ((now - old) & 0xffff);
    }
    this.#signalledUsed = now;
    return (Atomics.load(this.#avail, 0) & VIRTQ_AVAIL_F_NO_INTERRUPT) === 0;
  }

  /** With EVENT_IDX an event index left behind does that by itself. */
  disableKicks(): void {
    if (!this.#eventIdx) Atomics.store(this.#used16, 0, VIRTQ_USED_F_NO_NOTIFY);
  }

  enableKicks(position: number = this.nextAvail): boolean {
    if (this.#eventIdx) Atomics.store(this.#used16, this.#availEventAt, position);
    else Atomics.store(this.#used16, 0, 0);
    return Atomics.load(this.#avail, 1) !== position;
  }
}
