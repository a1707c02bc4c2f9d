import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { PackedVirtqueueDriver } from '../../../../vmm-client/driver/packed-virtqueue.ts';
import { NOTHING_USED, RING_FAULT, type VirtqueueDriverOptions } from '../../../../vmm-client/driver/virtqueue.ts';
import { SharedMemory } from '../../../../vmm-client/frontend/shared-memory.ts';
import { PackedDevice } from './packed-device.ts';

const SIZE = 5;
const FRESH = 0x8000_8000;
const [NEXT, WRITE, INDIRECT, AVAIL, USED] = [1, 2, 4, 0x80, 0x8000];
let memory: SharedMemory;
let queue: PackedVirtqueueDriver;
let device: PackedDevice;

beforeEach(() => {
  memory = new SharedMemory(8 * 1024 * 1024);
});

afterEach(() => memory.close());

function createQueue(options: Partial<VirtqueueDriverOptions> = {}): void {
  const plain = { size: SIZE, maxChain: options.size ?? SIZE, indirect: false, eventIdx: false, inOrder: false };
  queue = new PackedVirtqueueDriver(memory, { ...plain, ...options });
  device = new PackedDevice(memory, queue);
}

const READABLE = { address: 0x1_2345_6000, length: 16, writable: false };
const WRITABLE = { address: 0x1_2345_7000, length: 512, writable: true };

/** Stages a chain of one readable and so many writable buffers. */
function push(token: number, writable = 1): boolean {
  queue.startChain();
  queue.addBuffer(READABLE.address, READABLE.length, false);
  for (let i = 0; i < writable; i++) queue.addBuffer(WRITABLE.address, WRITABLE.length, true);
  return queue.pushChain(token);
}

describe('chains', () => {
  it('lie in the ring one behind the other, and go on at its beginning with the other wrap counter', () => {
    createQueue();
    push(7);
    push(8);
    queue.publish();
    expect(device.slot(0)).toMatchObject({ address: READABLE.address, length: 16, flags: AVAIL | NEXT });
    expect(device.slot(1)).toMatchObject({ address: WRITABLE.address, length: 512, flags: AVAIL | WRITE });
    expect(device.slot(2)).toMatchObject({ flags: AVAIL | NEXT });
    expect([device.take()?.buffers, device.take()?.slots, device.take()]).toEqual([[READABLE, WRITABLE], 2, undefined]);
    device.use(device.slot(1).id, 2, 512);
    expect([queue.reap(), queue.usedLength]).toEqual([7, 512]);
    push(9);
    queue.publish();
    expect(device.slot(4)).toMatchObject({ flags: AVAIL | NEXT });
    expect(device.slot(0)).toMatchObject({ address: WRITABLE.address, flags: USED | WRITE });
    expect(device.take()).toMatchObject({ slots: 2, buffers: [READABLE, WRITABLE] });
  });

  it('take one descriptor and a table with INDIRECT', () => {
    createQueue({ indirect: true });
    push(7, 2);
    queue.publish();
    const { address, length, flags } = device.slot(0);
    expect([length, flags]).toEqual([48, AVAIL | INDIRECT]);
    const first = { address: READABLE.address, length: 16, id: 0, flags: 0 };
    expect(device.read(address - memory.guestAddress)).toEqual(first);
    expect(device.read(address - memory.guestAddress + 16)).toMatchObject({ address: WRITABLE.address, flags: WRITE });
    expect(device.take()).toMatchObject({ slots: 1, buffers: [READABLE, WRITABLE, WRITABLE] });
  });

  it('stay invisible until they are published, all together', () => {
    createQueue();
    push(7);
    push(8);
    expect(device.take()).toBeUndefined();
    queue.publish();
    expect([device.take(), device.take()]).not.toContain(undefined);
  });

  it('that were begun and not pushed leave nothing behind', () => {
    createQueue();
    queue.startChain();
    for (let i = 0; i < 4; i++) queue.addBuffer(READABLE.address, 16, false);
    push(1, 0);
    queue.publish();
    expect([device.take()?.slots, device.take()]).toEqual([1, undefined]);
  });

  it('are refused as a whole when a buffer does not fit', () => {
    createQueue();
    push(1, 2);
    expect(push(2, 2)).toBe(false);
    expect(push(3, 1)).toBe(true);
    expect(queue.outstanding).toBe(2);
    expect(push(4, 0)).toBe(false);
  });

  it('are refused when they are empty, or the queue is full', () => {
    createQueue({ indirect: true });
    queue.startChain();
    expect(queue.pushChain(0)).toBe(false);
    expect([1, 2, 3, 4, 5, 6].map((token) => push(token))).toEqual([true, true, true, true, true, false]);
  });

  it('come back in the order of the device, in the middle of chains that it still has', () => {
    createQueue({ size: 7 });
    push(1, 2);
    push(2, 0);
    push(3, 2);
    queue.publish();
    const [first, second, third] = [device.take()!, device.take()!, device.take()!];
    device.use(second.id, second.slots, 0);
    device.use(third.id, third.slots, 3);
    expect([queue.reap(), queue.usedLength, queue.reap(), queue.usedLength]).toEqual([2, 0, 3, 3]);
    expect([queue.reap(), queue.outstanding]).toEqual([NOTHING_USED, 1]);
    device.use(first.id, first.slots, 1);
    expect([queue.reap(), queue.outstanding]).toEqual([1, 0]);
  });

  it('have the length of their used descriptor only where that says that something was written', () => {
    createQueue();
    push(1);
    queue.publish();
    device.write(0, device.take()!.id, 77, AVAIL | USED);
    expect([queue.reap(), queue.usedLength]).toEqual([1, 0]);
  });

  it('use every ID of the largest ring', () => {
    createQueue({ size: 32768, maxChain: 1 });
    const push1 = (token: number) => {
      queue.startChain();
      queue.addBuffer(READABLE.address, 16, false);
      return queue.pushChain(token);
    };
    for (let lap = 0; lap < 3; lap++) {
      for (let i = 0; i < 32768; i++) if (!push1(i)) throw new Error(`no room for ${i}`);
      expect(push1(0)).toBe(false);
      queue.publish();
      const ids = new Set<number>();
      for (let i = 0; i < 32768; i++) ids.add(device.take()!.id);
      expect(ids.size).toBe(32768);
      for (const id of ids) device.use(id, 1, 0);
      for (let i = 0; i < 32768; i++) if (queue.reap() < 0) throw new Error(queue.fault);
    }
    expect(queue.outstanding).toBe(0);
  });
});

describe('a device that lies', () => {
  it.each([
    ['of a buffer that is not in flight', 2],
    ['beyond the ring', 700],
  ])('about an ID %s is a fault, and nothing is taken', (_what, id) => {
    createQueue();
    push(7);
    queue.publish();
    device.use(id, 2, 0);
    expect([queue.reap(), queue.outstanding]).toEqual([RING_FAULT, 1]);
    expect(queue.fault).toBe(`used descriptor 0 names buffer ${id}, which is not in flight`);
  });

  it('by using a buffer twice is a fault', () => {
    createQueue();
    push(7);
    push(8);
    queue.publish();
    const { id } = device.take()!;
    device.use(id, 2, 0);
    device.use(id, 2, 0);
    expect([queue.reap(), queue.reap()]).toEqual([7, RING_FAULT]);
    expect(queue.fault).toBe(`used descriptor 2 names buffer ${id}, which is not in flight`);
  });

  it('by using what it was not given is a fault', () => {
    createQueue();
    device.use(0, 1, 0);
    expect(queue.reap()).toBe(RING_FAULT);
  });

  it('about half of the flags has used nothing', () => {
    createQueue();
    push(7);
    queue.publish();
    device.write(0, device.take()!.id, 0, USED);
    expect(queue.reap()).toBe(NOTHING_USED);
  });
});

describe('kicks', () => {
  it.each([
    [0, true],
    [1, false],
    [2, true],
    [3, true],
  ])('follow the flags without EVENT_IDX (%d)', (flags, kick) => {
    createQueue();
    device.ask(flags, 4, false);
    push(1);
    expect(queue.publish()).toBe(kick);
  });

  // VIRTIO 1.3, 2.8.10: when the descriptor with that offset and wrap counter is made available.
  it.each([
    { before: 0, pushed: 1, slot: 0, wrap: true, kick: true },
    { before: 0, pushed: 2, slot: 1, wrap: true, kick: true },
    { before: 0, pushed: 1, slot: 1, wrap: true, kick: false },
    { before: 0, pushed: 1, slot: 0, wrap: false, kick: false },
    { before: 2, pushed: 1, slot: 1, wrap: true, kick: false },
    { before: 4, pushed: 1, slot: 4, wrap: true, kick: true },
    { before: 4, pushed: 1, slot: 0, wrap: false, kick: false },
    { before: 4, pushed: 2, slot: 0, wrap: false, kick: true },
    { before: 4, pushed: 2, slot: 0, wrap: true, kick: false },
    { before: 9, pushed: 2, slot: 0, wrap: true, kick: true },
    { before: 9, pushed: 2, slot: 0, wrap: false, kick: false },
  ])('with EVENT_IDX: $pushed chains from place $before, event $slot $wrap', ({ before, pushed, slot, wrap, kick }) => {
    createQueue({ indirect: true, eventIdx: true });
    for (let i = 0; i < before; i++) {
      push(i);
      queue.publish();
      device.use(device.take()!.id, 1, 0);
      queue.reap();
    }
    device.ask(2, slot, wrap);
    for (let i = 0; i < pushed; i++) push(i);
    expect(queue.publish()).toBe(kick);
  });

  it('are not due when nothing was staged', () => {
    createQueue();
    expect(queue.publish()).toBe(false);
  });
});

describe('interrupts', () => {
  it('are asked for at the next used descriptor with EVENT_IDX, unless there is one', () => {
    createQueue({ eventIdx: true });
    push(1, 2);
    queue.publish();
    expect([queue.armInterrupt(), device.wishes()]).toEqual([true, [2, 0, true]]);
    device.use(device.take()!.id, 3, 0);
    expect(queue.armInterrupt()).toBe(false);
    queue.reap();
    push(2, 2);
    queue.publish();
    expect([queue.armInterrupt(), device.wishes()]).toEqual([true, [2, 3, true]]);
    device.use(device.take()!.id, 3, 0);
    queue.reap();
    expect([queue.armInterrupt(), device.wishes()]).toEqual([true, [2, 1, false]]);
    queue.disarmInterrupt();
    expect(device.wishes()[0]).toBe(1);
  });

  it('are switched by the flags without EVENT_IDX', () => {
    createQueue();
    queue.disarmInterrupt();
    expect(device.wishes()[0]).toBe(1);
    expect([queue.armInterrupt(), device.wishes()[0]]).toEqual([true, 0]);
  });
});

describe('in order', () => {
  it('one used descriptor stands for a batch, whose other buffers were written as a whole', () => {
    createQueue({ size: 7, inOrder: true });
    push(1, 2);
    push(2, 0);
    push(3, 1);
    queue.publish();
    const [, , third] = [device.take()!, device.take()!, device.take()!];
    device.use(third.id, 6, 9);
    expect([queue.reap(), queue.usedLength]).toEqual([1, 1024]);
    expect(queue.armInterrupt()).toBe(false);
    expect([queue.reap(), queue.usedLength]).toEqual([2, 0]);
    expect([queue.reap(), queue.usedLength]).toEqual([3, 9]);
    expect([queue.reap(), queue.armInterrupt()]).toEqual([NOTHING_USED, true]);
    push(4, 1);
    queue.publish();
    const { id } = device.take()!;
    device.use(id, 2, 5);
    expect([queue.reap(), queue.usedLength, queue.outstanding]).toEqual([4, 5, 0]);
  });

  it('a batch that ends nowhere is a fault', () => {
    createQueue({ inOrder: true });
    push(1);
    queue.publish();
    device.use(4, 2, 0);
    expect([queue.reap(), queue.outstanding]).toEqual([RING_FAULT, 1]);
  });
});

describe('a back end that starts anew', () => {
  it('begins at the beginning of a ring that nobody used', () => {
    createQueue();
    expect(queue.initialBase).toBe(FRESH);
    expect(device.usedBase).toBe(FRESH);
  });

  it.each([
    [1, 0x8002_8002],
    [2, 0x8004_8004],
    [3, 0x0001_0001],
  ])('goes on behind the last of %d used buffers when it remembers what was in flight', (used, base) => {
    createQueue();
    for (let i = 0; i < used; i++) {
      push(i);
      queue.publish();
      device.use(device.take()!.id, 2, 0);
      queue.reap();
    }
    push(7);
    queue.publish();
    const before = device.slot(device.available.slot);
    expect([queue.resume(true), queue.outstanding]).toEqual([base, 1]);
    expect(device.slot(device.available.slot)).toEqual(before);
    device.use(device.take()!.id, 2, 0);
    expect(queue.reap()).toBe(7);
  });

  it.each([
    { indirect: false, inOrder: false },
    { indirect: true, inOrder: false },
    { indirect: false, inOrder: true },
  ])('gets everything outstanding again when it does not, also what was written over (%o)', (options) => {
    createQueue({ size: 9, ...options });
    for (const token of [1, 2, 3]) push(token, token - 1);
    queue.publish();
    const chains = [device.take()!, device.take()!, device.take()!];
    // In order, the first is the only one that can be used.
    const [used, tokens] = options.inOrder ? [chains[0]!, [2, 3, 4]] : [chains[2]!, [1, 2, 4]];
    device.use(used.id, used.slots, 0);
    device.ask(1);
    queue.disarmInterrupt();
    queue.reap();
    push(4, 3);
    expect(queue.resume(false)).toBe(FRESH);
    device = new PackedDevice(memory, queue);
    expect(device.wishes()[0]).toBe(1);
    const again = [device.take()!, device.take()!, device.take()!];
    expect(device.take()).toBeUndefined();
    const found = again.map(({ buffers }) => buffers.length);
    expect(options.inOrder ? found : found.sort()).toEqual(tokens);
    for (const { id, slots } of again) device.use(id, slots, 0);
    const reaped = [queue.reap(), queue.reap(), queue.reap()];
    expect(options.inOrder ? reaped : reaped.sort()).toEqual(tokens);
    expect([queue.reap(), queue.outstanding]).toEqual([NOTHING_USED, 0]);
    push(5);
    expect([queue.publish(), device.take()?.buffers]).toEqual([true, [READABLE, WRITABLE]]);
  });
});

describe('sizes', () => {
  it.each([0, 1.5, 32769])('of %d entries are refused', (size) => {
    expect(() => createQueue({ size, maxChain: 1 })).toThrow('is not a number from 1 to 32768');
  });

  it('of chains beyond the queue are refused', () => {
    expect(() => createQueue({ maxChain: 6 })).toThrow('chains of 6 descriptors in a queue of 5 entries');
  });
});
