/** VIRTIO 1.3, 2.8.6, 2.8.7, 2.8.17: chains in a packed ring, good ones and those of a driver that breaks the rules. */

import { describe, expect, it } from 'vitest';
import { MAX_INDIRECT_CHAIN } from '../../protocol/virtqueue/chain.ts';
import {
  FAULT_CHAIN_TOO_LONG,
  FAULT_CHAIN_UNFINISHED,
  FAULT_INDIRECT_AND_NEXT,
  FAULT_INDIRECT_LENGTH,
  FAULT_INDIRECT_NOT_NEGOTIATED,
  FAULT_INDIRECT_UNMAPPED,
  FAULT_ORDER,
  FAULT_RING_OVERFULL,
  FAULT_TOO_MANY_BYTES,
  FAULT_UNMAPPED,
  NO_FAULT,
} from '../../protocol/virtqueue/faults.ts';
import { AVAIL, USED } from '../support/frontend/raw-packed-ring.ts';
import { INDIRECT, NEXT, type RawDescriptor, WRITE } from '../support/frontend/raw-virtqueue.ts';
import { buffer, createPair, offer, type Pair, popAll, TABLE_AT, takeUsed } from './packed-pair.ts';

describe('2.8.6 descriptor chaining', () => {
  it('ends with the first descriptor without NEXT, whose buffer ID counts', () => {
    const pair = createPair();
    const ids = [7, 8, 9];
    ids.forEach((id, i) => {
      pair.driver.writeSlot(i, { ...buffer(pair, 0x8_0000 + 64 * i), id, flags: AVAIL | WRITE | (i < 2 ? NEXT : 0) });
    });

    const [token] = popAll(pair);
    expect([pair.chain.segments, pair.chain.writableBytes, pair.chain.slots]).toEqual([3, 48, 3]);
    expect([0, 1, 2].map((i) => pair.chain.guest[i])).toEqual(
      [0, 1, 2].map((i) => pair.driver.ram.guest(0x8_0000 + 64 * i)),
    );

    pair.device.push(token as number, 0);
    pair.device.publish();
    expect(pair.driver.readSlot(0)).toMatchObject({ id: 9, flags: 0x8080 });
    expect(pair.driver.readSlot(1).flags).toBe(AVAIL | WRITE | NEXT);
  });

  it('writes one used descriptor for a chain and skips the rest of its slots', () => {
    const pair = createPair();
    offer(pair, 1, 3);
    offer(pair, 2, 2);
    for (const token of popAll(pair)) pair.device.push(token, 0);
    pair.device.publish();

    expect(pair.driver.readSlot(0)).toMatchObject({ id: 1, flags: 0x8080 });
    expect(pair.driver.readSlot(3)).toMatchObject({ id: 2, flags: 0x8080 });
  });

  it('goes on at the beginning of the ring, with the other wrap counter', () => {
    const pair = createPair({ size: 5, start: 3 });
    offer(pair, 1, 4);

    expect(popAll(pair)).toHaveLength(1);
    expect([pair.chain.fault, pair.chain.segments]).toEqual([NO_FAULT, 4]);
    expect(pair.device.position).toBe(2);
  });

  it('takes a chain as long as the ring', () => {
    const pair = createPair({ size: 7, start: 4 });
    offer(pair, 1, 7);
    const [token] = popAll(pair);
    pair.device.push(token as number, 5);
    pair.device.publish();

    expect(pair.driver.next()).toEqual({ id: 1, length: 5 });
  });
});

describe('2.8.7 indirect descriptors', () => {
  const offerTable = (
    pair: Pair,
    table: readonly RawDescriptor[],
    flags = INDIRECT,
    length = 16 * table.length,
  ): void => {
    pair.driver.setChain(0, table, TABLE_AT);
    pair.driver.place(5, [{ address: pair.driver.ram.guest(TABLE_AT), length, flags }]);
  };

  it('are all of the table, in its order; only WRITE counts there', () => {
    const pair = createPair();
    offerTable(pair, [
      { ...buffer(pair, 0x8_0000, 10, 0), flags: NEXT | INDIRECT | AVAIL | USED },
      { ...buffer(pair, 0x9_0000, 20, 0), flags: 0, next: 0xffff },
      { ...buffer(pair, 0xa_0000, 30, 0), flags: WRITE | NEXT },
    ]);

    expect(popAll(pair)).toHaveLength(1);

    const { chain } = pair;
    expect([chain.fault, chain.readableBytes, chain.writableBytes, chain.segments, chain.slots]).toEqual([
      0, 30, 30, 3, 1,
    ]);
  });

  it('may be referred to with WRITE set, which means nothing', () => {
    const pair = createPair();
    offerTable(pair, [buffer(pair, 0x8_0000, 10, 0)], INDIRECT | WRITE);
    popAll(pair);

    expect([pair.chain.fault, pair.chain.readableBytes, pair.chain.writableBytes]).toEqual([0, 10, 0]);
  });

  it('may lie at any address', () => {
    const pair = createPair();
    pair.driver.setChain(0, [buffer(pair)], TABLE_AT + 3);
    pair.driver.place(5, [{ address: pair.driver.ram.guest(TABLE_AT + 3), length: 16, flags: INDIRECT }]);
    popAll(pair);

    expect([pair.chain.fault, pair.chain.writableBytes]).toEqual([0, 16]);
  });

  it.each([
    [1, NO_FAULT],
    [9, NO_FAULT],
    [MAX_INDIRECT_CHAIN - 1, NO_FAULT],
    [MAX_INDIRECT_CHAIN, FAULT_CHAIN_TOO_LONG],
    [40_000, FAULT_CHAIN_TOO_LONG],
  ])('%i in a table, in a ring of 8: fault %i', (count, fault) => {
    const pair = createPair();
    offerTable(pair, Array<RawDescriptor>(count).fill(buffer(pair, 0x8_0000, 1)));
    popAll(pair);

    expect(pair.chain.fault).toBe(fault);
  });

  it.each([0, 8, 17, 0xffff_fff8])('in a table of %i bytes are a fault', (length) => {
    const pair = createPair();
    offerTable(pair, [buffer(pair)], INDIRECT, length);
    popAll(pair);

    expect(pair.chain.fault).toBe(FAULT_INDIRECT_LENGTH);
  });

  it('in a table outside of memory are a fault', () => {
    const pair = createPair();
    pair.driver.place(5, [{ address: pair.driver.ram.guest(pair.driver.ram.length - 8), length: 16, flags: INDIRECT }]);
    popAll(pair);

    expect(pair.chain.fault).toBe(FAULT_INDIRECT_UNMAPPED);
  });

  it('are a fault where the feature was not negotiated', () => {
    const pair = createPair({ indirect: false });
    offerTable(pair, [buffer(pair)]);
    popAll(pair);

    expect(pair.chain.fault).toBe(FAULT_INDIRECT_NOT_NEGOTIATED);
  });

  it.each(['first', 'last'])('in a list linked by NEXT, %s, are a fault, and the list comes back', (where) => {
    const pair = createPair();
    const table = { address: pair.driver.ram.guest(TABLE_AT), length: 16, flags: INDIRECT };
    const list = where === 'first' ? [table, buffer(pair)] : [buffer(pair), table];
    pair.driver.place(5, [
      { ...(list[0] as RawDescriptor), flags: ((list[0] as RawDescriptor).flags ?? 0) | NEXT },
      list[1] as RawDescriptor,
    ]);
    const [token] = popAll(pair);

    expect(pair.chain.fault).toBe(FAULT_INDIRECT_AND_NEXT);

    pair.device.push(token as number, 0);
    pair.device.publish();
    expect(pair.driver.next()).toEqual({ id: 5, length: 0 });
  });
});

describe('2.8.17 a driver that breaks the rules of lists', () => {
  it.each([0, USED, AVAIL | USED])('goes on in a descriptor with flags %i: the ring breaks', (flags) => {
    const pair = createPair();
    pair.driver.writeSlot(0, { ...buffer(pair), id: 0, flags: AVAIL | NEXT });
    pair.driver.writeSlot(1, { ...buffer(pair), id: 0, flags });

    expect(pair.device.pop(pair.chain)).toBe(FAULT_CHAIN_UNFINISHED);
    expect(pair.device.inFlight).toBe(0);
  });

  it.each([0, 5])('has NEXT in the last slot and nothing behind it, started at %i', (start) => {
    const pair = createPair({ size: 8, start });
    const flags = (place: number): number => (place < 8 ? AVAIL : USED);
    for (let place = start; place < 8; place += 1) {
      pair.driver.writeSlot(place, { ...buffer(pair), id: 0, flags: flags(place) | NEXT });
    }

    expect(pair.device.pop(pair.chain)).toBe(FAULT_CHAIN_UNFINISHED);
  });

  it('has a list without end: all slots available with NEXT', () => {
    const pair = createPair({ size: 8, start: 3 });
    for (let i = 3; i < 8 + 3; i += 1) {
      pair.driver.writeSlot(i % 8, { ...buffer(pair), id: 0, flags: (i < 8 ? AVAIL : USED) | NEXT });
    }

    expect(pair.device.pop(pair.chain)).toBe(FAULT_CHAIN_UNFINISHED);
  });

  it('has a list that goes on in slots that are in flight: the ring breaks', () => {
    const pair = createPair({ size: 4 });
    offer(pair, 1, 2);
    popAll(pair);
    for (const slot of [2, 3]) pair.driver.writeSlot(slot, { ...buffer(pair), id: 0, flags: AVAIL | NEXT });
    for (const slot of [0, 1]) pair.driver.setFlags(slot, USED | NEXT);

    expect(pair.device.pop(pair.chain)).toBe(FAULT_RING_OVERFULL);
  });

  it('makes a slot available that is in flight: the ring breaks', () => {
    const pair = createPair({ size: 2 });
    offer(pair, 1);
    offer(pair, 2);
    popAll(pair);
    pair.driver.setFlags(0, USED | WRITE);

    expect(pair.device.pop(pair.chain)).toBe(FAULT_RING_OVERFULL);
    expect(pair.device.inFlight).toBe(2);
  });

  it('makes a slot available whose used descriptor is staged: the ring breaks', () => {
    const pair = createPair({ size: 2 });
    offer(pair, 1);
    offer(pair, 2);
    for (const token of popAll(pair)) pair.device.push(token, 0);
    pair.driver.setFlags(0, USED | WRITE);

    expect(pair.device.pop(pair.chain)).toBe(FAULT_RING_OVERFULL);
  });

  it.each([
    ['readable behind writable', FAULT_ORDER, [{ flags: WRITE | NEXT }, { flags: 0 }]],
    ['outside of memory', FAULT_UNMAPPED, [{ address: 0x1000, flags: WRITE }]],
    ['near 2^64', FAULT_UNMAPPED, [{ address: 0xffff_ffff_ffff_fff0n, flags: WRITE }]],
    [
      '2^32 bytes',
      FAULT_TOO_MANY_BYTES,
      [
        { length: 0xffff_ffff, flags: NEXT },
        { length: 1, flags: 0 },
      ],
    ],
  ])('%s: fault %i, and the chain comes back', (_, fault, list) => {
    const pair = createPair();
    pair.driver.place(
      3,
      list.map((part) => ({ ...buffer(pair), ...part })),
    );
    const [token] = popAll(pair);

    expect(pair.chain.fault).toBe(fault);

    pair.device.push(token as number, 0);
    pair.device.publish();
    expect(takeUsed(pair)).toEqual([3]);
  });

  it('ignores reserved flags', () => {
    const pair = createPair();
    pair.driver.writeSlot(0, { ...buffer(pair), id: 3, flags: 0x7f78 | AVAIL | WRITE });

    expect(popAll(pair)).toHaveLength(1);
    expect([pair.chain.fault, pair.chain.writableBytes]).toEqual([0, 16]);
  });

  it('is judged by what was read when the chain was taken, not by what it writes later', () => {
    const pair = createPair();
    offer(pair, 6, 2);
    const [token] = popAll(pair);

    for (const slot of [0, 1])
      pair.driver.writeSlot(slot, { address: 0, length: 0xffff_ffff, id: 1, flags: AVAIL | NEXT });

    expect([pair.chain.fault, pair.chain.length[1], pair.chain.writableBytes]).toEqual([0, 16, 32]);
    pair.device.push(token as number, 0);
    pair.device.publish();
    expect(pair.driver.readSlot(0).id).toBe(6);
  });
});
