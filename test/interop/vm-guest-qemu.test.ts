import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { createImage } from '../support/image.ts';
import { NetBackend } from '../support/net/backend.ts';
import { NetworkNamespace, namespacePeers } from '../support/net/namespace.ts';
import { HOST_ADDRESS } from '../support/net/traffic.ts';
import { describeWithPeers } from '../support/peers.ts';
import { diskContent, verifiedDisk } from '../support/vm/expectations.ts';
import { qemuGuestPeers, startQemuGuest } from '../support/vm/qemu-guest.ts';

const MiB = 1 << 20;
const SWITCHED_OFF = { code: 0, signal: null };

describeWithPeers(qemuGuestPeers, 'The test guest on QEMU microvm', () => {
  const cleanup = cleanupAfterEach();
  const image = (): string => createImage(join(cleanup.directory(), 'disk'), 16 * MiB);

  describe.each(['pvh', 'bzImage'] as const)('as %s', (form) => {
    it('is right about a disk of QEMU, whose image has what it wrote', async () => {
      const path = image();
      const parameters = { job: 'serial,blk', kb: 1024, seed: 7 };
      const guest = startQemuGuest(cleanup, { form, parameters, images: [path] });
      expect(await guest.child.waitForClose(60_000)).toEqual(SWITCHED_OFF);
      expect(guest.numbers('serial')).toEqual({ scratch: 0x5a, fifo: 1, divisor: 1, empty: 1 });
      expect(guest.numbers('disk0')).toMatchObject(verifiedDisk(16 * MiB));
      expect(diskContent(path, 1024, 7)).toBe('as stamped');
    });
  });

  it('reads the memory map and writes to memory below and above 4 GiB', async () => {
    const guest = startQemuGuest(cleanup, { parameters: { job: 'info,memory' }, memoryMiB: 6144 });
    await guest.child.waitForClose(60_000);
    expect(guest.all('map')).toContain('0x100000000,0xc0000000,1');
    expect(guest.numbers('memory')).toMatchObject({ touched: 9, mismatches: 0 });
  });

  it('starts other processors, each with a queue of its own', async () => {
    const guest = startQemuGuest(cleanup, {
      parameters: { job: 'cpus,smp', cpus: 4, requests: 100 },
      cpus: 4,
      queues: 4,
      images: [image()],
    });
    await guest.child.waitForClose(60_000);
    expect(guest.numbers('cpus')).toEqual({ started: 4, seen: 0xf });
    expect(guest.numbers('smp')).toEqual({ queues: 4, started: 4, requests: 400, mismatches: 0 });
  });

  it('keeps many requests in flight', async () => {
    const guest = startQemuGuest(cleanup, {
      parameters: { job: 'load,bench', qd: 32, requests: 2000 },
      images: [image()],
    });
    await guest.child.waitForClose(60_000);
    expect(guest.numbers('load')).toMatchObject({ depth: 32, failures: 0, mismatches: 0 });
    expect(guest.numbers('bench')).toMatchObject({ depth: 32, requests: 2000, failures: 0 });
  });
});

describeWithPeers(qemuGuestPeers, 'The test guest on QEMU microvm, with vhost-user-blk', () => {
  const cleanup = cleanupAfterEach();
  const start = (numQueues = 1): Promise<BlkBackend> =>
    BlkBackend.start(cleanup, {
      image: createImage(join(cleanup.directory(), 'disk'), 16 * MiB),
      serial: 'served',
      numQueues,
    });

  it('verifies what two daemons keep for it', async () => {
    const disks = await Promise.all([start(), start()]);
    const guest = startQemuGuest(cleanup, {
      parameters: { job: 'blk', disks: 2, kb: 1024, seed: 3 },
      disks: disks.map(({ socket }) => socket),
    });
    expect(await guest.child.waitForClose(60_000)).toEqual(SWITCHED_OFF);
    for (const n of [0, 1]) expect(guest.numbers(`disk${n}`)).toMatchObject(verifiedDisk(16 * MiB));
    expect(guest.text('disk0.id')).toBe('served');
    for (const { image } of disks) expect(diskContent(image, 1024, 3)).toBe('as stamped');
  });

  it('uses a queue from each processor', async () => {
    const disk = await start(2);
    const parameters = { job: 'smp', cpus: 2, requests: 200 };
    const guest = startQemuGuest(cleanup, { parameters, cpus: 2, queues: 2, disks: [disk.socket] });
    await guest.child.waitForClose(60_000);
    expect(guest.numbers('smp')).toEqual({ queues: 2, started: 2, requests: 400, mismatches: 0 });
  });

  it('goes on when the daemon is killed under load', async () => {
    const disk = await start();
    const guest = startQemuGuest(cleanup, { parameters: { job: 'load', requests: 20_000 }, disks: [disk.socket] });
    await guest.waitFor('load.progress');
    await disk.kill9();
    await disk.restart();
    await guest.waitUntilDone('load');
    expect(guest.numbers('load')).toMatchObject({ failures: 0, mismatches: 0 });
  });
});

describeWithPeers([...qemuGuestPeers, ...namespacePeers], 'The test guest on QEMU microvm, with vhost-user-net', () => {
  const cleanup = cleanupAfterEach();

  it('pings the host', async () => {
    const namespace = await NetworkNamespace.create(cleanup);
    const backend = await NetBackend.start(cleanup, { namespace, extra: [`--ip=${HOST_ADDRESS}/24`] });
    const parameters = { job: 'net', count: 100, size: 1400, peer: HOST_ADDRESS };
    const guest = startQemuGuest(cleanup, { parameters, networks: [backend.socket] });
    await guest.child.waitForClose(60_000);
    expect(guest.numbers('net')).toMatchObject({ answers: 100, mismatches: 0 });
    expect((await namespace.counters('tap0')).rxPackets).toBeGreaterThanOrEqual(101);
  });
});
