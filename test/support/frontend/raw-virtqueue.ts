/**
 * The driver's side of one virtqueue, whatever its layout: chains are laid out at numbered places, made available by the
 * number of their first, and come back under that number. `raw-ring.ts` and `raw-packed-ring.ts` are the two layouts.
 */

import { createEventFd, type OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import { takeEvent, waitReadable, writeEvent } from './descriptors.ts';
import type { GuestRam } from './guest-ram.ts';
import { DEADLINE_MS } from './raw-connection.ts';

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

/** User addresses of the parts of a ring. */
export type PartAddresses = Record<'descriptor' | 'used' | 'available', number>;

/**
 * How notifications are suppressed, both ways: not at all, by the flags "never" and "always", or by the place of the entry
 * at which one is wanted (EVENT_IDX).
 */
export type Suppression = 'none' | 'flags' | 'event';

export abstract class RawVirtqueue {
  readonly ram: GuestRam;
  readonly index: number;
  readonly size: number;
  readonly kick: OwnedFd;
  readonly call: OwnedFd;
  readonly err: OwnedFd;
  /** First byte behind the ring, page-aligned. */
  abstract readonly end: number;
  /** What SET_VRING_BASE says of a ring that nobody has used. */
  abstract readonly initialBase: number;
  abstract suppression: Suppression;
  /** Used entries taken so far, free-running 16 bits. */
  seen = 0;

  constructor(ram: GuestRam, index: number, size: number) {
    this.ram = ram;
    this.index = index;
    this.size = size;
    this.kick = createEventFd();
    this.call = createEventFd();
    this.err = createEventFd();
  }

  /** What SET_VRING_ADDR tells. */
  abstract addresses(): PartAddresses;

  /** What GET_VRING_BASE must say of a device that has returned everything it took. */
  abstract get drainedBase(): number;

  /** Goes to a base; nothing is in flight. */
  abstract standAt(base: number): void;

  /** Lays one descriptor out at place `i`, or as entry `i` of the indirect table at offset `table`. */
  abstract setDescriptor(i: number, descriptor: RawDescriptor, table?: number): void;

  /** Lays a chain out from place `first` on, or in the indirect table at offset `table`. */
  abstract setChain(first: number, chain: readonly RawDescriptor[], table?: number): void;

  /** Makes the chains that begin at these places available, without a kick. */
  abstract publish(...heads: number[]): void;

  /** Used entries that the device has shown so far, free-running 16 bits. */
  abstract get usedIndex(): number;

  /** Takes the next used entry, which is there. */
  abstract next(): UsedEntry;

  /**
   * Tells the device to call when it shows another used entry, or after `ahead` more (with events, and fewer than are in
   * flight). What it shows from then on is called for; what is there already, `waiting` says.
   */
  abstract askForCall(ahead?: number): void;

  /** Tells the device not to call, as well as the kind of suppression can. */
  abstract refuseCalls(): void;

  /** Whether the device wants a kick for what was made available since the last time this was asked. */
  abstract kickIsWanted(): boolean;

  /** Everything that either side can see, for the message of a failure. */
  abstract describe(): string;

  signal(): void {
    writeEvent(this.kick);
  }

  /** Kicks if the device wants that. Returns whether it did. */
  notify(): boolean {
    const wanted = this.kickIsWanted();
    if (wanted) this.signal();
    return wanted;
  }

  /** Used entries that are there and were not taken. */
  get waiting(): number {
    return (this.usedIndex - this.seen) & 0xffff;
  }

  /** Takes all used entries that are there. */
  harvest(): UsedEntry[] {
    return Array.from({ length: this.waiting }, () => this.next());
  }

  /** The next `count` used entries, waiting for calls. @throws Error - deadline: lost notification or lost request */
  async take(count = 1, deadlineMs = DEADLINE_MS): Promise<UsedEntry[]> {
    const end = performance.now() + deadlineMs;
    for (;;) {
      this.askForCall();
      const got = this.waiting;
      if (got >= count) break;
      const left = end - performance.now();
      if (left <= 0) throw new Error(`ring ${this.index}: ${got} of ${count} requests returned in ${deadlineMs} ms`);
      await waitReadable(this.call, left, `call of ring ${this.index} (${got} of ${count} requests returned)`);
      takeEvent(this.call);
    }
    return Array.from({ length: count }, () => this.next());
  }

  /** Publishes heads, kicks, and returns the used entries. */
  async run(...heads: number[]): Promise<UsedEntry[]> {
    this.publish(...heads);
    this.signal();
    return this.take(heads.length);
  }

  /** Whether the back end has called since the last look. */
  hasCall(): boolean {
    return takeEvent(this.call) > 0n;
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
