/**
 * Devices behind an IOMMU of QEMU. Linux maps each buffer when it is given to the device and unmaps it after that, and
 * with strict invalidation QEMU takes the translation back at once: each request is a miss, or more.
 */

import { beforeAll, expect, it } from 'vitest';
import { cleanupAfterAll } from '../support/cleanup.ts';
import { startDiskLoad, stopDiskLoad } from '../support/guest/load.ts';
import { newerKernelPeers } from '../support/guest/qemu.ts';
import { ThreeDevices, threeDevicesPeers } from '../support/guest/three-devices.ts';
import { ACCESS_PLATFORM, devicesWith, RING_PACKED } from '../support/guest/virtio-features.ts';
import { describeWithPeers } from '../support/peers.ts';

const cases = [
  { version: 'qemu-system-x86_64', iommu: 'intel', packed: false },
  { version: 'newer qemu-system-x86_64', iommu: 'intel', packed: true },
  { version: 'newer qemu-system-x86_64', iommu: 'virtio', packed: false },
] as const;

for (const { version, iommu, packed } of cases) {
  const peers = [...threeDevicesPeers(version), ...(iommu === 'virtio' ? newerKernelPeers : [])];
  describeWithPeers(peers, `${version}, ${iommu}-iommu, ${packed ? 'packed' : 'split'} rings`, () => {
    const cleanup = cleanupAfterAll();
    let devices: ThreeDevices;

    beforeAll(async () => {
      devices = await ThreeDevices.start(cleanup, ['--iommu']);
      await devices.boot(cleanup, {
        version,
        iommu,
        // A second queue would be left over at a reset: firmware uses one, and QEMU looks for the other where the
        // former guest had it, "Fail to lookup the translated address".
        diskProperties: 'num-queues=1',
        ...(packed && { deviceProperties: 'packed=on' }),
      });
    });

    it('translates for all drivers, without delay', async () => {
      const { guest } = devices;
      for (const type of [1, 2, 19]) {
        expect((await devicesWith(guest, ACCESS_PLATFORM)).get(type)).toBe(true);
        expect((await devicesWith(guest, RING_PACKED)).get(type)).toBe(packed);
      }
      const types = await guest.run(
        'for d in /sys/bus/virtio/devices/*; do cat $(readlink -f $d)/../iommu_group/type || true; done',
      );
      expect(types.match(/^DMA$/gm)).toHaveLength(3);
    });

    it('carries a file system', () => devices.useDisk());

    it('carries packets', () => devices.useNet());

    it('carries sockets', () => devices.useVsock());

    it('carries a load that is verified', { timeout: 120_000 }, async () => {
      await startDiskLoad(devices.guest);
      await devices.guest.waitUntil("[ $(awk '{ print $1 + $5 }' /sys/block/vda/stat) -ge 6000 ]", 60_000);
      await stopDiskLoad(devices.guest);
    });

    it('carries a file system and sockets again after a system reset', async () => {
      await devices.guest.reset();
      await devices.useDisk();
      await devices.useVsock();
    });
  });
}
