import { closeSync, openSync, statSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { beforeAll, expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterAll } from '../support/cleanup.ts';
import { loadPrograms, startDiskLoad, stopDiskLoad } from '../support/guest/load.ts';
import { bootQemu, type QemuGuest, qemuPeers } from '../support/guest/qemu.ts';
import { createImage } from '../support/image.ts';
import { describeWithPeers } from '../support/peers.ts';

const MiB = 1 << 20;
const BALLAST_OFFSET = 64 * MiB;

/**
 * microvm is a case of its own: virtio-mmio lets the guest use rings of 1024 entries whatever `queue-size` says, while
 * QEMU asks for an in-flight region of `queue-size` (128) entries a ring.
 */
const machines = [
  { machine: 'q35', queues: 2, kills: 4 },
  { machine: 'microvm', queues: 1, kills: 2 },
] as const;

for (const { machine, queues, kills } of machines) {
  describeWithPeers([...qemuPeers, ...loadPrograms], `QEMU ${machine}, when the daemon dies under load`, () => {
    const cleanup = cleanupAfterAll();
    let guest: QemuGuest;
    let disk: BlkBackend;
    const ballast = Buffer.alloc(48 * MiB, 'ballast');

    beforeAll(async () => {
      const image = createImage(join(cleanup.directory(), 'disk'), BALLAST_OFFSET + ballast.length);
      disk = await BlkBackend.start(cleanup, { image, numQueues: queues });
      guest = await bootQemu(cleanup, {
        machine,
        cpus: 2,
        memoryMiB: 512,
        sockets: [disk.socket],
        diskProperties: `num-queues=${queues}`,
        programs: loadPrograms,
      });
    });

    const changed = (): bigint => statSync(disk.image, { bigint: true }).mtimeNs;

    /** Resolves when a write has reached the image after now. */
    const nextWrite = async (): Promise<void> => {
      const before = changed();
      const end = performance.now() + 60_000;
      while (changed() === before) {
        if (performance.now() > end) throw new Error(`no write reached the image within 60 s; the log:\n${disk.log()}`);
        await delay(2);
      }
    };

    /**
     * Resolves while a flush is under way which began before writes that have ended: from the host's side the image gets
     * so much to write back that the next flush takes long, and then no write changes it any more, because every job
     * waits for a flush. On a file system without a disk nothing comes to a halt; then any moment is as good.
     */
    const longFlush = async (): Promise<void> => {
      const fd = openSync(disk.image, 'r+');
      writeSync(fd, ballast, 0, ballast.length, BALLAST_OFFSET);
      closeSync(fd);
      const end = performance.now() + 1_000;
      for (let since = performance.now(), last = changed(); performance.now() < Math.min(end, since + 20); ) {
        await delay(1);
        if (changed() !== last) since = performance.now();
        last = changed();
      }
    };

    /**
     * Jobs flush at different times, and a flush takes longer than the others' writes: requests end in another order than
     * they began in. Did they keep it, a front end could resume at the used index, and the in-flight region would prove
     * nothing.
     */
    const startLoad = (): Promise<void> => startDiskLoad(guest, { jobs: 4, extra: '--fsync=16' });

    it('loses and repeats nothing when it is killed and started again', { timeout: 240_000 }, async () => {
      await startLoad();
      for (let killed = 0; killed < kills; killed++) {
        await nextWrite();
        await longFlush();
        await disk.kill9();
        await disk.restart();
      }
      await nextWrite();
      await stopDiskLoad(guest);
    });

    it('drains its queues on SIGTERM, and the guest goes on with the next one', { timeout: 240_000 }, async () => {
      await startLoad();
      await nextWrite();
      expect(await disk.sigterm()).toEqual({ code: 0, signal: null });
      await disk.restart();
      await nextWrite();
      await stopDiskLoad(guest);
    });
  });
}
