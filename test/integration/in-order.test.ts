/**
 * VIRTIO_F_IN_ORDER: a device that finishes requests in any order returns them in the order in which they were made
 * available. Source: VIRTIO 1.3, 2.7.9 and 2.8.9 In-order use of descriptors, 6 Reserved Feature Bits.
 */

import { describe, expect, it } from 'vitest';
import { prepareRequest, type RequestArea, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { RINGS } from '../support/frontend/chain-probe.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { FEATURE } from '../support/frontend/wire.ts';
import { Random, testSeed } from '../support/random.ts';

const SIZE = 64;
const DEPTH = 16;
const ROUNDS = 60;

/** Requests that take very different times: from the page cache or the disk, of 20 bytes and of 60 KiB, and none at all. */
const prepare = (frontend: RawFrontend, slot: number, random: Random): RequestArea => {
  const sector = 128 * slot;
  const kinds = [
    { type: TYPE.IN, sector, inBytes: 512 },
    { type: TYPE.IN, sector, inBytes: 61_440 },
    { type: TYPE.GET_ID, inBytes: 20 },
    { type: TYPE.FLUSH },
    // Beyond the disk: refused at once.
    { type: TYPE.IN, sector: 2 ** 40, inBytes: 4096 },
  ];
  return prepareRequest(frontend, random.pick(kinds), 3 * slot, slot);
};

/** Runs the load; returns how many requests came back before an older one. */
const countEarly = async (frontend: RawFrontend): Promise<number> => {
  const ring = frontend.queue();
  const random = new Random(testSeed);
  let early = 0;
  for (let round = 0; round < ROUNDS; round += 1) {
    const slots = Array.from({ length: DEPTH }, (_, i) => i);
    const areas = slots.map((slot) => prepare(frontend, slot, random));
    ring.publish(...slots.map((slot) => 3 * slot));
    ring.signal();
    const ids = (await ring.take(DEPTH)).map(({ id }) => id / 3);
    expect([...ids].sort((a, b) => a - b)).toEqual(slots);
    expect(areas.every(({ statusByte }) => statusByte === STATUS.OK || statusByte === STATUS.IOERR)).toBe(true);
    early += ids.filter((id, i) => ids.slice(i).some((later) => later < id)).length;
  }
  return early;
};

describe.each([
  ['from the page cache', []],
  ['from the disk', ['--direct']],
  ['by the thread pool', ['--engine=threads']],
])('a disk that is read %s', (_title, extra) => {
  const daemon = hostileDaemon({ extra });
  const start = (features: readonly number[]): Promise<RawFrontend> =>
    daemon().start({ features: [FEATURE.FLUSH, FEATURE.EVENT_IDX, ...features], queueSize: SIZE });

  it.each(RINGS)('returns requests of a %s ring in order, if that was negotiated', async (_, features) => {
    const frontend = await start([...features, FEATURE.IN_ORDER]);

    expect(await countEarly(frontend)).toBe(0);

    expect(await frontend.stopRing(frontend.queue())).toBe(frontend.queue().drainedBase);
  });

  it.each(RINGS)('returns requests of a %s ring as they are done, if it was not', async (_, features) => {
    // Or the test above shows nothing.
    expect(await countEarly(await start(features))).toBeGreaterThan(0);
  });
});
