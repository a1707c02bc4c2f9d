/**
 * Debian's kernel, up to user space, goes to a directory and comes back, and migrates from one `ringside vm` to another,
 * with a file system, a network and programs at work. On this machine's KVM, or on that of an emulated machine.
 */

import { join } from 'node:path';
import { beforeAll, expect } from 'vitest';
import { cleanupAfterAll } from '../support/cleanup.ts';
import { fileSystemPrograms } from '../support/guest/file-system.ts';
import type { Guest } from '../support/guest/guest.ts';
import { buildInitramfs } from '../support/guest/initramfs.ts';
import { type KvmHost, shellWords } from '../support/guest/kvm-host.ts';
import { itAtLength, kvmHostPeers, openKvmHost } from '../support/guest/open-kvm-host.ts';
import { vmlinuxPath } from '../support/guest/vmlinux.ts';
import { describeWithPeers, peerPath, projectDirectory } from '../support/peers.ts';

const CMDLINE = 'console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off random.trust_cpu=on';
const BOOT_DEADLINE_MS = 90_000;
const MOVE_DEADLINE_S = 90;

/** What the guest's kernel says when its processors, interrupts or clocks are not as they were. */
const TROUBLE = 'BUG|WARNING|Oops|stall|lockup|unstable|nobody cared|I/O error|EXT4-fs error';

describeWithPeers([...kvmHostPeers, 'debugfs', 'e2fsck', 'lz4', 'socat'], "Debian's kernel that moves", () => {
  const cleanup = cleanupAfterAll();
  let host: KvmHost;
  let directory: string;
  let initramfs: string;

  beforeAll(async () => {
    initramfs = buildInitramfs({
      modules: peerPath('cloud kernel modules'),
      network: true,
      programs: fileSystemPrograms,
    });
    host = await openKvmHost(cleanup, {
      programs: ['debugfs', 'e2fsck', 'socat'],
      files: [initramfs, vmlinuxPath()],
      modules: ['tun'],
    });
    directory = await host.directory();
  });

  /** A script that asks the API at a socket; a `ringside ctl` for each would take seconds there. */
  const request = (api: string, route: string, body?: object): string => {
    const text = body === undefined ? '' : JSON.stringify(body);
    const head = `PUT /api/v1/${route} HTTP/1.0\\r\\nContent-Length: ${text.length}\\r\\n\\r\\n`;
    return `printf ${shellWords([`${head}${text}`])} | socat -t ${MOVE_DEADLINE_S} -,ignoreeof UNIX-CONNECT:${api}`;
  };
  const put = async (api: string, route: string, body?: object): Promise<void> => {
    expect(await host.run(request(api, route, body), MOVE_DEADLINE_S * 1000)).toMatch(/^HTTP\/1\.[01] 204 /);
  };
  const untilThere = (path: string): Promise<string> =>
    host.run(
      `for i in $(seq ${MOVE_DEADLINE_S * 10}); do [ -S ${path} ] && exit; usleep 100000; done; exit 1`,
      2 * MOVE_DEADLINE_S * 1000,
    );

  /** Starts back ends of the disk and the network. Two of them have one image: its lock goes with the guest. */
  const startBackends = async (image: string, place: string, tap: string): Promise<{ disk: string; net: string }> => {
    const [disk, net] = [join(directory, `disk-${place}`), join(directory, `net-${place}`)] as const;
    const program = (name: string): string => join(projectDirectory, `dist/backends/${name}/main.js`);
    const blk = [program('blk'), `--socket-path=${disk}`, `--blk-file=${image}`, '--incoming'];
    const tapOptions = [`--tap=${tap}`, '--mac=52:54:00:00:00:02'];
    const commands = [blk, [program('net'), `--socket-path=${net}`, ...tapOptions]];
    for (const command of commands) {
      const words = shellWords([process.execPath, ...command]);
      const pid = await host.run(`${words} >/dev/null 2>&1 & echo $!`);
      cleanup.add(() => host.run(`kill ${pid} 2>/dev/null || :`));
    }
    await untilThere(disk);
    await untilThere(net);
    return { disk, net };
  };

  /** A VMM without a machine. */
  const serve = async (api: string): Promise<Guest> => {
    const vmm = await host.startVm(['--api-socket', api], 'serve');
    await untilThere(api);
    return vmm;
  };

  itAtLength(
    'goes on from a snapshot, and then in another VMM: programs, disk, network, clock',
    async () => {
      const [first, second, third] = ['a', 'b', 'c'].map((name) => join(directory, name)) as [string, string, string];
      const image = join(directory, 'disk');
      await host.run(`truncate -s 64M ${image}`);
      const here = await startBackends(image, 'here', 'ringside0');
      const there = await startBackends(image, 'there', 'ringside1');
      const options = [
        ...['--cpus', '2', '--memory', '256M', '--api-socket', first],
        ...['--disk', `socket=${here.disk},id=disk`, '--net', `socket=${here.net},id=net`],
      ];
      const args = ['--kernel', vmlinuxPath(), '--initramfs', initramfs, '--cmdline', CMDLINE, ...options];
      const booted = await host.startVm(args);
      await booted.waitUntilReady(BOOT_DEADLINE_MS);

      // A counter on each processor, one of them on the disk, with a time by each number.
      await booted.run(
        `dmesg -c >/dev/null
        ip addr add 192.0.2.2/24 dev eth0; ip link set eth0 up
        mkfs.ext4 -q -F /dev/vda
        mount -t ext4 /dev/vda /mnt
        dd if=/dev/urandom of=/mnt/random bs=1M count=8 2>/dev/null
        sha256sum </mnt/random >/tmp/sum
        for place in /mnt /tmp; do
          (i=0; while :; do i=$((i+1)); echo $i $(cut -d' ' -f1 /proc/uptime) >>$place/counter; usleep 20000; done) &
        done`,
        90_000,
      );
      // The station that the guest knows, wherever the guest is: a bridge would be that.
      const useTap = (tap: string): Promise<string> =>
        host.run(`ip addr flush dev ringside0; ip link set ringside0 down
          ip link set ${tap} address 02:00:00:00:00:01 up; ip addr add 192.0.2.1/24 dev ${tap}`);
      await useTap('ringside0');

      /** Everything is as it has to be, and goes on. */
      const isWell = async (guest: Guest): Promise<void> => {
        const count = async (): Promise<number> => Number(await guest.run('wc -l </mnt/counter'));
        const before = await count();
        await guest.waitUntil(`[ $(wc -l </mnt/counter) -gt ${before + 10} ]`, 60_000);
        // Numbers without a gap, times that do not go back.
        const order = 'BEGIN { last = 0 } $1 != NR || $2 < last { print NR, $0, last; exit } { last = $2 }';
        expect(await guest.run(`awk '${order}' /mnt/counter; awk '${order}' /tmp/counter`)).toBe('');
        expect(await guest.run('echo 3 >/proc/sys/vm/drop_caches; sha256sum </mnt/random')).toBe(
          await guest.run('cat /tmp/sum'),
        );
        expect(await guest.run('ping -c 3 -i 0.2 -s 1400 192.0.2.1', 60_000)).toContain('3 packets received');
        expect(await host.run('ping -c 3 -i 0.2 -s 1400 192.0.2.2', 60_000)).toContain('3 packets received');
        expect(await guest.run(`dmesg | grep -E '${TROUBLE}' || :`)).toBe('');
      };
      const uptimes = async (guest: Guest): Promise<[guest: number, host: number]> => {
        const seconds = async (run: (script: string) => Promise<string>) =>
          Number((await run('cat /proc/uptime')).split(' ')[0]);
        return [await seconds((script) => guest.run(script)), await seconds((script) => host.run(script))];
      };
      await isWell(booted);

      const [guestBefore] = await uptimes(booted);
      const url = `file://${join(directory, 'snapshot')}`;
      await put(first, 'vm.pause');
      await put(first, 'vm.snapshot', { destination_url: url });
      await put(first, 'vmm.shutdown');
      await booted.child.waitForExit(30_000);
      const restored = await serve(second);
      await put(second, 'vm.restore', { source_url: url, resume: true });
      await isWell(restored);
      const [guestAfter] = await uptimes(restored);
      expect(guestAfter).toBeGreaterThan(guestBefore);

      const arriving = await serve(third);
      await host.run(
        `(${request(third, 'vm.receive-migration', {
          receiver_url: `unix:${directory}/m`,
          devices: [
            { id: 'disk', socket: there.disk },
            { id: 'net', socket: there.net },
          ],
        })}) >${directory}/received 2>&1 &`,
      );
      await untilThere(join(directory, 'm'));
      const [guestSent, hostSent] = await uptimes(restored);
      await put(second, 'vm.send-migration', { destination_url: `unix:${directory}/m`, downtime_ms: 2000 });
      await useTap('ringside1');
      expect(await host.run(`cat ${directory}/received`)).toMatch(/^HTTP\/1\.[01] 204 /);
      await isWell(arriving);
      // The clock has gone on: what the guest was held for is no more than what went by on the host.
      const [guestThere, hostThere] = await uptimes(arriving);
      expect(guestThere - guestSent).toBeGreaterThan((hostThere - hostSent) / 2);
      expect(guestThere - guestSent).toBeLessThan(hostThere - hostSent + 5);

      const sum = (await arriving.run('cat /tmp/sum')).slice(0, 64);
      await arriving.run('mount -o remount,ro /mnt 2>/dev/null || { sync; echo u >/proc/sysrq-trigger; }');
      await put(third, 'vmm.shutdown');
      await host.run(`e2fsck -fn ${image}`);
      expect(await host.run(`debugfs -R 'cat /random' ${image} 2>/dev/null | sha256sum`)).toContain(sum);
    },
    600_000,
  );
});
