/**
 * The driver's side of a split virtqueue in shared memory: chains in, used entries out. Source: VIRTIO 1.3, 2.7 Split
 * Virtqueues, 2.7.13 Supplying Buffers to The Device, 2.7.14 Receiving Used Buffers.
 *
 *     words of one descriptor: address low, address high, length, flags | next << 16
 *
 * The free descriptors are a list linked through `#next`, which is the driver's own: the device cannot write to it. With
 * IN_ORDER they are taken in the order of the table, around and around. With INDIRECT each descriptor owns one table of
 * `maxChain` entries, and a chain takes one descriptor of the ring.
 */

import {
  availRingBytes,
  descriptorTableBytes,
  usedRingBytes,
  VIRTQ_AVAIL_F_NO_INTERRUPT,
  VIRTQ_DESC_BYTES,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_WRITE,
  VIRTQ_MAX_SIZE,
  VIRTQ_USED_F_NO_NOTIFY,
} from '../../protocol/virtio/split-ring.ts';
import type { SharedMemory } from '../frontend/shared-memory.ts';
import { InOrderChains } from './in-order.ts';
import { NOTHING_USED, RING_FAULT, type VirtqueueDriver, type VirtqueueDriverOptions } from './virtqueue.ts';

const HIGH_WORD = 0x1_0000_0000;
const RING_ALIGN = 4096;
const WORDS_PER_DESCRIPTOR = VIRTQ_DESC_BYTES / 4;

export class SplitVirtqueueDriver implements VirtqueueDriver {
  readonly size: number;
  /** Descriptor table, available ring, used ring. */
  readonly descriptorArea: number;
  readonly driverArea: number;
  readonly deviceArea: number;
  readonly initialBase = 0;
  fault = '';
  usedLength = 0;

  readonly #mask: number;
  readonly #maxChain: number;
  readonly #indirect: boolean;
  readonly #eventIdx: boolean;
  readonly #words: Uint32Array;
  readonly #halfwords: Uint16Array;
  readonly #tables: number;
  readonly #tablesGuestAddress: number;

  // Positions in units of the array they are used with.
  readonly #descWord: number;
  readonly #availFlags: number;
  readonly #availIdx: number;
  readonly #availEntry: number;
  readonly #usedEvent: number;
  readonly #usedFlags: number;
  readonly #usedIdx: number;
  readonly #usedWord: number;
  readonly #availEvent: number;

  readonly #next: Uint16Array;
  readonly #tail: Uint16Array;
  /** Descriptors of the ring that the chain of this head holds; 0: not in flight. */
  readonly #held: Uint16Array;
  readonly #tokens: Int32Array;
  readonly #order: InOrderChains | undefined;
  #freeHead = 0;
  #freeCount: number;
  #outstanding = 0;
  #isDisarmed = false;

  /** Next index to stage, index that the device can see, next used entry to take, used index last seen. */
  #staged = 0;
  #published = 0;
  #reaped = 0;
  #seenUsed = 0;

  // The chain under construction.
  #chainLength = 0;
  #chainRoom = 0;
  #chainWord = 0;
  #chainLast = 0;
  #chainWritable = 0;
  #cursor = 0;

  /** Allocates rings and tables in `memory`, for good. @throws RangeError - size or memory */
  constructor(memory: SharedMemory, { size, maxChain, indirect, eventIdx, inOrder }: VirtqueueDriverOptions) {
    if (size < 1 || size > VIRTQ_MAX_SIZE || (size & (size - 1)) !== 0) {
      throw new RangeError(`queue size ${size} is not a power of two up to ${VIRTQ_MAX_SIZE}`);
    }
    if (maxChain > size) throw new RangeError(`chains of ${maxChain} descriptors in a queue of ${size} entries`);
    this.size = size;
    this.#mask = size - 1;
    this.#maxChain = maxChain;
    this.#indirect = indirect;
    this.#eventIdx = eventIdx;
    this.#words = memory.words;
    this.#halfwords = memory.halfwords;

    this.descriptorArea = memory.allocate(descriptorTableBytes(size), RING_ALIGN);
    this.driverArea = memory.allocate(availRingBytes(size), RING_ALIGN);
    this.deviceArea = memory.allocate(usedRingBytes(size), RING_ALIGN);
    this.#tables = indirect ? memory.allocate(size * maxChain * VIRTQ_DESC_BYTES, RING_ALIGN) : 0;
    this.#tablesGuestAddress = memory.guestAddress + this.#tables;

    this.#descWord = this.descriptorArea / 4;
    this.#availFlags = this.driverArea / 2;
    this.#availIdx = this.#availFlags + 1;
    this.#availEntry = this.#availFlags + 2;
    this.#usedEvent = this.#availEntry + size;
    this.#usedFlags = this.deviceArea / 2;
    this.#usedIdx = this.#usedFlags + 1;
    this.#usedWord = this.deviceArea / 4 + 1;
    this.#availEvent = this.#usedFlags + 2 + 4 * size;

    this.#next = Uint16Array.from({ length: size }, (_, i) => (i + 1) & this.#mask);
    this.#tail = new Uint16Array(size);
    this.#held = new Uint16Array(size);
    this.#tokens = new Int32Array(size);
    this.#order = inOrder ? new InOrderChains(size) : undefined;
    this.#freeCount = size;
  }

  get outstanding(): number {
    return this.#outstanding;
  }

  startChain(): void {
    this.#chainLength = 0;
    this.#chainWritable = 0;
    this.#cursor = this.#freeHead;
    if (this.#indirect) {
      this.#chainRoom = this.#freeCount > 0 ? this.#maxChain : 0;
      this.#chainWord = (this.#tables + this.#freeHead * this.#maxChain * VIRTQ_DESC_BYTES) / 4;
    } else {
      this.#chainRoom = Math.min(this.#freeCount, this.#maxChain);
    }
  }

  addBuffer(guestAddress: number, length: number, writable: boolean): boolean {
    if (this.#chainLength >= this.#chainRoom) {
      this.#chainRoom = -1;
      return false;
    }
    const words = this.#words;
    const flags = writable ? VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT : VIRTQ_DESC_F_NEXT;
    let at: number;
    let next: number;
    if (this.#indirect) {
      at = this.#chainWord + this.#chainLength * WORDS_PER_DESCRIPTOR;
      next = this.#chainLength + 1;
    } else {
      const descriptor = this.#cursor;
      at = this.#descWord + descriptor * WORDS_PER_DESCRIPTOR;
      next = this.#next[descriptor]!;
      this.#chainLast = descriptor;
      this.#cursor = next;
    }
    words[at] = guestAddress >>> 0;
    words[at + 1] = (guestAddress / HIGH_WORD) >>> 0;
    words[at + 2] = length;
    words[at + 3] = flags | (next << 16);
    this.#chainLength += 1;
    if (writable) this.#chainWritable += length;
    return true;
  }

  pushChain(token: number): boolean {
    const length = this.#chainLength;
    if (length === 0 || this.#chainRoom < 0) return false;
    const head = this.#freeHead;
    const words = this.#words;
    if (this.#indirect) {
      const last = this.#chainWord + (length - 1) * WORDS_PER_DESCRIPTOR + 3;
      words[last] = words[last]! & VIRTQ_DESC_F_WRITE;
      const at = this.#descWord + head * WORDS_PER_DESCRIPTOR;
      const table = this.#tablesGuestAddress + head * this.#maxChain * VIRTQ_DESC_BYTES;
      words[at] = table >>> 0;
      words[at + 1] = (table / HIGH_WORD) >>> 0;
      words[at + 2] = length * VIRTQ_DESC_BYTES;
      words[at + 3] = VIRTQ_DESC_F_INDIRECT;
      this.#held[head] = 1;
      this.#tail[head] = head;
      this.#freeHead = this.#next[head]!;
      this.#freeCount -= 1;
    } else {
      const last = this.#descWord + this.#chainLast * WORDS_PER_DESCRIPTOR + 3;
      words[last] = words[last]! & VIRTQ_DESC_F_WRITE;
      this.#held[head] = length;
      this.#tail[head] = this.#chainLast;
      this.#freeHead = this.#cursor;
      this.#freeCount -= length;
    }
    this.#tokens[head] = token;
    this.#order?.push(head, this.#chainWritable);
    this.#halfwords[this.#availEntry + (this.#staged & this.#mask)] = head;
    this.#staged = (this.#staged + 1) & 0xffff;
    this.#outstanding += 1;
    this.#chainRoom = -1;
    return true;
  }

  publish(): boolean {
    const before = this.#published;
    const now = this.#staged;
    if (now === before) return false;
    this.#published = now;
    // Orders the descriptors and ring entries above before the index that makes them the device's, and (being
    // sequentially consistent) the index before the look at what the device wants to be told.
    Atomics.store(this.#halfwords, this.#availIdx, now);
    if (!this.#eventIdx) {
      return (Atomics.load(this.#halfwords, this.#usedFlags) & VIRTQ_USED_F_NO_NOTIFY) === 0;
    }
    const event = Atomics.load(this.#halfwords, this.#availEvent);
    return ((now - event - 1) & 0xffff) < ((now - before) & 0xffff);
  }

  reap(): number {
    const order = this.#order;
    if (this.#reaped === this.#seenUsed) {
      if (order?.isOpen === true) {
        this.fault = `a used entry completes more chains than the used index ${this.#seenUsed} says`;
        return RING_FAULT;
      }
      // Orders the index before the entries and the buffers below it.
      this.#seenUsed = Atomics.load(this.#halfwords, this.#usedIdx);
      if (this.#reaped === this.#seenUsed) return NOTHING_USED;
      if (((this.#seenUsed - this.#reaped) & 0xffff) > this.#outstanding) {
        this.fault = `used index ${this.#seenUsed} is ahead of ${this.#reaped} by more than the ${this.#outstanding} chains in flight`;
        this.#seenUsed = this.#reaped;
        return RING_FAULT;
      }
    }
    if (order === undefined) {
      const head = this.#readUsed();
      return head < 0 ? RING_FAULT : this.#take(head);
    }
    if (!order.isOpen) {
      const last = this.#readUsed();
      if (last < 0) return RING_FAULT;
      order.open(last, this.usedLength);
    }
    const head = order.next();
    this.usedLength = order.length;
    return this.#take(head);
  }

  /** Reads the used entry that is next, once. Returns its head, or RING_FAULT. */
  #readUsed(): number {
    const at = this.#usedWord + (this.#reaped & this.#mask) * 2;
    const head = this.#words[at]!;
    if (head >= this.size || this.#held[head] === 0) {
      this.fault = `used entry ${this.#reaped & this.#mask} names chain ${head}, which is not in flight`;
      return RING_FAULT;
    }
    this.usedLength = this.#words[at + 1]!;
    return head;
  }

  /** Takes a chain back. Returns its token. */
  #take(head: number): number {
    this.#reaped = (this.#reaped + 1) & 0xffff;
    this.#freeCount += this.#held[head]!;
    this.#held[head] = 0;
    // In order, the descriptors are behind the last free one as it is.
    if (this.#order === undefined) {
      this.#next[this.#tail[head]!] = this.#freeHead;
      this.#freeHead = head;
    }
    this.#outstanding -= 1;
    return this.#tokens[head]!;
  }

  armInterrupt(): boolean {
    this.#isDisarmed = false;
    // Orders the wish before the look at the index: either the device sees the one or the driver the other.
    if (this.#eventIdx) Atomics.store(this.#halfwords, this.#usedEvent, this.#reaped);
    else Atomics.store(this.#halfwords, this.#availFlags, 0);
    return Atomics.load(this.#halfwords, this.#usedIdx) === this.#reaped;
  }

  disarmInterrupt(): void {
    this.#isDisarmed = true;
    // With EVENT_IDX: an index that was just passed comes around again after 65535 entries.
    if (this.#eventIdx) Atomics.store(this.#halfwords, this.#usedEvent, (this.#reaped - 1) & 0xffff);
    else Atomics.store(this.#halfwords, this.#availFlags, VIRTQ_AVAIL_F_NO_INTERRUPT);
  }

  resume(keepsInflight: boolean): number {
    if (keepsInflight) return Atomics.load(this.#halfwords, this.#usedIdx);
    // In order, what is outstanding is in the available ring as it is, behind the last used chain.
    if (this.#order === undefined) this.#restage();
    this.#published = this.#staged;
    this.#halfwords[this.#usedFlags] = 0;
    this.#halfwords[this.#availEvent] = this.#reaped;
    // Nobody else looks at the ring; the message that hands it over orders these for the new back end.
    this.#halfwords[this.#usedIdx] = this.#reaped;
    this.#halfwords[this.#availIdx] = this.#published;
    if (this.#isDisarmed) this.disarmInterrupt();
    else this.armInterrupt();
    return this.#reaped;
  }

  /** Begins anew with every chain that is outstanding. */
  #restage(): void {
    this.#staged = 0;
    this.#reaped = 0;
    this.#seenUsed = 0;
    for (let head = 0; head < this.size; head++) {
      if (this.#held[head] === 0) continue;
      this.#halfwords[this.#availEntry + this.#staged] = head;
      this.#staged += 1;
    }
  }
}
