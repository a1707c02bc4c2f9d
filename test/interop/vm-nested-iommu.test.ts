/** Debian's kernel in `ringside vm run` with devices behind the virtio-iommu, as its own drivers use it. */

import { join } from 'node:path';
import { expect } from 'vitest';
import { cleanupAfterAll } from '../support/cleanup.ts';
import { fileSystemPrograms, readRandomFile, writeRandomFile } from '../support/guest/file-system.ts';
import { buildInitramfs } from '../support/guest/initramfs.ts';
import { RINGSIDE, shellWords } from '../support/guest/kvm-host.ts';
import { itAtLength, kvmHostPeers, openKvmHost } from '../support/guest/open-kvm-host.ts';
import { describeWithPeers, peerPath } from '../support/peers.ts';

const CMDLINE = 'console=ttyS0 quiet loglevel=2 panic=-1 mitigations=off random.trust_cpu=on';
const BOOT_DEADLINE_MS = 120_000;
/** Of one script in a guest of an emulated machine. */
const SCRIPT_DEADLINE_MS = 90_000;
/** SHA-256 of 64 KiB of zeros. */
const ZEROS = 'de2f256064a0af797747c2b97505dc0b9f3df0de4f489eac731c23ae9ca9cc31';
/** Debian 12's cloud kernel has no driver of the IOMMU. */
const PEERS = [...kvmHostPeers, 'newer cloud kernel', 'newer cloud kernel modules'] as const;

describeWithPeers(PEERS, "Debian's kernel with a virtio-iommu", () => {
  const cleanup = cleanupAfterAll();

  itAtLength(
    'finds it, puts disks behind it that ask for it, also one that comes later',
    { timeout: 600_000 },
    async () => {
      const kernel = peerPath('newer cloud kernel');
      const modules = peerPath('newer cloud kernel modules');
      const initramfs = buildInitramfs({ modules, iommu: true, programs: fileSystemPrograms });
      const host = await openKvmHost(cleanup, { files: [initramfs, kernel] });
      const directory = await host.directory();
      const [behind, beside, later, api] = ['behind', 'beside', 'later', 'api'].map((name) => join(directory, name));
      await host.run(`truncate -s 64M ${behind} ${beside} ${later}`);
      const guest = await host.startVm([
        ...['--kernel', kernel, '--initramfs', initramfs, '--cmdline', CMDLINE, '--memory', 'size=512M'],
        ...['--disk', `path=${behind},iommu=on`, '--disk', `path=${beside}`, '--api-socket', api ?? ''],
      ]);
      await guest.waitUntilReady(BOOT_DEADLINE_MS);
      const ctl = (...words: string[]) =>
        host.run(shellWords([...RINGSIDE, 'ctl', '--api-socket', api ?? '', ...words]));
      const counters = async () => JSON.parse(await ctl('counters')).__iommu as Record<string, number>;

      const run = (script: string) => guest.run(script, SCRIPT_DEADLINE_MS);
      expect(await run('dmesg | grep -o "virtio_iommu virtio[0-9]*: input address: .*"')).toMatch(/48 bits/);
      const groups = async (): Promise<string[]> =>
        (await run('cd /sys/kernel/iommu_groups; for each in */devices/*; do echo "$each"; done')).split('\n');
      expect(await groups()).toEqual(['0/devices/LNRO0005:00']);
      expect(await counters()).toMatchObject({ attached_endpoints: 1, domains: 1, faults: 0 });

      const sum = await writeRandomFile(guest, '/dev/vda', 4);
      expect(await readRandomFile(guest, '/dev/vda')).toBe(sum);
      // The other disk is where it would be without an IOMMU.
      expect(await run('head -c 65536 /dev/vdb | sha256sum')).toContain(ZEROS);
      const { requests = 0, ...after } = await counters();
      expect(requests).toBeGreaterThan(40);
      expect(after).toMatchObject({ attached_endpoints: 1, faults: 0 });

      await ctl('add-disk', `path=${later},iommu=on,id=later`);
      await guest.waitUntil('[ -b /dev/vdc ]', SCRIPT_DEADLINE_MS);
      expect(await groups()).toEqual(['0/devices/LNRO0005:00', expect.stringMatching(/^1\/devices\/LNRO0005:/)]);
      expect(await counters()).toMatchObject({ attached_endpoints: 2, domains: 2, faults: 0 });
      const laterSum = await writeRandomFile(guest, '/dev/vdc', 1);
      expect(await readRandomFile(guest, '/dev/vdc')).toBe(laterSum);

      await guest.powerOff(60_000);
      expect(await guest.child.waitForExit(1)).toMatchObject({ code: 0 });
    },
  );
});
