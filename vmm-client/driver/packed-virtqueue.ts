/**
 * The driver's side of a packed virtqueue in shared memory: chains and used descriptors in one ring. Source: VIRTIO 1.3,
 * 2.8 Packed Virtqueues, 2.8.21 Supplying Buffers to The Device, 2.8.22 Receiving Used Buffers From The Device.
 *
 *     words of one descriptor: address low, address high, length, id | flags << 16
 *
 * Positions in the ring are numbers below twice its size: a turn with the wrap counter at 1, then one with it at 0. The
 * device writes over descriptors, so that the driver has its own copies (*elements*), linked through `#next`: free ones
 * are a list, and the first element of a chain is its buffer ID. With INDIRECT each element owns one table of `maxChain`
 * entries, and a chain takes one element and one descriptor of the ring.
 */

import {
  PACKED_START_BASE,
  packedRingBytes,
  RING_EVENT_FLAGS_DESC,
  RING_EVENT_FLAGS_DISABLE,
  RING_EVENT_FLAGS_ENABLE,
  VIRTQ_DESC_F_AVAIL,
  VIRTQ_DESC_F_USED,
  VIRTQ_EVENT_SUPPRESS_BYTES,
  VIRTQ_PACKED_MAX_SIZE,
} from '../../protocol/virtio/packed-ring.ts';
import {
  VIRTQ_DESC_BYTES,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_WRITE,
} from '../../protocol/virtio/split-ring.ts';
import type { SharedMemory } from '../frontend/shared-memory.ts';
import { InOrderChains } from './in-order.ts';
import { NOTHING_USED, RING_FAULT, type VirtqueueDriver, type VirtqueueDriverOptions } from './virtqueue.ts';

const HIGH_WORD = 0x1_0000_0000;
const RING_ALIGN = 4096;
const WORDS_PER_DESCRIPTOR = VIRTQ_DESC_BYTES / 4;
/** Which of a descriptor's halfwords are its flags. */
const FLAGS_HALFWORD = 7;
const TURN_FLAGS = VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED;
const WRAP_BIT = 0x8000;
const OFFSET_MASK = 0x7fff;
const EVENT_FLAGS_MASK = 3;
export class PackedVirtqueueDriver implements VirtqueueDriver {
  readonly size: number;
  /** Descriptor ring, driver event suppression, device event suppression. */
  readonly descriptorArea: number;
  readonly driverArea: number;
  readonly deviceArea: number;
  readonly initialBase = PACKED_START_BASE;
  fault = '';
  usedLength = 0;

  readonly #turns: number;
  readonly #maxChain: number;
  readonly #indirect: boolean;
  readonly #eventIdx: boolean;
  readonly #words: Uint32Array;
  readonly #halfwords: Uint16Array;
  readonly #tables: number;
  readonly #tablesGuestAddress: number;

  // Positions in units of the array they are used with.
  readonly #descWord: number;
  readonly #driverEvent: number;
  readonly #deviceEvent: number;

  /** Address low, address high, length, flags without those of the turn; for each element. */
  readonly #elements: Int32Array;
  readonly #next: Uint16Array;
  readonly #tail: Uint16Array;
  /** Descriptors of the ring that the buffer of this ID holds; 0: not in flight. */
  readonly #held: Uint16Array;
  readonly #tokens: Int32Array;
  readonly #order: InOrderChains | undefined;
  #freeHead = 0;
  #freeCount: number;
  #outstanding = 0;
  #isDisarmed = false;

  /** Where the next chain is staged, and where the next used descriptor is. */
  #available = 0;
  #used = 0;

  // Staged descriptors. The device sees none of them before the first, whose ID and flags are kept here meanwhile.
  #stagedCount = 0;
  #stagedFrom = 0;
  #stagedWord = 0;

  // The chain under construction.
  #chainLength = 0;
  #chainRoom = 0;
  #chainWord = 0;
  #chainLast = 0;
  #chainWritable = 0;
  #cursor = 0;

  /** Allocates ring and tables in `memory`, for good. @throws RangeError - size or memory */
  constructor(memory: SharedMemory, { size, maxChain, indirect, eventIdx, inOrder }: VirtqueueDriverOptions) {
    if (!Number.isInteger(size) || size < 1 || size > VIRTQ_PACKED_MAX_SIZE) {
      throw new RangeError(`queue size ${size} is not a number from 1 to ${VIRTQ_PACKED_MAX_SIZE}`);
    }
    if (maxChain > size) throw new RangeError(`chains of ${maxChain} descriptors in a queue of ${size} entries`);
    this.size = size;
    this.#turns = 2 * size;
    this.#maxChain = maxChain;
    this.#indirect = indirect;
    this.#eventIdx = eventIdx;
    this.#words = memory.words;
    this.#halfwords = memory.halfwords;

    this.descriptorArea = memory.allocate(packedRingBytes(size), RING_ALIGN);
    this.driverArea = memory.allocate(VIRTQ_EVENT_SUPPRESS_BYTES);
    this.deviceArea = memory.allocate(VIRTQ_EVENT_SUPPRESS_BYTES);
    this.#tables = indirect ? memory.allocate(size * maxChain * VIRTQ_DESC_BYTES, RING_ALIGN) : 0;
    this.#tablesGuestAddress = memory.guestAddress + this.#tables;

    this.#descWord = this.descriptorArea / 4;
    this.#driverEvent = this.driverArea / 4;
    this.#deviceEvent = this.deviceArea / 4;

    this.#elements = new Int32Array(size * WORDS_PER_DESCRIPTOR);
    this.#next = Uint16Array.from({ length: size }, (_, i) => (i + 1) % size);
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
    const flags = writable ? VIRTQ_DESC_F_WRITE : 0;
    if (this.#indirect) {
      const words = this.#words;
      const at = this.#chainWord + this.#chainLength * WORDS_PER_DESCRIPTOR;
      words[at] = guestAddress >>> 0;
      words[at + 1] = (guestAddress / HIGH_WORD) >>> 0;
      words[at + 2] = length;
      words[at + 3] = flags << 16;
    } else {
      const element = this.#cursor;
      this.#setElement(element, guestAddress, length, flags | VIRTQ_DESC_F_NEXT);
      this.#chainLast = element;
      this.#cursor = this.#next[element]!;
    }
    this.#chainLength += 1;
    if (writable) this.#chainWritable += length;
    return true;
  }

  pushChain(token: number): boolean {
    const length = this.#chainLength;
    if (length === 0 || this.#chainRoom < 0) return false;
    const id = this.#freeHead;
    if (this.#indirect) {
      const table = this.#tablesGuestAddress + id * this.#maxChain * VIRTQ_DESC_BYTES;
      this.#setElement(id, table, length * VIRTQ_DESC_BYTES, VIRTQ_DESC_F_INDIRECT);
      this.#held[id] = 1;
      this.#tail[id] = id;
      this.#freeHead = this.#next[id]!;
      this.#freeCount -= 1;
    } else {
      const last = this.#chainLast * WORDS_PER_DESCRIPTOR + 3;
      this.#elements[last] = this.#elements[last]! & VIRTQ_DESC_F_WRITE;
      this.#held[id] = length;
      this.#tail[id] = this.#chainLast;
      this.#freeHead = this.#cursor;
      this.#freeCount -= length;
    }
    this.#tokens[id] = token;
    this.#order?.push(id, this.#chainWritable);
    this.#stage(id);
    this.#outstanding += 1;
    this.#chainRoom = -1;
    return true;
  }

  publish(): boolean {
    const count = this.#stagedCount;
    if (count === 0) return false;
    const from = this.#stagedFrom;
    this.#stagedCount = 0;
    // Orders the descriptors above before the flags that make them the device's, and (being sequentially consistent) the
    // flags before the look at what the device wants to be told.
    Atomics.store(this.#words, this.#wordOf(from) + 3, this.#stagedWord);
    const event = Atomics.load(this.#words, this.#deviceEvent);
    const flags = (event >>> 16) & EVENT_FLAGS_MASK;
    if (flags === RING_EVENT_FLAGS_DISABLE) return false;
    if (flags !== RING_EVENT_FLAGS_DESC || !this.#eventIdx) return true;
    const position = (event & OFFSET_MASK) + ((event & WRAP_BIT) === 0 ? this.size : 0);
    const distance = position - from;
    return (distance < 0 ? distance + this.#turns : distance) < count;
  }

  reap(): number {
    const order = this.#order;
    if (order === undefined) {
      const id = this.#readUsed();
      return id < 0 ? id : this.#take(id);
    }
    if (!order.isOpen) {
      const last = this.#readUsed();
      if (last < 0) return last;
      order.open(last, this.usedLength);
    }
    const id = order.next();
    this.usedLength = order.length;
    return this.#take(id);
  }

  armInterrupt(): boolean {
    this.#isDisarmed = false;
    const wish = this.#eventIdx
      ? this.#encode(this.#used) | (RING_EVENT_FLAGS_DESC << 16)
      : RING_EVENT_FLAGS_ENABLE << 16;
    // Orders the wish before the look at the flags: either the device sees the one or the driver the other.
    Atomics.store(this.#words, this.#driverEvent, wish);
    return this.#order?.isOpen !== true && !this.#areUsed(this.#loadFlags());
  }

  disarmInterrupt(): void {
    this.#isDisarmed = true;
    Atomics.store(this.#words, this.#driverEvent, RING_EVENT_FLAGS_DISABLE << 16);
  }

  resume(keepsInflight: boolean): number {
    if (keepsInflight) {
      const used = this.#encode(this.#used);
      return ((used << 16) | used) >>> 0;
    }
    // Nobody else looks at the ring; the message that hands it over orders these for the new back end.
    this.#words.fill(0, this.#descWord, this.#descWord + this.size * WORDS_PER_DESCRIPTOR);
    this.#words[this.#deviceEvent] = 0;
    this.#available = 0;
    this.#used = 0;
    this.#stagedCount = 0;
    const order = this.#order;
    if (order === undefined) {
      for (let id = 0; id < this.size; id++) if (this.#held[id] !== 0) this.#stage(id);
    } else {
      for (let i = 0; i < order.count; i++) this.#stage(order.at(i));
    }
    this.publish();
    if (this.#isDisarmed) this.disarmInterrupt();
    else this.armInterrupt();
    return PACKED_START_BASE;
  }

  #setElement(element: number, address: number, length: number, flags: number): void {
    const elements = this.#elements;
    const at = element * WORDS_PER_DESCRIPTOR;
    elements[at] = address >>> 0;
    elements[at + 1] = (address / HIGH_WORD) >>> 0;
    elements[at + 2] = length;
    elements[at + 3] = flags;
  }

  /** Writes the descriptors of a buffer behind those that are staged. */
  #stage(id: number): void {
    const words = this.#words;
    const elements = this.#elements;
    const count = this.#held[id]!;
    const end = this.#descWord + this.size * WORDS_PER_DESCRIPTOR;
    let isFirst = this.#stagedCount === 0;
    if (isFirst) this.#stagedFrom = this.#available;
    let at = this.#wordOf(this.#available);
    let turn = this.#available < this.size ? VIRTQ_DESC_F_AVAIL : VIRTQ_DESC_F_USED;
    let element = id;
    for (let left = count; left > 0; left--) {
      const from = element * WORDS_PER_DESCRIPTOR;
      words[at] = elements[from]!;
      words[at + 1] = elements[from + 1]!;
      words[at + 2] = elements[from + 2]!;
      const last = id | ((elements[from + 3]! | turn) << 16);
      if (isFirst) this.#stagedWord = last;
      else words[at + 3] = last;
      isFirst = false;
      at += WORDS_PER_DESCRIPTOR;
      if (at === end) {
        at = this.#descWord;
        turn ^= TURN_FLAGS;
      }
      element = this.#next[element]!;
    }
    this.#available = this.#advance(this.#available, count);
    this.#stagedCount += count;
  }

  /** Reads the used descriptor that is next, once. Returns its buffer ID, NOTHING_USED or RING_FAULT. */
  #readUsed(): number {
    // Orders the flags before the ID, the length and the buffers.
    const flags = this.#loadFlags();
    if (!this.#areUsed(flags)) return NOTHING_USED;
    const at = this.#wordOf(this.#used);
    const id = this.#words[at + 3]! & 0xffff;
    if (id >= this.size || this.#held[id] === 0) {
      const slot = (at - this.#descWord) / WORDS_PER_DESCRIPTOR;
      this.fault = `used descriptor ${slot} names buffer ${id}, which is not in flight`;
      return RING_FAULT;
    }
    // Without the flag nothing was written, whatever the length says.
    this.usedLength = (flags & VIRTQ_DESC_F_WRITE) === 0 ? 0 : this.#words[at + 2]!;
    return id;
  }

  /** Takes a buffer back. Returns its token. */
  #take(id: number): number {
    const held = this.#held[id]!;
    this.#used = this.#advance(this.#used, held);
    this.#held[id] = 0;
    this.#next[this.#tail[id]!] = this.#freeHead;
    this.#freeHead = id;
    this.#freeCount += held;
    this.#outstanding -= 1;
    return this.#tokens[id]!;
  }

  /** Flags of the descriptor where the next used one will be. */
  #loadFlags(): number {
    return Atomics.load(this.#halfwords, this.#wordOf(this.#used) * 2 + FLAGS_HALFWORD);
  }

  /** Whether these flags at that place are the device's. */
  #areUsed(flags: number): boolean {
    return (flags & TURN_FLAGS) === (this.#used < this.size ? TURN_FLAGS : 0);
  }

  #wordOf(position: number): number {
    return this.#descWord + (position < this.size ? position : position - this.size) * WORDS_PER_DESCRIPTOR;
  }

  #advance(position: number, count: number): number {
    const sum = position + count;
    return sum < this.#turns ? sum : sum - this.#turns;
  }

  /** A position as messages and event suppression have it: slot and wrap counter. */
  #encode(position: number): number {
    return position < this.size ? position | WRAP_BIT : position - this.size;
  }
}
