import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { BlkQueue, type BlkQueueOptions, STATUS_UNWRITTEN } from '../../../../vmm-client/driver/blk-queue.ts';
import { RING_FAULT } from '../../../../vmm-client/driver/virtqueue.ts';
import { SharedMemory } from '../../../../vmm-client/frontend/shared-memory.ts';

const SIZE = 8;
const DATA = 0x1_0008_0000;
let memory: SharedMemory;
let view: DataView;
let queue: BlkQueue;
let completed: [token: number, status: number][];

beforeEach(() => {
  memory = new SharedMemory(1024 * 1024);
  view = new DataView(memory.bytes.buffer);
  completed = [];
  queue = createQueue();
});

afterEach(() => {
  queue.close();
  memory.close();
});

function createQueue(options: Partial<BlkQueueOptions> = {}): BlkQueue {
  const all = {
    index: 0,
    size: SIZE,
    packed: false,
    indirect: false,
    eventIdx: false,
    inOrder: false,
    segmentBytes: 4096,
    maxSegments: 2,
    ...options,
  };
  const made = new BlkQueue(memory, all);
  made.setCompletion((token, status) => completed.push([token, status]));
  return made;
}

interface Buffer {
  address: number;
  length: number;
  writable: boolean;
}

/** Offset into the shared memory of a user or guest address. */
const userOffset = (address: number) => address - memory.userAddress;
const guestOffset = (address: number) => address - memory.guestAddress;

/** The chain that was made available at an index, as a device reads it. */
function chainAt(index: number): { head: number; buffers: Buffer[] } {
  const head = view.getUint16(userOffset(queue.vring.availRing) + 4 + 2 * (index % SIZE), true);
  const buffers: Buffer[] = [];
  for (let at = head; buffers.length < SIZE; ) {
    const descriptor = userOffset(queue.vring.descriptorTable) + 16 * at;
    const flags = view.getUint16(descriptor + 12, true);
    const address = Number(view.getBigUint64(descriptor, true));
    buffers.push({ address, length: view.getUint32(descriptor + 8, true), writable: (flags & 2) !== 0 });
    if ((flags & 1) === 0) break;
    at = view.getUint16(descriptor + 14, true);
  }
  return { head, buffers };
}

/** Completes the chain at an index with a status byte, or without writing one. */
function complete(index: number, status?: number): void {
  const { head, buffers } = chainAt(index);
  const last = buffers.at(-1);
  if (status !== undefined && last !== undefined) view.setUint8(guestOffset(last.address), status);
  const used = userOffset(queue.vring.usedRing);
  view.setUint32(used + 4 + 8 * (index % SIZE), head, true);
  view.setUint16(used + 2, index + 1, true);
}

const bytesAt = ({ address, length }: Buffer) => memory.slice(guestOffset(address), length).toString('hex');

describe('requests', () => {
  it('are a header, data in segments, and a status byte', () => {
    queue.submit(0, 0x2_0000_0003, DATA, 6000, 5);
    queue.flush();
    const { buffers } = chainAt(0);
    expect(buffers.map(({ length, writable }) => [length, writable])).toEqual([
      [16, false],
      [4096, true],
      [1904, true],
      [1, true],
    ]);
    expect(bytesAt(buffers[0]!)).toBe('00000000' + '00000000' + '0300000002000000');
    expect(buffers.slice(1, 3).map(({ address }) => address)).toEqual([DATA, DATA + 4096]);
  });

  it('have device-readable data when they write', () => {
    queue.submit(1, 8, DATA, 512, 5);
    queue.flush();
    const { buffers } = chainAt(0);
    expect(buffers.map(({ writable }) => writable)).toEqual([false, false, true]);
    expect(bytesAt(buffers[0]!)).toBe('01000000' + '00000000' + '0800000000000000');
  });

  it('carry a segment when they discard', () => {
    queue.submitRange(13, 0x1_0000_0001, 0x800, 1, 5);
    queue.flush();
    const { buffers } = chainAt(0);
    expect(buffers.map(({ length, writable }) => [length, writable])).toEqual([
      [16, false],
      [16, false],
      [1, true],
    ]);
    expect(bytesAt(buffers[0]!)).toBe('0d000000' + '00000000' + '0000000000000000');
    expect(bytesAt(buffers[1]!)).toBe('0100000001000000' + '00080000' + '01000000');
  });

  it('are refused when the queue is full, and taken again after a completion', () => {
    const submit = (token: number) => queue.submit(4, 0, 0, 0, token);
    expect([0, 1, 2, 3, 4].map(submit)).toEqual([true, true, true, true, false]);
    queue.flush();
    complete(0, 0);
    expect([queue.poll(SIZE), submit(5), submit(6)]).toEqual([1, true, false]);
  });

  it('of more data than a request may have are refused without a trace', () => {
    expect(queue.submit(0, 0, DATA, 3 * 4096, 1)).toBe(false);
    expect([queue.submit(0, 0, DATA, 2 * 4096, 2), queue.outstanding]).toEqual([true, 1]);
  });
});

describe('completions', () => {
  it('bring token and status', () => {
    queue.submit(4, 0, 0, 0, 7);
    queue.submit(4, 0, 0, 0, 8);
    queue.flush();
    complete(0, 1);
    complete(1, 0);
    expect([queue.poll(1), queue.poll(SIZE), queue.poll(SIZE)]).toEqual([1, 1, 0]);
    expect(completed).toEqual([
      [7, 1],
      [8, 0],
    ]);
  });

  it('show a status byte that the device did not write, also in a slot used before', () => {
    queue.submit(4, 0, 0, 0, 1);
    queue.flush();
    complete(0, 0);
    queue.poll(1);
    queue.submit(4, 0, 0, 0, 2);
    queue.flush();
    complete(1);
    queue.poll(1);
    expect(completed).toEqual([
      [1, 0],
      [2, STATUS_UNWRITTEN],
    ]);
  });

  it('that are none are a fault', () => {
    view.setUint16(userOffset(queue.vring.usedRing) + 2, 1, true);
    expect(queue.poll(SIZE)).toBe(RING_FAULT);
    expect(queue.fault).toContain('used index 1');
  });

  it('of a back end that died are taken before its successor gets the ring', () => {
    queue.submit(4, 0, 0, 0, 1);
    queue.submit(4, 0, 0, 0, 2);
    queue.flush();
    complete(0, 0);
    expect([queue.vring.resume(true), completed]).toEqual([1, [[1, 0]]]);
  });
});

describe('kicks', () => {
  it('are counted, and left out where the device does not want them', () => {
    queue.submit(4, 0, 0, 0, 1);
    queue.flush();
    queue.flush();
    view.setUint16(userOffset(queue.vring.usedRing), 1, true);
    queue.submit(4, 0, 0, 0, 2);
    queue.flush();
    expect(queue.kicks).toBe(1);
  });
});

it.each([false, true])('fits into the memory that it says it takes (packed %s)', (packed) => {
  const ring = { packed, indirect: true, eventIdx: true, inOrder: true };
  const options = { ...ring, index: 1, size: 256, segmentBytes: 4096, maxSegments: 126 };
  const room = new SharedMemory(BlkQueue.memoryBytes(options));
  new BlkQueue(room, options).close();
  room.close();
});
