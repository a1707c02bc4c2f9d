/**
 * The dirty log of a migration: every page that the device wrote is in it, whoever looks and whenever, and few others. What
 * the device wrote is found out by looking at memory, and by copying memory as a migration does.
 */

import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { BlkDriver } from '../../vmm-client/driver/blk-driver.ts';
import { VsockDriver } from '../../vmm-client/driver/vsock-driver.ts';
import type { DirtyRange } from '../../vmm-client/frontend/dirty-bitmap.ts';
import { VhostUserFrontend } from '../../vmm-client/frontend/frontend.ts';
import type { SharedMemory } from '../../vmm-client/frontend/shared-memory.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import { HostStream } from '../support/frontend/vsock-host.ts';
import { randomImage } from '../support/image.ts';
import { changedPages, DiskRig, PAGE, pagesOf, READ, WRITE } from './disk-rig.ts';

const MiB = 1 << 20;
const DISK_BYTES = 8 * MiB;
const cleanup = cleanupAfterEach();

const startBlk = async (extra: readonly string[] = []): Promise<VhostUserFrontend> => {
  const image = randomImage(join(cleanup.directory(), 'disk.img'), DISK_BYTES);
  const { socket } = await BlkBackend.start(cleanup, { image, extra, numQueues: 2 });
  const frontend = await VhostUserFrontend.connect(socket);
  cleanup.add(() => frontend.close());
  return frontend;
};

/** Pages of a memory that a log names, by number from its start. */
const pagesIn = (memory: SharedMemory, ranges: readonly DirtyRange[]): number[] =>
  pagesOf(
    ranges.map(({ guestAddress, length }) => ({ start: guestAddress - memory.region.guestAddress, length })),
  ).sort((a, b) => a - b);

describe.each([
  ['split', false, []],
  ['packed', true, []],
  ['split, served by a thread', false, ['--threads=1']],
  ['packed, served by a thread', true, ['--threads=1']],
])('a block device with a %s ring', (_, packed, extra) => {
  const open = async () => {
    const frontend = await startBlk(extra);
    const memory = frontend.createMemory(16 * MiB);
    cleanup.add(() => memory.close());
    const rig = await DiskRig.open(frontend, memory, packed);
    await frontend.setMemory([memory]);
    await rig.start();
    const data = memory.allocate(8 * MiB, PAGE);
    const { vring } = rig.queue;
    // The driver writes to its ring when it makes chains available.
    const drivers = new Set(pagesOf([{ start: rig.offsetOf(vring.availRing), length: 4 + 2 * 64 + 2 }]));
    const rings = packed
      ? [
          { start: rig.offsetOf(vring.descriptorTable), length: 16 * 64 },
          { start: rig.offsetOf(vring.usedRing), length: 4 },
        ]
      : [{ start: rig.offsetOf(vring.usedRing), length: 6 + 8 * 64 }];
    if (packed) for (const page of pagesOf(rings)) drivers.add(page);
    return { frontend, memory, rig, data, drivers, rings };
  };

  it('marks every page that it writes, of data, statuses and ring, and none that it reads', async () => {
    const { frontend, memory, rig, data, drivers, rings } = await open();
    await frontend.dirtyLog.start();
    for (let round = 0; round < 20; round += 1) {
      const reads: { start: number; length: number }[] = [];
      for (let i = 0; i < 16; i += 1) {
        // Data of any length at any byte, a megabyte for each request.
        const start = data + (i % 8) * MiB + ((i * 7919 + round * 104_729) % (512 * 1024));
        const length = 512 * (1 + ((i * 31 + round * 17) % 200));
        if (i >= 8) rig.stage(WRITE, i * 4096, start, length);
        else reads.push({ start, length });
        if (i < 8) rig.stage(READ, (i + round) * 8192, start, length);
      }
      const before = memory.bytes.slice();
      rig.finish();
      const changed = changedPages(before, memory.bytes);
      const logged = pagesIn(memory, frontend.dirtyLog.take());
      const missing = changed.filter((page) => !logged.includes(page) && !drivers.has(page));
      expect(missing).toEqual([]);
      for (const page of pagesOf([...reads, ...rings])) expect(logged).toContain(page);
      // Besides these only statuses: 64 slots of 64 bytes.
      expect(logged.length).toBeLessThanOrEqual(pagesOf([...reads, ...rings]).length + 2);
    }
    expect([...rig.statuses.values()].every((status) => status === 0)).toBe(true);
  });

  it('marks nothing before and after', async () => {
    const { frontend, memory, rig, data, rings } = await open();
    expect(await rig.run(READ, 0, data, 65536)).toBe(0);
    await frontend.dirtyLog.start();
    expect(await rig.run(READ, 0, data, PAGE)).toBe(0);
    const last = await frontend.dirtyLog.stop();
    expect(last.length).toBeGreaterThan(0);
    expect(await rig.run(READ, 0, data, 65536)).toBe(0);
    // A new log has nothing of what the device did in between; it looks for its ring again, and says there what it wants.
    await frontend.dirtyLog.start();
    const logged = pagesIn(memory, frontend.dirtyLog.take());
    expect(logged.filter((page) => !pagesOf(rings).includes(page))).toEqual([]);
  });
});

describe('memory that is copied while a disk is read', () => {
  it.each([
    ['one queue', {}, []],
    ['packed rings', { packed: true }, []],
    ['two queues on two threads', { queues: 2 }, ['--threads=2']],
  ])('is in the end what it was copied from: %s', async (_, options, extra) => {
    const frontend = await startBlk(extra);
    const driver = await BlkDriver.open(frontend, { ...options, dataBytes: 8 * MiB });
    cleanup.add(() => driver.close());
    const { memory } = driver;
    const buffers = Array.from({ length: 24 }, () => driver.allocateBuffer(256 * 1024));
    const start = buffers[0]?.byteOffset ?? 0;
    const end = start + 24 * 256 * 1024;
    await frontend.dirtyLog.start();
    const copy = memory.bytes.slice();

    let isOver = false;
    let reads = 0;
    const load = buffers.map(async (buffer, i) => {
      for (let round = 0; !isOver; round += 1) {
        const from = ((i * 1_000_003 + round * 65_537) % (DISK_BYTES - 256 * 1024)) & ~511;
        const offset = 512 * ((round * 13) % 64);
        await driver.read(from, buffer.subarray(offset, offset + 4096 * (1 + (round % 48))));
        reads += 1;
      }
    });
    const copyDirty = (ranges: readonly DirtyRange[]): void => {
      for (const { guestAddress, length } of ranges) {
        const at = guestAddress - memory.region.guestAddress;
        copy.set(memory.bytes.subarray(at, at + length), at);
      }
    };
    const deadline = performance.now() + 30_000;
    // As many passes, and as many reads, whichever is slower.
    for (let pass = 0; pass < 200 || reads <= 200; pass += 1) {
      if (performance.now() > deadline) throw new Error(`${reads} reads in ${pass} passes`);
      await new Promise(setImmediate);
      copyDirty(frontend.dirtyLog.take());
    }
    isOver = true;
    await Promise.all(load);
    await frontend.migration.suspend();
    copyDirty(frontend.dirtyLog.take());
    expect(reads).toBeGreaterThan(200);
    expect(changedPages(copy.subarray(start, end), memory.bytes.subarray(start, end))).toEqual([]);
    await frontend.migration.resume();
    await driver.read(0, (buffers[0] as Buffer).subarray(0, 512));
  });
});

it('a socket device marks the pages that it receives into', async () => {
  const daemon = await VsockDaemon.start(cleanup);
  const frontend = await VhostUserFrontend.connect(daemon.socket);
  const driver = await VsockDriver.open(frontend);
  cleanup.add(() => driver.close());
  const { memory } = driver;
  const listener = driver.listen(80);
  const host = await HostStream.dial(cleanup, daemon.uds, 80);
  const socket = await listener.accept();
  await host.readLine();
  await frontend.dirtyLog.start();

  const rings = driver.queues.map(({ vring }) => vring);
  const receive = rings[0] as (typeof rings)[number];
  const usedIndex = () => memory.halfwords[(receive.usedRing - memory.userAddress) / 2 + 1];
  const payload = Buffer.alloc(16 * 1024, 'what comes from the host ');
  const received: Buffer[] = [];
  for (let round = 0; round < 10; round += 1) {
    const before = memory.bytes.slice();
    const index = usedIndex();
    host.write(payload);
    // The driver stands still: what changes now is the device's.
    for (const deadline = performance.now() + 5000; usedIndex() === index; ) {
      if (performance.now() > deadline) throw new Error('nothing was received');
    }
    const after = memory.bytes.slice();
    // What came after this look is in the log of a later one.
    const logged = pagesIn(memory, frontend.dirtyLog.take());
    expect(changedPages(before, after).filter((page) => !logged.includes(page))).toEqual([]);
    const buffer = Buffer.alloc(payload.length);
    for (let got = 0; got < payload.length; ) {
      const length = await socket.read(buffer);
      received.push(Buffer.from(buffer.subarray(0, length)));
      got += length;
    }
    frontend.dirtyLog.take();
  }
  expect(Buffer.concat(received).equals(Buffer.concat(Array(10).fill(payload)))).toBe(true);
});
