/**
 * A driver's ring and a device do random things to it, and a model that keeps plain lists says what each must see. Both
 * layouts, sizes that are no powers of two, chains and tables, batches, every way of suppression, back ends that die.
 */

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { PackedVirtqueueDriver } from '../../../../vmm-client/driver/packed-virtqueue.ts';
import { SplitVirtqueueDriver } from '../../../../vmm-client/driver/split-virtqueue.ts';
import { NOTHING_USED, type RingFeatures, type VirtqueueDriver } from '../../../../vmm-client/driver/virtqueue.ts';
import { SharedMemory } from '../../../../vmm-client/frontend/shared-memory.ts';
import { PackedDevice } from './packed-device.ts';
import type { Buffer, RingDevice, Taken } from './ring-device.ts';
import { SplitDevice } from './split-device.ts';

interface Setup extends RingFeatures {
  readonly size: number;
  readonly maxChain: number;
}

const features = {
  indirect: fc.boolean(),
  eventIdx: fc.boolean(),
  inOrder: fc.boolean(),
  maxChain: fc.integer({ min: 1, max: 5 }),
};
const setup: fc.Arbitrary<Setup> = fc
  .oneof(
    fc.record({ ...features, packed: fc.constant(true), size: fc.integer({ min: 1, max: 13 }) }),
    fc.record({ ...features, packed: fc.constant(false), size: fc.constantFrom(1, 2, 4, 8) }),
  )
  .map((made) => ({ ...made, maxChain: Math.min(made.maxChain, made.size) }));

type Operation =
  | { readonly what: 'push'; readonly lengths: readonly number[]; readonly writable: number }
  | { readonly what: 'complete'; readonly which: number; readonly batch: number; readonly length: number }
  | { readonly what: 'resume'; readonly keepsInflight: boolean }
  | { readonly what: 'publish' | 'take' | 'reap' | 'arm' | 'disarm' | 'always' | 'never' | 'sleep' };

const plain = (
  what: 'publish' | 'take' | 'reap' | 'arm' | 'disarm' | 'always' | 'never' | 'sleep',
  weight: number,
) => ({
  weight,
  arbitrary: fc.constant({ what } as const),
});
const operation: fc.Arbitrary<Operation> = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      what: fc.constant('push' as const),
      lengths: fc.array(fc.integer({ min: 1, max: 0xffff }), { maxLength: 6 }),
      writable: fc.nat(6),
    }),
  },
  {
    weight: 7,
    arbitrary: fc.record({
      what: fc.constant('complete' as const),
      which: fc.nat(),
      batch: fc.integer({ min: 1, max: 4 }),
      length: fc.oneof(fc.constant(0), fc.nat(0xffff_ffff)),
    }),
  },
  { weight: 1, arbitrary: fc.record({ what: fc.constant('resume' as const), keepsInflight: fc.boolean() }) },
  plain('publish', 5),
  plain('take', 8),
  plain('reap', 7),
  plain('arm', 2),
  plain('disarm', 1),
  plain('always', 1),
  plain('never', 1),
  plain('sleep', 2),
);

/** A chain as the model knows it. */
interface Chain {
  readonly token: number;
  readonly buffers: readonly Buffer[];
  readonly slots: number;
}

/** Counts descriptors or chains without end, and says when an event is due that was asked for at one of them. */
class Counter {
  readonly #period: number;
  #count = 0;
  /** Always, never, or at a count. */
  wish: 'always' | 'never' | number = 'always';

  constructor(period: number) {
    this.#period = period;
  }

  get count(): number {
    return this.#count;
  }

  advance(by: number): boolean {
    const before = this.#count;
    this.#count += by;
    if (typeof this.wish !== 'number') return by > 0 && this.wish === 'always';
    // An event that was passed comes around again.
    const distance = (((this.wish - before) % this.#period) + this.#period) % this.#period;
    return distance < by;
  }
}

class Model {
  readonly #setup: Setup;
  readonly #memory: SharedMemory;
  readonly #driver: VirtqueueDriver;
  #device: RingDevice;
  #kicks: Counter;
  #interrupts: Counter;
  #token = 0;
  #staged: Chain[] = [];
  #published: Chain[] = [];
  #taken: { chain: Chain; taken: Taken }[] = [];
  #used: { token: number; length: number }[] = [];

  constructor(made: Setup, memory: SharedMemory) {
    this.#setup = made;
    this.#memory = memory;
    this.#driver = made.packed ? new PackedVirtqueueDriver(memory, made) : new SplitVirtqueueDriver(memory, made);
    this.#device = this.#createDevice(this.#driver.initialBase);
    const period = made.packed ? 2 * made.size : 0x1_0000;
    [this.#kicks, this.#interrupts] = [new Counter(period), new Counter(period)];
    if (made.eventIdx && !made.packed) [this.#kicks.wish, this.#interrupts.wish] = [0, 0];
  }

  #createDevice(base: number): RingDevice {
    const { packed, eventIdx, inOrder } = this.#setup;
    if (!packed) return new SplitDevice(this.#memory, this.#driver, base, eventIdx, inOrder);
    expect(base).toBe(0x8000_8000);
    return new PackedDevice(this.#memory, this.#driver);
  }

  /** What positions in the ring are counted in. */
  #unitsOf(chains: readonly Chain[]): number {
    return this.#setup.packed ? chains.reduce((sum, { slots }) => sum + slots, 0) : chains.length;
  }

  get #outstanding(): Chain[] {
    return [...this.#taken.map(({ chain }) => chain), ...this.#published, ...this.#staged];
  }

  apply(operation: Operation): void {
    if (operation.what === 'push') this.#push(operation.lengths, operation.writable);
    else if (operation.what === 'complete') this.#complete(operation.which, operation.batch, operation.length);
    else if (operation.what === 'resume') this.#resume(operation.keepsInflight);
    else if (operation.what === 'publish') this.#publish();
    else if (operation.what === 'take') this.#take();
    else if (operation.what === 'reap') this.#reap();
    else if (operation.what === 'arm') {
      expect(this.#driver.armInterrupt()).toBe(this.#used.length === 0);
      // Chains that are used and not reaped were counted already.
      const behind = this.#interrupts.count - this.#unreapedUnits;
      this.#interrupts.wish = this.#setup.eventIdx ? behind : 'always';
    } else if (operation.what === 'disarm') {
      this.#driver.disarmInterrupt();
      this.#interrupts.wish = 'never';
    } else if (operation.what === 'always') {
      this.#device.askAlways();
      this.#kicks.wish = this.#setup.eventIdx && !this.#setup.packed ? this.#place : 'always';
    } else if (operation.what === 'never') {
      this.#device.askNever();
      this.#kicks.wish = 'never';
    } else {
      while (this.#take());
      this.#device.askHere();
      this.#kicks.wish = this.#setup.eventIdx ? this.#place : 'always';
    }
    expect(this.#driver.outstanding).toBe(this.#outstanding.length + this.#used.length);
  }

  /** Count at which the device takes the next chain. */
  get #place(): number {
    return this.#kicks.count - this.#unitsOf(this.#published);
  }

  #unreapedUnits = 0;
  #unreaped: { units: number }[] = [];

  #push(lengths: readonly number[], writable: number): void {
    const { indirect, maxChain, size } = this.#setup;
    const token = this.#token;
    this.#token += 1;
    const buffers = lengths.map((length, i) => ({
      address: 0x1_0000_0000 + token * 0x10_0000 + i * 0x1_0000,
      length,
      writable: i >= lengths.length - writable,
    }));
    const held = [...this.#outstanding, ...this.#unreaped.map(({ units }) => ({ slots: units }))];
    const free = size - held.reduce((sum, { slots }) => sum + slots, 0);
    const slots = indirect ? 1 : buffers.length;
    this.#driver.startChain();
    for (const { address, length, writable: isWritable } of buffers)
      this.#driver.addBuffer(address, length, isWritable);
    const fits = buffers.length > 0 && buffers.length <= maxChain && slots <= free;
    expect(this.#driver.pushChain(token)).toBe(fits);
    if (fits) this.#staged.push({ token, buffers, slots });
  }

  #publish(): void {
    const kicks = this.#driver.publish();
    expect(kicks).toBe(this.#kicks.advance(this.#unitsOf(this.#staged)));
    this.#published.push(...this.#staged.splice(0));
  }

  #take(): boolean {
    const taken = this.#device.take();
    const chain = this.#published.shift();
    expect(taken?.buffers).toEqual(chain?.buffers);
    if (taken === undefined || chain === undefined) return false;
    expect(taken.slots).toBe(chain.slots);
    this.#taken.push({ chain, taken });
    return true;
  }

  #complete(which: number, batch: number, length: number): void {
    if (this.#taken.length === 0) return;
    const { inOrder } = this.#setup;
    const done = inOrder ? this.#taken.splice(0, batch) : this.#taken.splice(which % this.#taken.length, 1);
    const chains = done.map(({ chain }) => chain);
    const isTold = this.#device.complete(
      done.map(({ taken }) => taken),
      length,
    );
    expect(isTold).toBe(this.#interrupts.advance(this.#unitsOf(chains)));
    for (const [i, { token, buffers, slots }] of chains.entries()) {
      const whole = buffers.reduce((sum, buffer) => sum + (buffer.writable ? buffer.length : 0), 0);
      this.#used.push({ token, length: i === chains.length - 1 ? length : whole });
      this.#unreaped.push({ units: slots });
      this.#unreapedUnits += this.#setup.packed ? slots : 1;
    }
  }

  #reap(): boolean {
    const token = this.#driver.reap();
    const used = this.#used.shift();
    expect([token, this.#driver.fault]).toEqual([used?.token ?? NOTHING_USED, '']);
    if (used === undefined) return false;
    expect(this.#driver.usedLength).toBe(used.length);
    const units = this.#unreaped.shift()?.units ?? 0;
    this.#unreapedUnits -= this.#setup.packed ? units : 1;
    return true;
  }

  #resume(keepsInflight: boolean): void {
    while (this.#reap());
    const base = this.#driver.resume(keepsInflight);
    if (keepsInflight) {
      expect(base).toBe(this.#device.usedBase);
      return;
    }
    const outstanding = this.#outstanding;
    [this.#staged, this.#published, this.#taken] = [[], [], []];
    this.#device = this.#createDevice(base);
    const taken: Taken[] = [];
    for (let next = this.#device.take(); next !== undefined; next = this.#device.take()) taken.push(next);
    expect(taken.length).toBe(outstanding.length);
    if (this.#setup.inOrder)
      expect(taken.map(({ buffers }) => buffers)).toEqual(outstanding.map(({ buffers }) => buffers));
    for (const each of taken) {
      const chain = outstanding.find(({ buffers }) => buffers[0]!.address === each.buffers[0]!.address);
      expect(each.buffers).toEqual(chain?.buffers);
      this.#taken.push({ chain: chain!, taken: each });
    }
    const period = this.#setup.packed ? 2 * this.#setup.size : 0x1_0000;
    const { wish } = this.#interrupts;
    [this.#kicks, this.#interrupts] = [new Counter(period), new Counter(period)];
    this.#kicks.advance(this.#unitsOf(outstanding));
    if (this.#setup.eventIdx && !this.#setup.packed) this.#kicks.wish = 0;
    this.#interrupts.wish = wish === 'never' ? wish : this.#setup.eventIdx ? 0 : 'always';
  }

  /** Everything comes back in the end. */
  finish(): void {
    this.#publish();
    while (this.#take());
    while (this.#taken.length > 0) this.#complete(0, 2, 1);
    while (this.#reap());
    expect(this.#driver.outstanding).toBe(0);
  }
}

describe.each(['packed', 'split'])('a driver of a %s ring', (layout) => {
  it('gives, gets back and tells what a model says', { timeout: 120_000 }, () => {
    const made = setup.filter(({ packed }) => packed === (layout === 'packed'));
    fc.assert(
      fc.property(made, fc.array(operation, { maxLength: 150, size: 'max' }), (each, operations) => {
        const memory = new SharedMemory(64 * 1024);
        try {
          const model = new Model(each, memory);
          for (const one of operations) model.apply(one);
          model.finish();
        } finally {
          memory.close();
        }
      }),
      { numRuns: 1000 },
    );
  });
});
