/** QEMU and Linux with packed rings, in each device. */

import { beforeAll, expect, it } from 'vitest';
import { cleanupAfterAll } from '../support/cleanup.ts';
import { startDiskLoad, stopDiskLoad } from '../support/guest/load.ts';
import { qemuVersions } from '../support/guest/qemu.ts';
import { ThreeDevices, threeDevicesPeers } from '../support/guest/three-devices.ts';
import { devicesWith, RING_PACKED } from '../support/guest/virtio-features.ts';
import { describeWithPeers } from '../support/peers.ts';

for (const version of qemuVersions) {
  describeWithPeers(threeDevicesPeers(version), `${version}, packed rings`, () => {
    const cleanup = cleanupAfterAll();
    let devices: ThreeDevices;

    beforeAll(async () => {
      devices = await ThreeDevices.start(cleanup);
      await devices.boot(cleanup, { version, deviceProperties: 'packed=on' });
    });

    it('are negotiated by all drivers', async () => {
      expect([...(await devicesWith(devices.guest, RING_PACKED))].sort()).toEqual([
        [1, true],
        [19, true],
        [2, true],
      ]);
    });

    it('carry a file system', () => devices.useDisk());

    it('carry packets', () => devices.useNet());

    it('carry sockets', () => devices.useVsock());

    it('carry a file system and sockets again after a system reset', async () => {
      await devices.guest.reset();
      await devices.useDisk();
      await devices.useVsock();
    });

    it('lose and repeat nothing when the disk is killed under load', { timeout: 120_000 }, async () => {
      await startDiskLoad(devices.guest, { extra: '--fsync=16' });
      for (let kills = 0; kills < 4; kills++) {
        await devices.guest.waitUntil(progress(1000), 30_000);
        await devices.disk.kill9();
        await devices.disk.restart();
      }
      await stopDiskLoad(devices.guest);
    });
  });
}

/** A condition that holds when so many requests of the disk have ended since it was asked first. */
const progress = (requests: number): string =>
  `{ now=$(awk '{ print $1 + $5 }' /sys/block/vda/stat); [ $now -ge $((\${first:=$now} + ${requests})) ]; }`;
