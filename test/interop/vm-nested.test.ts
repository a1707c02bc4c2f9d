/**
 * Debian's kernels, as they are, up to user space in `ringside vm run`: what a freestanding guest cannot show. On this
 * machine's KVM, or on that of an emulated machine.
 */

import { dirname, join } from 'node:path';
import { beforeAll, expect, it } from 'vitest';
import { cleanupAfterAll } from '../support/cleanup.ts';
import { fileSystemPrograms, readRandomFile, writeRandomFile } from '../support/guest/file-system.ts';
import { buildInitramfs } from '../support/guest/initramfs.ts';
import { type KvmHost, RINGSIDE, shellWords } from '../support/guest/kvm-host.ts';
import { itAtLength, kvmHostPeers, openKvmHost } from '../support/guest/open-kvm-host.ts';
import { vmlinuxPath } from '../support/guest/vmlinux.ts';
import { describeWithPeers, peerPath, projectDirectory } from '../support/peers.ts';
import { socketPeers, socketPrograms, startInGuest, vsockPeerProgram } from '../support/vsock/traffic.ts';

const CMDLINE = 'console=ttyS0 quiet loglevel=2 panic=-1 mitigations=off random.trust_cpu=on';
const BOOT_DEADLINE_MS = 90_000;
const DAEMON_DEADLINE_S = 20;

/** What a guest needs to let go of devices: for its udev, or "busybox uevent" as here. */
const SLOT_SCRIPT = join(projectDirectory, 'docs/guest/ringside-slot');
const SLOTS = 19;

/** The directory that virtiofsd was unpacked to, with its libraries. */
const virtiofsdRoot = (): string => join(dirname(peerPath('virtiofsd')), '../..');

describeWithPeers(
  [...kvmHostPeers, ...socketPeers, 'debugfs', 'e2fsck', 'lz4', 'virtiofsd'],
  "Debian's kernel in ringside vm run, up to user space",
  () => {
    const cleanup = cleanupAfterAll();
    let host: KvmHost;
    let directory: string;
    let initramfs: string;

    beforeAll(async () => {
      initramfs = buildInitramfs({
        modules: peerPath('cloud kernel modules'),
        network: true,
        sharedFileSystem: true,
        sockets: true,
        powerButton: true,
        programs: [...fileSystemPrograms, ...socketPrograms],
        staticPrograms: [vsockPeerProgram(), SLOT_SCRIPT],
      });
      host = await openKvmHost(cleanup, {
        programs: ['debugfs', 'e2fsck', ...socketPrograms],
        files: [initramfs, peerPath('cloud kernel'), vmlinuxPath(), virtiofsdRoot(), vsockPeerProgram()],
        modules: ['tun'],
      });
      directory = await host.directory();
    });

    const boot = async (kernel: string, ...options: string[]) => {
      const args = ['--kernel', kernel, '--initramfs', initramfs, '--cmdline', CMDLINE, ...options];
      const guest = await host.startVm(args);
      await guest.waitUntilReady(BOOT_DEADLINE_MS);
      return guest;
    };

    /** What `ringside ctl` says of the machine at an API socket. */
    const counters = async (socket: string): Promise<Record<string, Record<string, number>>> =>
      JSON.parse(await host.run(shellWords([...RINGSIDE, 'ctl', '--api-socket', socket, 'counters'])));

    it('boots a bzImage with two processors; what it writes is in the image when it is off', async () => {
      const image = join(directory, 'disk');
      const api = join(directory, 'api');
      await host.run(`truncate -s 64M ${image}`);
      const options = ['--cpus', '2', '--memory', '256M', '--disk', `path=${image}`, '--api-socket', api];
      const guest = await boot(peerPath('cloud kernel'), ...options);

      expect(await guest.run('nproc')).toBe('2');
      const sum = await writeRandomFile(guest, '/dev/vda', 8);
      expect(await readRandomFile(guest, '/dev/vda')).toBe(sum);
      expect((await counters(api))._disk0?.notify_exits).toBe(0);

      // What is pressed before somebody has the file open is not kept.
      await guest.run(`head -c 24 </dev/input/event0 >/tmp/button &
        until [ "$(readlink /proc/$!/fd/0)" = /dev/input/event0 ]; do :; done`);
      await host.run(shellWords([...RINGSIDE, 'ctl', '--api-socket', api, 'power-button']));
      await guest.waitUntil('[ -s /tmp/button ]');
      // struct input_event: EV_KEY, KEY_POWER, pressed.
      expect(await guest.run('tail -c 8 /tmp/button | hexdump -e \'8/1 "%02x"\'')).toBe('0100740001000000');
      await guest.powerOff(60_000);
      expect(await guest.child.waitForExit(1)).toMatchObject({ code: 0 });
      await host.run(`e2fsck -fn ${image}`);
      expect(await host.run(`debugfs -R 'cat /random' ${image} 2>/dev/null | sha256sum`)).toContain(sum);
    });

    it('has memory beyond the hole, goes through a reset and runs the disk again', async () => {
      const image = join(directory, 'reset');
      await host.run(`truncate -s 64M ${image}`);
      const guest = await boot(vmlinuxPath(), '--memory', '5G', '--disk', `path=${image}`);
      // The kernel takes memory from the top, so the disk's data is there.
      expect(await guest.run("grep -c '^100000000-.*System RAM' /proc/iomem")).toBe('1');
      const sum = await writeRandomFile(guest, '/dev/vda', 4);
      await guest.reboot(BOOT_DEADLINE_MS);
      expect(await readRandomFile(guest, '/dev/vda')).toBe(sum);
      await guest.powerOff(60_000);
      expect(await guest.child.waitForExit(1)).toMatchObject({ code: 0 });
    });

    itAtLength('carries on when the daemon of its disk is killed in the middle of writing', async () => {
      const image = join(directory, 'killed');
      await host.run(`truncate -s 64M ${image}`);
      const guest = await boot(vmlinuxPath(), '--cpus', '2', '--disk', `path=${image}`);
      await guest.run(`dd if=/dev/urandom of=/tmp/random bs=1M count=32 2>/dev/null
        (dd if=/tmp/random of=/dev/vda bs=64k oflag=direct 2>/tmp/dd; echo $? >/tmp/status) >/dev/null 2>&1 &
        until [ "$(cut -d' ' -f5 /sys/block/vda/stat)" != 0 ] || grep -q [1-9] /sys/block/vda/inflight; do :; done`);
      // Nobody else has the image open.
      await host.run(`for process in /proc/[0-9]*; do
          if ls -l $process/fd 2>/dev/null | grep -q ' ${image}$'; then kill -9 \${process#/proc/}; exit; fi
        done
        exit 1`);
      await guest.waitUntil('[ -s /tmp/status ]', 30_000);
      expect(await guest.run('cat /tmp/status')).toBe('0');
      const sum = (await guest.run('sha256sum </tmp/random')).slice(0, 64);
      const read =
        'echo 3 >/proc/sys/vm/drop_caches; head -c 33554432 /dev/vda | sha256sum; dmesg | grep -i error || :';
      expect(await guest.run(read)).toBe(`${sum}  -`);
      await guest.powerOff(60_000);
      expect(await host.run(`head -c 33554432 ${image} | sha256sum`)).toContain(sum);
    });

    itAtLength('sends and receives packets through a TAP', async () => {
      const guest = await boot(vmlinuxPath(), '--net', 'tap=ringside0,mac=52:54:00:00:00:02');
      await host.run('ip addr add 192.0.2.1/24 dev ringside0; ip link set ringside0 up');
      await guest.run('ip addr add 192.0.2.2/24 dev eth0; ip link set eth0 up');
      expect(await guest.run('cat /sys/class/net/eth0/address')).toBe('52:54:00:00:00:02');
      expect(await guest.run('ping -c 3 -i 0.2 -s 1400 192.0.2.1')).toContain('3 packets received');
      expect(await host.run('ping -c 3 -i 0.2 -s 1400 192.0.2.2')).toContain('3 packets received');
      await guest.powerOff(60_000);
    });

    itAtLength('mounts a directory that virtiofsd shares', async () => {
      const socket = join(directory, 'virtiofsd');
      const shared = join(directory, 'shared');
      const libraries = join(virtiofsdRoot(), 'usr/lib/x86_64-linux-gnu');
      const loader = [join(libraries, 'ld-linux-x86-64.so.2'), '--library-path', libraries];
      const options = [`--socket-path=${socket}`, `--shared-dir=${shared}`, '--sandbox', 'none'];
      const pid = await host.run(`mkdir ${shared}; echo from the host >${shared}/there
        ${shellWords([...loader, peerPath('virtiofsd'), ...options])} >${socket}.log 2>&1 &
        echo $!
        for i in $(seq ${DAEMON_DEADLINE_S * 10}); do [ -S ${socket} ] && exit; usleep 100000; done
        cat ${socket}.log; exit 1`);
      // It ends with its connection, if there ever was one.
      cleanup.add(() => host.run(`kill ${pid} 2>/dev/null || :`));
      const guest = await boot(vmlinuxPath(), '--fs', `tag=shared,socket=${socket}`);
      expect(await guest.run('mount -t virtiofs shared /mnt; cat /mnt/there')).toBe('from the host');
      const written = await guest.run('head -c 1000000 /dev/urandom >/mnt/here; sha256sum </mnt/here; umount /mnt');
      expect(await host.run(`sha256sum <${shared}/here`)).toBe(written);
      await guest.powerOff(60_000);
    });

    itAtLength('has sockets to the host and from it, and has them again when their daemon was killed', async () => {
      const socket = join(directory, 'vsock');
      const uds = join(directory, 'v');
      const start = async (): Promise<string> => {
        const options = [`--socket-path=${socket}`, '--guest-cid=9', `--uds-path=${uds}`];
        const daemon = [process.execPath, join(projectDirectory, 'dist/backends/vsock/main.js'), ...options];
        return host.run(`${shellWords(daemon)} >${socket}.log 2>&1 &
          echo $!
          for i in $(seq ${DAEMON_DEADLINE_S * 10}); do
            grep -q 'listening on' ${socket}.log && exit
            usleep 100000
          done
          cat ${socket}.log; exit 1`);
      };
      let daemon = await start();
      cleanup.add(() => host.run(`kill ${daemon} 2>/dev/null || :`));
      const guest = await boot(vmlinuxPath(), '--vsock', `cid=9,socket=${socket}`);
      await host.run(
        `${shellWords([vsockPeerProgram()])} echo stream unix:${uds}_5000 >/dev/null 2>&1 & echo $! >${uds}.pid`,
      );
      cleanup.add(() => host.run(`kill $(cat ${uds}.pid)`));
      await startInGuest(guest, '/usr/bin/vsock-peer echo stream vsock:4294967295:5001');
      const use = async (): Promise<void> => {
        const done = 'exchanged 5000 bytes on 20 connections';
        expect(await guest.run('/usr/bin/vsock-peer exchange vsock:2:5000 20 5000')).toBe(done);
        const words = shellWords([vsockPeerProgram(), 'exchange', `hybrid:5001:${uds}`, '20', '5000']);
        expect(await host.run(words)).toBe(done);
      };
      await use();

      await host.run(`(socat -u UNIX-LISTEN:${uds}_5002 - | sha256sum >${uds}.sum) >/dev/null 2>&1 &
        for i in $(seq 100); do [ -S ${uds}_5002 ] && exit; usleep 100000; done; exit 1`);
      const sum = await guest.run(`dd if=/dev/urandom of=/tmp/random bs=1M count=8 2>/dev/null; sha256sum </tmp/random
        /usr/bin/socat -u -b 65536 OPEN:/tmp/random VSOCK-CONNECT:2:5002`);
      expect(
        await host.run(`for i in $(seq 100); do [ -s ${uds}.sum ] && break; usleep 100000; done; cat ${uds}.sum`),
      ).toBe(sum);

      await guest.run('/usr/bin/socat -d -d -u VSOCK-CONNECT:2:5000 - >/tmp/open 2>&1 &');
      await guest.waitUntil('grep -q "starting data transfer" /tmp/open');
      await host.run(`kill -9 ${daemon}`);
      daemon = await start();
      // TRANSPORT_RESET ends it: ENOTCONN.
      await guest.waitUntil('grep -q "E read.*: Transport endpoint is not connected" /tmp/open');
      await use();
      await guest.powerOff(60_000);
    });

    itAtLength(
      'takes disks that come, and lets go of those that are wanted back, in one slot again and again',
      async () => {
        const api = join(directory, 'hotplug-api');
        const image = join(directory, 'hotplug');
        const socket = join(directory, 'hotplug-disk');
        const daemon = [join(projectDirectory, 'dist/backends/blk/main.js'), `--socket-path=${socket}`];
        const pid = await host.run(`head -c 8388608 /dev/urandom >${image}
        ${shellWords([process.execPath, ...daemon, `--blk-file=${image}`])} >${socket}.log 2>&1 &
        echo $!
        for i in $(seq ${DAEMON_DEADLINE_S * 10}); do grep -q 'listening on' ${socket}.log && exit; usleep 100000; done
        cat ${socket}.log; exit 1`);
        cleanup.add(() => host.run(`kill ${pid} 2>/dev/null || :`));
        const sum = await host.run(`sha256sum <${image}`);
        const guest = await boot(peerPath('cloud kernel'), '--api-socket', api);
        /** A request to the API; a process of ours for each would take seconds there. */
        const ask = (request: string, body = ''): string => {
          const head = `${request} HTTP/1.0\\r\\nContent-Length: ${body.length}\\r\\n\\r\\n`;
          return `printf '${head}${body}' | socat -t 0.1 -,ignoreeof UNIX-CONNECT:${api}`;
        };
        const put = (route: string, body: object): Promise<string> =>
          host.run(ask(`PUT /api/v1/${route}`, JSON.stringify(body)));
        const add = async (slot: number): Promise<void> => {
          expect(await put('vm.add-disk', { vhost_socket: socket, id: 'data' })).toContain(
            `{"id":"data","slot":${slot}}`,
          );
          await guest.waitUntil('[ -b /dev/vda ]', 30_000);
        };
        const remove = async (): Promise<void> => {
          expect(await put('vm.remove-device', { id: 'data' })).toMatch(/^HTTP\/1\.[01] 204 /);
          await host.run(`for i in $(seq 300); do
              case "$(${ask('GET /api/v1/vm.info')})" in
                *'"data"'*) ;;
                *'"device_tree"'*) exit ;;
              esac
              usleep 100000
            done
            exit 1`);
          await guest.run('[ ! -b /dev/vda ]');
        };

        await add(0);
        expect(await guest.run('sha256sum </dev/vda')).toBe(sum);
        // Nobody in the guest knows what to do: the request stays.
        await put('vm.remove-device', { id: 'data' });
        expect(await guest.run('sha256sum </dev/vda')).toBe(sum);
        await guest.run('uevent busybox sh /usr/bin/ringside-slot >/tmp/slots 2>&1 &');
        await guest.waitUntil('pidof uevent');
        await remove();
        for (let slot = 1; slot < SLOTS; slot++) {
          await add(slot);
          await remove();
        }
        // The guest knows the slots now. Their containers are new, their platform devices are not.
        for (let slot = 0; slot < 2; slot++) {
          await add(slot);
          expect(await guest.run('echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/vda')).toBe(sum);
          await remove();
        }
        expect(await guest.run('cat /tmp/slots; ls /sys/bus/virtio/devices /sys/devices/system/container')).not.toMatch(
          /virtio\d|ACPI0004|rror/,
        );
        await guest.powerOff(60_000);
      },
      // Twenty-one disks that come and go.
      600_000,
    );
  },
);
