/** Devices that come to a running machine and go again, as a guest without an operating system drives them. */

import { readFileSync, statSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { eventually, fdCount } from '../support/frontend/process-probe.ts';
import { createImage } from '../support/image.ts';
import { NetBackend } from '../support/net/backend.ts';
import { NetworkNamespace, namespacePeers } from '../support/net/namespace.ts';
import { describeWithPeers } from '../support/peers.ts';
import { diskContent } from '../support/vm/expectations.ts';
import { VmmProcess, type VmOptions, vmGuestPeers } from '../support/vm/vmm-process.ts';

const MiB = 1 << 20;
const SHUT_DOWN = { code: 0, signal: null };
const DEADLINE_MS = 60_000;
const SLOTS = 19;

interface Device {
  readonly id: string;
  readonly slot: number;
}

/** What a VMM holds: descriptors, mappings of shared memory, daemons. */
const holdings = (vmm: VmmProcess): string => {
  const mappings = readFileSync(`/proc/${vmm.child.pid}/maps`, 'utf8').split('\n');
  const shared = mappings.filter((line) => /memfd|anon_inode|\/dev\//.test(line)).length;
  return `${fdCount(vmm.child.pid)} descriptors, ${shared} mappings, ${vmm.daemons().length} daemons`;
};

const waitForHoldings = (vmm: VmmProcess, wanted: string): Promise<string> =>
  eventually(
    'what the VMM holds',
    () => holdings(vmm),
    (now) => now === wanted,
    DEADLINE_MS,
  );

const add = async (vmm: VmmProcess, kind: string, config: object): Promise<Device> => {
  const { status, body } = await vmm.request('PUT', `vm.add-${kind}`, config, DEADLINE_MS);
  if (status !== 200) throw new Error(`vm.add-${kind}: ${status} ${JSON.stringify(body)}`);
  return body as Device;
};

/** Adds a device and waits until the guest has driven it. */
const addAndWait = async (vmm: VmmProcess, kind: string, config: object): Promise<Device> => {
  const mark = vmm.child.mark();
  const device = await add(vmm, kind, config);
  expect(await vmm.guest.waitFor('hotplug.added', DEADLINE_MS, mark)).toBe(String(device.slot));
  return device;
};

/** Asks for a device and waits until the guest has let go of it. */
const removeAndWait = async (vmm: VmmProcess, { id, slot }: Device): Promise<void> => {
  const mark = vmm.child.mark();
  await vmm.put('vm.remove-device', { id });
  expect(await vmm.guest.waitFor('hotplug.removed', DEADLINE_MS, mark)).toBe(String(slot));
};

/** A request that is refused, as `STATUS SENTENCE`. */
const refusal = async (vmm: VmmProcess, route: string, body: object): Promise<string> => {
  const { status, body: sentences } = await vmm.request('PUT', route, body);
  return `${status} ${(sentences as string[] | undefined)?.join(': ')}`;
};

/** States of the devices by their ids. */
const devices = async (vmm: VmmProcess): Promise<Record<string, string>> => {
  const { body } = await vmm.request('GET', 'vm.info');
  const tree = (body as { device_tree: Record<string, { state: string }> }).device_tree;
  return Object.fromEntries(Object.entries(tree).map(([id, { state }]) => [id, state]));
};

const WELL = { interrupt: 1, failures: 0, mismatches: 0, after_eject: 0 };

describeWithPeers(vmGuestPeers, 'The power button', () => {
  const cleanup = cleanupAfterEach();

  it('asks the guest to shut down, which it does when it has done what it has to', async () => {
    const vmm = VmmProcess.run(cleanup, { parameters: { job: 'hotplug' } });
    await vmm.guest.waitFor('hotplug.ready', DEADLINE_MS);
    await vmm.put('vm.pause');
    await vmm.put('vm.power-button');
    await vmm.put('vm.power-button');
    await vmm.put('vm.resume');
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('hotplug')).toMatchObject({ ...WELL, button: 1, button_left: 0, gone: 0 });
  });

  it('needs a machine that runs', async () => {
    const vmm = VmmProcess.serve(cleanup);
    const { status, body } = await vmm.request('PUT', 'vm.power-button');
    expect([status, body]).toEqual([
      404,
      [expect.stringMatching(/^vm.power-button: the VM cannot be asked to shut down/)],
    ]);
  });
});

describeWithPeers(vmGuestPeers, 'A disk that comes while the guest runs', () => {
  const cleanup = cleanupAfterEach();
  const image = (): string => createImage(join(cleanup.directory(), 'disk'), 16 * MiB);
  const start = (parameters: VmOptions['parameters'], disks: readonly string[] = []): VmmProcess =>
    VmmProcess.run(cleanup, { parameters: { job: 'hotplug', ...parameters }, disks });
  const ready = async (parameters: VmOptions['parameters'], disks?: readonly string[]): Promise<VmmProcess> => {
    const vmm = start(parameters, disks);
    await vmm.guest.waitFor('hotplug.ready', DEADLINE_MS);
    return vmm;
  };

  it('is driven by the guest, goes when it is wanted back, and its daemon with it', async () => {
    const vmm = await ready({ rounds: 3, kb: 64 });
    const before = holdings(vmm);
    for (let round = 0; round < 2; round++) {
      const path = image();
      // A slot that was used comes after those that were not.
      const device = await addAndWait(vmm, 'disk', { path, id: 'data' });
      expect(device).toEqual({ id: 'data', slot: round });
      expect(vmm.daemons()).toHaveLength(1);
      expect((await vmm.counters()).data).toMatchObject({ activations: 1, queue_0_notify_exits: 0 });
      expect(diskContent(path, 64, round + 1)).toBe('as stamped');
      await removeAndWait(vmm, device);
      expect(await devices(vmm)).toEqual({});
      await waitForHoldings(vmm, before);
    }
    await addAndWait(vmm, 'disk', { path: image(), id: 'data' });
    await vmm.put('vm.remove-device', { id: 'data' });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('hotplug')).toMatchObject({ ...WELL, present: 0, came: 3, gone: 3 });
  });

  it('comes and goes under load on another disk', async () => {
    const vmm = await ready({ rounds: 5, load: 1 }, [`path=${image()}`]);
    for (let round = 0; round < 5; round++) {
      const mark = vmm.child.mark();
      const { id } = await addAndWait(vmm, 'disk', { path: image(), id: `disk${round}` });
      await vmm.put('vm.remove-device', { id });
      await vmm.guest.waitFor('hotplug.removed', DEADLINE_MS, mark);
    }
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('hotplug')).toMatchObject({ ...WELL, present: 1, came: 5, gone: 5 });
    expect(vmm.guest.number('hotplug.requests')).toBeGreaterThan(50);
  });

  it('goes in the middle of requests, with a reset and without, and writes to nothing afterwards', async () => {
    const disk = await BlkBackend.start(cleanup, { image: image() });
    const vmm = await ready({ rounds: 20, busy: 1 });
    const before = holdings(vmm);
    for (let round = 0; round < 19; round++) {
      await removeAndWait(vmm, await addAndWait(vmm, 'disk', { vhost_socket: disk.socket }));
    }
    await waitForHoldings(vmm, before);
    const { id } = await addAndWait(vmm, 'disk', { vhost_socket: disk.socket });
    await vmm.put('vm.remove-device', { id });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('hotplug')).toMatchObject({ ...WELL, came: 20, gone: 20 });
  });

  it('waits for a paused guest', async () => {
    const vmm = await ready({ rounds: 1 });
    await vmm.put('vm.pause');
    const mark = vmm.child.mark();
    const { id } = await add(vmm, 'disk', { path: image() });
    expect(await devices(vmm)).toEqual({ [id]: 'added' });
    await vmm.put('vm.resume');
    await vmm.guest.waitFor('hotplug.added', DEADLINE_MS, mark);
    expect(await devices(vmm)).toEqual({ [id]: 'present' });
    await vmm.put('vm.remove-device', { id });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
  });

  it('has a place until all slots are filled, and again when one is empty', async () => {
    const disk = await BlkBackend.start(cleanup, { image: image() });
    const directory = cleanup.directory();
    /** The socket under one more name: one that is in use is refused. */
    const socket = (n: number): { vhost_socket: string } => {
      const name = join(directory, `disk${n}`);
      symlinkSync(disk.socket, name);
      return { vhost_socket: name };
    };
    // It drives none of them: a daemon of disks serves one front end at a time.
    const vmm = VmmProcess.run(cleanup, { parameters: { job: 'info', end: 'spin' }, disks: [`path=${image()}`] });
    await vmm.guest.waitFor('end', DEADLINE_MS);
    const before = holdings(vmm);
    for (let n = 1; n < SLOTS; n++) expect((await add(vmm, 'disk', socket(n))).slot).toBe(n);
    const full = holdings(vmm);
    expect(await refusal(vmm, 'vm.add-disk', socket(SLOTS))).toMatch(/^400 .*19 .*/);
    expect(await refusal(vmm, 'vm.add-disk', { path: image() })).toMatch(/^400 .*19 .*/);
    await waitForHoldings(vmm, full);

    await vmm.put('vm.remove-device', { id: Object.keys(await devices(vmm))[7] as string });
    await vmm.put('vm.reboot');
    expect((await add(vmm, 'disk', socket(SLOTS + 1))).slot).toBe(7);
    for (const id of Object.keys(await devices(vmm)).slice(1)) await vmm.put('vm.remove-device', { id });
    await vmm.put('vm.reboot');
    await waitForHoldings(vmm, before);
    await vmm.put('vmm.shutdown');
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
  });

  it('is refused with a reason, and nothing is left', async () => {
    const vmm = await ready({ rounds: 1 }, [`path=${image()},id=root`]);
    const before = holdings(vmm);
    const refused = (body: object): Promise<string> => refusal(vmm, 'vm.add-disk', body);
    expect(await refused({ path: image(), id: 'root' })).toMatch(/^409 .*"root"/);
    expect(await refused({ path: '/nonexistent/disk' })).toMatch(/^500 .*\/nonexistent\/disk/);
    expect(await refused({ vhost_socket: '/nonexistent/socket' })).toMatch(/^500 .*\/nonexistent\/socket/);
    expect(await refused({ path: image(), iommu: true })).toMatch(/^400 .*iommu/);
    expect(await refusal(vmm, 'vm.remove-device', { id: 'data' })).toMatch(/^404 .*data/);
    await waitForHoldings(vmm, before);
    // The slot is as good as before.
    const device = await addAndWait(vmm, 'disk', { path: image(), id: 'data' });
    expect(device).toEqual({ id: 'data', slot: 1 });
    await vmm.put('vm.remove-device', { id: 'data' });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
  });

  it('that is wanted back from a guest that does not listen is gone after a reset', async () => {
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'info', end: 'spin' },
      disks: [`path=${image()},id=root`, `path=${image()},id=data`],
    });
    await vmm.guest.waitFor('end', DEADLINE_MS);
    expect(vmm.guest.number('devices')).toBe(2);
    for (let again = 0; again < 2; again++) await vmm.put('vm.remove-device', { id: 'data' });
    expect(await devices(vmm)).toEqual({ root: 'present', data: 'removal requested' });
    const mark = vmm.child.mark();
    await vmm.put('vm.reboot');
    expect(await vmm.guest.waitFor('devices', DEADLINE_MS, mark)).toBe('1');
    expect(await devices(vmm)).toEqual({ root: 'present' });
    expect(vmm.daemons()).toHaveLength(1);
    // What came is what a guest finds at its next start.
    await add(vmm, 'disk', { path: image(), id: 'next' });
    const next = vmm.child.mark();
    await vmm.put('vm.reboot');
    expect(await vmm.guest.waitFor('devices', DEADLINE_MS, next)).toBe('2');
    await vmm.put('vmm.shutdown');
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
  });

  it('is ejected by a guest that was not asked, but not the IOMMU before it', async () => {
    const vmm = await ready({ rounds: 1, bad: 1 }, [`path=${image()},iommu=on`, `path=${image()}`]);
    expect(vmm.guest.numbers('hotplug')).toMatchObject({ present: 0x40003, before: 0x40003, after: 0x40000 });
    expect(await devices(vmm)).toEqual({ __iommu: 'present' });
    expect(await refusal(vmm, 'vm.remove-device', { id: '__iommu' })).toMatch(/^404 .*__iommu/);
    await eventually(
      'daemons',
      () => vmm.daemons().length,
      (count) => count === 0,
      DEADLINE_MS,
    );
    const { slot } = await addAndWait(vmm, 'disk', { path: image(), id: 'data' });
    expect(slot).toBe(2);
    await vmm.put('vm.remove-device', { id: 'data' });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('hotplug')).toMatchObject({ ...WELL, came: 1, gone: 1 });
  });

  it('gets larger', async () => {
    const path = image();
    const other = await BlkBackend.start(cleanup, { image: image() });
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'resize' },
      disks: [`path=${path},id=a`, `socket=${other.socket},id=b`, `path=${image()},readonly=on,id=c`],
    });
    await vmm.guest.waitFor('resize.waiting', DEADLINE_MS);
    const resize = (id: string, desired_size: number): Promise<string> =>
      refusal(vmm, 'vm.resize-disk', { id, desired_size });
    expect(await resize('a', 8 * MiB)).toMatch(/^400 .*8388608.*16777216.*does not shrink$/);
    expect(await resize('b', 24 * MiB)).toMatch(/^400 .*back end behind its socket/);
    expect(await resize('c', 24 * MiB)).toMatch(/^400 .*c is readonly$/);
    expect(await resize('d', 24 * MiB)).toMatch(/^404 /);
    expect(await resize('a', 24 * MiB + 1)).toMatch(/^400 /);
    expect(statSync(path).size).toBe(16 * MiB);
    await vmm.put('vm.resize-disk', { id: 'a', desired_size: 24 * MiB });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    const sizes = { before: (16 * MiB) / 512, after: (24 * MiB) / 512 };
    expect(vmm.guest.numbers('resize')).toEqual({ ...sizes, waiting: 1, interrupt: 1, acknowledged: 1, last: 0 });
    expect(statSync(path).size).toBe(24 * MiB);
  });
});

describeWithPeers([...vmGuestPeers, ...namespacePeers], 'Disks and networks of the virtual machine', () => {
  const cleanup = cleanupAfterEach();

  it('come and go a hundred times, and the VMM holds what it held before', async () => {
    const namespace = await NetworkNamespace.create(cleanup);
    const net = await NetBackend.start(cleanup, { namespace });
    await namespace.addTap('vm0');
    const directory = cleanup.directory();
    const disk = await BlkBackend.start(cleanup, { image: createImage(join(directory, 'served'), 16 * MiB) });
    const own = createImage(join(directory, 'own'), 16 * MiB);
    const vmm = VmmProcess.run(cleanup, { parameters: { job: 'hotplug', rounds: 101, kb: 8 }, namespace });
    await vmm.guest.waitFor('hotplug.ready', DEADLINE_MS);
    const kinds: readonly (readonly [kind: string, config: object])[] = [
      ['disk', { vhost_socket: disk.socket }],
      ['net', { vhost_socket: net.socket }],
    ];
    // Code and pools come with the first of each.
    const started: typeof kinds = [
      ['disk', { path: own }],
      ['net', { tap: 'vm0' }],
    ];
    for (const [kind, config] of [...kinds, ...started]) {
      await removeAndWait(vmm, await addAndWait(vmm, kind, config));
    }
    await eventually(
      'daemons',
      () => vmm.daemons().length,
      (count) => count === 0,
      DEADLINE_MS,
    );
    const before = holdings(vmm);
    for (let round = 0; round < 92; round++) {
      const [kind, config] = kinds[round % 2] as (typeof kinds)[number];
      await removeAndWait(vmm, await addAndWait(vmm, kind, config));
    }
    for (const [kind, config] of [...started, ...started]) {
      await removeAndWait(vmm, await addAndWait(vmm, kind, { ...config, id: 'started' }));
      await waitForHoldings(vmm, before);
    }
    const last = await addAndWait(vmm, 'disk', { vhost_socket: disk.socket });
    await vmm.put('vm.remove-device', { id: last.id });
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual(SHUT_DOWN);
    expect(vmm.guest.numbers('hotplug')).toMatchObject({ ...WELL, came: 101, gone: 101 });
  }, 300_000);
});
