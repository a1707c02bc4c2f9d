/**
 * A driver and a device do random things to one ring of either layout, and a model that keeps plain lists says what each
 * must see: which chain is taken next and what is in it, what comes back, who is to be told. Positions of the model are
 * counted in chains for a split ring and in slots for a packed one, from the first lap on. A failure says its seed;
 * RINGSIDE_TEST_SEED begins with it.
 */

import { afterAll, describe, it } from 'vitest';
import { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { RingPlace } from '../../protocol/memory/ring-view.ts';
import { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import { InOrder } from '../../protocol/virtqueue/in-order.ts';
import { PackedQueue } from '../../protocol/virtqueue/packed-queue.ts';
import { SplitQueue } from '../../protocol/virtqueue/split-queue.ts';
import type { Virtqueue } from '../../protocol/virtqueue/virtqueue.ts';
import { ChainDriver } from '../support/frontend/chain-driver.ts';
import { GuestRam } from '../support/frontend/guest-ram.ts';
import { RawPackedRing } from '../support/frontend/raw-packed-ring.ts';
import { RawRing } from '../support/frontend/raw-ring.ts';
import { INDIRECT, type RawDescriptor, type Suppression, WRITE } from '../support/frontend/raw-virtqueue.ts';
import { Random, testSeed } from '../support/random.ts';

/** Runs per kind of ring, and operations of each: with eight kinds, a million. */
const RUNS = 250;
const OPERATIONS = 500;
const TRACE = 40;

const RING_AT = 0x1000;
const TABLES_AT = 0x8000;
const TABLE_BYTES = 256;

const ram = new GuestRam(0x2_0000);
const memory = new GuestMemory();
memory.add({ guestAddress: ram.guest(0), userAddress: ram.user(0), size: ram.length, mmapOffset: 0 }, ram.fd);
afterAll(() => {
  memory.clear();
  ram.close();
});

interface Kind {
  readonly packed: boolean;
  readonly suppression: Suppression;
  readonly inOrder: boolean;
}

interface Offered {
  readonly id: number;
  readonly buffers: readonly RawDescriptor[];
  /** How far it moves a position. */
  readonly units: number;
  token: number;
}

const show = (value: unknown): string => (typeof value === 'object' ? JSON.stringify(value) : String(value));

class Run {
  readonly #kind: Kind;
  readonly #random: Random;
  readonly #driver: ChainDriver;
  #device: Virtqueue;
  readonly #chain: DescriptorChain;
  readonly #inOrder: InOrder | undefined;
  readonly #trace: string[] = [];
  readonly #size: number;
  /** Where a packed ring began, in slots; a split one in entries. */
  #start: number;
  #tables = 0;

  // The model.
  readonly #offered: Offered[] = [];
  readonly #taken: Offered[] = [];
  /** Chains that were taken since the last one came back or was told of: they may be given back, last one first. */
  #returnable = 0;
  readonly #used: { id: number; length: number; units: number }[] = [];
  /** Used entries that are published, and that the driver has taken. */
  #published = 0;
  #harvested = 0;
  /** Positions since #start: what the driver offered, the device took and published; and what each of them looked at. */
  #availEnd = 0;
  #availTaken = 0;
  #usedEnd = 0;
  #kickLook = 0;
  #callLook = 0;
  /** What kicks the device asked for: those at this position, all, or none. */
  #armed: number | 'all' | 'none';

  constructor(kind: Kind, seed: number) {
    const random = new Random(seed);
    this.#kind = kind;
    this.#random = random;
    ram.bytes.fill(0, RING_AT, TABLES_AT);
    this.#size = kind.packed ? random.pick([1, 2, 3, 5, 8, 13, 16]) : random.pick([1, 2, 4, 8, 16]);
    this.#start = kind.packed ? random.below(2 * this.#size) : random.pick([0, 1, 0x7ffe, 0xfffa]);
    const ring = new (kind.packed ? RawPackedRing : RawRing)(ram, 0, this.#size, RING_AT);
    ring.suppression = kind.suppression;
    this.#driver = new ChainDriver(ring, random, kind.inOrder);
    if (ring instanceof RawPackedRing) this.#makePast(ring);
    this.#driver.reset(this.#base(0, 0));
    this.#chain = new DescriptorChain(memory, this.#size);
    this.#inOrder = kind.inOrder ? new InOrder(this.#size) : undefined;
    this.#device = this.#open();
    this.#armed = kind.suppression === 'event' ? 'none' : 'all';
  }

  /** What a packed ring holds when both sides stand at #start: used descriptors of the lap, and of the one before. */
  #makePast(ring: RawPackedRing): void {
    const lap = this.#start < this.#size ? 0 : 1;
    for (let slot = 0; slot < this.#size; slot += 1) {
      const wasUsed = slot < this.#start % this.#size === (lap === 0);
      ring.writeSlot(slot, { address: 0, length: 0, id: slot, flags: wasUsed ? 0x8080 : 0 });
    }
  }

  #open(): Virtqueue {
    const { descriptor, available, used } = this.#driver.ring.addresses();
    const addresses = { descriptor: Number(descriptor), available: Number(available), used: Number(used) };
    const options = {
      ...this.#kind,
      size: this.#size,
      addresses,
      indirect: true,
      eventIdx: this.#kind.suppression === 'event',
    };
    const place = new RingPlace(memory).view;
    const device = this.#kind.packed ? new PackedQueue(place, options) : new SplitQueue(place, options);
    device.seek(this.#base(this.#availTaken, this.#usedEnd));
    return device;
  }

  /** What SET_VRING_BASE says of these positions. */
  #base(avail: number, used: number): number {
    if (!this.#kind.packed) return (this.#start + avail) & 0xffff;
    const at = (position: number): number => {
      const place = (this.#start + position) % (2 * this.#size);
      return (place % this.#size) + (place < this.#size ? 0x8000 : 0);
    };
    return at(avail) + at(used) * 0x1_0000;
  }

  #check(what: string, actual: unknown, expected: unknown): void {
    if (show(actual) !== show(expected)) throw new Error(`${what}: ${show(actual)}, should be ${show(expected)}`);
  }

  /** @throws Error - what driver, device or model do not see alike, with the operations before */
  go(operations: number): void {
    const { ring } = this.#driver;
    try {
      for (let i = 0; i < operations; i += 1) this.#step();
    } catch (error) {
      const { message } = error as Error;
      throw new Error(`${message}\n${ring.describe()}\nlast operations: ${this.#trace.slice(-TRACE).join('; ')}`);
    } finally {
      ring.close();
    }
  }

  #note(text: string): void {
    this.#trace.push(text);
    if (this.#trace.length > 4 * TRACE) this.#trace.splice(0, 3 * TRACE);
  }

  #step(): void {
    const dice = this.#random.below(26);
    if (dice < 4) this.#offer();
    else if (dice < 10) this.#take();
    else if (dice < 15) this.#finish();
    else if (dice < 16) this.#giveBack();
    else if (dice < 19) this.#publish();
    else if (dice < 22) this.#harvest();
    else if (dice < 23) this.#needsCall();
    else if (dice < 24) this.#asksForKick();
    else if (dice < 25) this.#sleepUntilMore();
    else if (this.#random.oneIn(4)) this.#restart();
    this.#check('in flight', this.#device.inFlight, this.#taken.length);
  }

  #buffers(most: number): RawDescriptor[] {
    const count = this.#random.between(1, most);
    const readable = this.#random.below(count + 1);
    return Array.from({ length: count }, (_, i) => ({
      address: ram.guest(this.#random.below(0x8000)),
      length: this.#random.between(1, 600),
      flags: i < readable ? 0 : WRITE,
    }));
  }

  #offer(): void {
    const chains: RawDescriptor[][] = [];
    const buffers: RawDescriptor[][] = [];
    let { room } = this.#driver;
    for (let count = this.#random.between(1, 3); count > 0 && room > 0; count -= 1) {
      const isIndirect = this.#random.oneIn(4);
      const own = this.#buffers(isIndirect ? 12 : Math.min(room, 5));
      const chain = isIndirect ? [this.#table(own)] : own;
      buffers.push(own);
      chains.push(chain);
      room -= chain.length;
    }
    const ids = this.#driver.offer(chains);
    ids.forEach((id, i) => {
      const units = this.#kind.packed ? (chains[i] as RawDescriptor[]).length : 1;
      this.#offered.push({ id, units, buffers: buffers[i] as RawDescriptor[], token: -1 });
      this.#availEnd += units;
    });
    this.#note(`offer ${ids}`);
    this.#check('offers', this.#device.offers(1), this.#offered.length > 0);
    // Before a lap is over a driver has to look.
    if (this.#availEnd - this.#kickLook <= this.#size / 2 && this.#random.oneIn(3)) return;
    const from = this.#kickLook;
    this.#kickLook = this.#availEnd;
    const armed = this.#armed;
    const wanted = typeof armed === 'number' ? armed >= from && armed < this.#availEnd : armed === 'all';
    const kicks = this.#driver.ring.kickIsWanted();
    // A packed ring's event that was left behind comes round again.
    if (this.#kind.packed && typeof armed === 'number' && armed + 2 * this.#size < this.#availEnd) return;
    if (armed !== 'none' || this.#kind.suppression !== 'event') this.#check('kick', kicks, wanted);
  }

  /** Each table is written to a place of its own while it may be in use. */
  #table(buffers: readonly RawDescriptor[]): RawDescriptor {
    this.#tables = (this.#tables + 1) % 64;
    const at = TABLES_AT + this.#tables * TABLE_BYTES;
    this.#driver.ring.setChain(0, buffers, at);
    return {
      address: ram.guest(at),
      length: 16 * buffers.length,
      flags: INDIRECT | (this.#random.oneIn(2) ? WRITE : 0),
    };
  }

  #take(): void {
    const chain = this.#chain;
    const next = this.#offered.shift();
    this.#check('pop', this.#device.pop(chain), next === undefined ? 0 : 1);
    if (next === undefined) return;
    this.#note(`take ${next.id} as ${chain.head}`);
    if (!this.#kind.packed) this.#check('head', chain.head, next.id);
    if (this.#taken.some(({ token }) => token === chain.head)) throw new Error(`token ${chain.head} is in flight`);
    const { segments, readableSegments, fault } = chain;
    const readable = next.buffers.filter(({ flags }) => flags === 0).length;
    this.#check('chain', [fault, segments, readableSegments], [0, next.buffers.length, readable]);
    this.#check(
      'buffers',
      Array.from({ length: segments }, (_, i) => [chain.guest[i], chain.length[i]]),
      next.buffers.map(({ address, length }) => [address, length]),
    );
    next.token = chain.head;
    this.#taken.push(next);
    this.#inOrder?.take(chain.head);
    this.#availTaken += next.units;
    this.#returnable += 1;
  }

  #finish(): void {
    const waiting = this.#taken.filter(({ token }) => token >= 0);
    const one = this.#random.pick(waiting);
    if (one === undefined) return;
    const length = this.#random.oneIn(4) ? 0 : this.#random.between(1, 0xffff_ffff);
    this.#note(`finish ${one.id}`);
    this.#returnable = 0;
    if (this.#inOrder === undefined) {
      this.#push(one, length);
      return;
    }
    this.#early.set(one.token, length);
    this.#inOrder.finish(one.token, length);
    one.token = -1 - one.token;
    for (let oldest = this.#taken[0]; oldest !== undefined && oldest.token < 0; oldest = this.#taken[0]) {
      const token = -1 - oldest.token;
      this.#check('next in order', this.#inOrder.next(), token);
      this.#check('its length', this.#inOrder.length, this.#early.get(token));
      oldest.token = token;
      this.#push(oldest, this.#inOrder.length);
    }
    this.#check('next in order', this.#inOrder.next(), -1);
  }

  /** Lengths of chains that are finished, by token. */
  readonly #early = new Map<number, number>();

  #push(one: Offered, length: number): void {
    this.#taken.splice(this.#taken.indexOf(one), 1);
    this.#used.push({ id: one.id, length, units: one.units });
    this.#device.push(one.token, length);
    this.#check('used entries before they are published', this.#driver.ring.waiting, this.#published - this.#harvested);
  }

  #giveBack(): void {
    const last = this.#taken.at(-1);
    if (this.#returnable === 0 || last === undefined || last.token < 0) return;
    this.#note(`give back ${last.id}`);
    this.#returnable -= 1;
    this.#taken.pop();
    this.#offered.unshift(last);
    this.#availTaken -= last.units;
    this.#inOrder?.untake(last.token);
    this.#device.untake(last.token);
    this.#check('offers', this.#device.offers(1), true);
  }

  #publish(): void {
    this.#note('publish');
    this.#device.publish();
    for (; this.#published < this.#used.length; this.#published += 1) {
      this.#usedEnd += this.#used[this.#published]?.units ?? 0;
    }
    this.#check('used entries', this.#driver.ring.waiting, this.#published - this.#harvested);
  }

  #harvest(): void {
    const expected = this.#used.slice(this.#harvested, this.#published).map(({ id, length }) => ({ id, length }));
    this.#note(`harvest ${expected.map(({ id }) => id)}`);
    this.#check('used', this.#driver.harvest(), expected);
    this.#harvested = this.#published;
  }

  /** The driver says when it wants to be told, and the device decides. */
  #needsCall(): void {
    const { ring } = this.#driver;
    const from = this.#callLook;
    const isNew = this.#usedEnd > from;
    let wanted = true;
    if (this.#kind.suppression === 'flags' && this.#random.oneIn(2)) {
      ring.refuseCalls();
      wanted = false;
    } else if (this.#kind.suppression === 'event') {
      // Some place near what was published: passed, or to come.
      const event = this.#usedEnd + this.#random.between(-this.#size, Math.floor(this.#size / 2));
      if (event + this.#start < 0) return;
      this.#setEvent(event);
      wanted = event >= from && event < this.#usedEnd;
      // Or it means the same place two laps ago.
      if (this.#kind.packed && event - 2 * this.#size >= from) return;
    } else ring.askForCall();
    this.#note('needs call?');
    this.#check('call', this.#device.needsNotification(), isNew && wanted);
    this.#callLook = this.#usedEnd;
  }

  #setEvent(event: number): void {
    const { ring } = this.#driver;
    if (ring instanceof RawPackedRing) ring.setDriverEvent(2, this.#base(event, 0) & 0xffff);
    else if (ring instanceof RawRing) ring.setUsedEvent(this.#start + event);
  }

  #asksForKick(): void {
    this.#note('ask for kicks');
    this.#device.disableKicks();
    const isEvent = this.#kind.suppression === 'event';
    if (this.#random.oneIn(3)) {
      this.#armed = isEvent && !this.#kind.packed ? this.#armed : 'none';
      return;
    }
    this.#check('more', this.#device.enableKicks(), this.#offered.length > 0);
    this.#armed = isEvent ? this.#availTaken : 'all';
  }

  /** All that there is is too little: it is given back, and asked for is what comes behind it. */
  #sleepUntilMore(): void {
    this.#note('ask for more');
    const first = this.#returnable;
    while (this.#offered.length > 0) this.#take();
    const known = this.#device.position;
    const end = this.#availTaken;
    while (this.#returnable > first) this.#giveBack();
    this.#device.disableKicks();
    this.#check('more', this.#device.enableKicks(known), false);
    this.#armed = this.#kind.suppression === 'event' ? end : 'all';
  }

  /** The ring is drained and handed over, in the middle of a lap; what is offered waits. */
  #restart(): void {
    while (this.#taken.length > 0) this.#finish();
    this.#publish();
    this.#note('restart');
    const base = this.#base(this.#availTaken, this.#usedEnd);
    this.#check('base', this.#device.base, base);
    if (this.#kind.packed && this.#random.oneIn(3)) this.#harvest();
    this.#device = this.#open();
    this.#check('base again', this.#device.base, base);
    this.#check('past', this.#device.hasPast, this.#hasPast());
    this.#check('offers', this.#device.offers(1), this.#offered.length > 0);
    this.#returnable = 0;
    this.#callLook = this.#usedEnd;
    this.#asksForKick();
  }

  #hasPast(): boolean {
    const units = this.#kind.packed ? 2 * this.#size : 0x1_0000;
    return (this.#start + this.#availTaken) % units !== 0 || (this.#start + this.#usedEnd) % units !== 0;
  }
}

describe.each([false, true])(`random operations on a ring (packed %s; seed ${testSeed})`, (packed) => {
  it.each<[Suppression, boolean]>([
    ['flags', false],
    ['event', false],
    ['flags', true],
    ['event', true],
  ])('are seen alike by driver, device and model (told by %s, in order %s)', (suppression, inOrder) => {
    for (let run = 0; run < RUNS; run += 1) {
      const seed = testSeed + run;
      try {
        new Run({ packed, suppression, inOrder }, seed).go(OPERATIONS);
      } catch (error) {
        throw new Error(`RINGSIDE_TEST_SEED=${seed}: ${(error as Error).message}`);
      }
    }
  });
});
