/**
 * The driver's side of one packed virtqueue, written from the layout of VIRTIO 1.3, 2.8 with literal offsets. Chains are
 * laid out aside, at numbered places, and copied into the ring when they are made available; the number is their buffer
 * ID. `writeSlot` writes whatever it is told to, right into the ring.
 *
 *     slot i at ring+16i: addr u64 @0, len u32 @8, id u16 @12, flags u16 @14 (7 AVAIL, 15 USED)
 *     driver's and device's event suppression: off u16 @0 (0-14 slot, 15 wrap counter), flags u16 @2 (0 always, 1 never,
 *     2 at that slot)
 *
 * Places in the ring are counted over two laps, from 0 to 2*size-1: the first has wrap counter 1, the second 0.
 */

import type { GuestRam } from './guest-ram.ts';
import {
  NEXT,
  type PartAddresses,
  type RawDescriptor,
  RawVirtqueue,
  type Suppression,
  type UsedEntry,
} from './raw-virtqueue.ts';

export const AVAIL = 0x80;
export const USED = 0x8000;

export const EVENTS_ALWAYS = 0;
export const EVENTS_NEVER = 1;
export const EVENTS_AT_SLOT = 2;

/** What is in one slot. */
export interface PackedSlot {
  readonly address: number | bigint;
  readonly length: number;
  readonly id: number;
  readonly flags: number;
}

const NOTHING: RawDescriptor = { address: 0, length: 0 };

export class RawPackedRing extends RawVirtqueue {
  readonly ringAt: number;
  readonly driverEvent: number;
  readonly deviceEvent: number;
  readonly end: number;
  /** Both at slot 0, both wrap counters 1. */
  readonly initialBase = 0x8000_8000;
  suppression: Suppression = 'none';
  /** Place of the next descriptor to make available, and of the next used one. */
  availPlace = 0;
  usedPlace = 0;
  /** Slots of each buffer that is available or in flight, by its ID. */
  readonly lengths = new Map<number, number>();
  readonly #staged = new Map<number, RawDescriptor>();
  readonly #events: Int32Array;
  /** availPlace when the device was last asked whether it wants a kick. */
  #announced = 0;
  #free: number;

  /** Lays the ring out at offset `at` (a multiple of 16) of `ram`; the memory there is zero. */
  constructor(ram: GuestRam, index: number, size: number, at: number) {
    super(ram, index, size);
    this.ringAt = at;
    this.driverEvent = at + 16 * size;
    this.deviceEvent = this.driverEvent + 4;
    this.end = (this.deviceEvent + 4 + 4095) & ~4095;
    this.#events = new Int32Array(ram.bytes.buffer, ram.bytes.byteOffset);
    this.#free = size;
  }

  addresses(): PartAddresses {
    const { ram } = this;
    return {
      descriptor: ram.user(this.ringAt),
      used: ram.user(this.deviceEvent),
      available: ram.user(this.driverEvent),
    };
  }

  /** A place as a slot in bits 0-14 and its wrap counter in bit 15. */
  #encode(place: number): number {
    return (place % this.size) | (place < this.size ? 0x8000 : 0);
  }

  #decode(slotAndWrap: number): number {
    return (slotAndWrap & 0x7fff) + ((slotAndWrap & 0x8000) === 0 ? this.size : 0);
  }

  /** vhost-user, Vring descriptor indices for packed virtqueues: available in bits 0-15, used in bits 16-31. */
  baseAt(availPlace: number, usedPlace = availPlace): number {
    return this.#encode(availPlace) + this.#encode(usedPlace) * 0x1_0000;
  }

  get drainedBase(): number {
    return this.baseAt(this.#look().place);
  }

  standAt(base: number): void {
    this.availPlace = this.#decode(base & 0xffff);
    this.usedPlace = this.#decode(base >>> 16);
    this.#announced = this.availPlace;
    this.lengths.clear();
    this.#free = this.size;
  }

  /** Forgets all that was made available and not returned, as the driver of a device that was reset. */
  forget(): void {
    this.standAt(this.initialBase);
    this.seen = 0;
    this.#staged.clear();
    this.ram.bytes.fill(0, this.ringAt, this.deviceEvent + 4);
  }

  #advance(place: number, slots: number): number {
    return (place + slots) % (2 * this.size);
  }

  setDescriptor(i: number, descriptor: RawDescriptor, table?: number): void {
    if (table === undefined) this.#staged.set(i, descriptor);
    else {
      // 2.8.7: the ID is reserved there.
      this.#write(table + 16 * i, descriptor, 0xffff - i);
      this.ram.view.setUint16(table + 16 * i + 14, descriptor.flags ?? 0, true);
    }
  }

  /** In a table every descriptor is an element: NEXT is not set there. */
  setChain(first: number, chain: readonly RawDescriptor[], table?: number): void {
    chain.forEach((descriptor, i) => {
      const more = table === undefined && i + 1 < chain.length;
      const flags = (descriptor.flags ?? 0) | (more ? NEXT : 0);
      this.setDescriptor(first + i, { ...descriptor, flags, next: first + i + 1 }, table);
    });
  }

  /** Everything but the flags. */
  #write(at: number, { address, length }: RawDescriptor, id: number): void {
    const { view } = this.ram;
    view.setBigUint64(at, BigInt.asUintN(64, BigInt(address)), true);
    view.setUint32(at + 8, length, true);
    view.setUint16(at + 12, id, true);
  }

  /** Writes a slot as it is, AVAIL and USED included; its flags last. */
  writeSlot(slot: number, descriptor: PackedSlot): void {
    this.#write(this.ringAt + 16 * slot, descriptor, descriptor.id);
    this.setFlags(slot, descriptor.flags);
  }

  readSlot(slot: number): PackedSlot {
    const { view } = this.ram;
    const at = this.ringAt + 16 * slot;
    return {
      address: view.getBigUint64(at, true),
      length: view.getUint32(at + 8, true),
      id: view.getUint16(at + 12, true),
      flags: Atomics.load(this.ram.words, (at + 14) / 2),
    };
  }

  /** Release: what was written before is seen by whoever sees the flags. */
  setFlags(slot: number, flags: number): void {
    Atomics.store(this.ram.words, (this.ringAt + 16 * slot + 14) / 2, flags);
  }

  /** AVAIL and USED of a descriptor made available at a place. */
  availFlags(place = this.availPlace): number {
    return place < this.size ? AVAIL : USED;
  }

  /** The chain that was laid out from `first` on. One that never ends is cut off when the ring is full, its NEXT kept. */
  #stagedChain(first: number): RawDescriptor[] {
    const chain: RawDescriptor[] = [];
    for (let i = first; chain.length < this.size; ) {
      const descriptor = this.#staged.get(i) ?? NOTHING;
      chain.push(descriptor);
      if (((descriptor.flags ?? 0) & NEXT) === 0) break;
      i = descriptor.next ?? i + 1;
    }
    return chain;
  }

  /** @throws Error - the ring has no room: a driver must not do that */
  publish(...heads: number[]): void {
    for (const head of heads) this.place(head, this.#stagedChain(head));
  }

  /** Makes one buffer available under an ID, linked by NEXT: the first descriptor's flags last, so that none sees a part. */
  place(id: number, chain: readonly RawDescriptor[]): void {
    if (chain.length > this.#free)
      throw new Error(`${chain.length} descriptors, ${this.#free} of ${this.size} are free`);
    const first = this.availPlace;
    for (let i = chain.length - 1; i >= 0; i -= 1) {
      const place = this.#advance(first, i);
      const descriptor = chain[i] as RawDescriptor;
      const isLast = i === chain.length - 1;
      const flags = ((descriptor.flags ?? 0) & ~(AVAIL | USED)) | (isLast ? 0 : NEXT);
      // Only the last one's ID counts: the others have a wrong one.
      const own = isLast ? id : 0xffff - id;
      this.writeSlot(place % this.size, { ...descriptor, id: own, flags: flags | this.availFlags(place) });
    }
    this.#free -= chain.length;
    this.lengths.set(id, chain.length);
    this.availPlace = this.#advance(first, chain.length);
  }

  /** Free slots. */
  get free(): number {
    return this.#free;
  }

  /** Used entries that are there, counted on from those taken, and the place behind them. */
  #look(): { count: number; place: number } {
    let count = 0;
    let place = this.usedPlace;
    for (; count < this.lengths.size; count += 1) {
      const { id, flags } = this.readSlot(place % this.size);
      const wrap = place < this.size ? AVAIL | USED : 0;
      if ((flags & (AVAIL | USED)) !== wrap) break;
      place = this.#advance(place, this.lengths.get(id) ?? 1);
    }
    return { count, place };
  }

  get usedIndex(): number {
    return (this.seen + this.#look().count) & 0xffff;
  }

  /** @throws Error - a buffer came back that is not in flight */
  next(): UsedEntry {
    const { id, length, flags } = this.readSlot(this.usedPlace % this.size);
    const slots = this.lengths.get(id);
    if (slots === undefined) throw new Error(`buffer ${id} came back and is not in flight: ${this.describe()}`);
    this.lengths.delete(id);
    this.#free += slots;
    this.usedPlace = this.#advance(this.usedPlace, slots);
    this.seen = (this.seen + 1) & 0xffff;
    // 2.8.5: the length of a used descriptor without WRITE is reserved.
    return { id, length: (flags & 2) === 0 ? 0 : length };
  }

  /** Both halves of an event suppression structure, in one store; full barrier. */
  setDriverEvent(flags: number, off = 0): void {
    Atomics.store(this.#events, this.driverEvent / 4, off | (flags << 16));
  }

  get deviceEventFlags(): number {
    return (Atomics.load(this.#events, this.deviceEvent / 4) >>> 16) & 3;
  }

  /** `ahead` buffers are counted in the order in which they were made available. */
  askForCall(ahead = 0): void {
    if (this.suppression !== 'event') {
      this.setDriverEvent(EVENTS_ALWAYS);
      return;
    }
    // The device tells when it passes the event: one that it passed while we wrote it would never come.
    for (let place = -1; ; ) {
      const now = this.#look();
      if (now.place === place) return;
      place = now.place;
      const slots = [...this.lengths.values()].slice(now.count, now.count + ahead).reduce((sum, n) => sum + n, 0);
      this.setDriverEvent(EVENTS_AT_SLOT, this.#encode(this.#advance(place, slots)));
    }
  }

  refuseCalls(): void {
    if (this.suppression !== 'none') this.setDriverEvent(EVENTS_NEVER);
  }

  kickIsWanted(): boolean {
    const old = this.#announced;
    const now = this.availPlace;
    this.#announced = now;
    if (this.suppression === 'none') return true;
    // The descriptors were stored before, and both are sequentially consistent: this look is not older.
    const event = Atomics.load(this.#events, this.deviceEvent / 4);
    const flags = (event >>> 16) & 3;
    if (flags !== EVENTS_AT_SLOT) return flags !== EVENTS_NEVER;
    const laps = 2 * this.size;
    const behind = (from: number, to: number): number => (to - from + laps) % laps;
    return behind(old, this.#decode(event & 0xffff)) < behind(old, now);
  }

  describe(): string {
    const { view } = this.ram;
    const event = (at: number): string => {
      const off = view.getUint16(at, true);
      return `flags ${view.getUint16(at + 2, true)} slot ${off & 0x7fff} wrap ${off >> 15}`;
    };
    const slot = (place: number): string => {
      const { id, length, flags } = this.readSlot(place % this.size);
      return `place ${place} (id ${id}, length ${length}, flags 0x${flags.toString(16)})`;
    };
    return (
      `packed ring ${this.index} of ${this.size}, suppression ${this.suppression}: next available ` +
      `${slot(this.availPlace)}, next used ${slot(this.usedPlace)}, in flight [${[...this.lengths.keys()]}]; ` +
      `driver event ${event(this.driverEvent)}, device event ${event(this.deviceEvent)}; ${this.seen} taken`
    );
  }
}
