/**
 * vhost-user, Inflight I/O tracking, both layouts: a back end may die between any two stores into the region and the
 * ring. Here it dies after the first, the second, ... store of a run, and the next one must find exactly the requests
 * that were taken and not returned, in the order in which they were taken, and the driver gets each of them once.
 */

import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest';
import { createInflightTracker, type InflightTracker } from '../../backends/core/inflight.ts';
import { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { RingPlace } from '../../protocol/memory/ring-view.ts';
import { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import { PackedQueue } from '../../protocol/virtqueue/packed-queue.ts';
import { SplitQueue } from '../../protocol/virtqueue/split-queue.ts';
import type { Virtqueue } from '../../protocol/virtqueue/virtqueue.ts';
import { ChainDriver } from '../support/frontend/chain-driver.ts';
import { GuestRam } from '../support/frontend/guest-ram.ts';
import { RawPackedRing } from '../support/frontend/raw-packed-ring.ts';
import { RawRing } from '../support/frontend/raw-ring.ts';
import { type RawVirtqueue, WRITE } from '../support/frontend/raw-virtqueue.ts';
import { KilledStores } from '../support/killed-stores.ts';
import { Random, testSeed } from '../support/random.ts';

const RING_AT = 0x1000;
const BUFFERS_AT = 0x4000;
const FEATURES = { indirect: false, eventIdx: false, inOrder: false };

const ram = new GuestRam(0x10_0000);
const memory = new GuestMemory();
memory.add({ guestAddress: ram.guest(0), userAddress: ram.user(0), size: ram.length, mmapOffset: 0 }, ram.fd);
const stores = new KilledStores();

beforeEach(() => stores.install());
afterEach(() => stores.uninstall());
afterAll(() => {
  memory.clear();
  ram.close();
});

/** One request of the driver: `first` is the guest address of its first buffer, which no other has. */
interface Request {
  readonly first: number;
  readonly id: number;
  readonly slots: number;
}

interface Taken extends Request {
  readonly token: number;
}

interface Kind {
  readonly packed: boolean;
  readonly size: number;
  /** Requests are finished in the order in which they were taken, and may go back to the ring after a death. */
  readonly ordered: boolean;
  /** Requests that the driver has out at a time: with few, a ring has slots of the lap before where it goes on. */
  readonly most: number;
}

/** A driver, its ring and its region, which outlive the back ends. */
class World {
  readonly #kind: Kind;
  readonly #random: Random;
  readonly #ring: RawVirtqueue;
  readonly #driver: ChainDriver;
  readonly #region: ArrayBuffer;
  /** By address of the first buffer: made available and not harvested. */
  readonly #requests = new Map<number, Request>();
  /** Made available and not taken, in order. */
  #offered: Request[] = [];
  #serial = 0;

  // What the back end has, and forgets when it dies.
  #queue!: Virtqueue;
  #tracker!: InflightTracker;
  #chain!: DescriptorChain;
  #taken: Taken[] = [];
  /** Taken since one was finished. */
  #returnable = 0;
  /** What it was about to note or forget when it died: the addresses of first buffers. */
  #uncertain: readonly number[] = [];

  constructor(kind: Kind, seed: number) {
    this.#kind = kind;
    this.#random = new Random(seed);
    ram.bytes.fill(0, RING_AT, BUFFERS_AT);
    this.#ring = new (kind.packed ? RawPackedRing : RawRing)(ram, 0, kind.size, RING_AT);
    this.#driver = new ChainDriver(this.#ring, this.#random, false);
    this.#region = stores.watch(new ArrayBuffer(64 * Math.ceil((32 + 32 * kind.size) / 64)));
  }

  close(): void {
    this.#ring.close();
  }

  /** The ring as a new back end finds it. What the front end says of its place is that of long ago. */
  #open(): void {
    const { packed, size } = this.#kind;
    const { descriptor, available, used } = this.#ring.addresses();
    const addresses = { descriptor: Number(descriptor), available: Number(available), used: Number(used) };
    const { view } = new RingPlace(memory);
    const place = (...args: Parameters<typeof view>): ArrayBuffer => stores.watch(view(...args));
    const options = { ...FEATURES, packed, size, addresses };
    this.#queue = packed ? new PackedQueue(place, options) : new SplitQueue(place, options);
    this.#queue.seek(this.#ring.initialBase);
    this.#tracker = createInflightTracker(packed, this.#region, size);
    this.#chain = new DescriptorChain(memory, size);
  }

  /** The first back end of all. May be killed. */
  start(): void {
    this.#open();
    expect(this.#tracker.recover(this.#queue)).toBeUndefined();
  }

  step(): void {
    const dice = this.#random.below(20);
    if (dice < 4) this.#offer();
    else if (dice < 9) this.#take();
    else if (dice < 10) this.#giveBack();
    else if (dice < 15) this.#finish();
    else if (dice < 18) this.#publish();
    else this.#harvest();
  }

  #offer(): void {
    const room = this.#driver.room;
    if (room === 0 || this.#requests.size === this.#kind.most) return;
    const slots = this.#random.between(1, Math.min(room, 3));
    this.#serial += 1;
    const first = ram.guest(BUFFERS_AT + 64 * (this.#serial % 4096));
    const [id] = this.#driver.offer([
      Array.from({ length: slots }, (_, i) => ({ address: first + 16 * i, length: 16 - i, flags: WRITE })),
    ]);
    const request = { first, slots, id: id as number };
    this.#requests.set(first, request);
    this.#offered.push(request);
  }

  /** What is in the chain: a request of the driver's that is not done, all of it. */
  #identify(): Request {
    const chain = this.#chain;
    const request = this.#requests.get(chain.guest[0] as number);
    if (request === undefined) throw new Error(`a chain at 0x${chain.guest[0]?.toString(16)} is not in flight`);
    expect([chain.fault, chain.segments]).toEqual([0, request.slots]);
    for (let i = 0; i < request.slots; i += 1) {
      expect([chain.guest[i], chain.length[i]]).toEqual([request.first + 16 * i, 16 - i]);
    }
    return request;
  }

  #take(): void {
    if (this.#queue.pop(this.#chain) === 0) {
      expect(this.#offered).toEqual([]);
      return;
    }
    const request = this.#identify();
    expect(request).toEqual(this.#offered[0]);
    this.#uncertain = [request.first];
    this.#tracker.fetch(this.#chain);
    this.#uncertain = [];
    this.#offered.shift();
    this.#taken.push({ ...request, token: this.#chain.head });
    this.#returnable += 1;
  }

  #giveBack(): void {
    if (this.#returnable === 0) return;
    const last = this.#taken.at(-1) as Taken;
    this.#queue.untake(last.token);
    this.#uncertain = [last.first];
    this.#tracker.unfetch(last.token);
    this.#uncertain = [];
    this.#returnable -= 1;
    this.#offered.unshift(this.#requests.get(last.first) as Request);
    this.#taken.pop();
  }

  #finish(): void {
    if (this.#taken.length === 0) return;
    const index = this.#kind.ordered ? 0 : this.#random.below(this.#taken.length);
    const [one] = this.#taken.splice(index, 1) as [Taken];
    this.#returnable = 0;
    this.#staged.push(one);
    this.#queue.push(one.token, one.slots);
    this.#tracker.complete(one.token);
  }

  /** Finished and not published: to be done again by the next one. */
  #staged: Taken[] = [];

  #publish(): void {
    this.#queue.publish();
    this.#tracker.commit();
    this.#staged = [];
  }

  #harvest(): void {
    for (const { id, length } of this.#driver.harvest()) {
      const request = [...this.#requests.values()].find((one) => one.id === id && !this.#offered.includes(one));
      if (request === undefined) throw new Error(`buffer ${id} came back and was not in flight`);
      expect(length).toBe(request.slots);
      this.#requests.delete(request.first);
    }
  }

  /**
   * The back end died. The driver may go on for a while; then there is a new back end, which dies `again` times while it
   * recovers. It must find what was in flight.
   */
  recover(again: readonly number[]): void {
    const before = [...this.#taken, ...this.#staged].map(({ first }) => first);
    const uncertain = this.#uncertain;
    const goesOn = this.#random.oneIn(2);
    if (goesOn) {
      this.#harvest();
      this.#offer();
    }
    for (const left of again) {
      stores.run(left, () => {
        this.#open();
        this.#tracker.recover(this.#queue);
      });
    }
    this.#open();
    const tokens = this.#tracker.recover(this.#queue) ?? [];
    expect(new Set(tokens).size).toBe(tokens.length);
    const found: Taken[] = tokens.map((token) => {
      this.#tracker.retake(token, this.#chain);
      expect(this.#chain.head).toBe(token);
      return { ...this.#identify(), token };
    });
    expect(this.#queue.inFlight).toBe(tokens.length);
    if (!goesOn) this.#harvest();

    // What was published before it died is the driver's now, and nothing else.
    const inFlight = before.filter((first) => this.#requests.has(first));
    const certain = found.map(({ first }) => first).filter((first) => !uncertain.includes(first));
    expect([...certain].sort()).toEqual(inFlight.filter((first) => !uncertain.includes(first)).sort());
    const order = this.#taken.map(({ first }) => first).filter((first) => certain.includes(first));
    expect(certain.filter((first) => order.includes(first))).toEqual(order);

    this.#offered = [...this.#requests.values()].filter(({ first }) => !found.some((one) => one.first === first));
    this.#taken = found;
    this.#staged = [];
    this.#returnable = 0;
    this.#uncertain = [];
  }

  /** Right after `recover`: some of the requests are finished; the others are the ring's next ones again. May be killed. */
  handBack(): void {
    if (!this.#kind.ordered || this.#random.oneIn(2)) return;
    const tokens = this.#taken.map(({ token }) => token);
    const finished = this.#random.below(tokens.length + 1);
    for (const token of [...tokens].reverse()) this.#queue.release(token);
    for (let i = 0; i < finished; i += 1) {
      this.#tracker.retake(tokens[i] as number, this.#chain);
      this.#finish();
    }
    this.#publish();
    expect(this.#queue.inFlight).toBe(0);
    this.#uncertain = this.#taken.map(({ first }) => first);
    this.#tracker.giveBack(this.#queue, tokens.slice(finished));
    this.#uncertain = [];
    this.#offered = [...this.#taken.map(({ first }) => this.#requests.get(first) as Request), ...this.#offered];
    this.#taken = [];
  }

  /** Finishes everything: the driver has nothing left that it waits for. */
  drain(): void {
    for (let i = 0; this.#offered.length > 0 || this.#taken.length > 0; i += 1) {
      if (i > 1000) throw new Error(`not drained: ${this.#ring.describe()}`);
      this.#take();
      this.#finish();
      if (this.#random.oneIn(3)) this.#publish();
    }
    this.#publish();
    this.#harvest();
    expect([this.#driver.outstanding, this.#requests.size]).toEqual([0, 0]);
  }
}

const STEPS = 60;

/** Stores of a whole run. */
const countStores = (kind: Kind, seed: number): number => {
  const world = new World(kind, seed);
  const before = stores.count;
  world.start();
  for (let i = 0; i < STEPS; i += 1) world.step();
  world.close();
  return stores.count - before;
};

const KINDS: readonly Kind[] = [
  { packed: false, size: 8, ordered: false, most: 8 },
  { packed: false, size: 8, ordered: true, most: 8 },
  { packed: true, size: 7, ordered: false, most: 7 },
  { packed: true, size: 8, ordered: true, most: 8 },
  { packed: true, size: 5, ordered: false, most: 2 },
  { packed: true, size: 3, ordered: true, most: 1 },
  { packed: true, size: 1, ordered: true, most: 1 },
];

describe.each(KINDS)('a back end (packed $packed, $size entries, in order $ordered, $most out)', (kind) => {
  it.each([1, 2, 3, 4, 5, 6, 7, 8])('killed after any store leaves what the next one needs (seed %i)', (seed) => {
    const all = countStores(kind, seed);
    expect(all).toBeGreaterThan(20);
    for (let left = 0; left <= all; left += 1) {
      const world = new World(kind, seed);
      try {
        stores.run(left, () => {
          world.start();
          for (let i = 0; i < STEPS; i += 1) world.step();
        });
        world.recover([]);
        world.handBack();
        for (let i = 0; i < 10; i += 1) world.step();
        world.drain();
      } catch (error) {
        throw new Error(`killed after store ${left} of ${all}: ${(error as Error).message}`);
      } finally {
        world.close();
      }
    }
  });

  it('killed again and again, also while it recovers, loses and repeats nothing', () => {
    for (let run = 0; run < 60; run += 1) {
      const seed = testSeed + run;
      const random = new Random(seed);
      const world = new World(kind, seed);
      try {
        world.start();
        for (let life = 0; life < 12; life += 1) {
          stores.run(random.below(80), () => {
            world.handBack();
            for (let i = 0; i < 3 * STEPS; i += 1) world.step();
          });
          world.recover(Array.from({ length: random.below(4) }, () => random.below(12)));
        }
        world.drain();
      } catch (error) {
        throw new Error(`seed ${seed}: ${(error as Error).message}`);
      } finally {
        world.close();
      }
    }
  });
});
