/** Back ends of other projects behind devices of the virtual machine: qemu-storage-daemon and virtiofsd. */

import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { Child } from '../support/child.ts';
import { type Cleanup, cleanupAfterEach } from '../support/cleanup.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { createImage } from '../support/image.ts';
import { NetBackend } from '../support/net/backend.ts';
import { NetworkNamespace, namespacePeers } from '../support/net/namespace.ts';
import { HOST_ADDRESS } from '../support/net/traffic.ts';
import { describeWithPeers, type PeerName, peerPath } from '../support/peers.ts';
import { diskContent, verifiedDisk } from '../support/vm/expectations.ts';
import { startVirtiofsd, virtiofsdPeers } from '../support/vm/virtiofsd.ts';
import { VmmProcess, vmGuestPeers } from '../support/vm/vmm-process.ts';

const MiB = 1 << 20;
const SHUT_DOWN = { code: 0, signal: null };
const DEADLINE_MS = 60_000;
const storagePeers: readonly PeerName[] = ['qemu-storage-daemon'];

/** Exports an image, and waits until the socket is there. Returns the socket. */
const startStorageDaemon = async (cleanup: Cleanup, image: string, queues: number): Promise<string> => {
  const socket = join(cleanup.directory(), 'qsd.sock');
  const pidFile = join(cleanup.directory(), 'pid');
  const child = new Child(peerPath('qemu-storage-daemon'), [
    ...['--blockdev', `driver=file,node-name=f,filename=${image}`, '--pidfile', pidFile],
    '--export',
    `type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=${socket},writable=on,num-queues=${queues}`,
  ]);
  cleanup.add(() => child.stop());
  // It writes the file when everything else is done.
  await eventually('pid file', () => existsSync(pidFile), Boolean, 10_000);
  return socket;
};

describeWithPeers(
  [...vmGuestPeers, ...storagePeers],
  'qemu-storage-daemon behind a disk of the virtual machine',
  () => {
    const cleanup = cleanupAfterEach();

    it('keeps what two processors write, and what a driver writes after a reboot', async () => {
      const image = createImage(join(cleanup.directory(), 'disk'), 16 * MiB);
      const socket = await startStorageDaemon(cleanup, image, 2);
      const vmm = VmmProcess.run(cleanup, {
        parameters: { job: 'boots,smp,blk,load', start: 8192, kb: 512, seed: 9, cpus: 2, requests: 1000, end: 'reset' },
        cpus: 2,
        disks: [`socket=${socket},num_queues=2`],
      });
      expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
      expect(vmm.guest.all('boots')).toEqual(['1', '2']);
      expect(vmm.guest.numbers('smp')).toMatchObject({ started: 2, requests: 2000, mismatches: 0 });
      expect(vmm.guest.numbers('disk0')).toMatchObject(verifiedDisk(16 * MiB));
      expect(vmm.guest.numbers('load')).toMatchObject({ failures: 0, mismatches: 0 });
    });
  },
);

describeWithPeers([...vmGuestPeers, ...virtiofsdPeers], 'virtiofsd behind a file system of the virtual machine', () => {
  const cleanup = cleanupAfterEach();

  it('shows a file', async () => {
    const directory = cleanup.directory();
    writeFileSync(join(directory, 'greeting'), 'good morning');
    const { socket } = await startVirtiofsd(cleanup, directory);
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'fs', file: 'greeting' },
      memory: 'size=5G',
      fileSystems: [`tag=home,socket=${socket}`],
    });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.text('fs.tag')).toBe('home');
    const answers = { queues: 1, init: 0, major: 7, lookup: 0, open: 0, read: 0, length: 12 };
    expect(vmm.guest.numbers('fs')).toMatchObject(answers);
    expect(vmm.guest.text('fs.text')).toBe('good morning');
  });
});

describeWithPeers(
  [...vmGuestPeers, ...virtiofsdPeers, ...storagePeers, ...namespacePeers],
  'A virtual machine with devices of every kind',
  () => {
    const cleanup = cleanupAfterEach();

    it('serves them by daemons of three projects', async () => {
      const namespace = await NetworkNamespace.create(cleanup);
      const net = await NetBackend.start(cleanup, { namespace, extra: [`--ip=${HOST_ADDRESS}/24`] });
      const directory = cleanup.directory();
      mkdirSync(join(directory, 'shared'));
      writeFileSync(join(directory, 'shared/file'), 'three');
      const { socket } = await startVirtiofsd(cleanup, join(directory, 'shared'));
      const images = ['a', 'b'].map((name) => createImage(join(directory, name), 16 * MiB));
      const [first = '', second = ''] = images;
      const disk = await BlkBackend.start(cleanup, { image: first });
      const vmm = VmmProcess.run(cleanup, {
        parameters: { job: 'info,blk,net,fs', disks: 2, kb: 256, seed: 4, count: 50, peer: HOST_ADDRESS, file: 'file' },
        disks: [`socket=${disk.socket}`, `socket=${await startStorageDaemon(cleanup, second, 1)}`],
        networks: [`socket=${net.socket}`],
        fileSystems: [`tag=home,socket=${socket}`],
      });
      expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
      expect(vmm.guest.number('devices')).toBe(4);
      for (const n of [0, 1]) expect(vmm.guest.numbers(`disk${n}`)).toMatchObject(verifiedDisk(16 * MiB));
      for (const path of images) expect(diskContent(path, 256, 4)).toBe('as stamped');
      expect(vmm.guest.numbers('net')).toMatchObject({ interrupt: 1, answers: 50, mismatches: 0 });
      expect(vmm.guest.text('fs.text')).toBe('three');
    });
  },
);
