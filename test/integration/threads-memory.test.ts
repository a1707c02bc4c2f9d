/**
 * Memory that comes and goes while several threads work in it: the main thread maps and unmaps it, the threads only borrow
 * it. Nothing is touched any more when its end was answered.
 */

import { describe, expect, it } from 'vitest';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { RequestArea, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { GuestRam } from '../support/frontend/guest-ram.ts';
import { eventually, sharedMappings } from '../support/frontend/process-probe.ts';
import { RawRing } from '../support/frontend/raw-ring.ts';
import { WRITE } from '../support/frontend/raw-virtqueue.ts';
import { memoryTable, PROTOCOL, REQUEST, singleRegion } from '../support/frontend/wire.ts';
import { RING_SIZE, RingLoad, SLOTS, ThreadsRig } from './threads-rig.ts';

const MiB = 1 << 20;
const cleanup = cleanupAfterEach();

const start = (threads: number): Promise<ThreadsRig> =>
  ThreadsRig.start(cleanup, { threads, queues: 4, protocolFeatures: [PROTOCOL.CONFIGURE_MEM_SLOTS] });

const anotherRam = (number = 1): GuestRam => {
  const ram = new GuestRam(4 * MiB, 0x8000_0000 + number * 0x1000_0000, 0x7d00_0000_0000 + number * 0x1000_0000);
  cleanup.add(() => ram.close());
  return ram;
};

const expectNoFault = (rig: ThreadsRig): void => expect(rig.backend.log()).not.toMatch(/taken away/);

describe.each([2, 3])('memory of rings that %i threads serve', (threads) => {
  it('is replaced under load', async () => {
    const rig = await start(threads);
    const { frontend } = rig;
    const other = anotherRam();
    for (let round = 0; round < 20; round += 1) {
      // The memory of the rings lies elsewhere in the daemon each time: the first of the table takes the free place.
      const rams = round % 2 === 0 ? [other, frontend.ram] : [frontend.ram];
      const table = memoryTable(rams.map((ram) => ram.region()));
      const fds = rams.map(({ fd }) => fd);
      await rig.runDuring(frontend.require(REQUEST.SET_MEM_TABLE, table, fds));
    }
    await rig.run(5);
    await rig.drain();

    expect(rig.wrongSectors()).toEqual([]);
    expect(sharedMappings(rig.backend.pid)).toBe(1);
    expectNoFault(rig);
  });

  it('is not written after its removal was answered, whichever thread had requests in it', async () => {
    const rig = await start(threads);
    const { frontend } = rig;
    // Each ring reads four times 64 KiB from the disk into memory that goes away at once.
    const areas = frontend.queues.map((_, i) =>
      [0, 1, 2, 3].map((n) => new RequestArea(frontend, 4 * SLOTS + 4 * i + n, 0)),
    );
    for (let round = 0; round < 30; round += 1) {
      const ram = anotherRam();
      ram.bytes.fill(0xdd);
      await frontend.require(REQUEST.ADD_MEM_REG, singleRegion(ram.region()), [ram.fd]);
      for (const [i, ring] of frontend.queues.entries()) {
        for (const [n, area] of (areas[i] as RequestArea[]).entries()) {
          area.putHeader(TYPE.IN, 0);
          const data = { address: ram.guest((4 * i + n) * 0x1_0000), length: 0x1_0000, flags: WRITE };
          ring.setChain(3 * n, [area.headerDescriptor(), data, area.statusDescriptor()]);
        }
        ring.publish(0, 3, 6, 9);
        ring.signal();
      }
      await frontend.require(REQUEST.REM_MEM_REG, singleRegion(ram.region()));
      const before = Buffer.from(ram.bytes);
      for (const ring of frontend.queues) await ring.take(4);

      expect(before.equals(ram.bytes)).toBe(true);
      for (const [i, area] of areas.flat().entries()) {
        // The image is empty: served, or refused because the memory was gone.
        const status = area.statusByte;
        const found = ram.bytes.subarray(i * 0x1_0000, (i + 1) * 0x1_0000);
        expect([STATUS.OK, STATUS.IOERR]).toContain(status);
        if (status === STATUS.OK) expect(found.every((byte) => byte === 0)).toBe(true);
      }
      ram.close();
    }
    expectNoFault(rig);
  });

  it('that one ring lies in goes away and comes back while the others run', async () => {
    const rig = await start(threads);
    const { frontend } = rig;
    const others = rig.loads.slice(0, 3);
    const ram = anotherRam();
    await frontend.stopRing(frontend.queue(3));
    const ring = new RawRing(ram, 3, RING_SIZE, 0x1000);
    cleanup.add(() => ring.close());
    const load = new RingLoad({ ram, dataStart: ring.end, queue: () => ring }, ring, 4);
    const add = (): Promise<void> => frontend.require(REQUEST.ADD_MEM_REG, singleRegion(ram.region()), [ram.fd]);
    const remove = (): Promise<void> => frontend.require(REQUEST.REM_MEM_REG, singleRegion(ram.region()));
    await add();
    await frontend.startRing(ring);

    for (let round = 0; round < 10; round += 1) {
      await rig.run(5, [...others, load]);
      load.submit();
      await rig.runDuring(remove(), others);
      load.harvest();
      load.fillFree(0xc5);
      load.ring.signal();
      const before = load.snapshot();
      await rig.run(10, others);
      const after = load.snapshot();
      await rig.runDuring(add(), others);
      load.ring.signal();

      expect(after.equals(before)).toBe(true);
    }
    await rig.drain([...others, load]);
    await remove();
    // Pages that anybody looked for now would be missed.
    ram.truncate(0);
    ring.signal();
    await rig.run(10, others);
    await rig.drain(others);

    expect(sharedMappings(rig.backend.pid)).toBe(1);
    expectNoFault(rig);
    expect(rig.wrongSectors().filter((what) => !what.startsWith('ring 3'))).toEqual([]);
  });
});

describe('memory that the front end truncates', () => {
  it.each([
    ['all of it', 0],
    ['all but the rings', 0x8000],
  ])('(%s) while threads work in it ends the connection, and only that', async (_, length) => {
    const rig = await start(3);
    const { backend, frontend } = rig;
    await rig.run(20);
    for (const { ring } of rig.loads) {
      const area = new RequestArea(frontend, 4 * SLOTS + ring.index, 0x1000);
      area.putHeader(TYPE.IN);
      ring.setChain(3 * SLOTS, [area.headerDescriptor(), area.dataDescriptor(512, WRITE), area.statusDescriptor()]);
      ring.publish(3 * SLOTS);
    }
    frontend.ram.truncate(length);
    for (const { ring } of rig.loads) ring.signal();
    await frontend.connection.waitForEnd();
    await backend.waitForLog(/taken away by the front end/);
    await eventually(
      'mappings of guest memory',
      () => sharedMappings(backend.pid),
      (count) => count === 0,
    );
    const told = backend.log().split('taken away by the front end').length - 1;
    const next = await ThreadsRig.attach(cleanup, backend, { threads: 3, queues: 4 });
    await next.run(20);
    await next.drain();

    expect(told).toBe(1);
    expect(backend.running).toBe(true);
  });
});
