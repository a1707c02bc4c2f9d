import { describe, expect, it } from 'vitest';
import type { RestoredDevice, VmResize, VmResizeDisk } from '../../../../vmm-client/api/vmm-control.ts';
import {
  addDevice,
  addressDevices,
  checkDiskResize,
  type NewDevice,
  resizeMemory,
} from '../../../../vmm-client/vmm/change-config.ts';
import { checkConfig } from '../../../../vmm-client/vmm/check-config.ts';
import { describeDevices, dropDevices } from '../../../../vmm-client/vmm/slots/plan.ts';

const MIB = 1024 * 1024;
const config = checkConfig({
  payload: { kernel: '/k' },
  memory: { size: 512 * MIB, hotplug_size: 1024 * MIB },
  disks: [{ path: '/d', id: 'root' }, { vhost_socket: '/b' }, { path: '/r', readonly: true, id: 'ro' }],
  net: [{ tap: 'tap0' }, { vhost_socket: '/n', id: 'remote' }],
  fs: [{ tag: 't', socket: '/f', id: 'home' }],
  vsock: { cid: 3, socket: '/v', id: 'vsock' },
});
const { vsock: _, ...withoutVsock } = config;

describe('addDevice', () => {
  it.each<[string, NewDevice, object]>([
    ['disk', { kind: 'disk', config: { path: '/new' } }, { id: '_disk1', queue_size: 128, iommu: false }],
    ['net', { kind: 'net', config: { tap: 'tap9', id: 'n' } }, { id: 'n', num_queues: 2 }],
    ['fs', { kind: 'fs', config: { tag: 'x', socket: '/x' } }, { queue_size: 1024 }],
  ])('appends a %s with defaults and an id', (kind, device, expected) => {
    const { config: changed, added } = addDevice(config, device);

    expect(added.kind).toBe(kind);
    expect(added.config).toMatchObject({ ...device.config, ...expected });
    expect(describeDevices(changed)).toHaveLength(describeDevices(config).length + 1);
    expect(checkConfig(changed)).toEqual(changed);
  });

  it('adds vsock where there is none', () => {
    const { config: changed, added } = addDevice(withoutVsock, { kind: 'vsock', config: { cid: 9, socket: '/w' } });
    expect(changed.vsock).toEqual(added.config);
    expect(added.config.id).toMatch(/^_vsock\d+$/);
  });

  it.each<[string, string, NewDevice]>([
    ['VM_CONFLICT', 'id: "root" is the id of another device', { kind: 'net', config: { tap: 't', id: 'root' } }],
    [
      'VM_CONFLICT',
      'there is a vsock device already, vsock; one is possible',
      { kind: 'vsock', config: { cid: 4, socket: '/w' } },
    ],
    ['VM_CONFIG', 'path: /d is disks[0].path already', { kind: 'disk', config: { path: '/d' } }],
    ['VM_CONFIG', 'fs[0].socket: /f is vhost_socket already', { kind: 'disk', config: { vhost_socket: '/f' } }],
    ['VM_CONFIG', 'tap: tap0 is net[0].tap already', { kind: 'net', config: { tap: 'tap0' } }],
    ['VM_CONFIG', 'queue_size: 100 is not a power of two', { kind: 'disk', config: { path: '/n', queue_size: 100 } }],
    ['VM_CONFIG', 'exactly one of path and vhost_socket is needed, neither is given', { kind: 'disk', config: {} }],
    ['VM_CONFIG', 'tag is empty', { kind: 'fs', config: { tag: '', socket: '/y' } }],
    [
      'VM_CONFIG',
      'id: "__mem" begins with two underscores, which is reserved',
      { kind: 'disk', config: { path: '/n', id: '__mem' } },
    ],
  ])('%s: %s', (code, message, device) => {
    expect(() => addDevice(config, device)).toThrow(expect.objectContaining({ code, message }));
  });

  it('refuses one device too many, with those of the VMM', () => {
    const full = checkConfig({
      ...config,
      fs: Array.from({ length: 12 }, (_, i) => ({ tag: `t${i}`, socket: `/s${i}` })),
    });
    expect(() => addDevice(full, { kind: 'disk', config: { path: '/n' } })).toThrow(
      'disks, net, fs and vsock are 19 devices, at most 18 are possible; virtio-iommu and virtio-mem take 1 of 19',
    );
  });
});

describe('dropDevices', () => {
  it('takes out what is gone, whatever it is', () => {
    const gone = new Set(['root', 'remote', 'home', 'vsock']);
    const left = dropDevices(config, (id) => gone.has(id));
    expect(describeDevices(left).map((device) => device.config.id)).toEqual(['_disk0', 'ro', '_net1']);
    expect('vsock' in left).toBe(false);
  });

  it('gives back the same configuration where nothing is gone', () => {
    expect(dropDevices(config, () => false)).toBe(config);
  });
});

describe('resizeMemory', () => {
  it.each([
    [512, 0],
    [514, 2],
    [1536, 1024],
  ])('%i MiB are %i MiB more', (desired, hotplugged) => {
    expect(resizeMemory(config, { desired_ram: desired * MIB }).memory).toEqual({
      ...config.memory,
      hotplugged_size: hotplugged * MIB,
    });
  });

  it('has nothing to do for the vCPUs that there are', () => {
    expect(resizeMemory(config, { desired_vcpus: 1 })).toBe(config);
  });

  it.each<[string, VmResize]>([
    ['desired_ram is missing', {}],
    ['desired_vcpus: 2 is not boot_vcpus (1), and vCPUs are not hotplugged', { desired_vcpus: 2 }],
    ['desired_ram: 534773760 is below the 536870912 of memory.size, which stay', { desired_ram: 510 * MIB }],
    [
      'desired_ram: 1612709888 is above 1610612736, which are memory.size and memory.hotplug_size',
      { desired_ram: 1538 * MIB },
    ],
    [
      'desired_ram: 537919488 is not memory.size (536870912) and a multiple of 2097152 bytes',
      { desired_ram: 513 * MIB },
    ],
    [
      'desired_ram: 536870912.5 is not memory.size (536870912) and a multiple of 2097152 bytes',
      { desired_ram: 512 * MIB + 0.5 },
    ],
  ])('%s', (sentence, request) => {
    expect(() => resizeMemory(config, request)).toThrow(
      expect.objectContaining({ code: 'VM_CONFIG', message: sentence }),
    );
  });
});

describe('checkDiskResize', () => {
  it('lets the image of a disk be resized', () => {
    expect(() => checkDiskResize(config, { id: 'root', desired_size: 512 })).not.toThrow();
  });

  it.each<[string, string, VmResizeDisk]>([
    ['VM_NOT_FOUND', 'no disk, net, fs or vsock device has the id "x"', { id: 'x', desired_size: 512 }],
    ['VM_CONFIG', 'id: home is no disk', { id: 'home', desired_size: 512 }],
    [
      'VM_CONFIG',
      'id: the size of _disk0 is for the back end behind its socket to decide',
      { id: '_disk0', desired_size: 512 },
    ],
    ['VM_CONFIG', 'id: ro is readonly', { id: 'ro', desired_size: 512 }],
    ['VM_CONFIG', 'desired_size: 1000 is not a multiple of 512 bytes', { id: 'root', desired_size: 1000 }],
  ])('%s: %s', (code, message, request) => {
    expect(() => checkDiskResize(config, request)).toThrow(expect.objectContaining({ code, message }));
  });
});

describe('addressDevices', () => {
  it('puts in where back ends are here', () => {
    const here = addressDevices(config, [
      { id: 'root', path: '/copy' },
      { id: '_disk0', socket: '/b2' },
      { id: '_net1', tap: 'tap7' },
      { id: 'remote', socket: '/n2' },
      { id: 'home', socket: '/f2' },
      { id: 'vsock', socket: '/v2' },
    ]);

    expect(here.disks).toMatchObject([{ path: '/copy' }, { vhost_socket: '/b2' }, { path: '/r' }]);
    expect(here.net).toMatchObject([{ tap: 'tap7' }, { vhost_socket: '/n2' }]);
    expect(here.fs).toMatchObject([{ tag: 't', socket: '/f2' }]);
    expect(here.vsock).toMatchObject({ cid: 3, socket: '/v2' });
  });

  it('changes nothing where nothing is said', () => {
    expect(addressDevices(config, [])).toEqual(config);
  });

  it.each<[string, string, readonly RestoredDevice[]]>([
    ['VM_NOT_FOUND', 'no disk, net, fs or vsock device has the id "x"', [{ id: 'x', path: '/a' }]],
    ['VM_CONFIG', 'devices: root: nothing is given, and its path is needed', [{ id: 'root' }]],
    ['VM_CONFIG', 'devices: root: socket is given, and its path is needed', [{ id: 'root', socket: '/s' }]],
    ['VM_CONFIG', 'devices: root: tap is given, and its path is needed', [{ id: 'root', path: '/a', tap: 't' }]],
    ['VM_CONFIG', 'devices: _net1: path is given, and its tap is needed', [{ id: '_net1', path: '/s' }]],
    ['VM_CONFIG', 'devices: home: path is given, and its socket is needed', [{ id: 'home', path: '/s' }]],
    [
      'VM_CONFIG',
      'devices: root is there twice',
      [
        { id: 'root', path: '/a' },
        { id: 'root', path: '/b' },
      ],
    ],
    ['VM_CONFIG', 'fs[0].socket: /b is disks[1].vhost_socket already', [{ id: 'home', socket: '/b' }]],
  ])('%s: %s', (code, message, devices) => {
    expect(() => addressDevices(config, devices)).toThrow(expect.objectContaining({ code, message }));
  });
});
