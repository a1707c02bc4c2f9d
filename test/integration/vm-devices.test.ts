/** Devices of the virtual machine, as its guest drives them, with our daemons behind: data, notifications, recovery. */

import { truncateSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { createImage } from '../support/image.ts';
import { NetBackend } from '../support/net/backend.ts';
import { NetworkNamespace, namespacePeers } from '../support/net/namespace.ts';
import { HOST_ADDRESS } from '../support/net/traffic.ts';
import { describeWithPeers } from '../support/peers.ts';
import { diskContent, verifiedDisk } from '../support/vm/expectations.ts';
import { VmmProcess, vmGuestPeers } from '../support/vm/vmm-process.ts';

const MiB = 1 << 20;
const SHUT_DOWN = { code: 0, signal: null };
const DEADLINE_MS = 40_000;

describeWithPeers(vmGuestPeers, 'A disk of the virtual machine', () => {
  const cleanup = cleanupAfterEach();
  const image = (): string => createImage(join(cleanup.directory(), 'disk'), 16 * MiB);
  const start = (numQueues = 1): Promise<BlkBackend> =>
    BlkBackend.start(cleanup, { image: image(), serial: 'served', numQueues });

  it('keeps what the guest writes, in chains of all shapes and memory above 4 GiB', async () => {
    const disk = await start();
    const idle = disk.fdCount();
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'blk', kb: 1024, seed: 5 },
      memory: 'size=5G',
      disks: [`socket=${disk.socket}`],
    });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('disk0')).toMatchObject({ ...verifiedDisk(16 * MiB), high: 1 });
    expect(vmm.guest.text('disk0.id')).toBe('served');
    expect(diskContent(disk.image, 1024, 5)).toBe('as stamped');
    await eventually(
      'descriptors of the daemon',
      () => disk.fdCount(),
      (count) => count === idle,
    );
  });

  it('is one of two, one of them served by a daemon that the VMM starts', async () => {
    const disk = await start();
    const own = image();
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'info,blk,echo', disks: 2, kb: 512, seed: 6 },
      disks: [`path=${own},serial=started`, `socket=${disk.socket}`],
    });
    await vmm.guest.waitFor('echo.ready', DEADLINE_MS);
    expect(vmm.daemons()).toHaveLength(1);
    // It waits for a word: then it ends.
    vmm.child.stdin.write('\n');
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.number('devices')).toBe(2);
    for (const n of [0, 1]) expect(vmm.guest.numbers(`disk${n}`)).toMatchObject(verifiedDisk(16 * MiB));
    expect(vmm.guest.all('disk0.id')).toEqual(['started']);
    expect(vmm.guest.all('disk1.id')).toEqual(['served']);
    for (const path of [own, disk.image]) expect(diskContent(path, 512, 6)).toBe('as stamped');
  });

  it('is not written to when it is read-only', async () => {
    const vmm = VmmProcess.run(cleanup, { parameters: { job: 'blk' }, disks: [`path=${image()},readonly=on`] });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('disk0')).toMatchObject({ readonly: 1, write: 1, beyond: 1 });
  });

  it('has a queue for each processor', async () => {
    const disk = await start(2);
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'smp', cpus: 2, requests: 400 },
      cpus: 2,
      disks: [`socket=${disk.socket},num_queues=2`],
    });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('smp')).toEqual({ queues: 2, started: 2, requests: 800, mismatches: 0 });
  });

  it('is opened again and again by one processor, and another disk at the same time by another', async () => {
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'race', cpus: 2, rounds: 30 },
      cpus: 2,
      disks: [`path=${image()}`, `path=${image()}`],
    });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('race')).toEqual({ started: 2, requests: 120, mismatches: 0 });
  });

  it('is kicked without an exit to the VMM', async () => {
    const disk = await start();
    const exitsAfter = async (n: number): Promise<number> => {
      const vmm = VmmProcess.run(cleanup, {
        parameters: { job: 'kicks', n, end: 'halt' },
        disks: [`socket=${disk.socket}`],
      });
      await vmm.guest.waitFor('end', DEADLINE_MS);
      expect(vmm.guest.number('kicks.done')).toBe(n);
      const counters = await vmm.counters();
      expect(counters._disk0).toMatchObject({ queue_0_notify_exits: 0 });
      const exits = await vmm.deviceExits();
      await vmm.put('vmm.shutdown');
      await vmm.child.waitForClose(DEADLINE_MS);
      return exits;
    };
    const few = await exitsAfter(10);
    const many = await exitsAfter(2000);
    // Setting up takes as many exits each time; kicks, reads of registers and acknowledgements take none.
    expect(few).toBeGreaterThan(10);
    expect(many).toBe(few);
  });

  it('goes on when its daemon is killed under load', async () => {
    const disk = await start();
    // With flushes among them requests are done out of order: only the in-flight region knows which were not.
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'load', requests: 4000, qd: 32, flush: 1 },
      disks: [`socket=${disk.socket}`],
    });
    for (let round = 0; round < 3; round++) {
      await vmm.guest.waitFor('load.progress', DEADLINE_MS, vmm.child.mark());
      await disk.kill9();
      await disk.restart();
    }
    expect(vmm.guest.all('load.requests')).toEqual([]);
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('load')).toMatchObject({ depth: 32, failures: 0, mismatches: 0 });
  });

  it('goes on when the daemon that the VMM started is killed under load', async () => {
    const vmm = VmmProcess.run(cleanup, { parameters: { job: 'load', requests: 6000 }, disks: [`path=${image()}`] });
    await vmm.guest.waitFor('load.progress', DEADLINE_MS);
    const daemon = vmm.killDaemon();
    await eventually(
      'daemons',
      () => vmm.daemons(),
      (pids) => pids.length === 1 && pids[0] !== daemon,
      DEADLINE_MS,
    );
    expect(vmm.guest.all('load.requests')).toEqual([]);
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('load')).toMatchObject({ failures: 0, mismatches: 0 });
  });

  it('tells the guest of a new size', async () => {
    const disk = await start();
    const vmm = VmmProcess.run(cleanup, { parameters: { job: 'resize' }, disks: [`socket=${disk.socket}`] });
    await vmm.guest.waitFor('resize.waiting');
    truncateSync(disk.image, 24 * MiB);
    disk.signal('SIGHUP');
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    const sizes = { before: (16 * MiB) / 512, after: (24 * MiB) / 512 };
    expect(vmm.guest.numbers('resize')).toEqual({ ...sizes, waiting: 1, interrupt: 1, acknowledged: 1, last: 0 });
  });

  it('takes a benchmark', async () => {
    const disk = await start();
    const parameters = { job: 'bench', requests: 5000, qd: 32 };
    const vmm = VmmProcess.run(cleanup, { parameters, disks: [`socket=${disk.socket}`] });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('bench')).toMatchObject({ depth: 32, requests: 5000, failures: 0 });
  });
});

describeWithPeers([...vmGuestPeers, ...namespacePeers], 'A network interface of the virtual machine', () => {
  const cleanup = cleanupAfterEach();

  it('carries pings to the host, of a daemon at a socket', async () => {
    const namespace = await NetworkNamespace.create(cleanup);
    const backend = await NetBackend.start(cleanup, { namespace, extra: [`--ip=${HOST_ADDRESS}/24`] });
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'net', count: 200, size: 1400, peer: HOST_ADDRESS },
      memory: 'size=5G',
      networks: [`socket=${backend.socket},mac=52:54:00:c0:ff:ee`],
    });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    const found = vmm.guest.numbers('net');
    expect(found).toMatchObject({ mac: 0x525400c0ffee, interrupt: 1, answers: 200, mismatches: 0 });
    expect((await namespace.counters('tap0')).rxPackets).toBeGreaterThanOrEqual(201);
  });

  it('carries pings to the host, of a daemon that the VMM starts', async () => {
    const namespace = await NetworkNamespace.create(cleanup);
    await namespace.addTap('vm0');
    await namespace.run(`ip addr add ${HOST_ADDRESS}/24 dev vm0`);
    const parameters = { job: 'net', count: 100, peer: HOST_ADDRESS };
    const vmm = VmmProcess.run(cleanup, { parameters, namespace, networks: ['tap=vm0'] });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('net')).toMatchObject({ answers: 100, mismatches: 0 });
  });

  it('goes on when its daemon is killed while packets are on their way', async () => {
    const namespace = await NetworkNamespace.create(cleanup);
    await namespace.addTap('tap0');
    await namespace.run(`ip addr add ${HOST_ADDRESS}/24 dev tap0`);
    const backend = await NetBackend.start(cleanup, { namespace });
    const parameters = { job: 'net', count: 1000, peer: HOST_ADDRESS };
    const vmm = VmmProcess.run(cleanup, { parameters, networks: [`socket=${backend.socket}`] });
    await vmm.guest.waitFor('net.progress', DEADLINE_MS);
    await backend.kill9();
    await backend.restart();
    expect(vmm.guest.all('net.answers')).toEqual([]);
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('net')).toMatchObject({ answers: 1000, mismatches: 0 });
  });
});
