/**
 * A virtio-mmio disk in front of a daemon, driven as a guest drives it: registers and a ring in its memory. The daemon is
 * killed, comes back, is reset and resized; the guest sees a disk.
 */

import { truncateSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { openDisk } from '../../vmm-client/vmm/devices/blk.ts';
import { VirtioMmioTransport } from '../../vmm-client/vmm/virtio-mmio/transport.ts';
import { BlkBackend, type BlkBackendOptions, backendKind } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { doRequest, prepareRequest, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { takeEvent, waitReadable } from '../support/frontend/descriptors.ts';
import { MmioGuest } from '../support/frontend/mmio-guest.ts';
import { countOwnFds, eventually } from '../support/frontend/process-probe.ts';
import { createImage } from '../support/image.ts';
import { checkedDisk } from '../unit/vmm-client/vmm/devices/checked.ts';

const IMAGE_BYTES = 4 << 20;
const cleanup = cleanupAfterEach();

const pattern = (bytes: number, seed: number): Uint8Array =>
  Uint8Array.from({ length: bytes }, (_, i) => (i * 7 + seed * 13 + (i >> 8)) & 0xff);

const plug = async (backendOptions: Partial<BlkBackendOptions> = {}, reconnectMs = 20_000) => {
  const image = createImage(join(cleanup.directory(), 'disk.img'), IMAGE_BYTES);
  const backend = await BlkBackend.start(cleanup, { ...backendOptions, image });
  const guest = new MmioGuest();
  cleanup.add(() => guest.close());
  const lines: string[] = [];
  const log = (line: string) => void lines.push(line);
  const device = await openDisk(checkedDisk({ id: '_disk0', vhost_socket: backend.socket, queue_size: 64 }), {
    ram: guest.deviceMemory,
    log,
    reconnectMs,
    waitMs: 1000,
    awayMs: 5_000,
  });
  const transport = new VirtioMmioTransport(device, { ...guest.wiring, log });
  cleanup.add(() => transport.close());
  guest.plug(transport);
  return { backend, image, guest, driver: guest.driver, transport, lines };
};

const write = async (guest: MmioGuest, sector: number, data: Uint8Array): Promise<void> => {
  const { status } = await doRequest(guest, { type: TYPE.OUT, sector, out: data });
  expect(status).toBe(STATUS.OK);
};

const read = async (guest: MmioGuest, sector: number, bytes: number): Promise<Uint8Array> => {
  const { status, data } = await doRequest(guest, { type: TYPE.IN, sector, inBytes: bytes });
  expect(status).toBe(STATUS.OK);
  return data;
};

const capacity = (guest: MmioGuest): number =>
  Number(new DataView(guest.driver.config(0, 8).buffer).getBigUint64(0, true)) * 512;

/** Resolves at an interrupt for which InterruptStatus has a changed configuration as cause. */
const configInterrupt = async (guest: MmioGuest): Promise<void> => {
  const { call } = guest.ring();
  do {
    await waitReadable(call, 5_000, 'interrupt');
    takeEvent(call);
  } while ((guest.driver.interruptStatus & 2) === 0);
};

describe('a disk', () => {
  it('is found, negotiated, written and read', async () => {
    const { guest, driver, transport, lines } = await plug();
    expect([driver.read(0), driver.read(4), driver.read(8)]).toEqual([0x74726976, 2, 2]);
    expect(capacity(guest)).toBe(IMAGE_BYTES);
    const offered = await driver.offered();
    // VERSION_1 is, LOG_ALL and PROTOCOL_FEATURES are not the guest's.
    expect(offered & ((1n << 32n) | (1n << 26n) | (1n << 30n))).toBe(1n << 32n);
    // EVENT_IDX and FLUSH.
    expect(await guest.start((1n << 29n) | (1n << 9n))).toBe(15);
    await write(guest, 8, pattern(8192, 1));
    expect(Buffer.compare(await read(guest, 8, 8192), pattern(8192, 1))).toBe(0);
    expect(transport.counters()).toMatchObject({ notify_exits: 0, activations: 1, reconnects: 0 });
    expect(lines).toEqual([]);
  });

  it('is reset, leaves memory alone, and is used again', async () => {
    const { guest, driver } = await plug();
    await guest.start();
    await write(guest, 0, pattern(512, 2));
    for (let round = 0; round < 3; round += 1) {
      const areas = Array.from({ length: 8 }, (_, i) =>
        prepareRequest(guest, { type: TYPE.IN, sector: i, inBytes: 4096 }, 3 * i, i),
      );
      guest.ring().publish(...areas.map((_, i) => 3 * i));
      guest.ring().signal();
      await driver.reset();
      expect(driver.status).toBe(0);
      const before = Buffer.from(guest.ram.bytes.subarray(guest.dataStart));
      expect(await guest.start()).toBe(15);
      expect(Buffer.compare(guest.ram.bytes.subarray(guest.dataStart), before)).toBe(0);
      expect(Buffer.compare(await read(guest, 0, 512), pattern(512, 2))).toBe(0);
      await driver.reset();
      await guest.start();
    }
  });

  it('goes on when the daemon is killed with requests in flight and started again', async () => {
    const { guest, backend, transport, lines } = await plug();
    await guest.start();
    let sent = 0;
    for (let round = 0; round < 4; round += 1) {
      const areas = Array.from({ length: 16 }, (_, i) => {
        sent += 1;
        return prepareRequest(guest, { type: TYPE.OUT, sector: 8 * i, out: pattern(4096, sent) }, 3 * i, i);
      });
      guest.ring().publish(...areas.map((_, i) => 3 * i));
      guest.ring().signal();
      await backend.kill9();
      await backend.restart();
      const used = await guest.ring().take(16, 20_000);
      expect(new Set(used.map(({ id }) => id)).size).toBe(16);
      expect(areas.map((area) => area.statusByte)).toEqual(areas.map(() => STATUS.OK));
      await eventually(
        'reconnects',
        () => transport.counters().reconnects,
        (count) => count === round + 1,
      );
      for (let i = 0; i < 16; i += 1) {
        expect(Buffer.compare(await read(guest, 8 * i, 4096), pattern(4096, sent - 15 + i))).toBe(0);
      }
    }
    expect(guest.driver.status).toBe(15);
    expect(lines.filter((line) => line.endsWith('the back end is back')).length).toBe(4);
  });

  it('is reset while the daemon is away, and used when it is back', async () => {
    const { guest, driver, backend } = await plug();
    await guest.start();
    await backend.kill9();
    const reset = driver.reset();
    await backend.restart();
    await reset;
    expect(driver.status).toBe(0);
    expect(await guest.start()).toBe(15);
    await write(guest, 0, pattern(512, 3));
  });

  it('needs a reset when the daemon does not come back, and survives it', async () => {
    const { guest, driver, backend, lines } = await plug({}, 200);
    await guest.start();
    await backend.kill9();
    await configInterrupt(guest);
    expect(driver.status).toBe(15 | 64);
    expect(lines.filter((line) => line.includes('lost')).length).toBe(1);
    await driver.reset();
    expect(driver.status).toBe(0);
    expect(await guest.start()).toBe(15 | 64);
  });

  it('needs a reset when its queue is not in memory', async () => {
    const { guest, driver, lines } = await plug();
    await driver.negotiate();
    const { ram } = guest;
    await driver.setUpQueue({ index: 0, size: 64, table: ram.guest(0), avail: ram.guest(4096), used: 0x3000 });
    expect(await driver.start()).toBe(15 | 64);
    expect(lines.join()).toMatch(/queue 0: used ring \(518 bytes at 0x3000\) is not in RAM/);
    await driver.reset();
    expect(await guest.start()).toBe(15);
    await write(guest, 0, pattern(512, 4));
  });

  // The peer does not report it.
  it.skipIf(backendKind === 'qsd')('needs a reset when its ring is broken', async () => {
    const { guest, driver } = await plug();
    await guest.start();
    guest.ring().setAvailEntry(0, 999);
    guest.ring().setAvailIndex(1);
    guest.ring().signal();
    await eventually(
      'status',
      () => driver.status,
      (status) => status === (15 | 64),
    );
    await driver.reset();
    expect(await guest.start()).toBe(15);
    await write(guest, 0, pattern(512, 5));
  });

  it.skipIf(backendKind === 'qsd')('tells the guest of a new size', async () => {
    const { guest, driver, backend, image } = await plug();
    await guest.start();
    const generation = driver.generation;
    truncateSync(image, 2 * IMAGE_BYTES);
    backend.signal('SIGHUP');
    await configInterrupt(guest);
    expect(driver.generation).not.toBe(generation);
    expect(capacity(guest)).toBe(2 * IMAGE_BYTES);
    await driver.write(0x64, 2);
    expect(driver.interruptStatus).toBe(1);
    await write(guest, IMAGE_BYTES / 512, pattern(512, 6));
  });

  it('has its cache mode written by a driver that accepted CONFIG_WCE, and only then', async () => {
    const { guest, driver } = await plug();
    const offered = await driver.offered();
    expect(offered & (1n << 11n)).toBe(1n << 11n);
    await guest.start((1n << 11n) | (1n << 9n));
    const first = driver.config(32, 1)[0] ?? 0;
    await driver.write(0x120, 1 - first, 1);
    expect(driver.config(32, 1)[0]).toBe(1 - first);
    await driver.write(0x100, 0, 4);
    expect(capacity(guest)).toBe(IMAGE_BYTES);
    await driver.reset();
    await guest.start();
    const before = driver.config(32, 1)[0] ?? 0;
    await driver.write(0x120, 1 - before, 1);
    expect(driver.config(32, 1)[0]).toBe(before);
    await write(guest, 0, pattern(512, 7));
  });
});

it('leaves no descriptor behind', async () => {
  const image = createImage(join(cleanup.directory(), 'disk.img'), IMAGE_BYTES);
  const backend = await BlkBackend.start(cleanup, { image });
  const before = countOwnFds();
  for (let round = 0; round < 3; round += 1) {
    const guest = new MmioGuest();
    const log = () => undefined;
    const options = { ram: guest.deviceMemory, log };
    const device = await openDisk(checkedDisk({ vhost_socket: backend.socket, queue_size: 64 }), options);
    const transport = new VirtioMmioTransport(device, { ...guest.wiring, log });
    guest.plug(transport);
    await guest.start();
    await write(guest, 0, pattern(512, round));
    await guest.driver.reset();
    await guest.start();
    transport.close();
    guest.close();
  }
  expect(countOwnFds()).toBe(before);
});
