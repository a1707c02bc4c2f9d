/** Memory of the virtual machine that comes and goes while it runs, and memory far up, with a disk that uses it. */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { eventually, sharedMappings } from '../support/frontend/process-probe.ts';
import { createImage } from '../support/image.ts';
import { describeWithPeers } from '../support/peers.ts';
import { diskContent, verifiedDisk } from '../support/vm/expectations.ts';
import { buildGuest, guestCommandLine } from '../support/vm/guest-program.ts';
import { VmmProcess, vmGuestPeers } from '../support/vm/vmm-process.ts';

const MiB = 2 ** 20;
const GiB = 2 ** 30;
const SIZE = 128 * MiB;
const SHUT_DOWN = { code: 0, signal: null };
const DEADLINE_MS = 60_000;

const mapped = (disk: BlkBackend): number => sharedMappings(disk.pid, 'ringside-ram');

describeWithPeers(vmGuestPeers, 'Memory of the virtual machine', () => {
  const cleanup = cleanupAfterEach();
  const start = (): Promise<BlkBackend> =>
    BlkBackend.start(cleanup, { image: createImage(join(cleanup.directory(), 'disk'), 16 * MiB) });

  const run = (disk: BlkBackend, parameters: Record<string, number>, memory: string): VmmProcess =>
    VmmProcess.run(cleanup, {
      parameters: { job: 'mem', ...parameters },
      memory: `size=128M,${memory}`,
      disks: [`socket=${disk.socket}`],
    });

  const actualSize = async (vmm: VmmProcess): Promise<number> => {
    const { body } = await vmm.request('GET', 'vm.info');
    return (body as { memory_actual_size: number }).memory_actual_size;
  };

  /** Asks for so much and waits until the guest has it. */
  const resize = async (vmm: VmmProcess, hotplugBytes: number): Promise<void> => {
    const from = vmm.child.output().length;
    await vmm.put('vm.resize', { desired_ram: SIZE + hotplugBytes });
    expect(await vmm.guest.waitFor('mem.size', DEADLINE_MS, from)).toBe(String(hotplugBytes));
    expect(await actualSize(vmm)).toBe(SIZE + hotplugBytes);
  };

  /** The last size that the guest waits for: it ends then. */
  const finish = (vmm: VmmProcess): Promise<void> => vmm.put('vm.resize', { desired_ram: SIZE + 2 * MiB });

  it('grows and shrinks as it is asked to, and the disk uses it', async () => {
    const disk = await start();
    const vmm = run(disk, { rounds: 5 }, 'hotplug_size=1G');
    await vmm.guest.waitFor('mem.ready');
    await eventually(
      'memory of the disk',
      () => mapped(disk),
      (count) => count >= 1,
    );
    const before = mapped(disk);

    await resize(vmm, 600 * MiB);
    expect(mapped(disk)).toBe(before + 3);
    // The guest keeps blocks at the end, so the last piece stays, and the first for what it may plug.
    await resize(vmm, 40 * MiB);
    expect(mapped(disk)).toBe(before + 2);
    await resize(vmm, GiB);
    expect(vmm.memfds()).toBe(5);
    await resize(vmm, 0);
    expect(mapped(disk)).toBe(before);

    await finish(vmm);
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('mem')).toMatchObject({
      without_feature: 0,
      block: 2 * MiB,
      region: 0x1_0000_0000,
      region_bytes: GiB,
      failures: 0,
      mismatches: 0,
      wrong: 0,
    });
  });

  it('is asked for things that cannot be, taken from under a disk, and is right afterwards', async () => {
    const disk = await start();
    const vmm = run(disk, { rounds: 3, hostile: 1, run: 1 }, 'hotplug_size=512M');
    await vmm.guest.waitFor('mem.ready');
    await resize(vmm, 64 * MiB);
    await resize(vmm, 0);
    await finish(vmm);
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.all('mem.error')).toEqual([]);
    expect(vmm.guest.numbers('mem')).toMatchObject({
      // IOERR: VIRTIO 1.3, 5.2.6.
      dma_outside: 1,
      answered: 1,
      failures: 0,
      mismatches: 0,
      wrong: 0,
    });
  });

  it('is taken from under a disk whose daemon is killed while its ring is nowhere', async () => {
    const image = createImage(join(cleanup.directory(), 'disk'), 16 * MiB);
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'mem', rounds: 2, hostile: 1, hold: 1 },
      memory: 'size=128M,hotplug_size=512M',
      disks: [`path=${image},id=disk`],
    });
    await vmm.guest.waitFor('mem.ready');
    await vmm.put('vm.resize', { desired_ram: SIZE + 64 * MiB });
    await vmm.guest.waitFor('mem.pulled', DEADLINE_MS);
    const daemon = vmm.killDaemon();
    await eventually(
      'another daemon',
      () => vmm.daemons().some((pid) => pid !== daemon),
      (there) => there,
      DEADLINE_MS,
    );
    await resize(vmm, 32 * MiB);
    await finish(vmm);
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('mem')).toMatchObject({ failures: 0, mismatches: 0, wrong: 0 });
  });

  it('comes and goes a hundred times without anything being left', { timeout: 240_000 }, async () => {
    const disk = await start();
    const vmm = run(disk, { rounds: 203 }, 'hotplug_size=256M');
    await vmm.guest.waitFor('mem.ready');
    await resize(vmm, 132 * MiB);
    await resize(vmm, 0);
    const held = () => [vmm.child.fdCount(), vmm.memfds(), disk.fdCount(), mapped(disk)].join(' ');
    const before = held();
    for (let round = 0; round < 100; round += 1) {
      await resize(vmm, (round % 2 === 0 ? 132 : 16) * MiB);
      await resize(vmm, 0);
    }
    await eventually('what VMM and daemon hold', held, (now) => now === before);
    await finish(vmm);
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    const numbers = vmm.guest.numbers('mem');
    expect(numbers).toMatchObject({ failures: 0, mismatches: 0, wrong: 0 });
    expect(numbers.requests).toBeGreaterThan(3000);
  });

  it('is there from the start where it is configured, and after a reset', async () => {
    const disk = await start();
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'boots,mem', until: 2, end: 'reset' },
      memory: 'size=128M,hotplug_size=512M,hotplugged_size=200M',
      disks: [`socket=${disk.socket}`],
    });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.all('boots')).toEqual(['1', '2']);
    expect(vmm.guest.number('mem.requested')).toBe(200 * MiB);
    expect(vmm.guest.number('mem.size')).toBe(200 * MiB);
  });

  it('is there from the start for a disk that the IOMMU lets past', async () => {
    const image = createImage(join(cleanup.directory(), 'disk'), 16 * MiB);
    const disk = await BlkBackend.start(cleanup, { image, extra: ['--iommu'] });
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'mem', iommu: 'bypass' },
      memory: 'size=128M,hotplug_size=512M,hotplugged_size=200M',
      disks: [`socket=${disk.socket},iommu=on`],
    });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('mem')).toMatchObject({ size: 200 * MiB, failures: 0, mismatches: 0 });
  });

  it('goes along with a guest that is saved, restored, and migrates', async () => {
    const directory = cleanup.directory();
    const [first, second] = [VmmProcess.serve(cleanup), VmmProcess.serve(cleanup)];
    await first.put('vm.create', {
      payload: { kernel: buildGuest('pvh'), cmdline: guestCommandLine({ job: 'mem', rounds: 5 }) },
      memory: { size: SIZE, hotplug_size: 512 * MiB },
      disks: [{ id: 'disk', path: createImage(join(directory, 'disk'), 4 * MiB) }],
      serial: { mode: 'Tty' },
    });
    await first.put('vm.boot');
    await first.guest.waitFor('mem.ready');
    await resize(first, 300 * MiB);
    await resize(first, 140 * MiB);

    const snapshot = { destination_url: `file://${join(directory, 'snapshot')}` };
    await first.put('vm.pause');
    await first.put('vm.snapshot', snapshot);
    await first.put('vm.delete');
    await second.put('vm.restore', { source_url: snapshot.destination_url, resume: true });
    expect(await actualSize(second)).toBe(SIZE + 140 * MiB);
    await resize(second, 400 * MiB);

    const url = `unix:${join(directory, 'migration')}`;
    const received = first.request('PUT', 'vm.receive-migration', { receiver_url: url }, DEADLINE_MS);
    await eventually(
      'who receives',
      () => existsSync(join(directory, 'migration')),
      (there) => there,
    );
    const sent = await second.request('PUT', 'vm.send-migration', { destination_url: url }, DEADLINE_MS);
    expect([sent, await received]).toMatchObject([{ status: 204 }, { status: 204 }]);
    expect(second.memfds()).toBe(0);
    expect(await actualSize(first)).toBe(SIZE + 400 * MiB);
    const from = first.child.output().length;
    await resize(first, 0);
    await finish(first);
    await first.guest.waitUntilDone('mem', DEADLINE_MS, from);
    expect(first.guest.numbers('mem')).toMatchObject({ failures: 0, mismatches: 0, wrong: 0 });
  });

  it('is used by the disk above 64 GiB, rings and buffers', async () => {
    const disk = await start();
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'blk,blk', high: 0x11_0000_0000, kb: 512, seed: 9 },
      memory: 'size=96G',
      disks: [`socket=${disk.socket}`],
    });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('disk0')).toMatchObject({ ...verifiedDisk(16 * MiB), high: 1 });
    for (const name of ['buffer', 'ring']) {
      expect(Number(vmm.guest.all(`disk0.${name}`).at(-1))).toBeGreaterThan(64 * GiB);
    }
    expect(diskContent(disk.image, 512, 9)).toBe('as stamped');
  });
});
