/** A virtio-mmio disk whose driver uses packed rings: over resets, the death of its daemon, and a move to another one. */

import { join } from 'node:path';
import { expect, it } from 'vitest';
import type { DeviceDescription } from '../../vmm-client/vmm/devices/open.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { prepareRequest, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import type { MmioGuest } from '../support/frontend/mmio-guest.ts';
import { countOwnFds, eventually } from '../support/frontend/process-probe.ts';
import { createImage } from '../support/image.ts';
import { checkedDisk } from '../unit/vmm-client/vmm/devices/checked.ts';
import { DeviceRig } from './device-rig.ts';

const IMAGE_BYTES = 4 << 20;
const BLOCK = 4096;
/** RING_PACKED. */
const PACKED = 1n << 34n;
const PACKED_OPTIONS = { packed: true, ramBytes: 8 << 20 } as const;

const cleanup = cleanupAfterEach();

const diskAt = ({ socket }: BlkBackend, packed = true): DeviceDescription => ({
  kind: 'disk',
  config: checkedDisk({ id: '_disk0', vhost_socket: socket, queue_size: 64, packed }),
});

const setUp = async () => {
  const image = createImage(join(cleanup.directory(), 'disk.img'), IMAGE_BYTES);
  const daemon = await BlkBackend.start(cleanup, { image });
  const rig = await DeviceRig.plug(cleanup, diskAt(daemon), PACKED_OPTIONS);
  return { image, daemon, rig };
};

const pattern = (seed: number): Uint8Array => Uint8Array.from({ length: BLOCK }, (_, i) => (i * 7 + seed * 13) & 0xff);

/** Makes `count` writes of one block each available, with a kick. */
const writeMany = (guest: MmioGuest, seed: number, count = 16, first = 0): void => {
  const slots = Array.from({ length: count }, (_, i) => first + i);
  for (const slot of slots) {
    prepareRequest(guest, { type: TYPE.OUT, sector: 8 * slot, out: pattern(seed + slot) }, 3 * slot, slot);
  }
  guest.queue().publish(...slots.map((slot) => 3 * slot));
  guest.queue().signal();
};

const finish = async (guest: MmioGuest, count: number): Promise<void> => {
  const used = await guest.queue().take(count, 20_000);
  expect(new Set(used.map(({ id }) => id)).size).toBe(count);
};

const expectBlock = async (guest: MmioGuest, block: number, seed: number): Promise<void> => {
  const area = prepareRequest(guest, { type: TYPE.IN, sector: 8 * block, inBytes: BLOCK });
  await guest.queue().run(0);
  expect(area.statusByte).toBe(STATUS.OK);
  expect(Buffer.compare(guest.ram.bytes.subarray(area.data, area.data + BLOCK), pattern(seed))).toBe(0);
};

it('offers packed rings only where it is told to, and serves a driver of either kind', async () => {
  const { rig, daemon } = await setUp();
  expect((await rig.driver.offered()) & PACKED).toBe(PACKED);
  expect(await rig.guest.start(PACKED)).toBe(15);
  // More than once around the ring.
  for (let round = 0; round < 12; round += 1) {
    writeMany(rig.guest, round);
    await finish(rig.guest, 16);
    await expectBlock(rig.guest, round, 2 * round);
  }
  await rig.driver.reset();
  expect(await rig.guest.start(PACKED)).toBe(15);
  await expectBlock(rig.guest, 3, 14);
  rig.close();
  const split = await DeviceRig.plug(cleanup, diskAt(daemon));
  expect(await split.guest.start()).toBe(15);
  await expectBlock(split.guest, 3, 14);
  split.close();
  const plain = await DeviceRig.plug(cleanup, diskAt(daemon, false));
  expect((await plain.driver.offered()) & PACKED).toBe(0n);
});

it('has rings of any size, and event suppression at a multiple of 4', async () => {
  const { rig } = await setUp();
  const { guest, driver } = rig;
  await driver.negotiate(PACKED);
  const { descriptor } = guest.queue().addresses();
  const table = guest.ram.guest(descriptor - guest.ram.userAddress);
  await driver.setUpQueue({ index: 0, size: 7, table, avail: table + 7 * 16, used: table + 7 * 16 + 4 });
  expect(await driver.start()).toBe(15);
  await driver.reset();
  await driver.negotiate(PACKED);
  await driver.setUpQueue({ index: 0, size: 64, table, avail: table + 1026, used: table + 1032 });
  expect(await driver.start()).toBe(15 | 64);
  expect(rig.lines.join()).toMatch(/queue 0: driver event suppression at 0x[0-9a-f]+, a multiple of 4 is needed/);
});

it('goes on when its daemon is killed with requests in flight', async () => {
  const { rig, daemon } = await setUp();
  expect(await rig.guest.start(PACKED)).toBe(15);
  for (let round = 0; round < 8; round += 1) {
    writeMany(rig.guest, round);
    await daemon.kill9();
    await daemon.restart();
    await finish(rig.guest, 16);
    await eventually(
      'reconnects',
      () => rig.transport.counters().reconnects,
      (count) => count === round + 1,
    );
    await expectBlock(rig.guest, 5, round + 5);
  }
  expect(rig.driver.status).toBe(15);
});

it('is suspended and goes on 50 times, also when its daemon was killed in between', async () => {
  const { rig, daemon } = await setUp();
  await rig.guest.start(PACKED);
  const before = countOwnFds();
  let kills = 0;
  for (let round = 0; round < 50; round += 1) {
    writeMany(rig.guest, round, 8);
    await rig.transport.suspend();
    writeMany(rig.guest, round, 8, 8);
    if (round % 10 === 9) {
      await daemon.kill9();
      await daemon.restart();
      kills += 1;
      await eventually(
        'reconnects',
        () => rig.transport.counters().reconnects,
        (count) => count === kills,
      );
    }
    await rig.transport.resume();
    if (round % 10 === 4) {
      // Before anything was done after the stop.
      await daemon.kill9();
      await daemon.restart();
      kills += 1;
    }
    await finish(rig.guest, 16);
    await expectBlock(rig.guest, round % 16, round + (round % 16));
  }
  expect(countOwnFds()).toBe(before);
});

it('goes on with another daemon, where its rings stood', async () => {
  const { rig, daemon, image } = await setUp();
  const second = await BlkBackend.start(cleanup, { image, extra: ['--incoming'] });
  await rig.guest.start(PACKED);
  const daemons = [daemon, second] as const;
  let current = rig;
  for (let round = 0; round < 6; round += 1) {
    writeMany(rig.guest, round, 8);
    await current.transport.startDirtyLog();
    const state = await current.suspend();
    writeMany(rig.guest, round, 8, 8);
    current.transport.close();
    const there = daemons[(round + 1) % 2] as BlkBackend;
    current = await DeviceRig.plug(cleanup, diskAt(there), rig.guest);
    await current.transport.restore(state);
    await finish(rig.guest, 16);
    await expectBlock(rig.guest, 9, round + 9);
    if (round === 3) {
      await there.kill9();
      await there.restart();
      await expectBlock(rig.guest, 10, round + 10);
    }
  }
  expect(rig.driver.status).toBe(15);
});
