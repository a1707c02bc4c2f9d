/**
 * VIRTIO 1.3, 2.7 Split Virtqueues: one test a rule for the device's side. The driver's side is the tests' own, in shared
 * memory.
 */

import { afterEach, describe, expect, it } from 'vitest';
import { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { RingPlace } from '../../protocol/memory/ring-view.ts';
import { DescriptorChain, MAX_INDIRECT_CHAIN } from '../../protocol/virtqueue/chain.ts';
import {
  FAULT_AVAIL_INDEX,
  FAULT_CHAIN_TOO_LONG,
  FAULT_HEAD_IN_FLIGHT,
  FAULT_HEAD_OUT_OF_RANGE,
  NO_FAULT,
} from '../../protocol/virtqueue/faults.ts';
import { isSplitQueueSize, SplitQueue } from '../../protocol/virtqueue/split-queue.ts';
import { GuestRam } from '../support/frontend/guest-ram.ts';
import { INDIRECT, RawRing, WRITE } from '../support/frontend/raw-ring.ts';

const open: { close(): void }[] = [];

interface Pair {
  readonly driver: RawRing;
  readonly device: SplitQueue;
  readonly chain: DescriptorChain;
}

interface PairOptions {
  readonly size?: number;
  readonly eventIdx?: boolean;
  /** used.idx and avail.idx at the start. */
  readonly start?: number;
}

const createPair = ({ size = 8, eventIdx = false, start = 0 }: PairOptions = {}): Pair => {
  const ram = new GuestRam(0x20_0000);
  const driver = new RawRing(ram, 0, size, 0x1000);
  const memory = new GuestMemory();
  open.push(driver, ram, { close: () => memory.clear() });
  const { guestAddress, userAddress, length } = ram;
  memory.add({ guestAddress, userAddress, size: length, mmapOffset: 0 }, ram.fd);
  driver.setAvailIndex(start);
  ram.view.setUint16(driver.used + 2, start, true);
  const addresses = {
    descriptor: ram.user(driver.table),
    available: ram.user(driver.avail),
    used: ram.user(driver.used),
  };
  const device = new SplitQueue(new RingPlace(memory).view, { ...FEATURES, size, addresses, eventIdx });
  device.seek(start);
  for (let i = 0; i < size; i += 1) driver.setDescriptor(i, { address: ram.guest(0), length: 16, flags: WRITE });
  return { driver, device, chain: new DescriptorChain(memory, size) };
};

const FEATURES = { packed: false, indirect: true, eventIdx: false, inOrder: false };

/** Takes everything that is available. */
const popAll = ({ device, chain }: Pair): number[] => {
  const heads: number[] = [];
  for (let result = device.pop(chain); result === 1; result = device.pop(chain)) heads.push(chain.head);
  return heads;
};

afterEach(() => {
  for (const closable of open.splice(0).reverse()) closable.close();
});

describe('2.7.6 the available ring', () => {
  it('is taken in its order, which need not be that of the table', () => {
    const pair = createPair();

    pair.driver.publish(3, 0, 7, 1);

    expect(popAll(pair)).toEqual([3, 0, 7, 1]);
    expect(pair.device.inFlight).toBe(4);
  });

  it('is empty while idx has not moved, whatever its entries say', () => {
    const pair = createPair();
    pair.driver.setAvailEntry(0, 5);

    expect(popAll(pair)).toEqual([]);
  });

  it('goes round: entry idx modulo the size, idx modulo 2^16', () => {
    const pair = createPair({ start: 0xfffd });
    for (const head of [1, 2, 3, 4, 5]) {
      pair.driver.publish(head);
      expect(popAll(pair)).toEqual([head]);
      pair.device.push(head, 0);
      pair.device.publish();
    }

    expect(pair.driver.usedIndex).toBe(2);
    expect(pair.device.nextAvail).toBe(2);
  });

  it.each([1, 2, 8, 32768])('may be full: %i heads of a queue of that size', (size) => {
    const pair = createPair({ size });
    const heads = Array.from({ length: size }, (_, i) => size - 1 - i);

    pair.driver.publish(...heads);

    expect(popAll(pair)).toEqual(heads);
  });

  it.each([9, 0x7fff, 0x8000, 0xffff])('may not be %i ahead in a queue of 8', (ahead) => {
    const pair = createPair();

    pair.driver.setAvailIndex(ahead);

    expect(pair.device.pop(pair.chain)).toBe(FAULT_AVAIL_INDEX);
    expect(pair.device.inFlight).toBe(0);
  });

  it.each([8, 9, 0xffff])('may not name head %i in a queue of 8', (head) => {
    const pair = createPair();

    pair.driver.publish(head);

    expect(pair.device.pop(pair.chain)).toBe(FAULT_HEAD_OUT_OF_RANGE);
  });

  it('may not name a head again before it came back, and may after that', () => {
    const pair = createPair();
    pair.driver.publish(4, 4);
    expect(pair.device.pop(pair.chain)).toBe(1);

    expect(pair.device.pop(pair.chain)).toBe(FAULT_HEAD_IN_FLIGHT);

    pair.device.push(4, 0);
    expect(pair.device.pop(pair.chain)).toBe(1);
  });
});

describe('2.7.8 the used ring', () => {
  it('shows entries {id, len} in the order of their return, and idx behind the last', () => {
    const pair = createPair();
    pair.driver.publish(2, 5);
    popAll(pair);

    pair.device.push(5, 100);
    pair.device.push(2, 0xffff_ffff);
    pair.device.publish();

    expect(pair.driver.usedIndex).toBe(2);
    expect([pair.driver.usedEntry(0), pair.driver.usedEntry(1)]).toEqual([
      { id: 5, length: 100 },
      { id: 2, length: 0xffff_ffff },
    ]);
  });

  it('keeps its idx until entries are published together', () => {
    const pair = createPair();
    pair.driver.publish(0, 1);
    popAll(pair);

    pair.device.push(0, 1);
    pair.device.push(1, 1);
    expect(pair.driver.usedIndex).toBe(0);
    pair.device.publish();

    expect(pair.driver.usedIndex).toBe(2);
  });

  it('goes on at the idx that it finds in memory', () => {
    const pair = createPair({ start: 0xffff });
    pair.driver.publish(6);
    popAll(pair);

    pair.device.push(6, 3);
    pair.device.publish();

    expect(pair.driver.usedEntry(0xffff)).toEqual({ id: 6, length: 3 });
    expect(pair.driver.usedIndex).toBe(0);
  });
});

/** Returns `count` heads, one publication, and says whether the driver is to be told. */
const returnHeads = ({ driver, device, chain }: Pair, count: number): boolean => {
  for (let i = 0; i < count; i += 1) {
    driver.publish(i);
    device.pop(chain);
    device.push(i, 0);
  }
  device.publish();
  return device.needsNotification();
};

describe('2.7.7 used buffer notification suppression', () => {
  it.each([
    [0, true],
    [1, false],
    [0xfffe, true],
    [0xffff, false],
  ])('without EVENT_IDX: avail.flags %i tells %s', (flags, told) => {
    const pair = createPair();
    pair.driver.setAvailFlags(flags);

    expect(returnHeads(pair, 1)).toBe(told);
  });

  it('tells nothing when nothing was returned, and nothing twice', () => {
    const pair = createPair();
    expect(pair.device.needsNotification()).toBe(false);

    expect(returnHeads(pair, 2)).toBe(true);

    expect(pair.device.needsNotification()).toBe(false);
  });

  // vring_need_event: (u16)(new - event - 1) < (u16)(new - old).
  it.each([
    [0, 1, 0, true],
    [0, 1, 1, false],
    [0, 1, 0xffff, false],
    [0, 4, 0, true],
    [0, 4, 3, true],
    [0, 4, 4, false],
    [5, 1, 5, true],
    [5, 1, 4, false],
    [0xffff, 1, 0xffff, true],
    [0xffff, 1, 0, false],
    [0xfffe, 4, 0xfffe, true],
    [0xfffe, 4, 1, true],
    [0xfffe, 4, 2, false],
    [0xfffe, 4, 0x8000, false],
  ])('with EVENT_IDX: from %i, %i returned, used_event %i: told is %s', (start, count, event, told) => {
    const pair = createPair({ eventIdx: true, start });
    pair.driver.setUsedEvent(event);

    expect(returnHeads(pair, count)).toBe(told);
  });

  it('with EVENT_IDX ignores avail.flags', () => {
    const pair = createPair({ eventIdx: true });
    pair.driver.setAvailFlags(1);
    pair.driver.setUsedEvent(0);

    expect(returnHeads(pair, 1)).toBe(true);
  });

  it('with EVENT_IDX counts from the last time it looked, not from the last time it told', () => {
    const pair = createPair({ eventIdx: true });
    pair.driver.setUsedEvent(2);

    const told = [returnHeads(pair, 1), returnHeads(pair, 1), returnHeads(pair, 1), returnHeads(pair, 1)];

    expect(told).toEqual([false, false, true, false]);
  });
});

describe('2.7.10 available buffer notification suppression', () => {
  const usedFlags = ({ driver }: Pair): number => driver.ram.view.getUint16(driver.used, true);

  it('without EVENT_IDX sets and clears NO_NOTIFY in used.flags', () => {
    const pair = createPair();

    pair.device.disableKicks();
    expect(usedFlags(pair)).toBe(1);
    pair.device.enableKicks();
    expect(usedFlags(pair)).toBe(0);
  });

  it('with EVENT_IDX leaves used.flags 0 and asks by avail_event for the next head', () => {
    const pair = createPair({ eventIdx: true, start: 0xfffe });
    pair.device.disableKicks();
    pair.driver.publish(0, 1, 2);
    popAll(pair);

    expect(pair.device.enableKicks()).toBe(false);

    expect(usedFlags(pair)).toBe(0);
    expect(pair.driver.availEvent).toBe(1);
  });

  it.each([true, false])('looks again after asking: a head that came meanwhile is told (EVENT_IDX %s)', (eventIdx) => {
    const pair = createPair({ eventIdx });
    pair.device.disableKicks();

    pair.driver.publish(3);

    expect(pair.device.enableKicks()).toBe(true);
    expect(popAll(pair)).toEqual([3]);
  });
});

describe('2.7 the place of a ring', () => {
  it.each([0, 3, 65536, 32767, -8])('of %d entries is impossible', (size) => {
    expect(isSplitQueueSize(size)).toBe(false);
  });

  it.each([1, 2, 256, 32768])('of %i entries is possible', (size) => {
    expect(isSplitQueueSize(size)).toBe(true);
  });

  it('ends with avail_event, right at the end of the memory if need be', () => {
    const ram = new GuestRam(0x1_0000);
    const memory = new GuestMemory();
    open.push(ram, { close: () => memory.clear() });
    const { guestAddress, userAddress, length } = ram;
    memory.add({ guestAddress, userAddress, size: length, mmapOffset: 0 }, ram.fd);
    const usedBytes = 6 + 8 * 8;
    const at = (used: number) => ({
      ...FEATURES,
      size: 8,
      addresses: { descriptor: ram.user(0), available: ram.user(0x1000), used },
    });
    const { view } = new RingPlace(memory);
    const last = (0x1_0000 - usedBytes) & ~3;

    expect(() => new SplitQueue(view, at(ram.user(last)))).not.toThrow();
    expect(() => new SplitQueue(view, at(ram.user(last + 4)))).toThrow(/not in one region/);
  });
});

describe('2.7.5 the length of a chain', () => {
  /** A chain of `count` descriptors, the indirect one included, and whether it can be walked. */
  const walkIndirect = (count: number): number => {
    const pair = createPair();
    const { driver } = pair;
    const table = 0x10_0000;
    const buffer = { address: driver.ram.guest(0), length: 1, flags: WRITE };
    driver.setChain(0, Array<typeof buffer>(count - 1).fill(buffer), table);
    driver.setDescriptor(0, { address: driver.ram.guest(table), length: 16 * (count - 1), flags: INDIRECT });
    driver.publish(0);
    pair.device.pop(pair.chain);
    return pair.chain.fault;
  };

  it('may be the size of the queue in the ring', () => {
    const pair = createPair();
    const buffer = { address: pair.driver.ram.guest(0), length: 1, flags: WRITE };
    pair.driver.setChain(0, Array<typeof buffer>(8).fill(buffer));
    pair.driver.publish(0);

    pair.device.pop(pair.chain);

    expect([pair.chain.fault, pair.chain.writableBytes]).toEqual([NO_FAULT, 8]);
  });

  it.each([
    [2, NO_FAULT],
    [9, NO_FAULT],
    [MAX_INDIRECT_CHAIN, NO_FAULT],
    [MAX_INDIRECT_CHAIN + 1, FAULT_CHAIN_TOO_LONG],
    [40_000, FAULT_CHAIN_TOO_LONG],
  ])('with an indirect table: %i descriptors end in fault %i', (count, fault) => {
    expect(walkIndirect(count)).toBe(fault);
  });
});

describe('a chain that was taken', () => {
  it('is judged by what was read then, not by what the driver writes later', () => {
    const pair = createPair();
    const { ram } = pair.driver;
    pair.driver.setDescriptor(0, { address: ram.guest(0x8000), length: 64, flags: WRITE });
    pair.driver.publish(0);
    pair.device.pop(pair.chain);

    pair.driver.setDescriptor(0, { address: 0, length: 0xffff_ffff, flags: 0 });

    expect(pair.chain.fault).toBe(NO_FAULT);
    expect([pair.chain.guest[0], pair.chain.length[0], pair.chain.writableBytes]).toEqual([ram.guest(0x8000), 64, 64]);
  });
});
