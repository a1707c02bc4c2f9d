/** `ringside vm serve`, asked to change a machine that is only created, or to do what its state does not allow. */

import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { Child } from '../support/child.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { createImage } from '../support/image.ts';
import { describeWithPeers, projectDirectory } from '../support/peers.ts';
import { buildGuest, guestCommandLine } from '../support/vm/guest-program.ts';
import { VmmProcess, vmGuestPeers } from '../support/vm/vmm-process.ts';

const MAIN = join(projectDirectory, 'dist/vmm-client/cli/main.js');
const MIB = 1024 * 1024;
const DEADLINE_MS = 20_000;
const cleanup = cleanupAfterEach();

interface Info {
  readonly state: string;
  readonly memory_actual_size: number;
  readonly config: {
    readonly disks: readonly { readonly id: string }[];
    readonly net: readonly { readonly id: string }[];
    readonly fs: readonly { readonly id: string }[];
    readonly vsock?: { readonly id: string };
    readonly memory: { readonly hotplugged_size: number };
  };
  readonly device_tree?: Readonly<Record<string, { readonly kind: string; readonly slot: number }>>;
}

const infoOf = async (vmm: VmmProcess): Promise<Info> => (await vmm.request('GET', 'vm.info')).body as Info;

/** A request that is refused, as `STATUS SENTENCE`. */
const refusal = async (vmm: VmmProcess, route: string, body?: object): Promise<string> => {
  const { status, body: sentences } = await vmm.request('PUT', route, body);
  return `${status} ${(sentences as string[] | undefined)?.join(': ')}`;
};

const disk = { path: '/nonexistent/disk', id: 'root' };
const machine = { payload: { kernel: '/nonexistent/kernel' }, disks: [disk] };

/** What every route that changes or moves a machine takes. */
const requests: readonly (readonly [route: string, body: object])[] = [
  ['vm.add-disk', { path: '/d' }],
  ['vm.add-net', { tap: 't' }],
  ['vm.add-fs', { tag: 't', socket: '/f' }],
  ['vm.add-vsock', { cid: 3, socket: '/v' }],
  ['vm.remove-device', { id: 'root' }],
  ['vm.resize', { desired_ram: 512 * MIB }],
  ['vm.resize-disk', { id: 'root', desired_size: MIB }],
  ['vm.snapshot', { destination_url: 'file:///nonexistent/snapshot' }],
  ['vm.send-migration', { destination_url: 'unix:/nonexistent/socket' }],
];

describe('a VMM without a machine', () => {
  it('says so to everybody who wants to change or move one', async () => {
    const vmm = VmmProcess.serve(cleanup);
    for (const [route, body] of requests) {
      expect(await refusal(vmm, route, body)).toMatch(
        new RegExp(`^404 ${route}: the VM cannot [a-z ]+: it has not been created$`),
      );
    }
    expect(await refusal(vmm, 'vm.cancel-migration')).toBe('405 vm.cancel-migration: no migration is under way');
    expect(await vmm.request('GET', 'vm.progress')).toEqual({
      status: 404,
      body: ['vm.progress: there has been no snapshot, restore or migration'],
    });
  });

  it('refuses a snapshot that is not there, and is as it was', async () => {
    const vmm = VmmProcess.serve(cleanup);
    expect(await refusal(vmm, 'vm.restore', { source_url: 'file:///nonexistent/snapshot' })).toMatch(
      /^400 vm\.restore: \/nonexistent\/snapshot has no whole snapshot: [^\n]+$/,
    );
    expect((await vmm.request('GET', 'vm.progress')).body).toMatchObject({ operation: 'restore', phase: 'failed' });
    await vmm.put('vm.create', machine);
  });

  it('waits for a migration until it is told not to, and for nothing else meanwhile', async () => {
    const vmm = VmmProcess.serve(cleanup);
    const socket = join(cleanup.directory(), 'migration');
    const receiving = vmm.request('PUT', 'vm.receive-migration', { receiver_url: `unix:${socket}` });
    await expect
      .poll(async () => (await vmm.request('GET', 'vm.progress')).body, { timeout: DEADLINE_MS })
      .toMatchObject({ operation: 'receive-migration', phase: 'waiting' });

    expect(await refusal(vmm, 'vm.create', machine)).toBe(
      '405 vm.create: the VM cannot be created: a receive-migration is under way',
    );
    expect(await refusal(vmm, 'vm.restore', { source_url: 'file:///s' })).toBe(
      '405 vm.restore: there can be no restore: a receive-migration is under way',
    );
    expect(await refusal(vmm, 'vm.shutdown')).toBe(
      '405 vm.shutdown: the VM cannot be shut down: a receive-migration is under way',
    );

    await vmm.put('vm.cancel-migration');
    expect(await receiving).toEqual({
      status: 500,
      body: ['vm.receive-migration: receive-migration: cancelled by vm.cancel-migration'],
    });
    expect((await vmm.request('GET', 'vm.progress')).body).toMatchObject({ phase: 'cancelled' });
    await vmm.put('vm.create', machine);
  });

  it('ends by a signal while it waits for a migration', async () => {
    const vmm = VmmProcess.serve(cleanup);
    const socket = join(cleanup.directory(), 'migration');
    const receiving = vmm.request('PUT', 'vm.receive-migration', { receiver_url: `unix:${socket}` });
    receiving.catch(() => undefined);
    await expect.poll(async () => (await vmm.request('GET', 'vm.progress')).status, { timeout: DEADLINE_MS }).toBe(200);

    vmm.child.kill('SIGTERM');

    expect(await vmm.child.waitForExit(DEADLINE_MS)).toEqual({ code: 143, signal: null });
  });
});

describe('a machine that is only created', () => {
  it('gets devices and loses them', async () => {
    const vmm = VmmProcess.serve(cleanup);
    await vmm.put('vm.create', machine);

    await vmm.put('vm.add-disk', { vhost_socket: '/b' });
    await vmm.put('vm.add-net', { tap: 't', id: 'lan', iommu: true });
    await vmm.put('vm.add-fs', { tag: 't', socket: '/f', id: 'home' });
    await vmm.put('vm.add-vsock', { cid: 3, socket: '/v', id: 'sockets' });

    const { config, device_tree } = await infoOf(vmm);
    expect(config.disks.map(({ id }) => id)).toEqual(['root', '_disk0']);
    expect([config.net[0]?.id, config.fs[0]?.id, config.vsock?.id]).toEqual(['lan', 'home', 'sockets']);
    expect(device_tree).toBeUndefined();

    for (const id of ['root', 'lan', 'sockets']) await vmm.put('vm.remove-device', { id });

    const { config: left } = await infoOf(vmm);
    expect(left).toMatchObject({ disks: [{ id: '_disk0' }], net: [], fs: [{ id: 'home' }] });
    expect(left.vsock).toBeUndefined();
  });

  it('gets memory', async () => {
    const vmm = VmmProcess.serve(cleanup);
    await vmm.put('vm.create', { ...machine, memory: { size: 128 * MIB, hotplug_size: 128 * MIB } });

    await vmm.put('vm.resize', { desired_ram: 192 * MIB });

    const { config, memory_actual_size } = await infoOf(vmm);
    expect([config.memory.hotplugged_size, memory_actual_size]).toEqual([64 * MIB, 192 * MIB]);
  });

  it.each<[string, string, object]>([
    ['409 vm.add-net: id: "root" is the id of another device', 'vm.add-net', { tap: 't', id: 'root' }],
    ['400 vm.add-disk: path: /nonexistent/disk is disks[0].path already', 'vm.add-disk', { path: disk.path }],
    ['400 vm.add-disk: exactly one of path and vhost_socket is needed, neither is given', 'vm.add-disk', {}],
    ['404 vm.remove-device: no disk, net, fs or vsock device has the id "x"', 'vm.remove-device', { id: 'x' }],
    [
      '400 vm.resize: desired_ram: 1073741824 is above 536870912, which are memory.size and memory.hotplug_size',
      'vm.resize',
      { desired_ram: 1024 * MIB },
    ],
    [
      '400 vm.resize: desired_vcpus: 2 is not boot_vcpus (1), and vCPUs are not hotplugged',
      'vm.resize',
      { desired_vcpus: 2 },
    ],
    [
      '405 vm.resize-disk: the VM cannot be resized: it does not run',
      'vm.resize-disk',
      { id: 'root', desired_size: MIB },
    ],
    ['405 vm.snapshot: the VM cannot be saved: it does not run', 'vm.snapshot', { destination_url: 'file:///s' }],
    [
      '405 vm.send-migration: the VM cannot migrate: it does not run',
      'vm.send-migration',
      { destination_url: 'unix:/s' },
    ],
    ['405 vm.restore: no VM can be restored: there is one already', 'vm.restore', { source_url: 'file:///s' }],
    [
      '405 vm.receive-migration: no VM can be received: there is one already',
      'vm.receive-migration',
      { receiver_url: 'unix:/s' },
    ],
  ])('is refused: %s', async (sentence, route, body) => {
    const vmm = VmmProcess.serve(cleanup);
    await vmm.put('vm.create', machine);
    expect(await refusal(vmm, route, body)).toBe(sentence);
  });

  it('has one vsock device at most', async () => {
    const vmm = VmmProcess.serve(cleanup);
    await vmm.put('vm.create', { ...machine, vsock: { cid: 3, socket: '/v', id: 'v' } });
    expect(await refusal(vmm, 'vm.add-vsock', { cid: 4, socket: '/w' })).toBe(
      '409 vm.add-vsock: there is a vsock device already, v; one is possible',
    );
  });
});

describeWithPeers(vmGuestPeers, 'a machine that runs', () => {
  let kernel: string;

  beforeAll(() => {
    kernel = buildGuest('pvh');
  });

  const boot = async (config: object = {}): Promise<VmmProcess> => {
    const vmm = VmmProcess.serve(cleanup);
    const cmdline = guestCommandLine({ job: 'info', end: 'spin' });
    await vmm.put('vm.create', { payload: { kernel, cmdline }, memory: { size: 64 * MIB }, ...config });
    await vmm.put('vm.boot');
    return vmm;
  };

  const ctl = async (vmm: VmmProcess, ...args: string[]): Promise<readonly [number | null, string]> => {
    const child = new Child(process.execPath, [MAIN, 'ctl', '--api-socket', vmm.apiSocket, ...args]);
    cleanup.add(() => child.stop());
    const { code } = await child.waitForClose(DEADLINE_MS);
    return [code, child.output()];
  };

  it('shows its devices, where they are and how they are', async () => {
    const image = createImage(join(cleanup.directory(), 'disk'), MIB);
    const memory = { size: 64 * MIB, hotplug_size: 64 * MIB };
    const vmm = await boot({ memory, disks: [{ path: image, id: 'root', iommu: true }] });

    const { device_tree, memory_actual_size } = await infoOf(vmm);

    expect(memory_actual_size).toBe(64 * MIB);
    expect(device_tree).toMatchObject({
      root: {
        id: 'root',
        resources: [{ MmioAddressRange: { base: 0xd000_0000, size: 4096 } }, { LegacyIrq: 5 }],
        parent: null,
        children: [],
        pci_bdf: null,
        kind: 'disk',
        slot: 0,
        address: 0xd000_0000,
        interrupt: 5,
        state: 'present',
      },
      __mem: { kind: 'mem', slot: 17 },
      __iommu: { kind: 'iommu', slot: 18 },
    });
  });

  it('gets a disk by ctl, once, and forgets it at the end when it was to be removed', async () => {
    const directory = cleanup.directory();
    createImage(join(directory, 'data.img'), MIB);
    const vmm = await boot();

    expect(await ctl(vmm, 'add-disk', `path=${directory}/data.img,id=data`)).toEqual([
      0,
      '{\n  "id": "data",\n  "slot": 0\n}\n',
    ]);
    expect(await ctl(vmm, 'add-disk', `path=${directory}/other.img,id=data`)).toEqual([
      1,
      'ringside: vm.add-disk: id: "data" is the id of another device\n',
    ]);
    expect((await infoOf(vmm)).device_tree).toMatchObject({ data: { kind: 'disk', slot: 0, state: 'added' } });

    expect(await ctl(vmm, 'remove-device', 'data')).toEqual([0, '']);
    expect((await infoOf(vmm)).device_tree).toMatchObject({ data: { state: 'removal requested' } });
    expect((await infoOf(vmm)).config.disks).toHaveLength(1);

    await vmm.put('vm.shutdown');
    expect((await infoOf(vmm)).config.disks).toEqual([]);
  });

  it.each<[string, string, object]>([
    [
      '400 vm.add-disk: iommu: the VM has no virtio-iommu; it gets one at vm.boot when a device wants it',
      'vm.add-disk',
      { path: '/d', iommu: true },
    ],
    ['405 vm.snapshot: the VM is not paused', 'vm.snapshot', { destination_url: 'file:///s' }],
    ['400 vm.snapshot: destination_url contains a zero byte', 'vm.snapshot', { destination_url: 'file:///a%00' }],
    [
      '400 vm.send-migration: destination_url: port 0 is not from 1 to 65535',
      'vm.send-migration',
      { destination_url: 'tcp:h:0' },
    ],
    [
      '404 vm.resize-disk: no disk, net, fs or vsock device has the id "x"',
      'vm.resize-disk',
      { id: 'x', desired_size: MIB },
    ],
  ])('is refused: %s', async (sentence, route, body) => {
    const vmm = await boot();
    if (sentence.includes('zero byte')) await vmm.put('vm.pause');
    expect(await refusal(vmm, route, body)).toBe(sentence);
  });

  it('of vm run ends with one sentence when its guest has migrated away', { timeout: 60_000 }, async () => {
    const url = `unix:${join(cleanup.directory(), 'migration')}`;
    const source = VmmProcess.run(cleanup, { parameters: { job: 'info', end: 'spin' }, memory: '64M' });
    const destination = VmmProcess.serve(cleanup);
    await source.child.waitFor(/end=spin/, DEADLINE_MS);
    await destination.request('GET', 'vmm.ping');
    const receiving = ctl(destination, 'receive-migration', url);
    await expect
      .poll(async () => (await destination.request('GET', 'vm.progress')).body, { timeout: DEADLINE_MS })
      .toMatchObject({ operation: 'receive-migration', phase: 'waiting' });

    const [code, said] = await ctl(source, 'send-migration', url);

    expect([code, said]).toEqual([0, expect.stringMatching(/^send-migration: [^\n]+ in \d+\.\d\d s[^\n]*\n$/m)]);
    expect((await receiving)[0]).toBe(0);
    expect(await source.child.waitForClose(DEADLINE_MS)).toEqual({ code: 0, signal: null });
    expect(source.child.output()).toMatch(/\nringside: the guest has migrated away\n$/);
    expect(await destination.state()).toBe('Running');
  });

  it('stays and runs on when a migration is interrupted', async () => {
    const path = join(cleanup.directory(), 'mute');
    const sockets: Socket[] = [];
    const mute = createServer((socket) => sockets.push(socket));
    await new Promise<void>((ready) => mute.listen(path, ready));
    cleanup.add(() => {
      for (const socket of sockets) socket.destroy();
      return new Promise((closed) => mute.close(closed));
    });
    const vmm = await boot();
    const args = [MAIN, 'ctl', '--api-socket', vmm.apiSocket, 'send-migration', `unix:${path}`];
    const child = new Child(process.execPath, args);
    cleanup.add(() => child.stop());
    await expect.poll(() => sockets.length, { timeout: DEADLINE_MS }).toBe(1);

    child.kill('SIGINT');

    expect(await child.waitForClose(DEADLINE_MS)).toEqual({ code: 130, signal: null });
    expect(child.output()).toMatch(
      /^ringside: vm\.send-migration: send-migration: cancelled by vm\.cancel-migration\n$/m,
    );
    expect((await vmm.request('GET', 'vm.progress')).body).toMatchObject({ phase: 'cancelled' });
    expect(await vmm.state()).toBe('Running');
    await vmm.put('vm.pause');
  });

  it('stays and runs on when a migration reaches nobody', async () => {
    const vmm = await boot();
    const [code, said] = await ctl(vmm, 'send-migration', 'unix:/nonexistent/socket');
    expect([code, said]).toEqual([
      1,
      expect.stringMatching(
        /^ringside: vm\.send-migration: connecting to \/nonexistent\/socket: .*no such file or directory \(ENOENT\)\n$/m,
      ),
    ]);
    expect(await vmm.state()).toBe('Running');
    await vmm.put('vm.pause');
  });
});
