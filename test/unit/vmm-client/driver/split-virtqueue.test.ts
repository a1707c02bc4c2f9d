import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { SplitVirtqueueDriver } from '../../../../vmm-client/driver/split-virtqueue.ts';
import { NOTHING_USED, RING_FAULT, type VirtqueueDriverOptions } from '../../../../vmm-client/driver/virtqueue.ts';
import { SharedMemory } from '../../../../vmm-client/frontend/shared-memory.ts';

const SIZE = 4;
let memory: SharedMemory;
let view: DataView;

beforeEach(() => {
  memory = new SharedMemory(1024 * 1024);
  view = new DataView(memory.bytes.buffer);
});

afterEach(() => memory.close());

function createQueue(options: Partial<VirtqueueDriverOptions> = {}): SplitVirtqueueDriver {
  const plain = { size: SIZE, maxChain: SIZE, indirect: false, eventIdx: false, inOrder: false };
  return new SplitVirtqueueDriver(memory, { ...plain, ...options });
}

/** Stages a chain of one readable and one writable buffer. */
function push(queue: SplitVirtqueueDriver, token: number): boolean {
  queue.startChain();
  queue.addBuffer(0x1_2345_6000, 16, false);
  queue.addBuffer(0x1_2345_7000, 512, true);
  return queue.pushChain(token);
}

/** The device's side, from the layout in the standard. */
const device = (queue: SplitVirtqueueDriver, size = SIZE) => ({
  descriptor(table: number, index: number) {
    const at = table + 16 * index;
    return [
      view.getBigUint64(at, true),
      view.getUint32(at + 8, true),
      view.getUint16(at + 12, true),
      view.getUint16(at + 14, true),
    ];
  },
  availFlags: () => view.getUint16(queue.driverArea, true),
  availIdx: () => view.getUint16(queue.driverArea + 2, true),
  availHead: (index: number) => view.getUint16(queue.driverArea + 4 + 2 * (index % size), true),
  usedEvent: () => view.getUint16(queue.driverArea + 4 + 2 * size, true),
  setUsedFlags: (flags: number) => view.setUint16(queue.deviceArea, flags, true),
  setUsedIdx: (index: number) => view.setUint16(queue.deviceArea + 2, index, true),
  setAvailEvent: (index: number) => view.setUint16(queue.deviceArea + 4 + 8 * size, index, true),
  complete(index: number, head: number, length = 0) {
    view.setUint32(queue.deviceArea + 4 + 8 * (index % size), head, true);
    view.setUint32(queue.deviceArea + 8 + 8 * (index % size), length, true);
    view.setUint16(queue.deviceArea + 2, (index + 1) & 0xffff, true);
  },
});

const NEXT = 1;
const WRITE = 2;
const INDIRECT = 4;

describe('chains', () => {
  it('link descriptors of the ring', () => {
    const queue = createQueue();
    push(queue, 7);
    push(queue, 8);
    queue.publish();
    const { descriptor, availHead, availIdx } = device(queue);
    expect([availIdx(), availHead(0), availHead(1)]).toEqual([2, 0, 2]);
    expect(descriptor(queue.descriptorArea, 0)).toEqual([0x1_2345_6000n, 16, NEXT, 1]);
    expect(descriptor(queue.descriptorArea, 1)).toEqual([0x1_2345_7000n, 512, WRITE, 0]);
    expect(descriptor(queue.descriptorArea, 2)).toEqual([0x1_2345_6000n, 16, NEXT, 3]);
  });

  it('take one descriptor and a table with INDIRECT', () => {
    const queue = createQueue({ indirect: true });
    push(queue, 7);
    push(queue, 8);
    queue.publish();
    const { descriptor, availHead } = device(queue);
    expect([availHead(0), availHead(1)]).toEqual([0, 1]);
    const [table, length, flags] = descriptor(queue.descriptorArea, 1);
    expect([length, flags]).toEqual([32, INDIRECT]);
    const offset = Number(table) - memory.guestAddress;
    expect(descriptor(offset, 0)).toEqual([0x1_2345_6000n, 16, NEXT, 1]);
    expect(descriptor(offset, 1)).toEqual([0x1_2345_7000n, 512, WRITE, 0]);
  });

  it('stay invisible until they are published', () => {
    const queue = createQueue();
    push(queue, 7);
    expect(device(queue).availIdx()).toBe(0);
  });

  it('are refused as a whole when a buffer does not fit', () => {
    const queue = createQueue();
    push(queue, 1);
    queue.startChain();
    expect([queue.addBuffer(0, 1, false), queue.addBuffer(0, 1, false), queue.addBuffer(0, 1, false)]).toEqual([
      true,
      true,
      false,
    ]);
    expect(queue.pushChain(2)).toBe(false);
    expect(push(queue, 3)).toBe(true);
    expect(queue.outstanding).toBe(2);
  });

  it('are refused when they are empty, or the queue is full', () => {
    const queue = createQueue({ indirect: true });
    queue.startChain();
    expect(queue.pushChain(0)).toBe(false);
    expect([1, 2, 3, 4, 5].map((token) => push(queue, token))).toEqual([true, true, true, true, false]);
  });

  it('come back in the order of the device, with its length', () => {
    const queue = createQueue();
    push(queue, 7);
    push(queue, 8);
    queue.publish();
    expect(queue.reap()).toBe(NOTHING_USED);
    device(queue).complete(0, 2, 513);
    expect([queue.reap(), queue.usedLength, queue.reap()]).toEqual([8, 513, NOTHING_USED]);
    device(queue).complete(1, 0, 1);
    expect([queue.reap(), queue.usedLength, queue.outstanding]).toEqual([7, 1, 0]);
  });

  it.each([false, true])('keep all descriptors over more than 65536 requests (indirect %s)', (indirect) => {
    const queue = createQueue({ indirect, eventIdx: true });
    const { availHead, complete } = device(queue);
    for (let i = 0; i < 70_000; i += 2) {
      push(queue, i);
      push(queue, i + 1);
      queue.publish();
      const heads = [availHead(i), availHead(i + 1)] as const;
      complete(i & 0xffff, heads[1]);
      complete((i + 1) & 0xffff, heads[0]);
      if (queue.reap() !== i + 1 || queue.reap() !== i) throw new Error(`wrong token at ${i}`);
    }
    expect(queue.outstanding).toBe(0);
  });
});

describe('a device that lies', () => {
  it('about the used index is a fault, and nothing is taken', () => {
    const queue = createQueue();
    push(queue, 7);
    queue.publish();
    device(queue).setUsedIdx(2);
    expect([queue.reap(), queue.outstanding]).toEqual([RING_FAULT, 1]);
    expect(queue.fault).toBe('used index 2 is ahead of 0 by more than the 1 chains in flight');
  });

  it.each([
    ['of a chain that is not in flight', 2],
    ['beyond the ring', 700],
    ['in the middle of a chain', 1],
  ])('about a head %s is a fault', (_what, head) => {
    const queue = createQueue();
    push(queue, 7);
    queue.publish();
    device(queue).complete(0, head);
    expect(queue.reap()).toBe(RING_FAULT);
    expect(queue.fault).toBe(`used entry 0 names chain ${head}, which is not in flight`);
  });

  it('by completing a chain twice is a fault', () => {
    const queue = createQueue();
    push(queue, 7);
    push(queue, 8);
    queue.publish();
    device(queue).complete(0, 0);
    device(queue).complete(1, 0);
    expect([queue.reap(), queue.reap()]).toEqual([7, RING_FAULT]);
  });
});

describe('notifications', () => {
  it('follow the flags without EVENT_IDX', () => {
    const queue = createQueue();
    push(queue, 1);
    expect(queue.publish()).toBe(true);
    device(queue).setUsedFlags(1);
    push(queue, 2);
    expect(queue.publish()).toBe(false);
  });

  // VIRTIO 1.3, 2.7.10: notify when the index in avail_event was just passed.
  it.each([
    { before: 0, pushed: 1, event: 0, kick: true },
    { before: 0, pushed: 2, event: 1, kick: true },
    { before: 0, pushed: 1, event: 1, kick: false },
    { before: 0, pushed: 1, event: 0xffff, kick: false },
    { before: 2, pushed: 2, event: 3, kick: true },
    { before: 2, pushed: 2, event: 1, kick: false },
  ])('with EVENT_IDX: $pushed chains from $before, event $event', ({ before, pushed, event, kick }) => {
    const queue = createQueue({ indirect: true, eventIdx: true });
    for (let i = 0; i < before; i++) push(queue, i);
    queue.publish();
    device(queue).setAvailEvent(event);
    for (let i = 0; i < pushed; i++) push(queue, i);
    expect(queue.publish()).toBe(kick);
  });

  it('are not due when nothing was staged', () => {
    const queue = createQueue();
    expect(queue.publish()).toBe(false);
  });

  it('are asked for at the next used entry, unless there is one', () => {
    const queue = createQueue({ eventIdx: true });
    push(queue, 1);
    queue.publish();
    expect([queue.armInterrupt(), device(queue).usedEvent()]).toEqual([true, 0]);
    device(queue).complete(0, 0);
    expect(queue.armInterrupt()).toBe(false);
    queue.reap();
    expect([queue.armInterrupt(), device(queue).usedEvent()]).toEqual([true, 1]);
    queue.disarmInterrupt();
    expect(device(queue).usedEvent()).toBe(0);
  });

  it('are switched off by the flag without EVENT_IDX', () => {
    const queue = createQueue();
    queue.disarmInterrupt();
    expect(device(queue).availFlags()).toBe(1);
    queue.armInterrupt();
    expect(device(queue).availFlags()).toBe(0);
  });
});

describe('a back end that starts anew', () => {
  it('goes on where the used ring is when it remembers what was in flight', () => {
    const queue = createQueue();
    push(queue, 7);
    push(queue, 8);
    queue.publish();
    device(queue).complete(0, 2);
    queue.reap();
    expect([queue.resume(true), device(queue).availIdx()]).toEqual([1, 2]);
  });

  it('gets everything outstanding again when it does not', () => {
    const queue = createQueue();
    push(queue, 7);
    push(queue, 8);
    queue.publish();
    device(queue).complete(0, 0);
    queue.reap();
    push(queue, 9);
    expect(queue.resume(false)).toBe(0);
    const { availIdx, availHead, complete } = device(queue);
    expect(availIdx()).toBe(2);
    expect([availHead(0), availHead(1)].sort()).toEqual([0, 2]);
    complete(0, 2);
    complete(1, 0);
    expect([queue.reap(), queue.reap(), queue.reap()]).toEqual([8, 9, NOTHING_USED]);
  });
});

describe('in order', () => {
  /** Stages chains of two, one and two descriptors, and shows them. */
  const publishThree = () => {
    const queue = createQueue({ size: 8, inOrder: true });
    push(queue, 7);
    queue.startChain();
    queue.addBuffer(0x1_2345_6000, 16, false);
    queue.pushChain(8);
    push(queue, 9);
    queue.publish();
    return queue;
  };

  it('one used entry stands for a batch, whose other chains were written as a whole', () => {
    const queue = publishThree();
    view.setUint32(queue.deviceArea + 4, 3, true);
    view.setUint32(queue.deviceArea + 8, 5, true);
    device(queue, 8).setUsedIdx(3);
    expect([queue.reap(), queue.usedLength, queue.armInterrupt()]).toEqual([7, 512, false]);
    expect([queue.reap(), queue.usedLength]).toEqual([8, 0]);
    expect([queue.reap(), queue.usedLength, queue.reap(), queue.armInterrupt()]).toEqual([9, 5, NOTHING_USED, true]);
    push(queue, 10);
    queue.publish();
    // Descriptors 0 to 4 are free, and 5 is next all the same.
    expect(device(queue, 8).availHead(3)).toBe(5);
    device(queue, 8).complete(3, 5, 1);
    expect([queue.reap(), queue.usedLength, queue.outstanding]).toEqual([10, 1, 0]);
  });

  it('a batch beyond the used index is a fault', () => {
    const queue = publishThree();
    device(queue, 8).complete(0, 3);
    expect([queue.reap(), queue.reap(), queue.reap()]).toEqual([7, RING_FAULT, RING_FAULT]);
    expect(queue.fault).toBe('a used entry completes more chains than the used index 1 says');
  });

  it('a back end that starts anew gets what follows the last used chain', () => {
    const queue = publishThree();
    device(queue, 8).complete(0, 0);
    queue.reap();
    push(queue, 10);
    expect(queue.resume(false)).toBe(1);
    const { availIdx, availHead, complete } = device(queue, 8);
    expect([availIdx(), availHead(1), availHead(2), availHead(3)]).toEqual([4, 2, 3, 5]);
    complete(1, 2);
    expect(queue.reap()).toBe(8);
  });
});

describe('sizes', () => {
  it.each([0, 3, 65536])('of %d entries are refused', (size) => {
    expect(() => createQueue({ size, maxChain: 1 })).toThrow('not a power of two up to 32768');
  });

  it('of chains beyond the queue are refused', () => {
    expect(() => createQueue({ maxChain: 5 })).toThrow('chains of 5 descriptors in a queue of 4 entries');
  });
});
