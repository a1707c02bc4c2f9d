/** Debian's kernel in `ringside vm run`: it takes memory of virtio-mem, has a disk read into it, and gives it back. */

import { join } from 'node:path';
import { expect } from 'vitest';
import { cleanupAfterAll } from '../support/cleanup.ts';
import { fileSystemPrograms, readRandomFile, writeRandomFile } from '../support/guest/file-system.ts';
import { buildInitramfs } from '../support/guest/initramfs.ts';
import { RINGSIDE, shellWords } from '../support/guest/kvm-host.ts';
import { itAtLength, kvmHostPeers, openKvmHost } from '../support/guest/open-kvm-host.ts';
import { describeWithPeers, peerPath } from '../support/peers.ts';

const MiB = 2 ** 20;
const RAM = 256 * MiB;
const MORE = 256 * MiB;
/** Memory comes online in the zone whose pages can be moved, and so be given back. */
const CMDLINE =
  'console=ttyS0 quiet loglevel=2 panic=-1 mitigations=off random.trust_cpu=on memhp_default_state=online_movable';
const BOOT_DEADLINE_MS = 90_000;
const RESIZE_DEADLINE_MS = 60_000;

describeWithPeers([...kvmHostPeers], "Debian's kernel with memory that comes and goes", () => {
  const cleanup = cleanupAfterAll();

  itAtLength('takes 256 MiB more, has its disk read into it, and gives it back', { timeout: 300_000 }, async () => {
    const initramfs = buildInitramfs({
      modules: peerPath('cloud kernel modules'),
      memory: true,
      programs: fileSystemPrograms,
    });
    const host = await openKvmHost(cleanup, { files: [initramfs, peerPath('cloud kernel')] });
    const directory = await host.directory();
    const [image, api] = [join(directory, 'disk'), join(directory, 'api')];
    await host.run(`truncate -s 64M ${image}`);
    const guest = await host.startVm([
      ...['--kernel', peerPath('cloud kernel'), '--initramfs', initramfs, '--cmdline', CMDLINE],
      ...['--memory', 'size=256M,hotplug_size=512M', '--disk', `path=${image}`, '--api-socket', api],
    ]);
    await guest.waitUntilReady(BOOT_DEADLINE_MS);
    const ctl = (...words: string[]) => host.run(shellWords([...RINGSIDE, 'ctl', '--api-socket', api, ...words]));
    const actualSize = async (): Promise<number> => JSON.parse(await ctl('info')).memory_actual_size;
    const kibibytes = async (): Promise<number> => Number(await guest.run("awk '/MemTotal/ {print $2}' /proc/meminfo"));

    const before = await kibibytes();
    await ctl('resize', '--memory', String(RAM + MORE));
    await guest.waitUntil(
      `[ $(awk '/MemTotal/ {print $2}' /proc/meminfo) -ge ${before + 250 * 1024} ]`,
      RESIZE_DEADLINE_MS,
    );
    expect(await guest.run("grep -c 'System RAM (virtio_mem)' /proc/iomem")).toBe('1');
    expect(await actualSize()).toBe(RAM + MORE);

    const sum = await writeRandomFile(guest, '/dev/vda', 8);
    expect(await readRandomFile(guest, '/dev/vda')).toBe(sum);
    // 8 MiB that the daemon of the disk has read, by page; it takes from this zone first.
    const pages = await guest.run(
      `mount -t ext4 /dev/vda /mnt
      cat /mnt/random >/dev/null
      awk '/zone +Movable/ {on=1} on && /nr_zone_(in)?active_file/ {sum+=$2} END {print sum}' /proc/zoneinfo
      umount /mnt`,
    );
    expect(Number(pages)).toBeGreaterThan(1000);

    await ctl('resize', '--memory', String(RAM));
    await guest.waitUntil(`[ $(awk '/MemTotal/ {print $2}' /proc/meminfo) -le ${before + 1024} ]`, RESIZE_DEADLINE_MS);
    expect(await actualSize()).toBe(RAM);
    expect(JSON.parse(await ctl('counters')).__mem).toMatchObject({ plugged_bytes: 0, pieces: 0, errors: 0 });
    expect(await readRandomFile(guest, '/dev/vda')).toBe(sum);
    await guest.powerOff(60_000);
    expect(await guest.child.waitForExit(1)).toMatchObject({ code: 0 });
  });
});
