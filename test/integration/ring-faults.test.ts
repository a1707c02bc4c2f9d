/**
 * What a driver can do wrong with a ring as a whole: such a ring is broken until it is started again, its front end is
 * told by the err descriptor, and every other ring goes on.
 */

import { describe, expect, it } from 'vitest';
import { doRequest, prepareRequest, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import type { RawRing } from '../support/frontend/raw-ring.ts';
import { FEATURE, REQUEST, vringFd } from '../support/frontend/wire.ts';

const SIZE = 128;
const daemon = hostileDaemon({ numQueues: 2 });

const twoRings = (features: number[] = []): Promise<RawFrontend> =>
  daemon().start({ queues: 2, queueSize: SIZE, features: [FEATURE.MQ, ...features] });

const read = (frontend: RawFrontend, queue: number) =>
  doRequest(frontend, { type: TYPE.IN, sector: 8, inBytes: 512, queue });

/** Broken rings stay silent, the others work, and a restart heals. */
const expectOnlyThisRingBroken = async (frontend: RawFrontend, ring: RawRing, usedBefore: number): Promise<void> => {
  await ring.waitForError();
  expect(ring.usedIndex).toBe(usedBefore);
  expect((await read(frontend, 1)).status).toBe(STATUS.OK);

  await frontend.stopRing(ring);
  ring.setAvailIndex(ring.usedIndex);
  await frontend.startRing(ring, ring.usedIndex);
  ring.seen = ring.usedIndex;
  expect((await read(frontend, 0)).status).toBe(STATUS.OK);
};

describe('an available index', () => {
  it.each([
    ['one more than the queue size ahead', SIZE + 1],
    ['half way round', 0x8000],
    ['going back by one', 0xffff],
  ])('%s breaks its ring and no other', async (_, jump) => {
    const frontend = await twoRings();
    const ring = frontend.ring(0);
    await read(frontend, 0);

    ring.setAvailIndex(ring.availIndex + jump);
    ring.signal();

    await expectOnlyThisRingBroken(frontend, ring, 1);
    await daemon().backend.waitForLog(/vring 0 is broken: the available index jumped/);
  });

  it('going back after three requests breaks its ring', async () => {
    const frontend = await twoRings();
    const ring = frontend.ring(0);
    for (let i = 0; i < 3; i += 1) await read(frontend, 0);

    ring.setAvailIndex(1);
    ring.signal();

    await expectOnlyThisRingBroken(frontend, ring, 3);
  });

  it('exactly the queue size ahead is a full ring, which is served', async () => {
    const frontend = await twoRings();
    const ring = frontend.ring(0);
    // 128 heads, each a chain of its own that has no status byte: returned, one by one.
    for (let i = 0; i < SIZE; i += 1) ring.setDescriptor(i, { address: frontend.ram.guest(0), length: 16 });

    const used = await ring.run(...Array.from({ length: SIZE }, (_, i) => i));

    expect(used.map((entry) => entry.id).sort((a, b) => a - b)).toEqual(Array.from({ length: SIZE }, (_, i) => i));
  });

  it('wraps around 65536 without losing a request', async () => {
    const base = 0xfffe;
    const frontend = daemon().keep(daemon().connect({ base }));
    await frontend.negotiate();
    await frontend.shareMemory();
    const ring = frontend.ring();
    ring.setAvailIndex(base);
    frontend.ram.view.setUint16(ring.used + 2, base, true);
    ring.seen = base;
    await frontend.startRing(ring, base);

    for (let i = 0; i < 5; i += 1) expect((await read(frontend, 0)).status).toBe(STATUS.OK);

    expect(ring.usedIndex).toBe(3);
    expect(await frontend.stopRing(ring)).toBe(3);
  });
});

describe('a head', () => {
  it.each([SIZE, SIZE + 1, 0x7fff, 0xffff])('%i beyond the table breaks its ring and no other', async (head) => {
    const frontend = await twoRings();
    const ring = frontend.ring(0);

    ring.publish(head);
    ring.signal();

    await expectOnlyThisRingBroken(frontend, ring, 0);
    await daemon().backend.waitForLog(/vring 0 is broken: a head index is beyond/);
  });

  it('made available twice breaks the ring, after the first use of it was served once', async () => {
    const frontend = await twoRings();
    const ring = frontend.ring(0);
    const area = prepareRequest(frontend, { type: TYPE.IN, sector: 0, inBytes: 4096 });

    ring.publish(0, 0);
    ring.signal();
    await ring.waitForError();

    const [used] = await ring.take();
    expect(used).toEqual({ id: 0, length: 4097 });
    expect(area.statusByte).toBe(STATUS.OK);
    await expectOnlyThisRingBrokenAfterReport(frontend, ring, 1);
  });

  it('in front of a bad one is still served', async () => {
    const frontend = await twoRings();
    const ring = frontend.ring(0);
    const area = prepareRequest(frontend, { type: TYPE.IN, sector: 0, inBytes: 512 });

    ring.publish(0, SIZE);
    ring.signal();

    expect(await ring.take()).toEqual([{ id: 0, length: 513 }]);
    expect(area.statusByte).toBe(STATUS.OK);
    await ring.waitForError();
  });
});

const expectOnlyThisRingBrokenAfterReport = async (frontend: RawFrontend, ring: RawRing, used: number) => {
  expect(ring.usedIndex).toBe(used);
  expect((await read(frontend, 1)).status).toBe(STATUS.OK);
};

describe('a broken ring', () => {
  it('stays broken when it is kicked again, also with sane contents', async () => {
    const frontend = await twoRings();
    const ring = frontend.ring(0);
    ring.setAvailIndex(0x4000);
    ring.signal();
    await ring.waitForError();

    ring.setAvailIndex(0);
    prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    ring.publish(0);
    ring.signal();
    // The other ring's request went through the same loop after that kick.
    await read(frontend, 1);
    await read(frontend, 1);

    expect(ring.usedIndex).toBe(0);
  });

  it('is reported once in the log', async () => {
    const frontend = await twoRings();
    const ring = frontend.ring(0);
    const reports = (): number => daemon().backend.log().split('is broken').length - 1;
    const before = reports();

    ring.publish(0xffff);
    ring.signal();
    await ring.waitForError();
    for (let i = 0; i < 10; i += 1) ring.signal();
    await read(frontend, 1);

    await eventually('reports', reports, (count) => count > before);
    // A line of the log that comes later.
    await daemon().negotiate();
    expect(reports() - before).toBe(1);
  });

  it('without an err descriptor only stops', async () => {
    const frontend = await twoRings();
    await frontend.require(REQUEST.SET_VRING_ERR, vringFd(0, true));

    frontend.ring(0).publish(0xffff);
    frontend.ring(0).signal();

    expect((await read(frontend, 1)).status).toBe(STATUS.OK);
    expect(frontend.ring(0).usedIndex).toBe(0);
  });
});

describe('with EVENT_IDX', () => {
  it.each([0, 1, 0x7fff, 0x8000, 0xffff])(
    'a garbage used_event of %i does not keep requests from being served',
    async (event) => {
      const frontend = await twoRings([FEATURE.EVENT_IDX]);
      const ring = frontend.ring(0);
      prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
      ring.setUsedEvent(event);

      ring.publish(0);
      ring.signal();

      expect(await ring.take()).toEqual([{ id: 0, length: 513 }]);
    },
  );

  it('the flags of the available ring are ignored, garbage included', async () => {
    const frontend = await twoRings([FEATURE.EVENT_IDX]);
    const ring = frontend.ring(0);
    ring.setAvailFlags(0xffff);

    expect((await read(frontend, 0)).status).toBe(STATUS.OK);
    expect((await read(frontend, 0)).status).toBe(STATUS.OK);
  });

  it('a driver that overwrites avail_event loses nothing but its own kicks', async () => {
    const frontend = await twoRings([FEATURE.EVENT_IDX]);
    const ring = frontend.ring(0);
    frontend.ram.view.setUint16(ring.used + 4 + 8 * SIZE, 0x1234, true);

    expect((await read(frontend, 0)).status).toBe(STATUS.OK);
  });
});

describe('without EVENT_IDX', () => {
  it('NO_INTERRUPT keeps the call quiet, and the request is served', async () => {
    const frontend = await twoRings();
    const ring = frontend.ring(0);
    await read(frontend, 0);
    ring.setAvailFlags(1);
    prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });

    ring.publish(0);
    ring.signal();
    // The answer of a later request on the other ring shows that this one is over.
    await read(frontend, 1);
    await read(frontend, 1);

    expect(ring.usedIndex).toBe(2);
    await expect(ring.take(2, 100)).rejects.toThrow(/no call of ring 0/);
  });

  it('flag bits that mean nothing do not keep the call quiet', async () => {
    const frontend = await twoRings();
    frontend.ring(0).setAvailFlags(0xfffe);

    expect((await read(frontend, 0)).status).toBe(STATUS.OK);
  });
});
