/**
 * Device side of one packed virtqueue. Driver and device write to the same ring of slots, each in its own order: the
 * driver descriptors, the device one used descriptor per chain, at the used position, whichever chain that slot belonged
 * to; then both skip as many slots as the chain had. Source: VIRTIO 1.3, 2.8 Packed Virtqueues; layout in
 * virtio/packed-ring.ts.
 *
 * A position is a slot and a wrap counter. A chain in flight is named by a token of our own: buffer IDs are what the
 * driver likes, and only echoed.
 *
 * Ordering, as in split-queue.ts by sequentially consistent Atomics. The first descriptor's flags are loaded atomically
 * before the rest of the chain, which was written before them. Used descriptors are plain stores, except for the flags of
 * the first one of a batch, which are stored atomically by `publish`: the driver waits for that slot, so it sees the batch
 * as a whole. Asking for kicks is stored before the next slot is looked at again, and used flags before the driver's event
 * suppression is read: these two pairs are what keeps a notification from being lost.
 */

import {
  PACKED_START_BASE,
  packedRingBytes,
  RING_EVENT_FLAGS_DESC,
  RING_EVENT_FLAGS_DISABLE,
  RING_EVENT_FLAGS_ENABLE,
  VIRTQ_DESC_F_AVAIL,
  VIRTQ_DESC_F_USED,
  VIRTQ_EVENT_SUPPRESS_ALIGN,
  VIRTQ_EVENT_SUPPRESS_BYTES,
  VIRTQ_PACKED_MAX_SIZE,
} from '../virtio/packed-ring.ts';
import { VIRTQ_DESC_ALIGN, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE } from '../virtio/split-ring.ts';
import type { DescriptorChain } from './chain.ts';
import { FAULT_CHAIN_UNFINISHED, FAULT_RING_OVERFULL } from './faults.ts';
import { RingError, type RingPlacer, type Virtqueue, type VirtqueueOptions } from './virtqueue.ts';

const WRAP = 0x8000;

// A slot's last word is its buffer ID (low half) and its flags (high half). All are signed, as bit operations are.
const FLAGS = 16;
/** AVAIL and USED. Flipping both turns a slot's state to that of the other wrap counter. */
const PHASE = (VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED) << FLAGS;
const AVAILABLE = VIRTQ_DESC_F_AVAIL << FLAGS;
const USED_BIT = VIRTQ_DESC_F_USED << FLAGS;
const NEXT = VIRTQ_DESC_F_NEXT << FLAGS;
const WRITE = VIRTQ_DESC_F_WRITE << FLAGS;

/** Slots that are looked at together. */
const LOOK_AHEAD = 32;

/** Whether a packed queue can have this size. */
export function isPackedQueueSize(size: number): boolean {
  return size > 0 && size <= VIRTQ_PACKED_MAX_SIZE;
}

export class PackedQueue implements Virtqueue {
  readonly size: number;
  inFlight = 0;

  readonly #indirect: boolean;
  readonly #eventIdx: boolean;
  readonly #ring: Int32Array;
  readonly #driverEvent: Int32Array;
  readonly #deviceEvent: Int32Array;
  /** Position of the next descriptor to take: its slot, and the PHASE bits that make it available. */
  #avail = 0;
  #availPhase = AVAILABLE;
  /** Position of the next used descriptor to write, and the PHASE bits that make it used. */
  #used = 0;
  #usedPhase = PHASE;
  /** Slots from there on that were seen to be available, before the acquiring load that went with it. */
  #seen = 0;
  /** Slots that are the device's: of chains in flight and of used descriptors that are staged. */
  #held = 0;
  /** Slots behind used descriptors that are staged, and the last word of the first of them. */
  #staged = 0;
  #firstAt = 0;
  #firstWord = 0;
  /** Slots published since `needsNotification` looked. */
  #untold = 0;
  /** Of the chain that was taken last. */
  #lastSlots = 1;
  #kicksDisabled = false;
  /** By token: buffer ID in the low half, slots in the high half. */
  readonly #chains: Int32Array;
  readonly #freeTokens: Uint16Array;
  #freeCount: number;

  /** @throws RingError, and what `place` throws - the ring cannot lie there */
  constructor(place: RingPlacer, { size, addresses, indirect, eventIdx }: VirtqueueOptions) {
    if (!isPackedQueueSize(size)) {
      throw new RingError(`queue size ${size}: 1 to ${VIRTQ_PACKED_MAX_SIZE} is possible`);
    }
    this.size = size;
    this.#indirect = indirect;
    this.#eventIdx = eventIdx;
    const event = (address: number, what: string, writable: boolean): Int32Array =>
      new Int32Array(place(address, VIRTQ_EVENT_SUPPRESS_BYTES, VIRTQ_EVENT_SUPPRESS_ALIGN, what, writable));
    this.#ring = new Int32Array(
      place(addresses.descriptor, packedRingBytes(size), VIRTQ_DESC_ALIGN, 'descriptor ring', true),
    );
    this.#driverEvent = event(addresses.available, 'driver event suppression', false);
    this.#deviceEvent = event(addresses.used, 'device event suppression', true);
    this.#chains = new Int32Array(size);
    this.#freeTokens = new Uint16Array(size);
    for (let i = 0; i < size; i += 1) this.#freeTokens[i] = size - 1 - i;
    this.#freeCount = size;
  }

  /** Available position in the low half, used position in the high half, each with its wrap counter in the top bit. */
  get base(): number {
    const used = this.#used | (this.#usedPhase !== 0 ? WRAP : 0);
    return ((used << 16) | this.position) >>> 0;
  }

  get hasPast(): boolean {
    return this.base !== PACKED_START_BASE;
  }

  get position(): number {
    return this.#avail | (this.#availPhase === AVAILABLE ? WRAP : 0);
  }

  /**
   * The high half may be missing: some implementations know one position, that of a ring in which nothing is in flight.
   * A base of 0 is a position as any other, or none at all where the ring was never used: then it is the beginning.
   * @throws RingError - a position beyond the ring
   */
  seek(base: number): void {
    const from = base === 0 && this.#isUntouched() ? PACKED_START_BASE : base;
    const low = from & 0xffff;
    const high = from >>> 16;
    this.#stand(high === 0 ? low : high);
    const { size } = this;
    if ((low & ~WRAP) >= size)
      throw new RingError(`base 0x${base.toString(16)} is beyond a ring of ${size} descriptors`);
    this.#seen = 0;
    this.#avail = low & ~WRAP;
    this.#availPhase = (low & WRAP) !== 0 ? AVAILABLE : USED_BIT;
  }

  /** A ring that went round once has slots with USED set: by us in the first lap, by the driver in the second. */
  #isUntouched(): boolean {
    for (let i = 0; i < this.size; i += 1) if (((this.#ring[4 * i + 3] as number) & USED_BIT) !== 0) return false;
    return true;
  }

  #stand(position: number): void {
    const slot = position & ~WRAP;
    if (slot >= this.size) throw new RingError(`slot ${slot} is beyond a ring of ${this.size} descriptors`);
    this.#used = slot;
    this.#usedPhase = (position & WRAP) !== 0 ? PHASE : 0;
    this.#avail = slot;
    this.#availPhase = (position & WRAP) !== 0 ? AVAILABLE : USED_BIT;
  }

  pop(chain: DescriptorChain): number {
    if (this.#seen === 0 && !this.#look()) return 0;
    const ring = this.#ring;
    let at = this.#avail;
    let phase = this.#availPhase;
    let word = ring[4 * at + 3] as number;
    if ((word & PHASE) !== phase) {
      this.#seen = 0;
      return 0;
    }
    const { copies } = chain;
    const room = 4 * (this.size - this.#held);
    let to = 0;
    for (;;) {
      if (to === room) return FAULT_RING_OVERFULL;
      const from = 4 * at;
      copies[to] = ring[from] as number;
      copies[to + 1] = ring[from + 1] as number;
      copies[to + 2] = ring[from + 2] as number;
      copies[to + 3] = word;
      to += 4;
      at += 1;
      if (at === this.size) {
        at = 0;
        phase ^= PHASE;
      }
      if ((word & NEXT) === 0) break;
      word = ring[4 * at + 3] as number;
      if ((word & PHASE) !== phase) return FAULT_CHAIN_UNFINISHED;
    }
    const slots = to >> 2;
    this.#avail = at;
    this.#availPhase = phase;
    this.#lastSlots = slots;
    this.#seen = slots < this.#seen ? this.#seen - slots : 0;
    const token = this.#newToken(word & 0xffff, slots);
    this.inFlight += 1;
    chain.walkCopies(token, slots, this.#indirect);
    return 1;
  }

  /** Whether the next descriptor is available; how many behind it are, too, is in #seen: atomic loads are dear. */
  #look(): boolean {
    const ring = this.#ring;
    const first = this.#avail;
    const phase = this.#availPhase;
    if ((Atomics.load(ring, 4 * first + 3) & PHASE) !== phase) return false;
    const end = Math.min(this.size, first + LOOK_AHEAD);
    let at = first + 1;
    while (at < end && ((ring[4 * at + 3] as number) & PHASE) === phase) at += 1;
    // Acquire, for those that were looked at after the first.
    if (at > first + 1) Atomics.load(ring, 4 * first + 3);
    this.#seen = at - first;
    return true;
  }

  #newToken(id: number, slots: number): number {
    this.#freeCount -= 1;
    const token = this.#freeTokens[this.#freeCount] as number;
    this.#chains[token] = id | (slots << 16);
    this.#held += slots;
    return token;
  }

  #freeToken(token: number): void {
    this.#freeTokens[this.#freeCount] = token;
    this.#freeCount += 1;
  }

  untake(token: number): void {
    this.inFlight -= 1;
    this.#stepBack(token);
  }

  #stepBack(token: number): void {
    const slots = (this.#chains[token] as number) >>> 16;
    this.#avail -= slots;
    if (this.#avail < 0) {
      this.#avail += this.size;
      this.#availPhase ^= PHASE;
    }
    this.#seen = 0;
    this.#held -= slots;
    this.#freeToken(token);
  }

  /**
   * Gives the last chain that `recall` named back to the ring, with the descriptors in `copies`: what is in the ring can
   * have been written over by used descriptors that were staged and never published.
   */
  giveBack(token: number, copies: Uint32Array): void {
    this.#stepBack(token);
    const slots = (this.#chains[token] as number) >>> 16;
    for (let i = 0; i < slots; i += 1) {
      const at = 4 * ((this.#avail + i) % this.size);
      for (let word = 0; word < 4; word += 1) this.#ring[at + word] = copies[4 * i + word] as number;
    }
  }

  /** Its token stays taken: it will be taken again, or given back. */
  release(_token: number): void {
    this.inFlight -= 1;
  }

  /** Whether the device has used the slot of a position. False while it is as the driver made it available. */
  isUsedAt(position: number): boolean {
    const available = (position & WRAP) !== 0 ? AVAILABLE : USED_BIT;
    return (Atomics.load(this.#ring, 4 * (position & ~WRAP) + 3) & PHASE) !== available;
  }

  /**
   * Goes on at a used position, as an earlier life of the back end left it. After this `recall` for each chain that it had
   * taken, then `conceal`.
   */
  resume(used: number): void {
    this.#stand(used);
  }

  /** Names the next chain of an earlier life. Returns its token, to be taken by `retake`. */
  recall(id: number, slots: number): number {
    this.#avail += slots;
    if (this.#avail >= this.size) {
      this.#avail -= this.size;
      this.#availPhase ^= PHASE;
    }
    return this.#newToken(id, slots);
  }

  /** Takes a chain that `recall` named; its descriptors are in `chain.copies`. */
  retake(token: number, chain: DescriptorChain): void {
    this.inFlight += 1;
    chain.walkCopies(token, (this.#chains[token] as number) >>> 16, this.#indirect);
  }

  /**
   * Takes back the flags of used descriptors that an earlier life staged behind one that it did not publish. The driver
   * has not looked at them, and would take them for valid once it came there.
   */
  conceal(): void {
    let at = this.#used;
    let phase = this.#usedPhase;
    for (let i = 0; i < this.#held; i += 1) {
      const word = this.#ring[4 * at + 3] as number;
      if ((word & PHASE) === phase) this.#ring[4 * at + 3] = word ^ USED_BIT;
      at += 1;
      if (at === this.size) {
        at = 0;
        phase ^= PHASE;
      }
    }
  }

  /** An estimate for more than one: by the length of the chain that was taken last. */
  offers(count: number): boolean {
    const ahead = (count - 1) * this.#lastSlots;
    if (ahead > 0 && ahead >= this.size - this.#held) return false;
    let at = this.#avail + ahead;
    let phase = this.#availPhase;
    if (at >= this.size) {
      at -= this.size;
      phase ^= PHASE;
    }
    return (Atomics.load(this.#ring, 4 * at + 3) & PHASE) === phase;
  }

  push(token: number, length: number): void {
    const chain = this.#chains[token] as number;
    const slots = chain >>> 16;
    const at = 4 * this.#used;
    const word = this.#usedPhase | (length > 0 ? WRITE : 0) | (chain & 0xffff);
    this.#ring[at + 2] = length;
    if (this.#staged === 0) {
      this.#firstAt = at + 3;
      this.#firstWord = word;
    } else {
      this.#ring[at + 3] = word;
    }
    this.#staged += slots;
    this.#used += slots;
    if (this.#used >= this.size) {
      this.#used -= this.size;
      this.#usedPhase ^= PHASE;
    }
    this.inFlight -= 1;
    this.#freeToken(token);
  }

  publish(): void {
    if (this.#staged === 0) return;
    // Release: the batch is visible before the flags that the driver waits for.
    Atomics.store(this.#ring, this.#firstAt, this.#firstWord);
    this.#held -= this.#staged;
    this.#untold += this.#staged;
    this.#staged = 0;
  }

  needsNotification(): boolean {
    const untold = this.#untold;
    if (untold === 0) return false;
    this.#untold = 0;
    const event = Atomics.load(this.#driverEvent, 0);
    const flags = (event >>> FLAGS) & 3;
    if (flags === RING_EVENT_FLAGS_DISABLE) return false;
    if (flags !== RING_EVENT_FLAGS_DESC || !this.#eventIdx) return true;
    // Positions in two laps: the first with wrap counter 1.
    const laps = 2 * this.size;
    const end = this.#used + (this.#usedPhase !== 0 ? 0 : this.size) - this.#staged;
    const asked = (event & ~WRAP & 0xffff) + ((event & WRAP) !== 0 ? 0 : this.size);
    return (((asked - (end - untold)) % laps) + laps) % laps < untold;
  }

  disableKicks(): void {
    if (this.#kicksDisabled) return;
    this.#kicksDisabled = true;
    Atomics.store(this.#deviceEvent, 0, RING_EVENT_FLAGS_DISABLE << FLAGS);
  }

  enableKicks(position: number = this.position): boolean {
    this.#kicksDisabled = false;
    const event = this.#eventIdx ? (RING_EVENT_FLAGS_DESC << FLAGS) | position : RING_EVENT_FLAGS_ENABLE << FLAGS;
    Atomics.store(this.#deviceEvent, 0, event);
    const phase = (position & WRAP) !== 0 ? AVAILABLE : USED_BIT;
    return (Atomics.load(this.#ring, 4 * (position & ~WRAP) + 3) & PHASE) === phase;
  }
}
