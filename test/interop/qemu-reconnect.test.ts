import { closeSync, openSync, statSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { beforeAll, expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterAll } from '../support/cleanup.ts';
import { bootQemu, type QemuGuest, qemuPeers } from '../support/guest/qemu.ts';
import { createImage } from '../support/image.ts';
import { describeWithPeers } from '../support/peers.ts';

const MiB = 1 << 20;
const BALLAST_OFFSET = 64 * MiB;

/** A guest's fio at work, and what it has to say in the end. */
interface Load {
  running: boolean;
  readonly report: Promise<string>;
}

/**
 * microvm is a case of its own: virtio-mmio lets the guest use rings of 1024 entries whatever `queue-size` says, while
 * QEMU asks for an in-flight region of `queue-size` (128) entries a ring.
 */
const machines = [
  { machine: 'q35', queues: 2, kills: 4 },
  { machine: 'microvm', queues: 1, kills: 2 },
] as const;

for (const { machine, queues, kills } of machines) {
  describeWithPeers([...qemuPeers, 'fio'], `QEMU ${machine}, when the daemon dies under load`, () => {
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
        programs: ['fio'],
      });
    });

    const changed = (): bigint => statSync(disk.image, { bigint: true }).mtimeNs;

    /** Resolves with true when a write has reached the image after now, with false when there will be none. */
    const nextWrite = async (load: Load): Promise<boolean> => {
      const before = changed();
      const end = performance.now() + 60_000;
      while (changed() === before) {
        if (!load.running) return false;
        if (performance.now() > end) throw new Error(`no write reached the image within 60 s; the log:\n${disk.log()}`);
        await delay(2);
      }
      return true;
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
     * Random writes of blocks with checksums, each read back and compared some time after it was written. Jobs flush at
     * different times, and a flush takes longer than the others' writes: requests end in another order than they began
     * in. Did they keep it, a front end could resume at the used index, and the in-flight region would prove nothing.
     */
    const startLoad = (seconds: number): Load => {
      const report = guest.run(
        `/usr/bin/fio --name=verify --filename=/dev/vda --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16 \
        --verify=crc32c --verify_backlog=512 --verify_fatal=1 --time_based --runtime=${seconds} --fsync=16 --numjobs=4 \
        --size=8M --offset_increment=8M --group_reporting`,
        (seconds + 90) * 1000,
      );
      const load: Load = { running: true, report };
      const ended = (): void => {
        load.running = false;
      };
      report.then(ended, ended);
      return load;
    };

    const expectVerified = async (load: Load): Promise<void> => {
      const report = await load.report;
      expect(report).toMatch(/err= 0/);
      expect(report).not.toMatch(/verify: bad|io_u error/);
    };

    it('loses and repeats nothing when it is killed and started again', { timeout: 240_000 }, async () => {
      const load = startLoad(kills * 3);
      let killed = 0;
      // A slow machine does not come to all of them in that time.
      while (killed < kills && (await nextWrite(load))) {
        await longFlush();
        await disk.kill9();
        await disk.restart();
        killed++;
      }
      await expectVerified(load);
      expect(killed).toBeGreaterThan(1);
    });

    it('drains its queues on SIGTERM, and the guest goes on with the next one', { timeout: 240_000 }, async () => {
      const load = startLoad(4);
      expect(await nextWrite(load)).toBe(true);
      expect(await disk.sigterm()).toEqual({ code: 0, signal: null });
      await disk.restart();
      await expectVerified(load);
    });
  });
}
