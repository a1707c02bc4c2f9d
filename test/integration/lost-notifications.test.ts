/**
 * Two processes that try to sleep at the worst moment: the driver kicks only when it is asked to, and waits for the call
 * that it asked for. A notification lost on either side stops the run.
 */

import { describe, expect, it } from 'vitest';
import { prepareRequest, type RequestArea, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { FEATURE } from '../support/frontend/wire.ts';

const SIZE = 64;

interface Load {
  readonly features: readonly number[];
  /** Requests in flight at most. */
  readonly depth: number;
  readonly requests: number;
}

/** Whether the device asked for a kick for the heads from `old` to `now`. VIRTIO 1.3, 2.7.10. */
const kickIsWanted = (frontend: RawFrontend, eventIdx: boolean, old: number, now: number): boolean => {
  const ring = frontend.ring();
  // Full barrier: the index that was just stored comes before this look.
  Atomics.load(ring.ram.words, ring.used / 2);
  if (eventIdx) return ((now - ring.availEvent - 1) & 0xffff) < ((now - old) & 0xffff);
  return (ring.ram.view.getUint16(ring.used, true) & 1) === 0;
};

/** Runs the load and returns how many kicks it took. */
const hammer = async (frontend: RawFrontend, { features, depth, requests }: Load): Promise<number> => {
  const ring = frontend.ring();
  const eventIdx = features.includes(FEATURE.EVENT_IDX);
  const areas: RequestArea[] = Array.from({ length: depth }, (_, i) =>
    prepareRequest(frontend, { type: TYPE.IN, sector: 8 * i, inBytes: 4096 }, 3 * i, i),
  );
  let kicks = 0;
  let done = 0;
  while (done < requests) {
    const batch = 1 + ((done * 7) % depth);
    const old = ring.availIndex;
    ring.publish(...Array.from({ length: batch }, (_, i) => 3 * i));
    if (kickIsWanted(frontend, eventIdx, old, ring.availIndex)) {
      ring.signal();
      kicks += 1;
    }
    // Sometimes at once, sometimes after the device had time to fall asleep.
    for (let turn = done % 4; turn > 0; turn -= 1) await new Promise((resolve) => setImmediate(resolve));
    const used = await ring.take(batch, 5_000);
    expect(used.every(({ length }) => length === 4097)).toBe(true);
    done += batch;
  }
  expect(areas.every((area) => area.statusByte === STATUS.OK)).toBe(true);
  return kicks;
};

describe.each([
  ['a daemon that polls for 32 us', []],
  ['a daemon that sleeps at once', ['--poll-us=0']],
  ['a daemon that never sleeps', ['--poll']],
  ['the null engine', ['--engine=null', '--poll-us=0']],
  ['the thread pool', ['--engine=threads', '--poll-us=0']],
])('%s', (title, extra) => {
  const daemon = hostileDaemon({ extra }, { contentIsKept: !title.includes('null') });

  it.each([
    ['with EVENT_IDX, one at a time', { features: [FEATURE.EVENT_IDX], depth: 1, requests: 3000 }],
    ['with EVENT_IDX, in batches of up to 16', { features: [FEATURE.EVENT_IDX], depth: 16, requests: 12_000 }],
    ['without EVENT_IDX, one at a time', { features: [], depth: 1, requests: 3000 }],
    ['without EVENT_IDX, in batches of up to 16', { features: [], depth: 16, requests: 12_000 }],
  ])('loses no notification %s', async (_, load) => {
    const frontend = await daemon().start({ features: load.features, queueSize: SIZE });

    const kicks = await hammer(frontend, load);

    expect(kicks).toBeLessThanOrEqual(load.requests);
  });
});
