/**
 * The driver's side of one split virtqueue, written from the layout of VIRTIO 1.3, 2.7 with literal offsets. It writes
 * whatever it is told to.
 *
 *     descriptor i at table+16i: addr u64 @0, len u32 @8, flags u16 @12, next u16 @14
 *     avail: flags u16 @0, idx u16 @2, ring[i] u16 @4+2i, used_event u16 @4+2*size
 *     used:  flags u16 @0, idx u16 @2, ring[i] {id u32, len u32} @4+8i, avail_event u16 @4+8*size
 */

import { createEventFd, type OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import { takeEvent, waitReadable, writeEvent } from './descriptors.ts';
import type { GuestRam } from './guest-ram.ts';
import { DEADLINE_MS } from './raw-connection.ts';
import type { RingAddresses } from './wire.ts';

export const NEXT = 1;
export const WRITE = 2;
export const INDIRECT = 4;

export interface RawDescriptor {
  readonly address: number | bigint;
  readonly length: number;
  readonly flags?: number;
  readonly next?: number;
}

export interface UsedEntry {
  readonly id: number;
  readonly length: number;
}

export class RawRing {
  readonly index: number;
  readonly size: number;
  readonly kick: OwnedFd;
  readonly call: OwnedFd;
  readonly err: OwnedFd;
  readonly table: number;
  readonly avail: number;
  readonly used: number;
  /** First byte behind the ring. */
  readonly end: number;
  readonly ram: GuestRam;
  /** Used entries taken so far, free-running. */
  seen = 0;

  /** Lays the ring out at offset `at` (a multiple of 16) of `ram`; the memory there is zero. */
  constructor(ram: GuestRam, index: number, size: number, at: number) {
    this.ram = ram;
    this.index = index;
    this.size = size;
    this.table = at;
    this.avail = at + 16 * size;
    this.used = (this.avail + 6 + 2 * size + 3) & ~3;
    this.end = (this.used + 6 + 8 * size + 4095) & ~4095;
    this.kick = createEventFd();
    this.call = createEventFd();
    this.err = createEventFd();
  }

  /** What SET_VRING_ADDR tells. */
  addresses(): RingAddresses {
    const { ram } = this;
    return { descriptor: ram.user(this.table), used: ram.user(this.used), available: ram.user(this.avail) };
  }

  setDescriptor(i: number, descriptor: RawDescriptor, table = this.table): void {
    const at = table + 16 * i;
    this.ram.view.setBigUint64(at, BigInt.asUintN(64, BigInt(descriptor.address)), true);
    this.ram.view.setUint32(at + 8, descriptor.length, true);
    this.ram.view.setUint16(at + 12, descriptor.flags ?? 0, true);
    this.ram.view.setUint16(at + 14, descriptor.next ?? 0, true);
  }

  /** Writes descriptors first, first+1, ... linked by NEXT, at `table` (an offset; by default the ring's own). */
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

  setAvailFlags(value: number): void {
    this.ram.view.setUint16(this.avail, value, true);
  }

  /** Full barrier: a look at the used index that follows cannot be too old. */
  setUsedEvent(value: number): void {
    Atomics.store(this.ram.words, (this.avail + 4 + 2 * this.size) / 2, value & 0xffff);
  }

  get availEvent(): number {
    return this.ram.view.getUint16(this.used + 4 + 8 * this.size, true);
  }

  setAvailEntry(slot: number, head: number): void {
    this.ram.view.setUint16(this.avail + 4 + 2 * (slot % this.size), head, true);
  }

  /** Makes heads available, without a kick. */
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

  signal(): void {
    writeEvent(this.kick);
  }

  /** The next `count` used entries, waiting for calls. @throws Error - deadline: lost notification or lost request */
  async take(count = 1, deadlineMs = DEADLINE_MS): Promise<UsedEntry[]> {
    const end = performance.now() + deadlineMs;
    for (;;) {
      // The device tells when it passes the event: one that it passed while we wrote it would never come.
      for (let event = -1; event !== this.usedIndex; ) {
        event = this.usedIndex;
        this.setUsedEvent(event);
      }
      const got = (this.usedIndex - this.seen) & 0xffff;
      if (got >= count) break;
      const left = end - performance.now();
      if (left <= 0) throw new Error(`ring ${this.index}: ${got} of ${count} requests returned in ${deadlineMs} ms`);
      await waitReadable(this.call, left, `call of ring ${this.index} (${got} of ${count} requests returned)`);
      takeEvent(this.call);
    }
    return Array.from({ length: count }, () => {
      const entry = this.usedEntry(this.seen);
      this.seen = (this.seen + 1) & 0xffff;
      return entry;
    });
  }

  /** Publishes heads, kicks, and returns the used entries. */
  async run(...heads: number[]): Promise<UsedEntry[]> {
    this.publish(...heads);
    this.signal();
    return this.take(heads.length);
  }

  /** Whether the back end has reported the ring broken since the last look. */
  hasReport(): boolean {
    return takeEvent(this.err) > 0n;
  }

  /** Waits until the back end reports the ring broken. @throws Error - deadline */
  async waitForError(deadlineMs = DEADLINE_MS): Promise<void> {
    await waitReadable(this.err, deadlineMs, `error report of ring ${this.index}`);
    takeEvent(this.err);
  }

  close(): void {
    this.kick.close();
    this.call.close();
    this.err.close();
  }
}
