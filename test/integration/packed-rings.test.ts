/**
 * Packed rings of a disk in orderly hands: every size, many laps, stopped and started in the middle of a lap, on memory
 * that changes. Source: VIRTIO 1.3, 2.8 Packed Virtqueues; vhost-user, Vring descriptor indices for packed virtqueues.
 */

import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { doRequest, prepareRequest, RequestArea, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { EVENTS_NEVER } from '../support/frontend/raw-packed-ring.ts';
import { WRITE } from '../support/frontend/raw-virtqueue.ts';
import { FEATURE, REQUEST, vringAddress, vringFd, vringState } from '../support/frontend/wire.ts';

const daemon = hostileDaemon({ numQueues: 2 });
const PACKED = [FEATURE.RING_PACKED, FEATURE.INDIRECT_DESC];

const start = (queueSize: number, more: readonly number[] = []): Promise<RawFrontend> =>
  daemon().start({ features: [...PACKED, ...more], queueSize, ramBytes: 4 << 20 });

/** Reads a sector and compares it with the image. */
const expectRead = async (frontend: RawFrontend, sector: number, indirect = false): Promise<void> => {
  const answer = await doRequest(frontend, { type: TYPE.IN, sector, inBytes: 512, indirect });
  expect([answer.status, answer.usedLength]).toEqual([STATUS.OK, 513]);
  const expected = readFileSync(daemon().image).subarray(sector * 512, (sector + 1) * 512);
  expect(Buffer.compare(answer.data, expected)).toBe(0);
};

describe('a packed ring', () => {
  it.each([3, 4, 5, 7, 100, 255, 256, 32768])('of %i slots is served', async (size) => {
    const frontend = await start(size);

    for (let i = 0; i < Math.min(3 * size, 50); i += 1) await expectRead(frontend, i);

    expect(await frontend.stopRing(frontend.queue())).toBe(frontend.queue().drainedBase);
  });

  it.each([1, 2, 3, 100])('of %i slots is served with indirect tables', async (size) => {
    const frontend = await start(size, [FEATURE.EVENT_IDX]);

    for (let i = 0; i < 2 * size + 5; i += 1) await expectRead(frontend, i, true);

    expect(await frontend.stopRing(frontend.queue())).toBe(frontend.queue().drainedBase);
  });

  it.each([1, 3, 100, 255, 256, 32768])('of %i slots may be full, lap after lap', async (size) => {
    const frontend = await start(size);
    const ring = frontend.packedRing();
    // Chains without a status byte: returned, one by one.
    ring.setDescriptor(0, { address: frontend.ram.guest(0), length: 16 });

    for (let lap = 0; lap < 3; lap += 1) {
      for (let id = 0; id < size; id += 1) ring.place(id, [{ address: frontend.ram.guest(0), length: 16 }]);
      expect(ring.free).toBe(0);
      ring.signal();
      const used = await ring.take(size);
      expect(used.map(({ id }) => id).sort((a, b) => a - b)).toEqual(Array.from({ length: size }, (_, i) => i));
    }
  });

  it.each([0, 32769, 65535, 65536, 0xffff_ffff])('of %i slots is refused', async (size) => {
    const frontend = await daemon().negotiate({ features: PACKED });

    expect(await frontend.isRefused(REQUEST.SET_VRING_NUM, vringState(0, size))).toBe('nack');
  });

  it('carries chains of any length over its end, hundreds of laps', async () => {
    const frontend = await start(7);
    const ring = frontend.packedRing();
    const area = new RequestArea(frontend);

    for (let i = 0; i < 1000; i += 1) {
      const pieces = 1 + (i % 5);
      area.putHeader(TYPE.IN, i % 64);
      const data = Array.from({ length: pieces }, (_, j) =>
        area.dataDescriptor(j + 1 < pieces ? 64 : 512 - 64 * j, WRITE, 64 * j),
      );
      ring.setChain(0, [area.headerDescriptor(), ...data, area.statusDescriptor()]);
      expect(await ring.run(0)).toEqual([{ id: 0, length: 513 }]);
      expect(area.statusByte).toBe(STATUS.OK);
    }
  });

  it('echoes buffer IDs, whatever they are, also one for two buffers', async () => {
    const frontend = await start(16);
    const ring = frontend.packedRing();
    const chain = [{ address: frontend.ram.guest(0), length: 16 }];

    for (const id of [0, 16, 0x7fff, 0x8000, 0xffff]) {
      ring.place(id, chain);
      ring.signal();
      expect(await ring.take()).toEqual([{ id, length: 0 }]);
    }
    for (let i = 0; i < 2; i += 1) ring.place(7, chain);
    ring.signal();

    // The driver's book has room for one: the slots tell of two.
    await ring.take();
    const first = ring.usedPlace;
    ring.lengths.set(7, 1);
    expect(await ring.take()).toEqual([{ id: 7, length: 0 }]);
    expect(ring.usedPlace).toBe(first + 1);
  });

  it('shows in a used descriptor that something was written, and how much', async () => {
    const frontend = await start(16);
    const ring = frontend.packedRing();
    prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    await ring.run(0);
    ring.setDescriptor(0, { address: frontend.ram.guest(0), length: 16 });
    await ring.run(0);

    const [first, second] = [ring.readSlot(0), ring.readSlot(3)];

    expect(first).toMatchObject({ id: 0, length: 513, flags: 0x8082 });
    expect(second).toMatchObject({ id: 0, flags: 0x8080 });
  });
});

describe('the base of a packed ring', () => {
  it('names both places with their wrap counters, and is where the ring goes on', async () => {
    const frontend = await start(10);
    const ring = frontend.packedRing();
    const bases: number[] = [];
    for (let round = 0; round < 14; round += 1) {
      await expectRead(frontend, round);
      const base = await frontend.stopRing(ring);
      bases.push(base);
      await frontend.startRing(ring, base);
    }

    // Three slots each: slot 3, 6, 9, then 2 of the lap with wrap counter 0.
    expect(bases.slice(0, 8)).toEqual([
      0x8003_8003, 0x8006_8006, 0x8009_8009, 0x0002_0002, 0x0005_0005, 0x0008_0008, 0x8001_8001, 0x8004_8004,
    ]);
    expect(bases.at(-1)).toBe(0x8002_8002);
  });

  it('does not count what is available and was not taken', async () => {
    const frontend = await start(10);
    const ring = frontend.packedRing();
    await expectRead(frontend, 0);
    await frontend.require(REQUEST.SET_VRING_ENABLE, vringState(0, 0));
    prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    ring.publish(0);
    ring.signal();

    expect(await frontend.stopRing(ring)).toBe(0x8003_8003);

    await frontend.startRing(ring, 0x8003_8003);
    expect(await ring.take()).toEqual([{ id: 0, length: 513 }]);
  });

  it.each<[string, number | undefined]>([
    ['is its beginning when nobody said one', undefined],
    ['may be 0 for a ring that was never used', 0],
    ['may be the available half alone', 0x8000],
  ])('%s', async (_, base) => {
    const frontend = await daemon().negotiate({ features: PACKED });
    await frontend.shareMemory();
    const ring = frontend.queue();
    await frontend.require(REQUEST.SET_VRING_NUM, vringState(0, ring.size));
    if (base !== undefined) await frontend.require(REQUEST.SET_VRING_BASE, vringState(0, base));
    await frontend.require(REQUEST.SET_VRING_ADDR, vringAddress(0, ring.addresses()));
    await frontend.require(REQUEST.SET_VRING_CALL, vringFd(0), [ring.call]);
    await frontend.require(REQUEST.SET_VRING_KICK, vringFd(0), [ring.kick]);
    await frontend.require(REQUEST.SET_VRING_ENABLE, vringState(0, 1));

    await expectRead(frontend, 5);

    expect(await frontend.stopRing(ring)).toBe(0x8003_8003);
  });

  it.each([0x800a_800a, 0x8000_800a, 0x800a_8000, 0x7fff_7fff])('0x%s is beyond ten slots', async (base) => {
    const frontend = await daemon().negotiate({ features: PACKED, queueSize: 10 });
    await frontend.shareMemory();

    await expect(frontend.startRing(frontend.queue(), base)).rejects.toThrow(/refused/);

    await frontend.startRing(frontend.queue());
    await expectRead(frontend, 1);
  });

  it('is the same for the next front end of the same driver', async () => {
    const first = await start(10);
    for (let i = 0; i < 5; i += 1) await expectRead(first, i);
    const base = await first.stopRing(first.queue());
    const second = daemon().keep(first.reconnect(daemon().socket));
    await second.negotiate();
    await second.shareMemory();

    await second.startRing(second.queue(), base);

    for (let i = 0; i < 5; i += 1) await expectRead(second, i);
  });
});

describe('a driver of a packed ring', () => {
  it('that wants no call gets none, and is served', async () => {
    const frontend = await daemon().start({ features: PACKED, queues: 2 });
    await doRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    // It may be seen before its call: what it calls for is over when the same loop has served the other ring.
    await doRequest(frontend, { type: TYPE.IN, inBytes: 512, queue: 1 });
    const ring = frontend.packedRing(0);
    ring.setDriverEvent(EVENTS_NEVER);
    prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    const { usedIndex } = ring;
    while (ring.hasCall());

    ring.publish(0);
    ring.signal();
    // Requests of the other ring go through the same loop after that.
    for (let i = 0; i < 2; i += 1) await doRequest(frontend, { type: TYPE.IN, inBytes: 512, queue: 1 });

    expect(ring.usedIndex).toBe(usedIndex + 1);
    expect(ring.hasCall()).toBe(false);
  });
});
