/**
 * The driver's side of one split virtqueue, written from the layout of VIRTIO 1.3, 2.7 with literal offsets. It writes
 * whatever it is told to.
 *
 *     descriptor i at table+16i: addr u64 @0, len u32 @8, flags u16 @12, next u16 @14
 *     avail: flags u16 @0, idx u16 @2, ring[i] u16 @4+2i, used_event u16 @4+2*size
 *     used:  flags u16 @0, idx u16 @2, ring[i] {id u32, len u32} @4+8i, avail_event u16 @4+8*size
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

export { INDIRECT, NEXT, type RawDescriptor, type UsedEntry, WRITE } from './raw-virtqueue.ts';

export class RawRing extends RawVirtqueue {
  readonly table: number;
  readonly avail: number;
  readonly used: number;
  readonly end: number;
  readonly initialBase = 0;
  /** An event index is written in any case: who did not negotiate EVENT_IDX does not look at it. */
  suppression: Suppression = 'event';
  /** avail.idx when the device was last asked whether it wants a kick. */
  #announced = 0;

  /** Lays the ring out at offset `at` (a multiple of 16) of `ram`; the memory there is zero. */
  constructor(ram: GuestRam, index: number, size: number, at: number) {
    super(ram, index, size);
    this.table = at;
    this.avail = at + 16 * size;
    this.used = (this.avail + 6 + 2 * size + 3) & ~3;
    this.end = (this.used + 6 + 8 * size + 4095) & ~4095;
  }

  addresses(): PartAddresses {
    const { ram } = this;
    return { descriptor: ram.user(this.table), used: ram.user(this.used), available: ram.user(this.avail) };
  }

  get drainedBase(): number {
    return this.usedIndex;
  }

  standAt(base: number): void {
    this.setAvailIndex(base);
    Atomics.store(this.ram.words, (this.used + 2) / 2, base);
    this.seen = base;
    this.#announced = base;
  }

  setDescriptor(i: number, descriptor: RawDescriptor, table = this.table): void {
    const at = table + 16 * i;
    this.ram.view.setBigUint64(at, BigInt.asUintN(64, BigInt(descriptor.address)), true);
    this.ram.view.setUint32(at + 8, descriptor.length, true);
    this.ram.view.setUint16(at + 12, descriptor.flags ?? 0, true);
    this.ram.view.setUint16(at + 14, descriptor.next ?? 0, true);
  }

  /** Writes descriptors first, first+1, ... linked by NEXT. */
  setChain(first: number, chain: readonly RawDescriptor[], table = this.table): void {
    chain.forEach((descriptor, i) => {
      const more = i + 1 < chain.length;
      const flags = (descriptor.flags ?? 0) | (more ? NEXT : 0);
      this.setDescriptor(first + i, { ...descriptor, flags, next: more ? first + i + 1 : 0 }, table);
    });
  }

  get availIndex(): number {
    return Atomics.load(this.ram.words, (this.avail + 2) / 2);
  }

  /** Release: what was written before is seen by whoever sees the index. */
  setAvailIndex(value: number): void {
    Atomics.store(this.ram.words, (this.avail + 2) / 2, value & 0xffff);
  }

  /** Full barrier, as in setUsedEvent. */
  setAvailFlags(value: number): void {
    Atomics.store(this.ram.words, this.avail / 2, value);
  }

  /** Full barrier: a look at the used index that follows cannot be too old. */
  setUsedEvent(value: number): void {
    Atomics.store(this.ram.words, (this.avail + 4 + 2 * this.size) / 2, value & 0xffff);
  }

  get availEvent(): number {
    return Atomics.load(this.ram.words, (this.used + 4 + 8 * this.size) / 2);
  }

  get usedFlags(): number {
    return Atomics.load(this.ram.words, this.used / 2);
  }

  setAvailEntry(slot: number, head: number): void {
    this.ram.view.setUint16(this.avail + 4 + 2 * (slot % this.size), head, true);
  }

  publish(...heads: number[]): void {
    const index = this.availIndex;
    heads.forEach((head, i) => {
      this.setAvailEntry((index + i) & 0xffff, head);
    });
    this.setAvailIndex(index + heads.length);
  }

  get usedIndex(): number {
    return Atomics.load(this.ram.words, (this.used + 2) / 2);
  }

  usedEntry(slot: number): UsedEntry {
    const at = this.used + 4 + 8 * (slot % this.size);
    return { id: this.ram.view.getUint32(at, true), length: this.ram.view.getUint32(at + 4, true) };
  }

  next(): UsedEntry {
    const entry = this.usedEntry(this.seen);
    this.seen = (this.seen + 1) & 0xffff;
    return entry;
  }

  askForCall(ahead = 0): void {
    if (this.suppression === 'flags') this.setAvailFlags(0);
    if (this.suppression !== 'event') return;
    // The device tells when it passes the event: one that it passed while we wrote it would never come.
    for (let event = -1; event !== this.usedIndex; ) {
      event = this.usedIndex;
      this.setUsedEvent(event + ahead);
    }
  }

  /** Nothing to be done with an event: one that the device has passed does not come again. */
  refuseCalls(): void {
    if (this.suppression === 'flags') this.setAvailFlags(1);
  }

  kickIsWanted(): boolean {
    const old = this.#announced;
    const now = this.availIndex;
    this.#announced = now;
    // The index was stored before, and both are sequentially consistent: this look is not older.
    if (this.suppression === 'event') return ((this.availEvent - old) & 0xffff) < ((now - old) & 0xffff);
    return this.suppression === 'none' || (this.usedFlags & 1) === 0;
  }

  describe(): string {
    const usedEvent = this.ram.view.getUint16(this.avail + 4 + 2 * this.size, true);
    const flags = this.ram.view.getUint16(this.avail, true);
    return (
      `split ring ${this.index} of ${this.size}, suppression ${this.suppression}: avail.idx ${this.availIndex}, ` +
      `avail.flags ${flags}, used_event ${usedEvent}; used.idx ${this.usedIndex}, used.flags ${this.usedFlags}, ` +
      `avail_event ${this.availEvent}; ${this.seen} taken`
    );
  }
}
