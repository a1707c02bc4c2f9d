import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { NetTransmitQueue, type NetTransmitQueueOptions } from '../../../../vmm-client/driver/net-transmit-queue.ts';
import { RING_FAULT } from '../../../../vmm-client/driver/virtqueue.ts';
import { SharedMemory } from '../../../../vmm-client/frontend/shared-memory.ts';

const OPTIONS: NetTransmitQueueOptions = {
  index: 1,
  size: 4,
  maxPacketBytes: 1518,
  segmentBytes: 32768,
  packed: false,
  indirect: true,
  eventIdx: false,
  inOrder: false,
};
let memory: SharedMemory;
let view: DataView;
let queue: NetTransmitQueue;

beforeEach(() => {
  memory = new SharedMemory(1024 * 1024);
  view = new DataView(memory.bytes.buffer);
  queue = new NetTransmitQueue(memory, OPTIONS);
});

afterEach(() => {
  queue.queue.close();
  memory.close();
});

function recreate(options: Partial<NetTransmitQueueOptions>): void {
  queue.queue.close();
  queue = new NetTransmitQueue(memory, { ...OPTIONS, ...options });
}

const userOffset = (address: number) => address - memory.userAddress;
const headAt = (index: number) =>
  view.getUint16(userOffset(queue.queue.vring.availRing) + 4 + 2 * (index % queue.queue.ring.size), true);

/** The bytes of the chain at an index of the available ring, as a device reads them, and the lengths of its parts. */
function chainAt(index: number): { bytes: Buffer; lengths: number[] } {
  let table = userOffset(queue.queue.vring.descriptorTable);
  let descriptor = table + 16 * headAt(index);
  if ((view.getUint16(descriptor + 12, true) & 4) !== 0) {
    table = Number(view.getBigUint64(descriptor, true)) - memory.guestAddress;
    descriptor = table;
  }
  const parts: Buffer[] = [];
  for (;;) {
    const offset = Number(view.getBigUint64(descriptor, true)) - memory.guestAddress;
    const flags = view.getUint16(descriptor + 12, true);
    expect(flags & 2).toBe(0);
    parts.push(Buffer.from(memory.slice(offset, view.getUint32(descriptor + 8, true))));
    if ((flags & 1) === 0) break;
    descriptor = table + 16 * view.getUint16(descriptor + 14, true);
  }
  return { bytes: Buffer.concat(parts), lengths: parts.map(({ length }) => length) };
}

/** The device is done with the chain at an index. */
function complete(index: number, length = 0, head = headAt(index)): void {
  const used = userOffset(queue.queue.vring.usedRing);
  const { size } = queue.queue.ring;
  view.setUint32(used + 4 + 8 * (index % size), head, true);
  view.setUint32(used + 8 + 8 * (index % size), length, true);
  view.setUint16(used + 2, (index + 1) & 0xffff, true);
}

function push(packet: Uint8Array): boolean {
  const slot = queue.peekSlot();
  if (slot === -1) return false;
  memory.bytes.set(packet, queue.packetOffset(slot));
  return queue.push(packet.length);
}

describe('packets', () => {
  it('follow an empty header in one descriptor', () => {
    push(Buffer.from('0102030405', 'hex'));
    queue.queue.flush();
    const { bytes, lengths } = chainAt(0);
    expect([bytes.toString('hex'), lengths]).toEqual([`${'00'.repeat(12)}0102030405`, [17]]);
  });

  it('have the header that was set', () => {
    queue.setHeader(queue.peekSlot(), 1, 0x81, 54, 1448, 34, 16);
    push(Uint8Array.of(0xee));
    queue.queue.flush();
    expect(chainAt(0).bytes.toString('hex')).toBe('01' + '81' + '3600' + 'a805' + '2200' + '1000' + '0000' + 'ee');
  });

  it.each([true, false])('are cut into descriptors of the size wanted (indirect %s)', (indirect) => {
    recreate({ segmentBytes: 1024, indirect });
    const packet = Uint8Array.from({ length: 1500 }, (_, i) => i & 0xff);
    push(packet);
    queue.queue.flush();
    const { bytes, lengths } = chainAt(0);
    expect(lengths).toEqual([1024, 488]);
    expect(bytes.subarray(12).equals(packet)).toBe(true);
  });

  it('are refused when the queue is full, and taken again afterwards', () => {
    const push5 = () => [1, 2, 3, 4, 5].map((byte) => push(Uint8Array.of(byte)));
    expect(push5()).toEqual([true, true, true, true, false]);
    queue.queue.flush();
    complete(0);
    complete(1);
    expect([queue.outstanding, queue.reap(8), queue.reap(8), queue.outstanding]).toEqual([4, 2, 0, 2]);
    expect(push5()).toEqual([true, true, false, false, false]);
  });

  it('that need more descriptors than are free are refused, and nothing is lost', () => {
    recreate({ segmentBytes: 512, indirect: false });
    const packet = new Uint8Array(1518);
    // Three of the four descriptors, then one.
    expect([push(packet), push(packet), push(Uint8Array.of(1))]).toEqual([true, false, true]);
    queue.queue.flush();
    complete(0);
    expect([queue.reap(4), push(packet)]).toEqual([1, true]);
  });

  it('longer than a slot are our mistake', () => {
    expect(() => queue.push(1519)).toThrow('a packet of 1519 bytes in a slot for 1518');
  });
});

describe('a device that lies', () => {
  it('about having written to a packet is a fault', () => {
    push(Uint8Array.of(1));
    queue.queue.flush();
    complete(0, 1);
    expect([queue.reap(4), queue.fault]).toEqual([
      RING_FAULT,
      'the device says it wrote 1 bytes to a packet that it may only read',
    ]);
  });

  it('about a packet that it does not have is a fault', () => {
    push(Uint8Array.of(1));
    queue.queue.flush();
    complete(0, 0, 3);
    expect([queue.reap(4), queue.fault]).toEqual([RING_FAULT, 'used entry 0 names chain 3, which is not in flight']);
  });
});

it('sends what a dead back end had not given back again, and nothing else', () => {
  for (const byte of [1, 2, 3]) push(Uint8Array.of(byte));
  queue.queue.flush();
  complete(0);
  complete(1);
  expect(queue.queue.vring.resume(false)).toBe(0);
  expect(view.getUint16(userOffset(queue.queue.vring.availRing) + 2, true)).toBe(1);
  expect(chainAt(0).bytes.at(-1)).toBe(3);
  expect(queue.outstanding).toBe(1);
});

it.each([false, true])('fits into the memory that it says it takes (packed %s)', (packed) => {
  const options = { ...OPTIONS, packed, size: 256, maxPacketBytes: 65558 };
  const room = new SharedMemory(NetTransmitQueue.memoryBytes(options));
  new NetTransmitQueue(room, options).queue.close();
  room.close();
});
