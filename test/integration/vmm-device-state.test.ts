/**
 * A virtio-mmio disk that is suspended under load and goes on: with the same daemon, or with another one, for a guest in
 * other memory, as after a migration. The daemons die at the worst moments.
 */

import { readFileSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { DeviceDescription } from '../../vmm-client/vmm/devices/open.ts';
import { VmError } from '../../vmm-client/vmm/errors.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { doRequest, prepareRequest, type RequestArea, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { takeEvent } from '../support/frontend/descriptors.ts';
import type { MmioGuest } from '../support/frontend/mmio-guest.ts';
import { countOwnFds, eventually } from '../support/frontend/process-probe.ts';
import { createImage, randomImage } from '../support/image.ts';
import { checkedDisk } from '../unit/vmm-client/vmm/devices/checked.ts';
import { DeviceRig } from './device-rig.ts';

const IMAGE_BYTES = 4 << 20;
const BLOCK = 4096;
const PAGE = 4096;
/** FLUSH and EVENT_IDX; CONFIG_WCE. */
const FEATURES = (1n << 29n) | (1n << 9n);
const CONFIG_WCE = 1n << 11n;

const cleanup = cleanupAfterEach();

const diskAt = ({ socket }: BlkBackend, queueSize = 64): DeviceDescription => ({
  kind: 'disk',
  config: checkedDisk({ id: '_disk0', vhost_socket: socket, queue_size: queueSize }),
});

const pattern = (seed: number): Uint8Array => Uint8Array.from({ length: BLOCK }, (_, i) => (i * 7 + seed * 13) & 0xff);

/** Two daemons for one disk. The second one waits for a guest. */
const startPair = async (extra: readonly string[] = []) => {
  const image = randomImage(join(cleanup.directory(), 'disk.img'), IMAGE_BYTES);
  const first = await BlkBackend.start(cleanup, { image, extra });
  const second = await BlkBackend.start(cleanup, { image, extra: [...extra, '--incoming'] });
  return { image, first, second };
};

/** Makes `count` writes of one block each available, with a kick. Where they are, by head. */
const writeMany = (guest: MmioGuest, seed: number, count = 16, firstSlot = 0): RequestArea[] => {
  const slots = Array.from({ length: count }, (_, i) => firstSlot + i);
  const areas = slots.map((slot) =>
    prepareRequest(guest, { type: TYPE.OUT, sector: 8 * slot, out: pattern(seed + slot) }, 3 * slot, slot),
  );
  guest.ring().publish(...slots.map((slot) => 3 * slot));
  guest.ring().signal();
  return areas;
};

const read = async (guest: MmioGuest, block: number): Promise<Uint8Array> => {
  const { status, data } = await doRequest(guest, { type: TYPE.IN, sector: 8 * block, inBytes: BLOCK });
  expect(status).toBe(STATUS.OK);
  return data;
};

const expectBlock = async (guest: MmioGuest, block: number, seed: number): Promise<void> => {
  expect(Buffer.compare(await read(guest, block), pattern(seed))).toBe(0);
};

describe('a disk that is suspended', () => {
  it('goes on with the same daemon, 50 times under load, and uses nothing up', async () => {
    const { first } = await startPair();
    const { guest, transport, lines } = await DeviceRig.plug(cleanup, diskAt(first), { ramBytes: 8 << 20 });
    expect(await guest.start(FEATURES)).toBe(15);
    const before = countOwnFds();
    for (let round = 0; round < 50; round += 1) {
      writeMany(guest, round, 8);
      await transport.suspend();
      const used = guest.ring().usedIndex;
      // What is made available now is nobody's until the device goes on.
      writeMany(guest, round, 8, 8);
      for (let turn = 0; turn < 3; turn += 1) await new Promise(setImmediate);
      expect(guest.ring().usedIndex).toBe(used);
      expect(takeEvent(guest.ring().kick)).toBeGreaterThan(0n);
      await transport.resume();
      const ids = (await guest.ring().take(16)).map(({ id }) => id);
      expect(new Set(ids).size).toBe(16);
      await expectBlock(guest, round % 16, round + (round % 16));
    }
    expect(countOwnFds()).toBe(before);
    expect(lines).toEqual([]);
  });

  it('goes on with another daemon for a guest in other memory, which has what the dirty log said', async () => {
    const { image, first, second } = await startPair();
    const daemons = [first, second] as const;
    let rig = await DeviceRig.plug(cleanup, diskAt(first), { ramBytes: 8 << 20 });
    expect(await rig.guest.start(FEATURES)).toBe(15);
    const before = countOwnFds();
    for (let round = 0; round < 6; round += 1) {
      const { guest, transport } = rig;
      await transport.startDirtyLog();
      const next = await rig.elsewhere(diskAt(daemons[(round + 1) % 2] as BlkBackend));
      // From here on: what the driver writes is copied at the end, what the device writes as the log says.
      const areas = Array.from({ length: 8 }, (_, slot) =>
        prepareRequest(guest, { type: TYPE.IN, sector: 8 * (100 + slot), inBytes: BLOCK }, 3 * slot, slot),
      );
      guest.ring().publish(...areas.map((_, slot) => 3 * slot));
      guest.ring().signal();
      await guest.ring().take(4);
      const state = await rig.suspend();
      const dirty = transport.takeDirty();
      const writes = writeMany(guest, 1000 * round, 8, 8);
      copy(guest, next.guest, [
        ...dirty.map(({ guestAddress, length }) => [guestAddress - guest.ram.guestAddress, length] as const),
        [guest.ring().table, guest.ring().used - guest.ring().table],
        ...[...areas, ...writes].map(({ header }) => [header, 0xff0] as const),
        ...writes.map(({ data }) => [data, BLOCK] as const),
      ]);
      next.guest.ring().seen = guest.ring().seen;
      rig.close();
      await next.transport.restore(state);
      rig = next;
      expect(rig.driver.status).toBe(15);
      expect(new Set((await rig.guest.ring().take(12)).map(({ id }) => id)).size).toBe(12);
      const disk = readFileSync(image);
      for (const [slot, { data }] of areas.entries()) {
        const sector = disk.subarray((100 + slot) * BLOCK, (101 + slot) * BLOCK);
        expect(Buffer.compare(rig.guest.ram.bytes.subarray(data, data + BLOCK), sector)).toBe(0);
      }
      await expectBlock(rig.guest, 12, 1000 * round + 12);
      expect(countOwnFds()).toBe(before);
    }
    expect(second.log()).toContain('unlocked, its guest migrates');
    await rig.driver.reset();
    expect(await rig.guest.start()).toBe(15);
    await expectBlock(rig.guest, 12, 5012);
  });

  it.each([
    ['before', true],
    ['after', false],
  ])('goes on where it was when it cannot go elsewhere, its log ended %s that', async (_, isBefore) => {
    const { first } = await startPair();
    const { guest, transport, lines } = await DeviceRig.plug(cleanup, diskAt(first), { ramBytes: 8 << 20 });
    await guest.start(FEATURES);
    for (let round = 0; round < 5; round += 1) {
      await transport.startDirtyLog();
      writeMany(guest, round);
      await transport.suspend();
      expect(transport.takeDirty().length).toBeGreaterThan(0);
      if (isBefore) await transport.stopDirtyLog();
      await transport.resume();
      if (!isBefore) await transport.stopDirtyLog();
      expect((await guest.ring().take(16)).length).toBe(16);
      await expectBlock(guest, 4, round + 4);
      expect(transport.takeDirty()).toEqual([]);
    }
    expect(lines).toEqual([]);
  });

  it('goes on elsewhere at any stage before it was used', async () => {
    const { first, second } = await startPair();
    const stages: ((rig: DeviceRig) => Promise<unknown>)[] = [
      async () => undefined,
      ({ driver }) => driver.write(0x70, 3),
      ({ driver }) => driver.negotiate(FEATURES),
      async ({ driver, guest }) => {
        const { ram } = guest;
        const { index, size, table, avail, used } = guest.ring();
        const [at, from, to] = [ram.guest(table), ram.guest(avail), ram.guest(used)];
        await driver.setUpQueue({ index, size, table: at, avail: from, used: to });
      },
    ];
    for (let stage = 1; stage <= stages.length; stage += 1) {
      const rig = await DeviceRig.plug(cleanup, diskAt(first));
      for (const step of stages.slice(0, stage)) await step(rig);
      await rig.transport.startDirtyLog();
      expect(rig.transport.takeDirty()).toEqual([]);
      const state = await rig.suspend();
      await rig.transport.stopDirtyLog();
      // The same daemon: one that nobody used keeps its disk.
      const next = await rig.elsewhere(diskAt(first));
      rig.close();
      await next.transport.restore(state);
      for (const step of stages.slice(stage)) await step(next);
      expect(await next.driver.start()).toBe(15);
      expect((await read(next.guest, 3)).length).toBe(BLOCK);
      next.close();
    }
    expect(second.running).toBe(true);
  });

  it('keeps the cache mode that its driver chose', async () => {
    const { first, second } = await startPair();
    const rig = await DeviceRig.plug(cleanup, diskAt(first));
    expect(await rig.guest.start(FEATURES | CONFIG_WCE)).toBe(15);
    await rig.driver.write(0x120, 0, 1);
    expect(rig.driver.config(32, 1)[0]).toBe(0);
    await rig.transport.startDirtyLog();
    const state = await rig.suspend();
    const next = await rig.elsewhere(diskAt(second));
    expect(next.driver.config(32, 1)[0]).toBe(1);
    const generation = rig.driver.generation;
    rig.close();
    await next.transport.restore(state);
    expect(next.driver.config(32, 1)[0]).toBe(0);
    // Nothing changed for the driver.
    expect([next.driver.generation, next.driver.interruptStatus]).toEqual([generation, 1]);
    await read(next.guest, 0);
  });

  it('that grew meanwhile says so, and one that shrank is not taken', async () => {
    const { image, first, second } = await startPair();
    const rig = await DeviceRig.plug(cleanup, diskAt(first));
    await rig.guest.start();
    await rig.transport.startDirtyLog();
    const state = await rig.suspend();
    truncateSync(image, IMAGE_BYTES / 2);
    const smaller = await BlkBackend.start(cleanup, { image, extra: ['--incoming'] });
    const refused = await rig.elsewhere(diskAt(smaller));
    await expect(refused.transport.restore(state)).rejects.toThrow(
      'disk _disk0: it cannot go on here: capacity was 8192, the back end here has 4096',
    );
    refused.close();
    truncateSync(image, 2 * IMAGE_BYTES);
    second.signal('SIGHUP');
    const next = await rig.elsewhere(diskAt(second));
    await next.transport.restore(state);
    expect(next.driver.interruptStatus).toBe(3);
    expect(new DataView(next.driver.config(0, 8).buffer).getUint32(0, true)).toBe(16_384);
    await read(next.guest, 0);
  });

  it('is refused by what is another device, and leaves the daemon as it was', async () => {
    const { first } = await startPair();
    const rig = await DeviceRig.plug(cleanup, diskAt(first));
    await rig.guest.start();
    const state = await rig.suspend();
    const shorter = await rig.elsewhere(diskAt(first, 32));
    await expect(shorter.transport.restore(state)).rejects.toThrow('it had up to 64 entries, it has up to 32 here');
    shorter.close();
    const other = createImage(join(cleanup.directory(), 'other.img'), IMAGE_BYTES);
    const readOnly = await BlkBackend.start(cleanup, { image: other, readOnly: true });
    const writeless = await rig.elsewhere(diskAt(readOnly));
    await expect(writeless.transport.restore(state)).rejects.toThrow('the back end here serves it read-only');
    writeless.close();
    await rig.transport.resume();
    await read(rig.guest, 0);
  });
});

const copy = (from: MmioGuest, to: MmioGuest, ranges: readonly (readonly [number, number])[]): void => {
  for (const [at, length] of ranges) to.ram.bytes.set(from.ram.bytes.subarray(at, at + length), at);
};

describe('a daemon that dies', () => {
  it('while its device is suspended is followed by one that goes on', async () => {
    const { first } = await startPair();
    const { guest, transport } = await DeviceRig.plug(cleanup, diskAt(first), { ramBytes: 8 << 20 });
    await guest.start();
    await transport.startDirtyLog();
    for (let round = 0; round < 3; round += 1) {
      writeMany(guest, round);
      await transport.suspend();
      transport.takeDirty();
      await first.kill9();
      await first.restart();
      await eventually(
        'reconnects',
        () => transport.counters().reconnects,
        (count) => count === round + 1,
      );
      // It wrote nothing after it was asked to stop.
      expect(transport.takeDirty()).toEqual([]);
      await transport.resume();
      expect((await guest.ring().take(16)).length).toBe(16);
      await expectBlock(guest, 3, round + 3);
      expect(transport.takeDirty().length).toBeGreaterThan(0);
    }
  });

  it('before or while its device is suspended: it is suspended when another one is there', async () => {
    const { first } = await startPair();
    const { guest, transport } = await DeviceRig.plug(cleanup, diskAt(first), { ramBytes: 8 << 20 });
    await guest.start();
    for (let round = 0; round < 6; round += 1) {
      writeMany(guest, round);
      const suspended = round % 2 === 0 ? transport.suspend() : undefined;
      await first.kill9();
      const state = suspended ?? transport.suspend();
      await first.restart();
      await state;
      await transport.resume();
      expect((await guest.ring().take(16)).length).toBe(16);
      await expectBlock(guest, 5, round + 5);
    }
    expect(guest.driver.status).toBe(15);
  });

  it('while another one is to go on: it is done again with the next', async () => {
    const { first, second } = await startPair();
    let rig = await DeviceRig.plug(cleanup, diskAt(first), { ramBytes: 8 << 20 });
    await rig.guest.start();
    const daemons = [first, second] as const;
    for (let round = 0; round < 4; round += 1) {
      const there = daemons[(round + 1) % 2] as BlkBackend;
      await rig.transport.startDirtyLog();
      const state = await rig.suspend();
      writeMany(rig.guest, round);
      const next = await rig.elsewhere(diskAt(there));
      rig.close();
      const restored = next.transport.restore(state);
      await there.kill9();
      await there.restart();
      await restored;
      rig = next;
      expect((await rig.guest.ring().take(16)).length).toBe(16);
      await expectBlock(rig.guest, 7, round + 7);
    }
  });

  it('while its writes are noted: all memory counts as written, and the next one notes too', async () => {
    const { first } = await startPair();
    const { guest, transport } = await DeviceRig.plug(cleanup, diskAt(first), { ramBytes: 8 << 20 });
    await guest.start();
    await transport.startDirtyLog();
    transport.takeDirty();
    await first.kill9();
    await first.restart();
    await eventually(
      'reconnects',
      () => transport.counters().reconnects,
      (count) => count === 1,
    );
    expect(transport.takeDirty()).toEqual([{ guestAddress: guest.ram.guestAddress, length: 8 << 20 }]);
    await read(guest, 0);
    const pages = transport.takeDirty().reduce((sum, { length }) => sum + length / PAGE, 0);
    // The block, the status byte, the used ring; at most a page more for each that is not aligned.
    expect(pages).toBeGreaterThanOrEqual(3);
    expect(pages).toBeLessThanOrEqual(5);
    await transport.stopDirtyLog();
    expect(transport.takeDirty()).toEqual([]);
  });

  it('and does not come back: the device needs a reset, there and elsewhere', async () => {
    const { first, second } = await startPair();
    const rig = await DeviceRig.plug(cleanup, diskAt(first), {}, { reconnectMs: 200, awayMs: 100 });
    await rig.guest.start();
    await first.kill9();
    await eventually(
      'status',
      () => rig.driver.status,
      (status) => status === (15 | 64),
    );
    const state = await rig.suspend();
    await expect(rig.transport.startDirtyLog()).rejects.toThrow(/disk _disk0: its dirty log cannot be had: .*is lost/);
    await rig.transport.stopDirtyLog();
    const next = await rig.elsewhere(diskAt(second));
    await next.transport.restore(state);
    expect(next.driver.status).toBe(15 | 64);
    await next.driver.reset();
    expect(await next.guest.start()).toBe(15);
    await read(next.guest, 1);
  });

  it('and is away for too long: the device is not suspended, and goes on when it is back', async () => {
    const { first } = await startPair();
    const rig = await DeviceRig.plug(cleanup, diskAt(first), {}, { awayMs: 300 });
    await rig.guest.start();
    await first.kill9();
    const failure = await rig.transport.suspend().catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(VmError);
    expect((failure as Error).message).toBe('disk _disk0: it cannot be suspended: the back end is away');
    await first.restart();
    await read(rig.guest, 1);
  });
});

describe('states of a disk that cannot be', () => {
  it('are refused or taken, and the daemon runs on', async () => {
    const image = createImage(join(cleanup.directory(), 'disk.img'), IMAGE_BYTES);
    const daemon = await BlkBackend.start(cleanup, { image });
    const rig = await DeviceRig.plug(cleanup, diskAt(daemon));
    await rig.guest.start();
    for (let i = 0; i < 20; i += 1) await read(rig.guest, i);
    const state = (await rig.suspend()) as { device: Record<string, unknown> };
    rig.close();
    const { device } = state;
    const inflight = device.inflight as { numQueues: number; queueSize: number; bytes: Uint8Array };
    const bytesOf = (length: number, fill: number) => new Uint8Array(length).fill(fill);
    const changes: [Record<string, unknown>, 'taken' | string][] = [
      [{ rings: [{ index: 0, base: 0x1_0000 }] }, 'ring 0 stands at 65536, a split ring ends at 65535'],
      [{ rings: [{ index: 1, base: 0 }] }, 'its state has a ring 1'],
      [{ rings: [] }, 'its state has 0 rings, its driver 1'],
      [{ rings: [...[0, 0].map((index) => ({ index, base: 0 }))] }, 'a ring is there twice'],
      [{ phase: 'idle' }, 'its driver is ready, the device is idle'],
      [{ phase: 'asleep' }, 'no such phase: asleep'],
      [{ backend: bytesOf(8, 1) }, 'cannot take 8 bytes of device state'],
      [{ config: bytesOf(300, 1) }, 'config: 300 bytes, at most 256 are possible'],
      [{ inflight: { ...inflight, bytes: new Uint8Array() } }, 'bytes: none at all'],
      [{ inflight: { ...inflight, queueSize: 0 } }, 'queueSize: 0'],
      [{ inflight: { ...inflight, bytes: bytesOf(inflight.bytes.length, 0xff) } }, 'taken'],
      [{ inflight: undefined }, 'taken'],
      [{}, 'taken'],
    ];
    for (const [change, outcome] of changes) {
      const next = await rig.elsewhere(diskAt(daemon), { awayMs: 1000 });
      const failure = await next.transport.restore({ ...state, device: { ...device, ...change } }).then(
        () => undefined,
        (error: unknown) => error,
      );
      if (outcome === 'taken') {
        // Nonsense in the region may break the ring, which the driver is told.
        if (failure === undefined) await next.driver.reset();
      } else {
        expect(failure).toBeInstanceOf(VmError);
        expect((failure as Error).message).toContain(outcome);
      }
      next.close();
      expect(daemon.running).toBe(true);
    }
    const last = await DeviceRig.plug(cleanup, diskAt(daemon));
    expect(await last.guest.start()).toBe(15);
    await read(last.guest, 0);
  });
});
