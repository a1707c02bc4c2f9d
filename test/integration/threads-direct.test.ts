/**
 * Several threads write to one disk with O_DIRECT, some of it through the page cache: a write whose buffer does not suit
 * O_DIRECT has to run alone among all threads, or one of two writes to a page is lost. Every ring here writes to sectors
 * of every page.
 */

import { describe, expect, it } from 'vitest';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { cpuWhenIdle } from '../support/frontend/process-probe.ts';
import { type Shift, ThreadsRig } from './threads-rig.ts';

const cleanup = cleanupAfterEach();

/** Buffers at an odd address suit no O_DIRECT. */
const MIXES: [string, Shift, number][] = [
  ['none', () => 0, 200],
  ['every tenth', (n) => (n % 10 === 0 ? 1 : 0), 100],
  ['every other', (n) => n % 2, 40],
  ['all', () => 1, 30],
  ['all of ring 0', (_, ring) => (ring === 0 ? 1 : 0), 50],
];

describe.each([
  [1, 3],
  [2, 2],
  [3, 4],
])('with O_DIRECT, %i thread(s) and %i rings', (threads, queues) => {
  it.each(MIXES)('of writes that must run alone (%s), none is lost and all come back', async (_, shift, count) => {
    const rig = await ThreadsRig.start(cleanup, { threads, queues, shift, extra: ['--direct'] });

    await rig.run(count);
    await rig.drain();

    expect(rig.wrongSectors()).toEqual([]);
    // Nobody waits for anybody any more: it polls for a moment, then it sleeps.
    expect(await cpuWhenIdle(rig.backend.pid, 300, 149)).toBeLessThan(150);
  });
});
