/**
 * With O_DIRECT a write that has to run alone waits for requests in flight, and others wait for it: asleep. What keeps them
 * waiting here is a page of guest memory that the front end brings late, as in postcopy.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { userFaultsAvailable } from '../../protocol/sys/userfault.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { RequestArea, STATUS, TYPE, UNTOUCHED } from '../support/frontend/blk-request.ts';
import { LateMemory } from '../support/frontend/late-memory.ts';
import { POSTCOPY, shareLate } from '../support/frontend/postcopy-frontend.ts';
import { cpuDuring, eventually } from '../support/frontend/process-probe.ts';
import { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { WRITE } from '../support/frontend/raw-virtqueue.ts';
import { randomImage } from '../support/image.ts';

const PAGE = 4096;
const SPAN_MS = 500;
const possible = userFaultsAvailable();
if (!possible) process.stderr.write('skipped: userfaultfd: needs root, or sysctl vm.unprivileged_userfaultfd=1\n');

describe.runIf(possible)('requests that wait for each other', () => {
  const cleanup = cleanupAfterEach();

  /** A request of a page in an area of its own, whose data lies `shift` bytes behind an address that suits O_DIRECT. */
  const prepare = (frontend: RawFrontend, slot: number, ring: number, type: number, shift: number): RequestArea => {
    const area = new RequestArea(frontend, slot);
    area.putHeader(type, 8 * slot);
    const data = area.dataDescriptor(PAGE, type === TYPE.IN ? WRITE : 0, shift);
    frontend.queue(ring).setChain(4 * slot, [area.headerDescriptor(), data, area.statusDescriptor()]);
    return area;
  };

  it.each([
    // The thread pool waits for the page, so that the daemon's own threads could do something.
    ['a write that must run alone, for a read', 1, 0, { type: TYPE.IN, shift: 0 }, { type: TYPE.OUT, shift: 1 }],
    ['the same, of another thread', 2, 1, { type: TYPE.IN, shift: 0 }, { type: TYPE.OUT, shift: 1 }],
    ['a read, for a write that runs alone', 1, 0, { type: TYPE.OUT, shift: 1 }, { type: TYPE.IN, shift: 0 }],
    ['the same, of another thread', 2, 1, { type: TYPE.OUT, shift: 1 }, { type: TYPE.IN, shift: 0 }],
    ['a write that must run alone, for another', 2, 1, { type: TYPE.OUT, shift: 1 }, { type: TYPE.OUT, shift: 1 }],
  ])('sleep meanwhile: %s', async (_, threads, ring, first, second) => {
    const image = randomImage(join(cleanup.directory(), 'disk.img'), 1 << 20);
    const extra = [`--threads=${threads}`, '--direct', '--engine=threads'];
    const backend = await BlkBackend.start(cleanup, { image, numQueues: 2, extra });
    const frontend = RawFrontend.connect(backend.socket, { ...POSTCOPY, queues: 2 });
    cleanup.add(() => frontend.close());
    await frontend.negotiate();
    const late = prepare(frontend, 0, 0, first.type, first.shift);
    const waiting = prepare(frontend, 1, ring, second.type, second.shift);
    const bytes = frontend.ram.bytes.slice(waiting.data, waiting.data + 2 * PAGE);
    const memory = new LateMemory(frontend.ram, 'wake', late.data, late.data + 2 * PAGE);
    cleanup.add(() => memory.close());
    memory.hold();
    await shareLate(frontend, memory);
    for (const queue of frontend.queues) await frontend.startRing(queue);

    frontend.queue(0).publish(0);
    frontend.queue(0).signal();
    await eventually(
      'the page that is waited for',
      () => memory.waiting.length,
      (count) => count > 0,
    );
    frontend.queue(ring).publish(4);
    frontend.queue(ring).signal();

    // Polling for the next request takes a moment first.
    const used = await cpuDuring(backend.pid, SPAN_MS);
    expect([late.statusByte, waiting.statusByte]).toEqual([UNTOUCHED, UNTOUCHED]);
    expect(used).toBeLessThan(SPAN_MS / 4);

    memory.release();
    await frontend.queue(ring).take(ring === 0 ? 2 : 1);
    if (ring !== 0) await frontend.queue(0).take();
    expect([late.statusByte, waiting.statusByte]).toEqual([STATUS.OK, STATUS.OK]);
    const disk = readFileSync(image).subarray(PAGE, 2 * PAGE);
    const expected =
      second.type === TYPE.IN
        ? frontend.ram.bytes.slice(waiting.data, waiting.data + PAGE)
        : bytes.subarray(1, PAGE + 1);
    expect(disk.equals(expected)).toBe(true);
  });
});
