/** Guest memory as QEMU can arrange it: plugged in and pulled out under load, on huge pages, and 128 GiB of it. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import {
  fileSystemPeers,
  fileSystemPrograms,
  randomFileInImage,
  readRandomFile,
  writeRandomFile,
} from '../support/guest/file-system.ts';
import { loadPrograms, startDiskLoad, stopDiskLoad } from '../support/guest/load.ts';
import { bootQemu, qemuPeersOf, qemuVersions } from '../support/guest/qemu.ts';
import { createImage } from '../support/image.ts';
import { describeWithPeers } from '../support/peers.ts';

const MiB = 1 << 20;
/** Of the guest on huge pages. */
const HUGE_MIB = 512;

const freeHugeMiB = 2 * Number(/^HugePages_Free:\s+(\d+)$/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1] ?? 0);

for (const version of qemuVersions) {
  const peers = [...qemuPeersOf(version), ...fileSystemPeers, ...loadPrograms] as const;
  describeWithPeers(peers, `${version}, memory of a guest with vhost-user-blk`, () => {
    const cleanup = cleanupAfterEach();

    const startDisk = (): Promise<BlkBackend> =>
      BlkBackend.start(cleanup, { image: createImage(join(cleanup.directory(), 'disk'), 96 * MiB), numQueues: 2 });

    it('is plugged in and pulled out under load', { timeout: 120_000 }, async () => {
      const disk = await startDisk();
      const guest = await bootQemu(cleanup, {
        machine: 'q35',
        version,
        cpus: 2,
        memoryMiB: 512,
        sockets: [disk.socket],
        diskProperties: 'num-queues=2',
        programs: loadPrograms,
      });
      await startDiskLoad(guest);
      const total = async (): Promise<number> => Number(await guest.run("awk '/MemTotal/ { print $2 }' /proc/meminfo"));
      const before = await total();
      for (const id of ['one', 'two', 'three', 'four']) await guest.plugMemory(id, 128 * MiB);
      await expect.poll(total, { timeout: 20_000 }).toBeGreaterThan(before + 4 * 120 * 1024);
      for (const id of ['two', 'four']) await guest.unplugMemory(id);
      expect(await total()).toBeLessThan(before + 3 * 128 * 1024);
      for (const id of ['two', 'four']) await guest.plugMemory(id, 128 * MiB);
      await stopDiskLoad(guest);
    });

    it.skipIf(freeHugeMiB < HUGE_MIB)('is on huge pages', { timeout: 120_000 }, async () => {
      const disk = await startDisk();
      const guest = await bootQemu(cleanup, {
        machine: 'q35',
        version,
        memoryMiB: HUGE_MIB,
        memoryProperties: 'hugetlb=on,hugetlbsize=2M',
        sockets: [disk.socket],
        programs: fileSystemPrograms,
      });
      const sum = await writeRandomFile(guest, '/dev/vda', 48);
      expect(await readRandomFile(guest, '/dev/vda')).toBe(sum);
      expect(randomFileInImage(disk.image)).toBe(sum);
    });

    // The back end sees the same of both.
    it.runIf(version === 'newer qemu-system-x86_64')(
      'is 128 GiB, and buffers are far above 64 GiB',
      { timeout: 120_000 },
      async () => {
        const disk = await startDisk();
        const guest = await bootQemu(cleanup, {
          machine: 'q35',
          version,
          cpus: 2,
          memoryMiB: 128 * 1024,
          sockets: [disk.socket],
          diskProperties: 'num-queues=2',
          programs: [...fileSystemPrograms, ...loadPrograms],
          // What lies between is taken from the kernel, whose lists of pages would fill the host's memory.
          kernelArguments: 'memmap=122G$4G',
        });
        const ranges = (await guest.run("sed -n 's/ : System RAM//p' /proc/iomem")).split('\n');
        const starts = ranges.map((range) => Number.parseInt(range, 16)).filter((start) => start >= 2 ** 32);
        expect(Math.min(...starts)).toBeGreaterThan(64 * 2 ** 30);
        const sum = await writeRandomFile(guest, '/dev/vda', 48);
        const output = await guest.run(`mount -t ext4 /dev/vda /mnt
        sha256sum </mnt/random
        awk '/^Node/ { zone = $4 } zone == "Normal" && /nr_zone_(in)?active_file/ { pages += $2 } END { print pages }' /proc/zoneinfo
        umount /mnt`);
        const [read, pagesInNormal] = output.split('\n');
        expect(read?.slice(0, 64)).toBe(sum);
        expect(Number(pagesInNormal)).toBeGreaterThan((48 * MiB) / 4096 / 2);
        expect(randomFileInImage(disk.image)).toBe(sum);
        await startDiskLoad(guest);
        await guest.waitUntil("[ $(awk '{ print $1 + $5 }' /sys/block/vda/stat) -gt 20000 ]");
        await stopDiskLoad(guest);
      },
    );
  });
}
if (freeHugeMiB < HUGE_MIB) {
  process.stderr.write(
    `skipped: guest memory on huge pages: fewer than ${HUGE_MIB / 2} are free (echo ${HUGE_MIB / 2} > /proc/sys/vm/nr_hugepages)\n`,
  );
}
