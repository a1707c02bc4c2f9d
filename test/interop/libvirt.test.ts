/** A machine of libvirt's with the XML of README.md and docs/operators.md: what they show works as it stands there. */

import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import {
  fileSystemPeers,
  fileSystemPrograms,
  randomFileInImage,
  readRandomFile,
  writeRandomFile,
} from '../support/guest/file-system.ts';
import type { Guest } from '../support/guest/guest.ts';
import { buildInitramfs } from '../support/guest/initramfs.ts';
import { loadPrograms, startDiskLoad, stopDiskLoad } from '../support/guest/load.ts';
import { createImage } from '../support/image.ts';
import { documented, GroupCleanup, Libvirt, libvirtPeers } from '../support/libvirt.ts';
import { NetBackend } from '../support/net/backend.ts';
import { NetworkNamespace } from '../support/net/namespace.ts';
import {
  bringUp,
  HOST_ADDRESS,
  iperf,
  ping,
  startIperfServer,
  trafficPeers,
  trafficPrograms,
} from '../support/net/traffic.ts';
import { describeWithPeers, peerPath } from '../support/peers.ts';
import { HostPrograms, socketPeers, startInGuest, vsockPeerProgram } from '../support/vsock/traffic.ts';

const MiB = 1 << 20;
const OPERATORS = 'docs/operators.md';
const SECOND = { device: 'eth1', address: '10.7.1.2', address6: 'fd00:7:1::2' };
const SECOND_HOST_ADDRESS = '10.7.1.1';

const peers = [...libvirtPeers, ...fileSystemPeers, ...loadPrograms, ...trafficPeers, ...socketPeers];

describeWithPeers(peers, 'libvirt', () => {
  const cleanup = new GroupCleanup();
  afterAll(() => cleanup.run(), 30_000);
  let host: NetworkNamespace;
  let disk: BlkBackend;
  let data: BlkBackend;
  let nets: NetBackend[];
  let vsock: VsockDaemon;
  let programs: HostPrograms;
  let libvirt: Libvirt;
  let guest: Guest;
  let idleFds: number[];
  let dataXml: string;
  let sum: string;

  beforeAll(async () => {
    // Before the directories, whose umask is not for what is kept.
    const initramfs = buildInitramfs({
      modules: peerPath('cloud kernel modules'),
      network: true,
      sockets: true,
      programs: [...fileSystemPrograms, ...loadPrograms, ...trafficPrograms],
      staticPrograms: [vsockPeerProgram()],
    });
    host = await NetworkNamespace.create(cleanup);
    [disk, data, vsock, ...nets] = await Promise.all([
      BlkBackend.start(cleanup, { image: createImage(join(cleanup.directory(), 'disk'), 96 * MiB), numQueues: 2 }),
      BlkBackend.start(cleanup, { image: createImage(join(cleanup.directory(), 'data'), 32 * MiB) }),
      VsockDaemon.start(cleanup, { cid: 7 }),
      NetBackend.start(cleanup, { namespace: host, extra: [`--ip=${HOST_ADDRESS}/24`] }),
      NetBackend.start(cleanup, {
        namespace: host,
        tap: 'tap1',
        queuePairs: 2,
        extra: [`--ip=${SECOND_HOST_ADDRESS}/24`],
      }),
    ]);
    programs = new HostPrograms(cleanup, vsock.uds);
    await programs.echo(5000, 'stream');
    await startIperfServer(host);
    libvirt = await Libvirt.start(cleanup);
    idleFds = [disk, data, vsock, ...nets].map((daemon) => daemon.fdCount());
    dataXml = documented(OPERATORS, 'disk', { '/run/ringside/vm1-data.sock': data.socket });
    const [first, second] = nets.map(({ socket }) => socket) as [string, string];
    // For the one interface that it shows, and for the other.
    const override = documented(OPERATORS, 'qemu:override').replace(
      /^ *<qemu:device[\s\S]*<\/qemu:device>\n/m,
      (device) => device + device.replace('net0', 'net1'),
    );
    guest = await libvirt.boot({
      memoryBacking: documented('README.md', 'memoryBacking'),
      devices: [
        documented('README.md', 'disk', { '/run/ringside/vm1.sock': disk.socket }),
        dataXml,
        documented('README.md', 'interface', { '/run/ringside/vm1-net.sock': first }),
        documented(OPERATORS, 'interface', { '/run/ringside/vm2-net.sock': second }),
      ],
      qemu: [documented(OPERATORS, 'qemu:commandline', { '/run/ringside/vm1-vsock.sock': vsock.socket }), override],
      initramfs,
    });
  });

  const useNets = async (): Promise<void> => {
    await bringUp(guest);
    await bringUp(guest, SECOND);
    for (const address of [HOST_ADDRESS, SECOND_HOST_ADDRESS]) await ping(guest, address, 1500);
  };

  const useSockets = async (): Promise<void> => {
    const done = 'exchanged 5000 bytes on 20 connections';
    expect(await guest.run('/usr/bin/vsock-peer exchange vsock:2:5000 20 5000')).toBe(done);
    await startInGuest(guest, '/usr/bin/vsock-peer echo stream vsock:4294967295:5001');
    expect(await programs.run('$PEER exchange hybrid:5001:$U 20 5000')).toBe(done);
  };

  it('gives the guest as many queues as the domain says', async () => {
    expect(await guest.run('ls -1 /sys/block/vda/mq')).toBe('0\n1');
    expect(await guest.run('ls -d /sys/class/net/eth0/queues/* | wc -l')).toBe('2');
    expect(await guest.run('ls -d /sys/class/net/eth1/queues/* | wc -l')).toBe('4');
    expect(await guest.run('cat /sys/class/net/eth1/address')).toBe('52:54:00:12:34:56');
  });

  it('carries a file system and a file of random data to the host', async () => {
    sum = await writeRandomFile(guest, '/dev/vda', 24);
    expect(await readRandomFile(guest, '/dev/vda')).toBe(sum);
    expect(randomFileInImage(disk.image)).toBe(sum);
  });

  it('has a network on both interfaces, and sockets', async () => {
    await useNets();
    await iperf(guest, SECOND_HOST_ADDRESS, '--bidir');
    await useSockets();
  });

  it('goes on after a reset', async () => {
    await guest.waitForNextBoot(() => libvirt.run('reset vm1'));
    expect(await readRandomFile(guest, '/dev/vda')).toBe(sum);
    await useNets();
    await useSockets();
  });

  it('loses a disk and gets it again', async () => {
    const written = await writeRandomFile(guest, '/dev/vdb', 4);
    await libvirt.runWithXml('detach-device vm1 --live', dataXml);
    await guest.waitUntil('[ ! -e /dev/vdb ]');
    expect(randomFileInImage(data.image)).toBe(written);
    await expect.poll(() => data.fdCount(), { timeout: 5_000 }).toBe(idleFds[1]);
    await libvirt.runWithXml('attach-device vm1 --live', dataXml);
    await guest.waitUntil('[ -b /dev/vdb ]');
    expect(await readRandomFile(guest, '/dev/vdb')).toBe(written);
  });

  it('goes on when back ends are killed under load and started again', async () => {
    await startDiskLoad(guest);
    for (const daemon of [disk, ...nets]) {
      await daemon.kill9();
      await daemon.restart();
    }
    await stopDiskLoad(guest);
    for (const address of [HOST_ADDRESS, SECOND_HOST_ADDRESS]) {
      await guest.waitUntil(`/usr/bin/ping -c 1 -W 1 ${address} >/dev/null`);
      await ping(guest, address, 1500);
    }
    await iperf(guest, SECOND_HOST_ADDRESS, '--bidir');
  });

  it('is done with a guest that is off: the daemons run and hold no descriptor of it', async () => {
    await guest.run('ip link set eth0 down; ip link set eth1 down');
    await guest.powerOff();
    for (const [index, daemon] of [disk, data, vsock, ...nets].entries()) {
      await expect.poll(() => daemon.fdCount(), { timeout: 5_000 }).toBe(idleFds[index]);
    }
    await expect.poll(() => libvirt.run('list --name --all'), { timeout: 5_000 }).toBe('');
  });
});
