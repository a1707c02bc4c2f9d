/**
 * What a driver can do wrong with a packed ring as a whole: such a ring is broken until it is started again, its front end
 * is told by the err descriptor, and every other ring goes on. Source: VIRTIO 1.3, 2.8 Packed Virtqueues.
 */

import { describe, expect, it } from 'vitest';
import { doRequest, prepareRequest, RequestArea, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { AVAIL, type RawPackedRing, USED } from '../support/frontend/raw-packed-ring.ts';
import { NEXT, WRITE } from '../support/frontend/raw-virtqueue.ts';
import { FEATURE, REQUEST, type RingAddresses, vringAddress, vringFd } from '../support/frontend/wire.ts';

const SIZE = 16;
const daemon = hostileDaemon({ numQueues: 2 });

const twoRings = (features: readonly number[] = []): Promise<RawFrontend> =>
  daemon().start({ queues: 2, queueSize: SIZE, features: [FEATURE.MQ, FEATURE.RING_PACKED, ...features] });

const read = (frontend: RawFrontend, queue: number) =>
  doRequest(frontend, { type: TYPE.IN, sector: 8, inBytes: 512, queue });

const expectOthersServed = async (frontend: RawFrontend): Promise<void> => {
  expect((await read(frontend, 1)).status).toBe(STATUS.OK);
};

/** A broken ring stays silent, the other works, and a new start heals. */
const expectOnlyThisRingBroken = async (frontend: RawFrontend, ring: RawPackedRing): Promise<void> => {
  const used = ring.usedPlace;
  await ring.waitForError();
  await expectOthersServed(frontend);
  expect(ring.usedPlace).toBe(used);

  await frontend.stopRing(ring);
  ring.forget();
  await frontend.startRing(ring);
  expect((await read(frontend, 0)).status).toBe(STATUS.OK);
};

describe('a chain', () => {
  it('that goes on in a slot that is not available breaks its ring and no other', async () => {
    const frontend = await twoRings();
    const ring = frontend.packedRing(0);
    await read(frontend, 0);
    const { address } = new RequestArea(frontend).headerDescriptor();

    ring.writeSlot(3, { address, length: 16, id: 0, flags: NEXT | AVAIL });
    ring.signal();

    await expectOnlyThisRingBroken(frontend, ring);
    await daemon().backend.waitForLog(/vring 0 is broken: a descriptor chain goes on in a descriptor that is not/);
  });

  it('that goes on in a slot with the wrong wrap counter breaks its ring and no other', async () => {
    const frontend = await twoRings();
    const ring = frontend.packedRing(0);
    const { address } = new RequestArea(frontend).headerDescriptor();

    ring.writeSlot(1, { address, length: 16, id: 0, flags: USED });
    ring.writeSlot(0, { address, length: 16, id: 0, flags: NEXT | AVAIL });
    ring.signal();

    await expectOnlyThisRingBroken(frontend, ring);
  });

  it('without an end breaks its ring and no other', async () => {
    const frontend = await twoRings();
    const ring = frontend.packedRing(0);
    const { address } = new RequestArea(frontend).dataDescriptor(1);

    for (let slot = SIZE - 1; slot >= 0; slot -= 1) {
      ring.writeSlot(slot, { address, length: 1, id: slot, flags: NEXT | AVAIL });
    }
    ring.signal();

    await expectOnlyThisRingBroken(frontend, ring);
  });

  it('without an end that begins in the middle of a lap breaks its ring and no other', async () => {
    const frontend = await twoRings();
    const ring = frontend.packedRing(0);
    for (let i = 0; i < 4; i += 1) await read(frontend, 0);
    const { address } = new RequestArea(frontend).dataDescriptor(1);

    for (let i = SIZE - 1; i >= 0; i -= 1) {
      const place = ring.availPlace + i;
      ring.writeSlot(place % SIZE, { address, length: 1, id: i, flags: NEXT | ring.availFlags(place) });
    }
    ring.signal();

    await expectOnlyThisRingBroken(frontend, ring);
  });

  it('as long as the ring is served', async () => {
    const frontend = await twoRings();
    const ring = frontend.packedRing(0);
    const area = new RequestArea(frontend);
    area.putHeader(TYPE.IN, 0);
    const data = Array.from({ length: SIZE - 2 }, (_, i) =>
      area.dataDescriptor(i + 1 < SIZE - 2 ? 32 : 512 - 32 * i, WRITE, 32 * i),
    );
    ring.setChain(0, [area.headerDescriptor(), ...data, area.statusDescriptor()]);

    for (let i = 0; i < 3; i += 1) expect(await ring.run(0)).toEqual([{ id: 0, length: 513 }]);
  });

  it('in front of a bad one is still served', async () => {
    const frontend = await twoRings();
    const ring = frontend.packedRing(0);
    const area = prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    ring.writeSlot(3, { address: 0, length: 0, id: 0, flags: NEXT | AVAIL });

    ring.publish(0);
    ring.signal();

    expect(await ring.take()).toEqual([{ id: 0, length: 513 }]);
    expect(area.statusByte).toBe(STATUS.OK);
    await ring.waitForError();
  });
});

describe('a slot', () => {
  it.each([
    ['neither AVAIL nor USED', 0],
    ['AVAIL and USED', AVAIL | USED],
    ['USED alone, in the first lap', USED],
  ])('with %s is not available, whatever else it says', async (_, flags) => {
    const frontend = await twoRings();
    const ring = frontend.packedRing(0);
    ring.writeSlot(0, { address: 0, length: 0xffff_ffff, id: 9, flags: flags | 0x7f7f });

    for (let i = 0; i < 3; i += 1) ring.signal();
    await expectOthersServed(frontend);
    await expectOthersServed(frontend);

    expect(ring.readSlot(0)).toMatchObject({ id: 9, flags: flags | 0x7f7f });
    expect(ring.hasReport()).toBe(false);
    expect((await read(frontend, 0)).status).toBe(STATUS.OK);
  });

  it('that the driver takes back after the kick was served or not, and the ring goes on or breaks', async () => {
    const frontend = await twoRings();
    const ring = frontend.packedRing(0);
    prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });

    for (let i = 0; i < 200; i += 1) {
      ring.forget();
      prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
      ring.publish(0);
      ring.signal();
      ring.setFlags(i % 3, 0);
    }

    await expectOthersServed(frontend);
  });
});

describe('event suppression of a packed ring', () => {
  it.each([
    [3, 0],
    [2, 0x7fff],
    [2, 0xffff],
    [2, SIZE],
    [0xffff, 0xffff],
    [0xfffc, 0],
  ])('with flags %i and slot %i does not keep requests from being served', async (flags, off) => {
    const frontend = await twoRings([FEATURE.EVENT_IDX]);
    const ring = frontend.packedRing(0);
    for (let i = 0; i < 7; i += 1) {
      const { usedIndex } = ring;
      prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
      ring.setDriverEvent(flags, off);
      ring.publish(0);
      ring.signal();
      await eventually(
        'used index',
        () => ring.usedIndex,
        (index) => index === usedIndex + 1,
      );
      expect(await ring.take()).toEqual([{ id: 0, length: 513 }]);
    }
  });

  it('at a slot without EVENT_IDX counts as none: every one is told', async () => {
    const frontend = await twoRings();
    const ring = frontend.packedRing(0);
    await read(frontend, 0);
    ring.hasCall();
    prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    ring.setDriverEvent(2, 0x8000);

    ring.publish(0);
    ring.signal();

    await eventually(
      'call',
      () => ring.hasCall(),
      (called) => called,
    );
  });

  it('that a driver overwrites for the device loses nothing but its own kicks', async () => {
    const frontend = await twoRings([FEATURE.EVENT_IDX]);
    const ring = frontend.packedRing(0);
    frontend.ram.view.setUint32(ring.deviceEvent, 0xffff_ffff, true);

    expect((await read(frontend, 0)).status).toBe(STATUS.OK);
  });
});

describe('a packed ring is refused', () => {
  const END = 0x20_0000;

  it.each<[string, (good: RingAddresses, frontend: RawFrontend) => Partial<RingAddresses>]>([
    ['with slots not aligned to 16', (good) => ({ descriptor: Number(good.descriptor) + 8 })],
    ['with driver events not aligned to 4', (good) => ({ available: Number(good.available) + 2 })],
    ['with device events not aligned to 4', (good) => ({ used: Number(good.used) + 2 })],
    ['with slots over the end of the memory', (_, { ram }) => ({ descriptor: ram.user(END - 16 * (SIZE - 1)) })],
    ['with driver events behind the memory', (_, { ram }) => ({ available: ram.user(END) })],
    ['with device events right before the memory', (_, { ram }) => ({ used: ram.user(-4) })],
    ['with slots at 0', () => ({ descriptor: 0 })],
  ])('%s', async (_, change) => {
    const frontend = await daemon().negotiate({ features: [FEATURE.RING_PACKED], queueSize: SIZE });
    await frontend.shareMemory();
    const ring = frontend.queue();
    await frontend.configureRing(ring);
    const good = ring.addresses();

    await frontend.require(REQUEST.SET_VRING_ADDR, vringAddress(0, { ...good, ...change(good, frontend) }));

    expect(await frontend.isRefused(REQUEST.SET_VRING_KICK, vringFd(0), [ring.kick])).toBe('nack');
    await frontend.startRing(ring);
    expect((await read(frontend, 0)).status).toBe(STATUS.OK);
  });

  it.each<[string, (good: RingAddresses) => Partial<RingAddresses>]>([
    ['both event areas in one place', (good) => ({ used: good.available })],
    ['its event areas in its first slot', (good) => ({ used: good.descriptor, available: good.descriptor })],
  ])('or not, with %s: the daemon lives on', async (_, change) => {
    const frontend = await daemon().negotiate({ features: [FEATURE.RING_PACKED], queueSize: SIZE });
    await frontend.shareMemory();
    const ring = frontend.packedRing();
    await frontend.configureRing(ring);
    const good = ring.addresses();
    await frontend.require(REQUEST.SET_VRING_ADDR, vringAddress(0, { ...good, ...change(good) }));
    await frontend.isRefused(REQUEST.SET_VRING_KICK, vringFd(0), [ring.kick]);

    for (let i = 0; i < 5; i += 1) {
      prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
      ring.publish(0);
      ring.signal();
    }

    await frontend.stopRing(ring);
  });

  it('when split and packed are mixed up: the daemon lives on', async () => {
    const frontend = await daemon().negotiate({ queueSize: SIZE });
    await frontend.shareMemory();
    const ring = frontend.queue();
    await frontend.configureRing(ring);
    // A driver that lays a packed ring out on a front end that did not negotiate one, and the device reads it as split.
    frontend.ram.bytes.fill(0x80, 0x1000, 0x1000 + 16 * SIZE);
    await frontend.isRefused(REQUEST.SET_VRING_KICK, vringFd(0), [ring.kick]);
    ring.signal();

    await frontend.connection.ask(REQUEST.GET_FEATURES);
  });
});
