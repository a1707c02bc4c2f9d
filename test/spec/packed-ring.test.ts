/**
 * VIRTIO 1.3, 2.8 Packed Virtqueues: one test a rule for the device's side of the ring. The driver's side is the tests'
 * own, in shared memory.
 */

import { describe, expect, it } from 'vitest';
import { RingPlace } from '../../protocol/memory/ring-view.ts';
import { isPackedQueueSize, PackedQueue } from '../../protocol/virtqueue/packed-queue.ts';
import type { GuestRam } from '../support/frontend/guest-ram.ts';
import { AVAIL, USED } from '../support/frontend/raw-packed-ring.ts';
import { WRITE } from '../support/frontend/raw-virtqueue.ts';
import { buffer, createMemory, createPair, FEATURES, offer, popAll, returnBuffers, takeUsed } from './packed-pair.ts';

describe('2.8.1 wrap counters', () => {
  it.each([
    [AVAIL, 1],
    [AVAIL | USED, 0],
    [USED, 0],
    [0, 0],
  ])('start at 1: flags %i make the first descriptor available: %i', (flags, result) => {
    const pair = createPair();
    pair.driver.writeSlot(0, { ...buffer(pair), id: 0, flags: flags | WRITE });

    expect(pair.device.pop(pair.chain)).toBe(result);
  });

  it.each([
    [USED, 1],
    [AVAIL | USED, 0],
    [AVAIL, 0],
    [0, 0],
  ])('turn at the end of the ring: then flags %i make one available: %i', (flags, result) => {
    const pair = createPair({ size: 5, start: 5 });
    pair.driver.writeSlot(0, { ...buffer(pair), id: 0, flags: flags | WRITE });

    expect(pair.device.pop(pair.chain)).toBe(result);
  });

  it.each([1, 2, 3, 5, 8, 100])('go round and round in a ring of %i, which need not be a power of two', (size) => {
    const pair = createPair({ size });
    const slots = Math.min(size, 3);
    for (let round = 0; round < 5 * size; round += 1) {
      offer(pair, round, slots);
      const [token] = popAll(pair);
      pair.device.push(token as number, 7);
      pair.device.publish();

      expect(pair.driver.next()).toEqual({ id: round, length: 7 });
    }
  });

  it('mark a used descriptor by both bits equal to the counter', () => {
    const pair = createPair({ size: 3 });
    const flags: number[] = [];
    for (let i = 0; i < 6; i += 1) {
      offer(pair, i);
      const [token] = popAll(pair);
      pair.device.push(token as number, 0);
      pair.device.publish();
      flags.push(pair.driver.readSlot(i % 3).flags);
      pair.driver.next();
    }

    expect(flags).toEqual([0x8080, 0x8080, 0x8080, 0, 0, 0]);
  });
});

describe('2.8.2 polling', () => {
  it('looks at one place: what is available behind it is not taken', () => {
    const pair = createPair();
    pair.driver.writeSlot(1, { ...buffer(pair), id: 1, flags: AVAIL | WRITE });

    expect(popAll(pair)).toEqual([]);

    pair.driver.writeSlot(0, { ...buffer(pair), id: 0, flags: AVAIL | WRITE });
    expect(popAll(pair)).toHaveLength(2);
  });
});

describe('2.8.3 and 2.8.4 a used descriptor', () => {
  it.each([
    [0, 0x8080],
    [1, 0x8082],
    [0xffff_ffff, 0x8082],
  ])('of a buffer with %i bytes written has flags %i and that length', (length, flags) => {
    const pair = createPair();
    offer(pair, 0x1234);
    const [token] = popAll(pair);

    pair.device.push(token as number, length);
    pair.device.publish();

    expect(pair.driver.readSlot(0)).toMatchObject({ id: 0x1234, length, flags });
  });
});

describe('2.8.9 requests of several buffers', () => {
  it('are seen as a whole: the first used descriptor is the last to be marked', () => {
    const pair = createPair();
    for (const id of [1, 2, 3]) offer(pair, id);
    const tokens = popAll(pair);

    for (const token of tokens) pair.device.push(token, 1);
    expect(pair.driver.readSlot(0).flags).toBe(AVAIL | WRITE);
    expect(pair.driver.waiting).toBe(0);
    pair.device.publish();

    expect(takeUsed(pair)).toEqual([1, 2, 3]);
  });
});

describe('2.8.10.1 size and alignment', () => {
  it.each([0, -1, 32769, 65536])('a ring of %i descriptors is impossible', (size) => {
    expect(isPackedQueueSize(size)).toBe(false);
  });

  it.each([1, 3, 255, 32767, 32768])('a ring of %i is possible', (size) => {
    expect(isPackedQueueSize(size)).toBe(true);
  });

  const at = (ram: GuestRam, descriptor: number, available: number, used: number) => ({
    ...FEATURES,
    size: 8,
    addresses: { descriptor: ram.user(descriptor), available: ram.user(available), used: ram.user(used) },
  });

  it.each([
    [0x1000, 0x2000, 0x3000, undefined],
    [0xff80, 0x0004, 0xfffc, undefined],
    [0xff90, 0x2000, 0x3000, /not in one region/],
    [0x1008, 0x2000, 0x3000, /not aligned to 16/],
    [0x1000, 0x2002, 0x3000, /not aligned to 4/],
    [0x1000, 0x2000, 0x3001, /not aligned to 4/],
    [0x1000, 0x10000, 0x3000, /not in one region/],
  ])('descriptors at %i, driver area at %i, device area at %i', (descriptor, available, used, message) => {
    const { ram, memory } = createMemory(0x1_0000);
    const create = () => new PackedQueue(new RingPlace(memory).view, at(ram, descriptor, available, used));

    if (message === undefined) expect(create).not.toThrow();
    else expect(create).toThrow(message);
  });
});

describe('2.8.12 the device', () => {
  it('takes descriptors in ring order and writes used ones in the order in which they complete', () => {
    const pair = createPair();
    for (const id of [4, 0, 9]) offer(pair, id);
    const [first, second, third] = popAll(pair) as [number, number, number];

    pair.device.push(third, 3);
    pair.device.push(first, 1);
    pair.device.publish();
    expect(takeUsed(pair)).toEqual([9, 4]);
    pair.device.push(second, 2);
    pair.device.publish();

    expect(takeUsed(pair)).toEqual([0]);
  });

  it('echoes buffer IDs, which may be any number, and the same for several', () => {
    const pair = createPair();
    for (let i = 0; i < 2; i += 1) pair.driver.writeSlot(i, { ...buffer(pair), id: 0xffff, flags: AVAIL | WRITE });
    const tokens = popAll(pair);

    expect(new Set(tokens).size).toBe(2);
    for (const token of tokens) pair.device.push(token, 0);
    pair.device.publish();
    expect([pair.driver.readSlot(0).id, pair.driver.readSlot(1).id]).toEqual([0xffff, 0xffff]);
  });

  it.each([1, 3, 8])('has as many chains as the ring of %i has slots, and no more', (size) => {
    const pair = createPair({ size });
    for (let id = 0; id < size; id += 1) offer(pair, id);

    expect(new Set(popAll(pair)).size).toBe(size);
    expect(pair.device.pop(pair.chain)).toBe(0);
  });
});

describe('2.8.15 a descriptor is used', () => {
  it('only when AVAIL changed: zeros are not available', () => {
    const pair = createPair();

    expect([pair.device.pop(pair.chain), pair.device.offers(1)]).toEqual([0, false]);
  });

  it('not when it is still of the lap before', () => {
    const pair = createPair({ size: 2 });
    offer(pair, 1);
    offer(pair, 2);
    popAll(pair);

    expect([pair.device.pop(pair.chain), pair.device.offers(1)]).toEqual([0, false]);
  });
});

describe('vhost-user, Vring descriptor indices for packed virtqueues', () => {
  it('says 0x80008000 at the beginning', () => {
    const pair = createPair();

    expect([pair.device.base, pair.device.hasPast]).toEqual([0x8000_8000, false]);
  });

  it('says the available place in bits 0 to 15 and the used one in bits 16 to 31', () => {
    const pair = createPair({ size: 6, start: 4 });
    offer(pair, 0, 1);
    offer(pair, 1, 3);
    const [first] = popAll(pair);
    pair.device.push(first as number, 0);
    pair.device.publish();

    expect([pair.device.base, pair.device.hasPast]).toEqual([0x8005_0002, true]);
  });

  it.each([0x8000_8000, 0x8003_8003, 0x0003_0003, 0x8002_8004, 0x8004_0001])('takes %i as it is', (base) => {
    const pair = createPair({ size: 6 });

    pair.device.seek(base);

    expect(pair.device.base).toBe(base);
  });

  it.each([
    [0x8000, 0x8000_8000],
    [0x8004, 0x8004_8004],
    [0x0003, 0x0003_0003],
  ])('takes %i, of a front end that knows one place, for both', (base, both) => {
    const pair = createPair({ size: 6 });

    pair.device.seek(base);

    expect(pair.device.base).toBe(both);
  });

  it('takes 0 for the beginning where the ring was never used', () => {
    const pair = createPair({ size: 3 });
    offer(pair, 1);
    offer(pair, 2);

    pair.device.seek(0);

    expect(pair.device.base).toBe(0x8000_8000);
    expect(popAll(pair)).toHaveLength(2);
  });

  it('takes 0 for what it is when the ring went round', () => {
    const pair = createPair({ size: 3 });
    for (let id = 0; id < 3; id += 1) returnBuffers(pair, 1);

    pair.device.seek(0);

    expect(pair.device.base).toBe(0);
    offer(pair, 4);
    expect(popAll(pair)).toHaveLength(1);
  });

  it.each([0x8006_8000, 0x8000_8006, 0x7fff_7fff])('refuses %i, which is beyond a ring of 6', (base) => {
    const pair = createPair({ size: 6 });

    expect(() => pair.device.seek(base)).toThrow(/beyond a ring of 6/);
  });
});

describe('a chain that goes back to the ring', () => {
  it.each([0, 3, 5, 8])('is taken again, from place %i on', (start) => {
    const pair = createPair({ size: 5, start });
    offer(pair, 1, 2);
    offer(pair, 2, 3);
    const tokens = popAll(pair);
    const { base } = pair.device;

    for (const token of tokens.reverse()) pair.device.untake(token);
    expect([pair.device.inFlight, pair.device.offers(1)]).toEqual([0, true]);
    expect(popAll(pair)).toHaveLength(2);

    expect(pair.device.base).toBe(base);
  });
});

describe('how many chains are offered', () => {
  it('is exact for one and estimated by the last chain for more', () => {
    const pair = createPair({ size: 9 });
    offer(pair, 0, 2);
    offer(pair, 1, 2);
    offer(pair, 2, 2);
    offer(pair, 3, 2);
    pair.device.pop(pair.chain);

    expect([1, 2, 3, 4, 5, 1000].map((count) => pair.device.offers(count))).toEqual([
      true,
      true,
      true,
      false,
      false,
      false,
    ]);
  });
});
