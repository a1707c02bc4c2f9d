/**
 * A driver and a device do random things to one split ring, and a model that keeps plain lists says what each must see:
 * which head is taken next, what the used ring shows, whether the driver is told.
 */

import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import { SplitQueue } from '../../protocol/virtqueue/split-queue.ts';
import { GuestRam } from '../support/frontend/guest-ram.ts';
import { RawRing, WRITE } from '../support/frontend/raw-ring.ts';

const SIZE = 8;
const ram = new GuestRam(0x1_0000);
const memory = new GuestMemory();
memory.add({ guestAddress: ram.guest(0), userAddress: ram.user(0), size: ram.length, mmapOffset: 0 }, ram.fd);
afterAll(() => {
  memory.clear();
  ram.close();
});

type Operation =
  | { readonly what: 'offer'; readonly heads: readonly number[] }
  | { readonly what: 'take' }
  | { readonly what: 'return'; readonly which: number; readonly length: number }
  | { readonly what: 'give back' }
  | { readonly what: 'publish' }
  | { readonly what: 'ask'; readonly event: number; readonly flags: number }
  | { readonly what: 'sleep' }
  | { readonly what: 'sleep until more' };

const operation: fc.Arbitrary<Operation> = fc.oneof(
  {
    weight: 3,
    arbitrary: fc.record({ what: fc.constant('offer' as const), heads: fc.shuffledSubarray([0, 1, 2, 3, 4, 5, 6, 7]) }),
  },
  { weight: 5, arbitrary: fc.constant({ what: 'take' as const }) },
  {
    weight: 5,
    arbitrary: fc.record({ what: fc.constant('return' as const), which: fc.nat(SIZE), length: fc.nat(0xffff_ffff) }),
  },
  { weight: 2, arbitrary: fc.constant({ what: 'give back' as const }) },
  { weight: 3, arbitrary: fc.constant({ what: 'publish' as const }) },
  {
    weight: 3,
    arbitrary: fc.record({
      what: fc.constant('ask' as const),
      event: fc.integer({ min: -3, max: 3 }),
      flags: fc.nat(3),
    }),
  },
  { weight: 1, arbitrary: fc.constant({ what: 'sleep' as const }) },
  { weight: 1, arbitrary: fc.constant({ what: 'sleep until more' as const }) },
);

class Model {
  readonly start: number;
  readonly eventIdx: boolean;
  /** Heads that the driver may offer. */
  readonly free = new Set(Array.from({ length: SIZE }, (_, i) => i));
  readonly offered: number[] = [];
  readonly taken: number[] = [];
  /** Heads that were taken since the last one came back or was told of: they may be given back, last one first. */
  returnable = 0;
  readonly used: { id: number; length: number }[] = [];
  published = 0;
  /** Published entries that the driver has taken back. */
  reclaimed = 0;
  lookedAt = 0;

  constructor(start: number, eventIdx: boolean) {
    this.start = start;
    this.eventIdx = eventIdx;
  }

  /** The driver takes back what it can see. */
  reclaim(): void {
    for (; this.reclaimed < this.published; this.reclaimed += 1) this.free.add(this.used[this.reclaimed]?.id ?? -1);
  }
}

/** Does one operation to both, and compares. */
const step = (op: Operation, model: Model, driver: RawRing, device: SplitQueue, chain: DescriptorChain): void => {
  const index = (count: number): number => (model.start + count) & 0xffff;
  switch (op.what) {
    case 'offer': {
      model.reclaim();
      const heads = op.heads.filter((head) => model.free.has(head));
      for (const head of heads) model.free.delete(head);
      model.offered.push(...heads);
      driver.publish(...heads);
      expect(device.backlog).toBe(model.offered.length);
      return;
    }
    case 'take': {
      const head = model.offered.shift();
      expect(device.pop(chain)).toBe(head === undefined ? 0 : 1);
      if (head === undefined) return;
      expect(chain.head).toBe(head);
      model.taken.push(head);
      model.returnable += 1;
      expect(device.inFlight).toBe(model.taken.length);
      return;
    }
    case 'return': {
      const [id] = model.taken.splice(op.which % Math.max(1, model.taken.length), 1);
      if (id === undefined) return;
      model.returnable = 0;
      model.used.push({ id, length: op.length });
      device.push(id, op.length);
      expect(driver.usedIndex).toBe(index(model.published));
      return;
    }
    case 'give back': {
      if (model.returnable === 0) return;
      model.returnable -= 1;
      const head = model.taken.pop() as number;
      model.offered.unshift(head);
      device.untake(head);
      expect([device.inFlight, device.backlog]).toEqual([model.taken.length, model.offered.length]);
      return;
    }
    case 'publish': {
      const first = model.published;
      model.published = model.used.length;
      device.publish();
      expect(driver.usedIndex).toBe(index(model.published));
      const shown = model.used.slice(first).map((_, i) => driver.usedEntry(index(first + i)));
      expect(shown).toEqual(model.used.slice(first));
      return;
    }
    case 'ask': {
      // used_event is the index of the entry at which the driver wants to be told.
      driver.setUsedEvent(index(model.published + op.event));
      driver.setAvailFlags(op.flags);
      const isNew = model.published > model.lookedAt;
      const at = model.published + op.event;
      const told = model.eventIdx ? at >= model.lookedAt && at < model.published : (op.flags & 1) === 0;
      expect(device.needsNotification()).toBe(isNew && told);
      model.lookedAt = model.published;
      return;
    }
    case 'sleep': {
      device.disableKicks();
      expect(device.enableKicks()).toBe(model.offered.length > 0);
      if (model.eventIdx) expect(driver.availEvent).toBe(device.nextAvail);
      return;
    }
    case 'sleep until more': {
      // All that there is is too little: it is given back, and asked for is the one behind it.
      const heads: number[] = [];
      while (device.pop(chain) === 1) heads.push(chain.head);
      expect(heads).toEqual(model.offered);
      const known = device.nextAvail;
      for (const head of heads.reverse()) device.untake(head);
      device.disableKicks();
      expect(device.enableKicks(known)).toBe(false);
      if (model.eventIdx) expect(driver.availEvent).toBe(known);
      expect(device.enableKicks()).toBe(model.offered.length > 0);
      return;
    }
  }
};

describe('a random sequence of ring operations', () => {
  it.each([true, false])('is seen alike by driver, device and model (EVENT_IDX %s)', (eventIdx) => {
    const property = fc.property(
      fc.constantFrom(0, 1, 0x7ffe, 0xfffa),
      fc.array(operation, { minLength: 20, maxLength: 120 }),
      (start, operations) => {
        ram.bytes.fill(0);
        const driver = new RawRing(ram, 0, SIZE, 0x1000);
        for (let i = 0; i < SIZE; i += 1) driver.setDescriptor(i, { address: ram.guest(0), length: 16, flags: WRITE });
        driver.setAvailIndex(start);
        ram.view.setUint16(driver.used + 2, start, true);
        const { table, avail, used } = driver;
        const addresses = { descriptor: ram.user(table), available: ram.user(avail), used: ram.user(used) };
        const device = new SplitQueue(memory, { size: SIZE, addresses, indirect: false, eventIdx });
        device.seek(start);
        const chain = new DescriptorChain(memory, SIZE);
        const model = new Model(start, eventIdx);
        try {
          for (const op of operations) step(op, model, driver, device, chain);
        } finally {
          driver.close();
        }
      },
    );

    fc.assert(property, { numRuns: 1000 });
  });
});
