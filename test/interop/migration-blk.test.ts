/** A guest with a disk that moves from one QEMU to another, each with a daemon of its own on the same image. */

import { randomBytes } from 'node:crypto';
import { closeSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterAll } from '../support/cleanup.ts';
import { loadPrograms, startDiskLoad, stopDiskLoad } from '../support/guest/load.ts';
import { Migration } from '../support/guest/migration.ts';
import { awaitMigration, bootQemu, type QemuOptions, qemuPeersOf } from '../support/guest/qemu.ts';
import { createImage, sha256Of } from '../support/image.ts';
import { describeWithPeers } from '../support/peers.ts';

const MiB = 1 << 20;
/** Where fio writes, and what the guest only reads. */
const LOAD_BYTES = 16 * MiB;
const READ_BYTES = 24 * MiB;
/** Reading takes long while fio runs too, and QEMU sends the same memory again and again. */
const SLOW_MS = 90_000;

/**
 * The newer one: under TCG, QEMU 7.2 loses pages that the guest's CPUs write while it migrates. Guests with its own
 * virtio-blk-pci and no back end hung or panicked in 6 of 6 migrations under this load, and in none of 6 with QEMU 10.0.
 */
const version = 'newer qemu-system-x86_64';

describeWithPeers(
  [...qemuPeersOf(version), ...loadPrograms],
  `migration by ${version} of a guest with vhost-user-blk`,
  () => {
    const cleanup = cleanupAfterAll();

    it('brings along what the daemon writes meanwhile, and no request is lost', { timeout: 240_000 }, async () => {
      const image = createImage(join(cleanup.directory(), 'disk'), LOAD_BYTES + READ_BYTES);
      const data = randomBytes(READ_BYTES);
      const fd = openSync(image, 'r+');
      writeSync(fd, data, 0, data.length, LOAD_BYTES);
      closeSync(fd);
      const numQueues = 2;
      const source = await BlkBackend.start(cleanup, { image, numQueues });
      const options = (socket: string): QemuOptions => ({
        machine: 'q35',
        version,
        cpus: 2,
        memoryMiB: 512,
        sockets: [socket],
        diskProperties: `num-queues=${numQueues}`,
        programs: loadPrograms,
        // Or the guest itself would make each page dirty that it gives to the device.
        kernelArguments: 'init_on_alloc=0',
      });
      const guest = await bootQemu(cleanup, options(source.socket));
      await startDiskLoad(guest);

      const target = await BlkBackend.start(cleanup, { image, numQueues, extra: ['--incoming'] });
      const destination = await awaitMigration(cleanup, options(target.socket));
      const migration = await Migration.start(cleanup, guest, destination);
      await migration.hold();
      // Into the page cache, by the daemon alone.
      await guest.run(`dd if=/dev/vda of=/dev/null bs=1M skip=${LOAD_BYTES / MiB} 2>/dev/null`, SLOW_MS);
      await migration.expectHeld();
      const { rounds } = await migration.finish();
      expect(rounds).toBeGreaterThan(2);

      // Out of the page cache: the destination's daemon reads nothing of it.
      const sum = await destination.run(
        `dd if=/dev/vda bs=1M skip=${LOAD_BYTES / MiB} 2>/dev/null | sha256sum`,
        SLOW_MS,
      );
      expect(sum.slice(0, 64)).toBe(sha256Of(data));

      await stopDiskLoad(destination);
      await guest.qmp.execute('quit');
      expect(await source.sigterm()).toEqual({ code: 0, signal: null });
    });
  },
);
