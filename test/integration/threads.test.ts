/** A disk whose queues are served by several threads (--threads): the same as by one, whatever happens to one of them. */

import { rmSync, truncateSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { doRequest, RequestArea, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { Program } from '../support/frontend/program.ts';
import { FEATURE, PROTOCOL, REQUEST, u64 } from '../support/frontend/wire.ts';
import { createImage } from '../support/image.ts';
import { ThreadsRig } from './threads-rig.ts';

const cleanup = cleanupAfterEach();

describe.each([
  [2, 4, 'split', []],
  [3, 5, 'packed', [FEATURE.RING_PACKED]],
  [3, 6, 'split with EVENT_IDX', [FEATURE.EVENT_IDX]],
])('%i threads, %i %s rings', (threads, queues, _, features) => {
  const start = (): Promise<ThreadsRig> =>
    ThreadsRig.start(cleanup, { threads, queues, features, protocolFeatures: [PROTOCOL.RESET_DEVICE] });

  it('each read and write of each ring is right', async () => {
    const rig = await start();

    await rig.run(150);
    await rig.drain();

    expect(rig.wrongSectors()).toEqual([]);
  });

  it('a ring that was stopped is left alone while the others run, and goes on where it was', async () => {
    const rig = await start();
    for (const victim of rig.loads) {
      const others = rig.loads.filter((load) => load !== victim);
      await rig.run(5);
      rig.submit();
      const base = await rig.runDuring(rig.frontend.stopRing(victim.ring), others);
      const told = victim.ring.drainedBase;
      victim.harvest();
      victim.fillFree(0xc5);
      victim.ring.signal();
      const before = victim.snapshot();
      await rig.run(20, others);
      const after = victim.snapshot();
      await rig.runDuring(rig.frontend.startRing(victim.ring, base), others);
      victim.ring.signal();

      expect(base).toBe(told);
      expect(after.equals(before)).toBe(true);
    }
    await rig.run(5);
    await rig.drain();

    expect(rig.wrongSectors()).toEqual([]);
  });

  it.each([
    ['RESET_DEVICE', REQUEST.RESET_DEVICE],
    ['RESET_OWNER', REQUEST.RESET_OWNER],
  ])('%s under load stops all of them', async (_name, request) => {
    const rig = await start();
    const { frontend } = rig;
    for (let round = 0; round < 5; round += 1) {
      await rig.run(5);
      rig.submit();
      await frontend.require(request);
      for (const load of rig.loads) {
        load.harvest();
        load.fillFree(0xc5);
        load.ring.signal();
      }
      const before = rig.loads.map((load) => load.snapshot());
      // Each ring's thread is asked, and has answered.
      for (const { ring } of rig.loads) await frontend.configureRing(ring, ring.drainedBase);
      const isSame = rig.loads.map((load, i) => load.snapshot().equals(before[i] as Buffer));
      await frontend.require(REQUEST.SET_FEATURES, u64(frontend.features));
      for (const { ring } of rig.loads) await frontend.startRing(ring, ring.drainedBase);
      for (const { ring } of rig.loads) ring.signal();

      expect(isSame).toEqual(rig.loads.map(() => true));
    }
    await rig.drain();

    expect(rig.wrongSectors()).toEqual([]);
  });

  it('SIGTERM under load ends the daemon in order, and the next one goes on', async () => {
    const rig = await start();
    for (let round = 0; round < 3; round += 1) {
      await rig.run(10);
      rig.submit();
      expect(await rig.backend.sigterm()).toEqual({ code: 0, signal: null });
      await rig.backend.restart();
      rig.frontend = rig.frontend.reconnect(rig.backend.socket);
      await rig.frontend.negotiate();
      await rig.frontend.shareMemory();
      for (const { ring } of rig.loads) await rig.frontend.startRing(ring, ring.drainedBase);
      for (const { ring } of rig.loads) ring.signal();
    }
    await rig.run(10);
    await rig.drain();

    expect(rig.wrongSectors()).toEqual([]);
  });
});

describe('whatever does the requests', () => {
  it.each(['threads', 'null', 'io_uring'])('threads end in order, under load (%s)', async (engine) => {
    const rig = await ThreadsRig.start(cleanup, { threads: 2, queues: 4, extra: [`--engine=${engine}`] });
    // The null engine keeps nothing: there is nothing to compare.
    if (engine !== 'null') await rig.run(30);
    rig.submit();

    expect(await rig.backend.sigterm()).toEqual({ code: 0, signal: null });
  });
});

describe('a disk that changes its size', () => {
  it('is as large for every thread, and never of a size that it did not have', async () => {
    const rig = await ThreadsRig.start(cleanup, { threads: 3, queues: 4 });
    // The sizes differ in the upper 32 bits and in the lower ones.
    const sizes = [2 ** 32 + 0x10_0000, 2 ** 32 - 0x1000];
    for (let round = 0; round < 20; round += 1) {
      truncateSync(rig.backend.image, sizes[round % 2] as number);
      rig.backend.signal('SIGHUP');
      await rig.run(10);
    }
    await rig.backend.waitForLog(/4294963200 -> 4296015872 bytes/);
    await rig.drain();
    truncateSync(rig.backend.image, 2 ** 33);
    rig.backend.signal('SIGHUP');
    await rig.backend.waitForLog(/-> 8589934592 bytes/);
    // It is said first and done then: the main thread answers when it is done.
    await rig.frontend.connection.ask(REQUEST.GET_FEATURES);

    for (const { ring } of rig.loads) {
      const last = { type: TYPE.IN, sector: 2 ** 24 - 1, inBytes: 512, queue: ring.index };
      expect((await doRequest(rig.frontend, last)).status).toBe(STATUS.OK);
      expect((await doRequest(rig.frontend, { ...last, sector: 2 ** 24 })).status).toBe(STATUS.IOERR);
    }
  });
});

describe('what is logged of a ring', () => {
  /** The line that a chain without a header brings about, less time and process. */
  const provoke = async (threads: number, format: string): Promise<string> => {
    const rig = await ThreadsRig.start(cleanup, { threads, queues: 2, extra: [`--log-format=${format}`] });
    const { frontend } = rig;
    const ring = frontend.queue(1);
    ring.setChain(0, [{ ...new RequestArea(frontend, 63, 4096).headerDescriptor(), address: 16 }]);
    await ring.run(0);
    const [line] = await rig.backend.waitForLog(/^.*chain returned unserved.*$/m);
    return line
      .replace(/"time":\d+/, '"time"')
      .replace(/"pid":\d+/, '"pid"')
      .replace(/\d\d:\d\d:\d\d\.\d+/, 'time');
  };

  it.each(['json', 'pretty'])('looks the same from a thread of its own (%s)', async (format) => {
    const [own, other] = [await provoke(1, format), await provoke(2, format)];

    expect(own).toMatch(/vring/);
    expect(other).toBe(own);
  });
});

describe('an engine that is not to be had', () => {
  it('for a disk in memory, which cannot be polled, is told by one sentence, whatever the number of threads', async () => {
    const image = createImage(`/dev/shm/ringside-${process.pid}.img`, 1 << 20);
    cleanup.add(() => rmSync(image));
    const ends = [];
    for (const threads of [1, 3]) {
      const files = [`--socket-path=${cleanup.directory()}/s`, `--blk-file=${image}`];
      const options = ['--direct', '--iopoll', '--log-level=error', `--threads=${threads}`];
      const program = new Program(cleanup, [...files, ...options]);
      const { code, signal } = await program.waitForExit();
      ends.push({ code, signal, stderr: program.stderr });
    }

    expect(ends[0]).toMatchObject({ code: 2, signal: null });
    expect(ends[0]?.stderr).toMatch(/^vhost-user-blk: --(iopoll|direct): .*\n$/);
    expect(ends[1]).toEqual(ends[0]);
  });
});
