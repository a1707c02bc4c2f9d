/** vhost-user, Inflight I/O tracking: where each field lies in the region of a queue, and regions that others wrote. */

import { afterAll, describe, expect, it } from 'vitest';
import { createInflightTracker, type InflightTracker } from '../../backends/core/inflight.ts';
import { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { RingPlace } from '../../protocol/memory/ring-view.ts';
import { inflightQueueBytes } from '../../protocol/vhost-user/inflight-layout.ts';
import { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import { PackedQueue } from '../../protocol/virtqueue/packed-queue.ts';
import { SplitQueue } from '../../protocol/virtqueue/split-queue.ts';
import type { Virtqueue } from '../../protocol/virtqueue/virtqueue.ts';
import { GuestRam } from '../support/frontend/guest-ram.ts';

const SIZE = 8;
const RING_AT = 0x1000;
const AVAIL_AT = 0x2000;
const USED_AT = 0x3000;
const BUFFER_AT = 0x4000;

const ram = new GuestRam(0x1_0000);
const memory = new GuestMemory();
memory.add({ guestAddress: ram.guest(0), userAddress: ram.user(0), size: ram.length, mmapOffset: 0 }, ram.fd);
afterAll(() => {
  memory.clear();
  ram.close();
});

interface Life {
  readonly queue: Virtqueue;
  readonly tracker: InflightTracker;
  readonly chain: DescriptorChain;
}

/** A back end that begins; the ring is as it is. */
const begin = (packed: boolean, region: ArrayBuffer): Life => {
  const addresses = { descriptor: ram.user(RING_AT), available: ram.user(AVAIL_AT), used: ram.user(USED_AT) };
  const options = { packed, size: SIZE, addresses, indirect: false, eventIdx: false, inOrder: false };
  const { view } = new RingPlace(memory);
  const queue = packed ? new PackedQueue(view, options) : new SplitQueue(view, options);
  queue.seek(packed ? 0x8000_8000 : 0);
  return { queue, tracker: createInflightTracker(packed, region, SIZE), chain: new DescriptorChain(memory, SIZE) };
};

const createRegion = (packed: boolean): { region: ArrayBuffer; bytes: DataView } => {
  ram.bytes.fill(0);
  const region = new ArrayBuffer(inflightQueueBytes(SIZE, packed));
  return { region, bytes: new DataView(region) };
};

/** Descriptor i of a split ring, one buffer, made available as entry `slot`. */
const offerSplit = (slot: number, head: number): void => {
  ram.view.setBigUint64(RING_AT + 16 * head, BigInt(ram.guest(BUFFER_AT)), true);
  ram.view.setUint32(RING_AT + 16 * head + 8, 512, true);
  ram.view.setUint16(AVAIL_AT + 4 + 2 * slot, head, true);
  ram.view.setUint16(AVAIL_AT + 2, slot + 1, true);
};

const offerPacked = (slot: number, id: number, flags: number, length = 512): void => {
  const at = RING_AT + 16 * slot;
  ram.view.setBigUint64(at, BigInt(ram.guest(BUFFER_AT + 64 * slot)), true);
  ram.view.setUint32(at + 8, length, true);
  ram.view.setUint16(at + 12, id, true);
  ram.view.setUint16(at + 14, flags, true);
};

const take = ({ queue, tracker, chain }: Life): number => {
  expect(queue.pop(chain)).toBe(1);
  tracker.fetch(chain);
  return chain.head;
};

describe('the region of a queue', () => {
  // 16 + 16 n and 32 + 32 n bytes, to the next multiple of 64.
  it.each([
    [1, false, 64],
    [8, false, 192],
    [128, false, 2112],
    [256, false, 4160],
    [1, true, 64],
    [7, true, 256],
    [128, true, 4160],
    [256, true, 8256],
  ])('of %i entries (packed %s) has %i bytes', (size, packed, bytes) => {
    expect(inflightQueueBytes(size, packed)).toBe(bytes);
  });
});

describe('split', () => {
  const half = (bytes: DataView, at: number): number => bytes.getUint16(at, true);

  it('of zeros is set up: version 1 @8, desc_num @10, used_idx @14', () => {
    const { region, bytes } = createRegion(false);
    ram.view.setUint16(USED_AT + 2, 0x1234, true);
    const { queue, tracker } = begin(false, region);

    expect(tracker.recover(queue)).toBeUndefined();

    expect([half(bytes, 8), half(bytes, 10), half(bytes, 14)]).toEqual([1, SIZE, 0x1234]);
  });

  it('holds each descriptor in 16 bytes from 16 on: inflight @0, next @6, counter @8', () => {
    const { region, bytes } = createRegion(false);
    const life = begin(false, region);
    life.tracker.recover(life.queue);
    offerSplit(0, 2);
    offerSplit(1, 4);
    take(life);
    take(life);
    life.queue.push(2, 0);
    life.tracker.complete(2);

    expect([bytes.getUint8(16 + 16 * 2), bytes.getUint8(16 + 16 * 4), bytes.getUint8(16)]).toEqual([1, 1, 0]);
    expect(bytes.getBigUint64(16 + 16 * 4 + 8, true)).toBe(bytes.getBigUint64(16 + 16 * 2 + 8, true) + 1n);
    expect(half(bytes, 12)).toBe(2);

    life.queue.publish();
    life.tracker.commit();

    expect([bytes.getUint8(16 + 16 * 2), half(bytes, 14)]).toEqual([0, 1]);
  });

  it('in which the first request of all was in flight keeps it, though last_batch_head is 0 as well', () => {
    const { region } = createRegion(false);
    const life = begin(false, region);
    life.tracker.recover(life.queue);
    offerSplit(0, 0);
    take(life);

    const { queue, tracker } = begin(false, region);

    expect([tracker.recover(queue), queue.base]).toEqual([[0], 1]);
  });

  it('whose list of a batch points outside of it ends there', () => {
    const { region, bytes } = createRegion(false);
    const life = begin(false, region);
    life.tracker.recover(life.queue);
    offerSplit(0, 1);
    take(life);
    bytes.setUint16(12, 0xffff, true);
    ram.view.setUint16(USED_AT + 2, 1, true);

    const { queue, tracker } = begin(false, region);

    expect(tracker.recover(queue)).toEqual([1]);
  });
});

describe('packed', () => {
  const half = (bytes: DataView, at: number): number => bytes.getUint16(at, true);
  const heads = (bytes: DataView): number[] => [half(bytes, 12), half(bytes, 14)];
  const positions = (bytes: DataView): number[] => [
    half(bytes, 16),
    half(bytes, 18),
    bytes.getUint8(20),
    bytes.getUint8(21),
  ];

  it('of zeros is set up: version @8, desc_num @10, free heads @12, used indices @16, wrap counters @20', () => {
    const { region, bytes } = createRegion(true);
    const { queue, tracker } = begin(true, region);
    queue.seek(0x8003_8003);

    expect(tracker.recover(queue)).toBeUndefined();

    expect([half(bytes, 8), half(bytes, 10)]).toEqual([1, SIZE]);
    expect([heads(bytes), positions(bytes)]).toEqual([
      [0, 0],
      [3, 3, 1, 1],
    ]);
    expect(Array.from({ length: SIZE }, (_, i) => half(bytes, 32 + 32 * i + 2))).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    expect(queue.base).toBe(0x8003_8003);
  });

  it('holds a copy of each descriptor in 32 bytes from 32 on, and what it needs of the chain in the first', () => {
    const { region, bytes } = createRegion(true);
    const life = begin(true, region);
    life.tracker.recover(life.queue);
    offerPacked(0, 0x1111, 0x81, 100);
    offerPacked(1, 0x2222, 0x82, 200);
    offerPacked(2, 0x3333, 0x80, 300);
    take(life);
    take(life);

    const entry = (i: number) => {
      const at = 32 + 32 * i;
      return {
        inflight: bytes.getUint8(at),
        next: half(bytes, at + 2),
        id: half(bytes, at + 16),
        flags: half(bytes, at + 18),
        len: bytes.getUint32(at + 20, true),
        addr: Number(bytes.getBigUint64(at + 24, true)),
      };
    };
    const address = ram.guest(BUFFER_AT);
    expect([0, 1, 2].map(entry)).toEqual([
      { inflight: 1, next: 1, id: 0x1111, flags: 0x81, len: 100, addr: address },
      { inflight: 0, next: 2, id: 0x2222, flags: 0x82, len: 200, addr: address + 64 },
      { inflight: 1, next: 3, id: 0x3333, flags: 0x80, len: 300, addr: address + 128 },
    ]);
    // last @4, num @6, counter @8
    expect([half(bytes, 32 + 4), half(bytes, 32 + 6)]).toEqual([1, 2]);
    expect([half(bytes, 96 + 4), half(bytes, 96 + 6)]).toEqual([2, 1]);
    expect(bytes.getBigUint64(96 + 8, true)).toBe(bytes.getBigUint64(32 + 8, true) + 1n);
    expect([heads(bytes), positions(bytes)]).toEqual([
      [3, 3],
      [0, 0, 1, 1],
    ]);
  });

  it('keeps the old head and index until a batch is published, then lets go of its entries', () => {
    const { region, bytes } = createRegion(true);
    const life = begin(true, region);
    life.tracker.recover(life.queue);
    for (const slot of [0, 1, 2]) offerPacked(slot, slot, 0x80);
    const tokens = [take(life), take(life), take(life)];
    for (const token of [tokens[2] as number, tokens[0] as number]) {
      life.queue.push(token, 0);
      life.tracker.complete(token);
    }

    expect([heads(bytes), positions(bytes)]).toEqual([
      [0, 3],
      [2, 0, 1, 1],
    ]);
    expect([half(bytes, 32 + 2), half(bytes, 96 + 2)]).toEqual([2, 3]);
    expect([0, 1, 2].map((i) => bytes.getUint8(32 + 32 * i))).toEqual([1, 1, 1]);

    life.queue.publish();
    life.tracker.commit();

    expect([heads(bytes), positions(bytes)]).toEqual([
      [0, 0],
      [2, 2, 1, 1],
    ]);
    expect([0, 1, 2].map((i) => bytes.getUint8(32 + 32 * i))).toEqual([0, 1, 0]);
  });

  it('is read where a batch was neither published nor undone, and the ring says that it was', () => {
    const { region, bytes } = createRegion(true);
    const life = begin(true, region);
    life.tracker.recover(life.queue);
    for (const slot of [0, 1]) offerPacked(slot, slot, 0x80);
    const first = take(life);
    take(life);
    life.queue.push(first, 0);
    life.tracker.complete(first);
    // The driver has the used descriptor, and has made its slot available again in the next lap.
    ram.view.setUint16(RING_AT + 14, 0x8000, true);

    const { queue, tracker } = begin(true, region);
    const tokens = tracker.recover(queue);

    expect([tokens?.length, queue.base, positions(bytes)]).toEqual([1, 0x8001_8002, [1, 1, 1, 1]]);
  });

  it.each([
    ['an entry is linked twice', 32 + 2, 0],
    ['a free head leads to a chain in flight', 12, 0x0001_0001],
    ['the chain has another end', 32 + 32 + 4, 3],
    ['the chain is longer than the list', 32 + 32 + 6, 9],
    ['an index is beyond the ring', 16, 8],
  ])('is refused where %s', (_, at, value) => {
    const { region, bytes } = createRegion(true);
    const life = begin(true, region);
    life.tracker.recover(life.queue);
    offerPacked(0, 0, 0x80);
    const first = take(life);
    offerPacked(1, 1, 0x80);
    take(life);
    life.queue.push(first, 0);
    life.tracker.complete(first);
    life.queue.publish();
    life.tracker.commit();
    if (value > 0xffff) bytes.setUint32(at, value, true);
    else bytes.setUint16(at, value, true);

    const { queue, tracker } = begin(true, region);

    expect(() => tracker.recover(queue)).toThrow(/in-flight region/);
  });

  it('of a queue of another size is new', () => {
    const { region, bytes } = createRegion(true);
    const life = begin(true, region);
    life.tracker.recover(life.queue);
    bytes.setUint16(10, SIZE - 1, true);

    const { queue, tracker } = begin(true, region);

    expect(tracker.recover(queue)).toBeUndefined();
  });
});
