/** Guest memory that comes and goes while rings run and requests are in flight in it. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { BlkDriver } from '../../vmm-client/driver/blk-driver.ts';
import { VhostUserFrontend } from '../../vmm-client/frontend/frontend.ts';
import { SharedMemory } from '../../vmm-client/frontend/shared-memory.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { randomImage } from '../support/image.ts';
import { DiskRig, READ } from './disk-rig.ts';

const MiB = 1 << 20;
const DISK_BYTES = 4 * MiB;
const IOERR = 1;
/** Above the drivers' own memory. */
const ADDED_ADDRESS = 0x10_0000_0000;
const cleanup = cleanupAfterEach();

const connect = async (extra: readonly string[] = []) => {
  const image = randomImage(join(cleanup.directory(), 'disk.img'), DISK_BYTES);
  const daemon = await BlkBackend.start(cleanup, { image, extra, numQueues: 2 });
  const frontend = await VhostUserFrontend.connect(daemon.socket);
  cleanup.add(() => frontend.close());
  return { daemon, disk: readFileSync(image), frontend };
};

const createMemory = (bytes: number, guestAddress: number): SharedMemory => {
  const memory = new SharedMemory(bytes, guestAddress);
  cleanup.add(() => memory.close());
  return memory;
};

/** A driver that reads and compares without end, until it is told. */
const openUnderLoad = async (options: object, extra: readonly string[]) => {
  const { daemon, disk, frontend } = await connect(extra);
  const driver = await BlkDriver.open(frontend, { ...options, timeoutMs: 10_000 });
  cleanup.add(() => driver.close());
  let isOver = false;
  let reads = 0;
  const workers = Array.from({ length: 8 }, async (_, worker) => {
    const buffer = driver.allocateBuffer(65_536);
    for (let step = worker; !isOver; step += 8) {
      const offset = (step % 60) * 65_536;
      await driver.read(offset, buffer.fill(0));
      if (!buffer.equals(disk.subarray(offset, offset + 65_536))) throw new Error(`read at ${offset} is wrong`);
      reads += 1;
    }
  });
  const stop = async (): Promise<number> => {
    isOver = true;
    await Promise.all(workers);
    return reads;
  };
  /** Waits until so many reads were right. */
  const untilReads = (count: number): Promise<number> =>
    eventually(
      'reads',
      () => reads,
      (done) => done >= count,
    );
  return { daemon, frontend, driver, stop, untilReads };
};

describe.each([
  ['one split ring', {}, []],
  ['one packed ring', { packed: true }, []],
  ['two rings on two threads', { queues: 2 }, ['--threads=2']],
])('under load, with %s', (_, options, extra) => {
  it('regions are added and removed', async () => {
    const { frontend, daemon, stop, untilReads } = await openUnderLoad(options, extra);
    await untilReads(1);
    const regions = Array.from({ length: 4 }, (_, i) => createMemory(MiB, ADDED_ADDRESS + i * MiB));
    const fds = daemon.fdCount();
    for (let round = 0; round < 20; round += 1) {
      for (const region of regions) await frontend.addMemory(region);
      for (const region of regions) await frontend.removeMemory(region);
      // Also where the load gets less of the processors than the changes.
      await untilReads(round + 2);
    }
    expect(await stop()).toBeGreaterThan(20);
    expect(daemon.fdCount()).toBe(fds);
  });

  it('the table is replaced', async () => {
    const { frontend, driver, stop, untilReads } = await openUnderLoad(options, extra);
    const added = createMemory(MiB, ADDED_ADDRESS);
    for (let round = 0; round < 40; round += 1) {
      await frontend.setMemory(round % 2 === 0 ? [added, driver.memory] : [driver.memory]);
      await untilReads(round + 1);
    }
    expect(await stop()).toBeGreaterThan(40);
  });
});

it('requests in flight to a region are done before its removal is answered', async () => {
  const { frontend, disk } = await connect();
  const memory = createMemory(4 * MiB, 0x1_0000_0000);
  const rig = await DiskRig.open(frontend, memory);
  await frontend.setMemory([memory]);
  await rig.start();
  for (let round = 0; round < 50; round += 1) {
    const added = createMemory(MiB, ADDED_ADDRESS);
    await frontend.addMemory(added);
    const distance = added.guestAddress - memory.guestAddress;
    const tokens = [0, 1, 2, 3].map((i) => rig.stage(READ, i * 65_536, distance + i * 65_536, 65_536));
    rig.queue.flush();
    await frontend.removeMemory(added);
    const before = added.bytes.slice();
    await rig.finishAsync();
    // Each was done or never began; nothing came after the answer.
    expect(Buffer.compare(added.bytes, before)).toBe(0);
    for (const [i, token] of tokens.entries()) {
      const status = rig.statuses.get(token);
      expect([0, IOERR]).toContain(status);
      if (status !== 0) continue;
      const part = Buffer.from(added.bytes.buffer as ArrayBuffer, i * 65_536, 65_536);
      expect(part.equals(disk.subarray(i * 65_536, (i + 1) * 65_536))).toBe(true);
    }
    added.close();
  }
  expect(await rig.run(READ, 0, ADDED_ADDRESS - memory.guestAddress, 4096)).toBe(IOERR);
  expect(await rig.run(READ, 0, memory.allocate(4096, 4096), 4096)).toBe(0);
});

it('as many regions as there are slots are all reached', async () => {
  const { frontend, disk } = await connect();
  const slots = frontend.capabilities.maxMemorySlots;
  expect(slots).toBeGreaterThanOrEqual(64);
  const memory = createMemory(MiB, 0x1_0000_0000);
  const rig = await DiskRig.open(frontend, memory);
  const regions = Array.from({ length: slots - 1 }, (_, i) => createMemory(4096, ADDED_ADDRESS + i * 8192));
  await frontend.setMemory([memory, ...regions]);
  await rig.start();
  await expect(frontend.addMemory(createMemory(4096, 2 * ADDED_ADDRESS))).rejects.toThrow(
    `the back end has ${slots} slots`,
  );
  for (const [i, region] of regions.entries()) {
    const distance = region.guestAddress - memory.guestAddress;
    expect(await rig.run(READ, (i % 1000) * 4096, distance, 4096)).toBe(0);
    expect(Buffer.from(region.bytes).equals(disk.subarray((i % 1000) * 4096, (i % 1000) * 4096 + 4096))).toBe(true);
  }
});
