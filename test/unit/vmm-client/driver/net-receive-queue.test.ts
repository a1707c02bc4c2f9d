import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { featureMask } from '../../../../protocol/virtio/reserved-features.ts';
import { NetReceiveQueue, type NetReceiveQueueOptions } from '../../../../vmm-client/driver/net-receive-queue.ts';
import { NOTHING_USED, RING_FAULT } from '../../../../vmm-client/driver/virtqueue.ts';
import { SharedMemory } from '../../../../vmm-client/frontend/shared-memory.ts';

const SIZE = 8;
const BUFFER_BYTES = 100;
const OPTIONS: NetReceiveQueueOptions = {
  index: 0,
  size: SIZE,
  bufferBytes: BUFFER_BYTES,
  mergeable: true,
  features: 0n,
};
let memory: SharedMemory;
let view: DataView;
let queue: NetReceiveQueue;
/** The device's side: the next entry of both rings. */
let taken: number;
let used: number;

beforeEach(() => {
  memory = new SharedMemory(1024 * 1024);
  view = new DataView(memory.bytes.buffer);
  queue = new NetReceiveQueue(memory, OPTIONS);
  taken = 0;
  used = 0;
});

afterEach(() => {
  queue.queue.close();
  memory.close();
});

function recreate(options: Partial<NetReceiveQueueOptions>): void {
  queue.queue.close();
  queue = new NetReceiveQueue(memory, { ...OPTIONS, ...options });
}

/** Offset into the shared memory of an address that the back end was told. */
const userOffset = (address: number) => address - memory.userAddress;
const availIdx = () => view.getUint16(userOffset(queue.queue.vring.availRing) + 2, true);

/** The buffer that comes next in the available ring, as a device reads it. */
function takeBuffer(): { head: number; offset: number; length: number; flags: number } {
  const head = view.getUint16(userOffset(queue.queue.vring.availRing) + 4 + 2 * (taken % SIZE), true);
  const descriptor = userOffset(queue.queue.vring.descriptorTable) + 16 * head;
  taken += 1;
  return {
    head,
    offset: Number(view.getBigUint64(descriptor, true)) - memory.guestAddress,
    length: view.getUint32(descriptor + 8, true),
    flags: view.getUint16(descriptor + 12, true),
  };
}

/** Uses a buffer; the device sees to it that it becomes visible by `publish`. */
function use(head: number, length: number): void {
  const ring = userOffset(queue.queue.vring.usedRing);
  view.setUint32(ring + 4 + 8 * (used % SIZE), head, true);
  view.setUint32(ring + 8 + 8 * (used % SIZE), length, true);
  used += 1;
}

function publish(): void {
  view.setUint16(userOffset(queue.queue.vring.usedRing) + 2, used & 0xffff, true);
}

interface Header {
  flags?: number;
  gsoType?: number;
  gsoSize?: number;
  csumStart?: number;
  csumOffset?: number;
  numBuffers?: number;
}

/** What a device does with a packet: header and bytes over as many buffers as they need. Returns how many. */
function deliver(packet: Uint8Array, header: Header = {}): number {
  const bytes = Buffer.alloc(12 + packet.length);
  const count = Math.ceil(bytes.length / BUFFER_BYTES);
  bytes[0] = header.flags ?? 0;
  bytes[1] = header.gsoType ?? 0;
  bytes.writeUInt16LE(header.gsoSize ?? 0, 4);
  bytes.writeUInt16LE(header.csumStart ?? 0, 6);
  bytes.writeUInt16LE(header.csumOffset ?? 0, 8);
  bytes.writeUInt16LE(header.numBuffers ?? count, 10);
  bytes.set(packet, 12);
  for (let i = 0; i < count; i++) {
    const part = bytes.subarray(i * BUFFER_BYTES, (i + 1) * BUFFER_BYTES);
    const { head, offset } = takeBuffer();
    memory.bytes.set(part, offset);
    use(head, part.length);
  }
  publish();
  return count;
}

const packetOf = (length: number, seed = 1) => Uint8Array.from({ length }, (_, i) => (i * 7 + seed) & 0xff);

/** The packet in hand, given back. */
function takePacket(): string {
  const target = new Uint8Array(queue.packetBytes);
  expect(queue.copyTo(target)).toBe(target.length);
  queue.release();
  return Buffer.from(target).toString('hex');
}

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');

describe('buffers', () => {
  it('are all with the device from the start, writable and apart', () => {
    expect(availIdx()).toBe(SIZE);
    const buffers = Array.from({ length: SIZE }, takeBuffer);
    expect(buffers.every(({ length, flags }) => length === BUFFER_BYTES && flags === 2)).toBe(true);
    const offsets = buffers.map(({ offset }) => offset).sort((a, b) => a - b);
    expect(offsets.every((offset, i) => i === 0 || offset - offsets[i - 1]! >= BUFFER_BYTES)).toBe(true);
  });

  it('are the device’s again after release and flush', () => {
    deliver(packetOf(150));
    queue.receive();
    queue.queue.flush();
    expect(availIdx()).toBe(SIZE);
    queue.release();
    queue.queue.flush();
    expect(availIdx()).toBe(SIZE + 2);
  });
});

describe('packets', () => {
  it('in one buffer come without their header', () => {
    expect(queue.receive()).toBe(NOTHING_USED);
    const packet = packetOf(60);
    deliver(packet);
    expect([queue.receive(), queue.buffers]).toEqual([60, 1]);
    expect(takePacket()).toBe(hex(packet));
    expect(queue.receive()).toBe(NOTHING_USED);
  });

  it.each([88, 89, 188, 189, 788])('of %d bytes are put together from several buffers', (length) => {
    const packet = packetOf(length);
    const count = deliver(packet);
    expect([queue.receive(), queue.buffers]).toEqual([length, count]);
    expect(takePacket()).toBe(hex(packet));
  });

  it('come in order, over more than 65536 buffers', () => {
    for (let i = 0; i < 30_000; i++) {
      const packet = packetOf(80 + (i % 200), i);
      deliver(packet);
      if (queue.receive() !== packet.length || takePacket() !== hex(packet)) throw new Error(`packet ${i} is wrong`);
      queue.queue.flush();
    }
    expect(used).toBeGreaterThan(65536);
  });

  it('are not seen before their last buffer is used', () => {
    const packet = packetOf(250);
    deliver(packet);
    view.setUint16(userOffset(queue.queue.vring.usedRing) + 2, 2, true);
    expect([queue.receive(), queue.buffers]).toEqual([NOTHING_USED, 0]);
    publish();
    expect(queue.receive()).toBe(250);
    expect(takePacket()).toBe(hex(packet));
  });

  it('are copied as far as the target has room', () => {
    const packet = packetOf(250);
    deliver(packet);
    queue.receive();
    const target = new Uint8Array(120);
    expect([queue.copyTo(target), hex(target)]).toEqual([120, hex(packet.subarray(0, 120))]);
  });

  it('bring what their header says, where it was negotiated', () => {
    recreate({ features: featureMask(1, 7) });
    deliver(packetOf(60), { flags: 1, gsoType: 0x81, gsoSize: 1448, csumStart: 34, csumOffset: 16 });
    expect(queue.receive()).toBe(60);
    expect(queue).toMatchObject({ flags: 1, gsoType: 0x81, gsoSize: 1448, csumStart: 34, csumOffset: 16 });
  });
});

describe('a device that lies', () => {
  it.each([
    ['no buffers', { numBuffers: 0 }, 'num_buffers is 0 in a queue of 8 entries'],
    ['more buffers than there are', { numBuffers: 9 }, 'num_buffers is 9 in a queue of 8 entries'],
    ['NEEDS_CSUM', { flags: 1 }, 'a packet has NEEDS_CSUM, and GUEST_CSUM was not negotiated'],
    ['TSO for IPv4', { gsoType: 1 }, 'a packet has gso_type 1, which was not negotiated'],
    ['a type that does not exist', { gsoType: 0x42 }, 'a packet has gso_type 66, which was not negotiated'],
  ])('about a packet with %s is a fault', (_what, header, sentence) => {
    deliver(packetOf(60), header);
    expect([queue.receive(), queue.fault]).toEqual([RING_FAULT, sentence]);
  });

  it('about TSO for IPv6, when that for IPv4 was negotiated, is a fault', () => {
    recreate({ features: featureMask(1, 7) });
    deliver(packetOf(60), { flags: 1, gsoType: 4 });
    expect([queue.receive(), queue.fault]).toEqual([RING_FAULT, 'a packet has gso_type 4, which was not negotiated']);
  });

  it('about several buffers without MRG_RXBUF is a fault', () => {
    recreate({ mergeable: false });
    deliver(packetOf(150));
    expect([queue.receive(), queue.fault]).toEqual([RING_FAULT, 'num_buffers is 2 without MRG_RXBUF']);
  });

  it('by leaving a buffer half empty is a fault', () => {
    const [first, second] = [takeBuffer(), takeBuffer()];
    memory.bytes.set(Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0), first.offset);
    use(first.head, 99);
    use(second.head, 10);
    publish();
    expect([queue.receive(), queue.fault]).toEqual([
      RING_FAULT,
      'buffer 1 of 2 has 99 bytes; all but the last must be full',
    ]);
  });

  it.each([
    [11, "a packet's first buffer has 11 bytes, its header alone 12"],
    [0, "a packet's first buffer has 0 bytes, its header alone 12"],
    [101, 'the device says it wrote 101 bytes to a buffer of 100'],
    [0xffff_ffff, 'the device says it wrote 4294967295 bytes to a buffer of 100'],
  ])('about a length of %d bytes is a fault', (length, sentence) => {
    use(takeBuffer().head, length);
    publish();
    expect([queue.receive(), queue.fault]).toEqual([RING_FAULT, sentence]);
  });

  it('about a buffer that it does not have is a fault', () => {
    deliver(packetOf(60));
    queue.receive();
    queue.release();
    use(700, 72);
    publish();
    expect([queue.receive(), queue.fault]).toEqual([
      RING_FAULT,
      'used entry 1 names chain 700, which is not in flight',
    ]);
  });
});

describe('a back end that starts anew', () => {
  it('gets all buffers, and what its predecessor had delivered is not lost', () => {
    const packet = packetOf(150);
    deliver(packet);
    expect(queue.queue.vring.resume(false)).toBe(0);
    // Six are with the new one; two wait to be read.
    expect(availIdx()).toBe(SIZE - 2);
    expect(queue.receive()).toBe(150);
    expect(takePacket()).toBe(hex(packet));
    queue.queue.flush();
    expect([availIdx(), queue.cutOff]).toEqual([SIZE, 0]);
  });

  it.each([false, true])('does not go on with half a packet (in-flight region %s)', (keepsInflight) => {
    deliver(packetOf(60, 5));
    deliver(packetOf(250));
    // Only two of the three buffers were used when it died.
    view.setUint16(userOffset(queue.queue.vring.usedRing) + 2, 3, true);
    queue.queue.vring.resume(keepsInflight);
    expect(queue.cutOff).toBe(1);
    expect(queue.receive()).toBe(60);
    expect(takePacket()).toBe(hex(packetOf(60, 5)));
    expect(queue.receive()).toBe(NOTHING_USED);
    queue.queue.flush();
    // All buffers are the device's, and a new packet is read as one.
    expect(queue.queue.ring.outstanding).toBe(SIZE);
    taken = keepsInflight ? 3 : 0;
    used = keepsInflight ? 3 : 0;
    deliver(packetOf(190, 9));
    expect(queue.receive()).toBe(190);
    expect(takePacket()).toBe(hex(packetOf(190, 9)));
  });
});

it.each([0n, featureMask(34, 35)])('fits into the memory that it says it takes (features %s)', (ring) => {
  const options = { ...OPTIONS, features: OPTIONS.features | ring, size: 256, bufferBytes: 1530 };
  const room = new SharedMemory(NetReceiveQueue.memoryBytes(options));
  new NetReceiveQueue(room, options).queue.close();
  room.close();
});
