/**
 * A virtio-mmio disk and memory that comes and goes while its driver uses it: regions that are added and removed, and the
 * mappings of an IOMMU, which a driver may make before or after the device needs them, or take away when it still does.
 */

import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { IoMappings } from '../../vmm-client/frontend/io-mappings.ts';
import type { DeviceDescription } from '../../vmm-client/vmm/devices/open.ts';
import { VmError } from '../../vmm-client/vmm/errors.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { doRequest, prepareRequest, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { GuestRam } from '../support/frontend/guest-ram.ts';
import { MmioGuest } from '../support/frontend/mmio-guest.ts';
import { countOwnFds, eventually } from '../support/frontend/process-probe.ts';
import { WRITE } from '../support/frontend/raw-ring.ts';
import { createImage } from '../support/image.ts';
import { checkedDisk } from '../unit/vmm-client/vmm/devices/checked.ts';
import { DeviceRig } from './device-rig.ts';

const IMAGE_BYTES = 4 << 20;
const cleanup = cleanupAfterEach();

const diskAt = ({ socket }: BlkBackend): DeviceDescription => ({
  kind: 'disk',
  config: checkedDisk({ id: '_disk0', vhost_socket: socket, queue_size: 64 }),
});

const startDaemon = (extra: readonly string[] = []): Promise<BlkBackend> => {
  const image = createImage(join(cleanup.directory(), 'disk.img'), IMAGE_BYTES);
  return BlkBackend.start(cleanup, { image, extra });
};

const readSector = async (guest: MmioGuest, sector: number): Promise<number> => {
  const { status } = await doRequest(guest, { type: TYPE.IN, sector, inBytes: 512 });
  return status;
};

const untilBack = (rig: DeviceRig, times: number): Promise<unknown> =>
  eventually(
    'reconnects',
    () => rig.transport.counters().reconnects,
    (count) => count === times,
  );

describe('memory that is added', () => {
  const ADDED = 0x2_0000_0000;
  const setUp = async () => {
    const daemon = await startDaemon();
    const guest = new MmioGuest();
    const { deviceMemory } = guest;
    const regions = [...deviceMemory.regions];
    const rig = await DeviceRig.plug(cleanup, diskAt(daemon), guest, { ram: { ...deviceMemory, regions } });
    const added = new GuestRam(1 << 20, ADDED, 0x7d00_0000_0000);
    cleanup.add(() => added.close());
    return { daemon, guest, rig, regions, added: { region: added.region(), memfd: added.fd } };
  };

  /** The status of a read into memory at a guest address. */
  const readTo = async (guest: MmioGuest, address: number): Promise<number> => {
    const area = prepareRequest(guest, { type: TYPE.IN, sector: 0, inBytes: 512 });
    const chain = [area.headerDescriptor(), { address, length: 512, flags: WRITE }, area.statusDescriptor()];
    guest.ring().setChain(0, chain);
    await guest.ring().run(0);
    return area.statusByte;
  };

  it('is reached from then on, also by a daemon that came back, and not when it is removed', async () => {
    const { daemon, guest, rig, added } = await setUp();
    // Nobody has any memory yet.
    await rig.transport.addMemory(added);
    await rig.transport.removeMemory(added);
    expect(await guest.start()).toBe(15);
    const before = countOwnFds();
    for (let round = 0; round < 3; round += 1) {
      expect(await readTo(guest, ADDED)).not.toBe(STATUS.OK);
      await rig.transport.addMemory(added);
      await rig.transport.addMemory(added);
      expect(await readTo(guest, ADDED + (1 << 20) - 512)).toBe(STATUS.OK);
      await daemon.kill9();
      await daemon.restart();
      await untilBack(rig, 2 * round + 1);
      expect(await readTo(guest, ADDED)).toBe(STATUS.OK);
      await rig.transport.removeMemory(added);
      await rig.transport.removeMemory(added);
      expect(await readTo(guest, ADDED)).not.toBe(STATUS.OK);
      await daemon.kill9();
      await daemon.restart();
      await untilBack(rig, 2 * round + 2);
    }
    expect(await readSector(guest, 0)).toBe(STATUS.OK);
    expect(countOwnFds()).toBe(before);
    expect(rig.driver.status).toBe(15);
  });

  it('or removed while the daemon is away is what the next one has', async () => {
    const { daemon, guest, rig, added } = await setUp();
    await guest.start();
    await daemon.kill9();
    const adding = rig.transport.addMemory(added);
    await daemon.restart();
    await adding;
    expect(await readTo(guest, ADDED)).toBe(STATUS.OK);
    await daemon.kill9();
    await rig.transport.removeMemory(added);
    await daemon.restart();
    await untilBack(rig, 2);
    expect(await readTo(guest, ADDED)).not.toBe(STATUS.OK);
  });

  it('before the driver was ready comes with the rest', async () => {
    const { guest, rig, regions, added } = await setUp();
    regions.push(added);
    await guest.start();
    await rig.transport.addMemory(added);
    expect(await readTo(guest, ADDED)).toBe(STATUS.OK);
  });

  it('beyond what a daemon takes is refused, and the device goes on', async () => {
    const { guest, rig, added } = await setUp();
    await guest.start();
    const { region, memfd } = added;
    const at = (i: number) => region.guestAddress + i * region.size;
    const many = Array.from({ length: 600 }, (_, i) => {
      return { region: { ...region, guestAddress: at(i), userAddress: region.userAddress + i * region.size }, memfd };
    });
    let count = 0;
    let failure: unknown;
    for (; failure === undefined && count < many.length; count += 1) {
      failure = await rig.transport.addMemory(many[count] as (typeof many)[0]).then(
        () => undefined,
        (error: unknown) => error,
      );
    }
    expect(failure).toBeInstanceOf(VmError);
    expect((failure as Error).message).toMatch(
      /^disk _disk0: memory cannot be added: \d+ memory regions are needed, the back end has \d+ slots$/,
    );
    expect(await readTo(guest, ADDED)).toBe(STATUS.OK);
  });
});

describe('a disk behind an IOMMU', () => {
  const PAGE = 4096;
  const PHYSICAL = 0x8000_0000;
  const READ_WRITE = 3;
  /** ACCESS_PLATFORM. */
  const FEATURES = 1n << 33n;

  const setUp = async () => {
    const daemon = await startDaemon(['--iommu']);
    const iommu = new IoMappings();
    const rig = await DeviceRig.plug(cleanup, diskAt(daemon), { physicalAddress: PHYSICAL }, { iommu });
    const { ram } = rig.guest;
    const map = (offset: number, size: number) =>
      iommu.map({ iova: ram.guest(offset), size, userAddress: ram.user(offset), permission: READ_WRITE });
    /** Page by page, as a driver does; the ring, at the start, comes last. */
    const mapAll = async () => {
      for (let at = ram.length - PAGE; at >= 0; at -= PAGE) await map(at, PAGE);
    };
    const unmap = (offset: number, size: number) => iommu.unmap(ram.guest(offset), size);
    return { daemon, iommu, rig, guest: rig.guest, map, mapAll, unmap };
  };

  it('is offered ACCESS_PLATFORM, and refuses a driver that does not know it', async () => {
    const { rig, guest, mapAll } = await setUp();
    expect((await rig.driver.offered()) & FEATURES).toBe(FEATURES);
    await mapAll();
    await rig.driver.write(0x70, 3);
    await rig.driver.write(0x24, 1);
    await rig.driver.write(0x20, 1);
    await rig.driver.write(0x70, 11);
    expect(rig.driver.status).toBe(3);
    expect(rig.lines.join()).toContain('all without ACCESS_PLATFORM, and the device is behind an IOMMU');
    await rig.driver.reset();
    expect(await guest.start(FEATURES)).toBe(15);
    expect(await readSector(guest, 0)).toBe(STATUS.OK);
  });

  it('is not offered without one, and a daemon without --iommu cannot be behind one', async () => {
    const rig = await DeviceRig.plug(cleanup, diskAt(await startDaemon(['--iommu'])));
    expect((await rig.driver.offered()) & FEATURES).toBe(0n);
    const plugged = DeviceRig.plug(cleanup, diskAt(await startDaemon()), {}, { iommu: new IoMappings() });
    await expect(plugged).rejects.toThrow('does not offer ACCESS_PLATFORM, which iommu=on needs');
  });

  it('finds its ring and its buffers when they are mapped, before DRIVER_OK or after', async () => {
    const { rig, guest, mapAll, unmap } = await setUp();
    for (let round = 0; round < 5; round += 1) {
      // Nothing is mapped: the device knows where its ring is, and not what is there.
      expect(await guest.start(FEATURES)).toBe(15);
      const area = prepareRequest(guest, { type: TYPE.IN, sector: 0, inBytes: 512 });
      guest.ring().publish(0);
      guest.ring().signal();
      await mapAll();
      await guest.ring().take(1);
      expect(area.statusByte).toBe(STATUS.OK);
      await rig.driver.reset();
      await unmap(0, guest.ram.length);
    }
    expect(rig.driver.status).toBe(0);
  });

  it('goes on after its daemon died where the ring is mapped, and needs a reset where it is not any more', async () => {
    const { rig, guest, daemon, mapAll, unmap } = await setUp();
    await mapAll();
    await guest.start(FEATURES);
    expect(await readSector(guest, 0)).toBe(STATUS.OK);
    await daemon.kill9();
    await daemon.restart();
    await untilBack(rig, 1);
    expect(await readSector(guest, 1)).toBe(STATUS.OK);
    await daemon.kill9();
    await unmap(0, guest.ram.length);
    await daemon.restart();
    await untilBack(rig, 2);
    expect(rig.driver.status).toBe(15 | 64);
    expect(rig.lines.join()).toContain('queue 0: its used ring at 0x14000');
    // Its device is there for a driver that starts anew.
    await rig.driver.reset();
    await mapAll();
    expect(await guest.start(FEATURES)).toBe(15);
    expect(await readSector(guest, 2)).toBe(STATUS.OK);
  });

  it('is suspended and goes on while its ring is not mapped', async () => {
    const { rig, guest, mapAll, unmap } = await setUp();
    await guest.start(FEATURES);
    for (let round = 0; round < 10; round += 1) {
      await rig.transport.suspend();
      await rig.transport.resume();
    }
    await mapAll();
    expect(await readSector(guest, 0)).toBe(STATUS.OK);
    await unmap(0, guest.ram.length);
    await rig.transport.suspend();
    await mapAll();
    await rig.transport.resume();
    expect(await readSector(guest, 1)).toBe(STATUS.OK);
  });

  it.each([
    ['before', true],
    ['after', false],
  ])('goes on elsewhere where its mappings are made %s, and its log is of physical addresses', async (_, first) => {
    const { rig, guest, mapAll } = await setUp();
    await mapAll();
    await guest.start(FEATURES);
    await rig.transport.startDirtyLog();
    expect(await readSector(guest, 0)).toBe(STATUS.OK);
    const state = await rig.suspend();
    const dirty = rig.transport.takeDirty();
    expect(dirty.length).toBeGreaterThan(0);
    for (const { guestAddress, length } of dirty) {
      expect(guestAddress).toBeGreaterThanOrEqual(PHYSICAL);
      expect(guestAddress + length).toBeLessThanOrEqual(PHYSICAL + guest.ram.length);
    }
    const other = await startDaemon(['--iommu', '--incoming']);
    const iommu = new IoMappings();
    const next = await rig.elsewhere(diskAt(other), { iommu });
    rig.close();
    const { ram } = next.guest;
    const mapThere = () =>
      iommu.map({ iova: ram.guest(0), size: ram.length, userAddress: ram.user(0), permission: READ_WRITE });
    if (first) await mapThere();
    await next.transport.restore(state);
    if (!first) await mapThere();
    expect(next.driver.status).toBe(15);
    expect(await readSector(next.guest, 0)).toBe(STATUS.OK);
  });

  it('is not taken by one without, nor the other way round', async () => {
    const { rig, guest, daemon, mapAll } = await setUp();
    await mapAll();
    await guest.start(FEATURES);
    const state = await rig.suspend();
    const plain = await rig.elsewhere(diskAt(daemon));
    await expect(plain.transport.restore(state)).rejects.toThrow(
      'state of disk _disk0: the driver uses features that its back end here lacks (0x200000000)',
    );
  });
});
