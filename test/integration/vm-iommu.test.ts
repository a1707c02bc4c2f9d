/**
 * Devices of the virtual machine behind its IOMMU, as the test guest programs it: rings, headers and data are where it
 * says and nowhere else, whatever a driver asks it for.
 */

import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { VsockDaemon } from '../support/frontend/vsock-daemon.ts';
import { createImage } from '../support/image.ts';
import { NetBackend } from '../support/net/backend.ts';
import { NetworkNamespace, namespacePeers } from '../support/net/namespace.ts';
import { HOST_ADDRESS } from '../support/net/traffic.ts';
import { describeWithPeers } from '../support/peers.ts';
import { diskContent, verifiedDisk } from '../support/vm/expectations.ts';
import { VmmProcess, type VmOptions, vmGuestPeers } from '../support/vm/vmm-process.ts';
import { HostPrograms, socketPeers } from '../support/vsock/traffic.ts';

const MiB = 1 << 20;
const SHUT_DOWN = { code: 0, signal: null };
const DEADLINE_MS = 50_000;
/** Of a test that does something very often, beside others. */
const LONG_MS = 180_000;
const AT_LENGTH = { timeout: LONG_MS + 20_000 };

describeWithPeers(vmGuestPeers, 'The IOMMU of the virtual machine', () => {
  const cleanup = cleanupAfterEach();
  const image = (): string => createImage(join(cleanup.directory(), 'disk'), 16 * MiB);
  const start = (numQueues = 1): Promise<BlkBackend> =>
    BlkBackend.start(cleanup, { image: image(), serial: 'served', numQueues, extra: ['--iommu'] });
  const run = (options: VmOptions): VmmProcess => VmmProcess.run(cleanup, options);
  const end = async (vmm: VmmProcess, deadlineMs = DEADLINE_MS): Promise<Record<string, number>> => {
    expect(await vmm.child.waitForClose(deadlineMs)).toEqual(SHUT_DOWN);
    expect(vmm.guest.all('iommu.unexpected')).toEqual([]);
    return vmm.guest.numbers('iommu');
  };

  it('is there when a device wants it, in the last slot, and tells the guest by a table', async () => {
    const disks = [`path=${image()},iommu=on`, `path=${image()}`];
    const vmm = run({ parameters: { job: 'info', end: 'halt' }, disks });
    await vmm.guest.waitFor('end', DEADLINE_MS);
    const devices = vmm.guest.all('device').map((line) => line.split(','));
    expect(devices.map(([slot, id]) => `${slot} ${id}`)).toEqual(['0 2', '1 2', '18 23']);
    // ACCESS_PLATFORM of the one, not of the other; the IOMMU's five features and those of its rings.
    const [behind = 0n, beside = 0n, own = 0n] = devices.map(([, , features]) => BigInt(features ?? 0));
    expect([(behind >> 33n) & 1n, (beside >> 33n) & 1n, own]).toEqual([1n, 0n, 0x1_3000_0057n]);
    expect(vmm.guest.text('acpi.VIOT')).toBe('ok');
    // The IOMMU, the disk behind it, and what may come into the empty slots; not the other disk.
    const empty = Array.from({ length: 16 }, (_, n) => `2,${n + 2},0x${(0xd000_2000 + n * 0x1000).toString(16)}`);
    expect(vmm.guest.all('acpi.viot')).toEqual(['4,0,0xd0012000', '2,0,0xd0000000', ...empty]);
    expect((await vmm.counters()).__iommu).toMatchObject({ requests: 0, domains: 0, faults: 0 });
  });

  it('is not there when no device wants it', async () => {
    const vmm = run({ parameters: { job: 'info' }, disks: [`path=${image()},iommu=off`] });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect([vmm.guest.number('devices'), vmm.guest.all('acpi.VIOT')]).toEqual([1, []]);
  });

  it('answers requests as the standard says', async () => {
    const vmm = run({
      parameters: { job: 'iommu', case: 'requests', iommu: 'none' },
      disks: [`path=${image()},iommu=on`],
    });
    expect(await end(vmm)).toEqual({ requests: 0 });
  });

  it('shows a disk its rings and data where they are mapped, reports what is not, and forgets what is unmapped', async () => {
    const disk = await start();
    const parameters = { job: 'iommu', case: 'mappings', iommu: 'none', end: 'halt' };
    const vmm = run({ parameters, memory: 'size=5G', disks: [`socket=${disk.socket},iommu=on`] });
    await vmm.guest.waitFor('end', DEADLINE_MS);
    expect(vmm.guest.numbers('iommu')).toEqual({ mappings: 0 });
    const { __iommu: counters } = await vmm.counters();
    expect(counters).toMatchObject({ domains: 1, mappings: 6, attached_endpoints: 1, faults: 2, faults_dropped: 0 });
  });

  it('moves a disk from domain to domain, to none, and past it', async () => {
    const disk = await start();
    const parameters = { job: 'iommu', case: 'domains', iommu: 'none' };
    expect(await end(run({ parameters, disks: [`socket=${disk.socket},iommu=on`] }))).toEqual({ domains: 0 });
  });

  it('answers to an unmapping when the disk has let go, thousands of times under load', AT_LENGTH, async () => {
    const disk = await start();
    const parameters = { job: 'iommu', case: 'rounds', iommu: 'none', rounds: 2000 };
    const found = await end(run({ parameters, disks: [`socket=${disk.socket},iommu=on`] }), LONG_MS);
    expect(found).toMatchObject({ rounds: 0, rounds_done: 2000 });
    // Some came before the disk had looked at its request, by far not all.
    expect(found.rounds_too_late).toBeLessThan(1500);
  });

  it('bears requests that are none', async () => {
    const vmm = run({
      parameters: { job: 'iommu', case: 'hostile', iommu: 'none' },
      disks: [`path=${image()},iommu=on`],
    });
    expect(await end(vmm)).toEqual({ hostile: 0 });
    expect(vmm.log()).toContain('iommu: queue 0 is broken: the available index jumped by more than the queue size');
  });

  it('maps no more than it has room for', AT_LENGTH, async () => {
    const vmm = run({
      parameters: { job: 'iommu', case: 'limit', iommu: 'none' },
      disks: [`path=${image()},iommu=on`],
    });
    expect(await vmm.child.waitForClose(LONG_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('iommu')).toEqual({ limit: 0, mapped: 131_072 });
  });

  it('says what a back end lacks', async () => {
    const disk = await BlkBackend.start(cleanup, { image: image() });
    const vmm = run({ parameters: { job: 'info' }, disks: [`socket=${disk.socket},iommu=on`] });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toMatchObject({ code: 1 });
    expect(vmm.child.output()).toMatch(/disk _disk0: .*ACCESS_PLATFORM/);
  });

  describe.each(['map', 'bypass', 'none'])('with devices put behind it: %s', (iommu) => {
    it('a disk keeps what the guest writes', async () => {
      const disk = await start();
      const vmm = run({
        parameters: { job: 'blk', kb: 256, seed: 8, iommu },
        memory: 'size=64M',
        disks: [`socket=${disk.socket},iommu=on`],
      });
      expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
      expect(vmm.guest.numbers('disk0')).toMatchObject(verifiedDisk(16 * MiB));
      expect(diskContent(disk.image, 256, 8)).toBe('as stamped');
    });
  });

  it('lets a disk go on whose daemon is killed under load', async () => {
    const disk = await start();
    const parameters = { job: 'load', requests: 2000, qd: 32, iommu: 'map', piece_kb: 4 };
    const vmm = run({ parameters, memory: 'size=16M', disks: [`socket=${disk.socket},iommu=on`] });
    for (let round = 0; round < 2; round++) {
      await vmm.guest.waitFor('load.progress', DEADLINE_MS, vmm.child.mark());
      await disk.kill9();
      await disk.restart();
    }
    expect(vmm.guest.all('load.requests')).toEqual([]);
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('load')).toMatchObject({ depth: 32, failures: 0, mismatches: 0 });
  });

  it('is before every queue of a disk', async () => {
    const disk = await start(2);
    const vmm = run({
      parameters: { job: 'smp', cpus: 2, requests: 200, iommu: 'map' },
      cpus: 2,
      memory: 'size=32M',
      disks: [`socket=${disk.socket},num_queues=2,iommu=on`],
    });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('smp')).toEqual({ queues: 2, started: 2, requests: 400, mismatches: 0 });
  });

  it('bears a disk whose driver does what none should', async () => {
    const parameters = { job: 'hostile', iommu: 'map', piece_kb: 1024 };
    const vmm = run({ parameters, memory: 'size=32M', disks: [`path=${image()},iommu=on`] });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    for (const what of ['rings', 'sizes', 'registers', 'notifies', 'states', 'chains', 'resets', 'nobody']) {
      expect([what, vmm.guest.number(`hostile.${what}`)]).toEqual([what, 1]);
    }
  });

  it('is as new after a reset of the machine', async () => {
    const parameters = { job: 'iommu,boots', case: 'domains', disk: 1, iommu: 'none', until: 3, end: 'reset' };
    const disks = [`path=${image()},iommu=on`, `path=${image()},iommu=on`];
    const vmm = run({ parameters, memory: 'size=16M', disks });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.all('boots')).toEqual(['1', '2', '3']);
    expect(vmm.guest.all('iommu.domains')).toEqual(['0', '0', '0']);
  });
});

describeWithPeers([...vmGuestPeers, ...namespacePeers], 'A network behind the IOMMU', () => {
  const cleanup = cleanupAfterEach();

  it.each([
    ['at a socket', true],
    ['of a daemon that the VMM starts', false],
  ])('carries pings, %s', async (_, isServed) => {
    const namespace = await NetworkNamespace.create(cleanup);
    await namespace.addTap('tap0');
    await namespace.run(`ip addr add ${HOST_ADDRESS}/24 dev tap0`);
    const backend = isServed ? await NetBackend.start(cleanup, { namespace, extra: ['--iommu'] }) : undefined;
    const parameters = { job: 'net', count: 100, size: 1400, peer: HOST_ADDRESS, iommu: 'map', piece_kb: 8 };
    const vmm = VmmProcess.run(cleanup, {
      parameters,
      memory: 'size=16M',
      ...(isServed ? {} : { namespace }),
      networks: [`${backend === undefined ? 'tap=tap0' : `socket=${backend.socket}`},iommu=on`],
    });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('net')).toMatchObject({ answers: 100, mismatches: 0 });
  });
});

describeWithPeers([...vmGuestPeers, ...socketPeers], 'Sockets behind the IOMMU', () => {
  const cleanup = cleanupAfterEach();

  it('carry data there and back', async () => {
    const daemon = await VsockDaemon.start(cleanup, { cid: 77, extra: ['--iommu'] });
    await new HostPrograms(cleanup, daemon.uds).echo(5000, 'stream');
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'vsock', port: 5000, bytes: 150_000, iommu: 'map', piece_kb: 8 },
      memory: 'size=16M',
      extra: ['--vsock', `cid=77,socket=${daemon.socket},iommu=on`],
    });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('vsock')).toMatchObject({ sent: 150_000, received: 150_000, mismatches: 0 });
  });
});
