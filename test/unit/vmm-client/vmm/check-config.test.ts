import { describe, expect, it } from 'vitest';
import { checkConfig } from '../../../../vmm-client/vmm/check-config.ts';
import type { DiskConfig, FsConfig, NetConfig, VmConfig, VsockConfig } from '../../../../vmm-client/vmm/config.ts';

const MIB = 1024 * 1024;
const minimal: VmConfig = { payload: { kernel: '/boot/vmlinux' } };

const vm = (more: Partial<VmConfig>): VmConfig => ({ ...minimal, ...more });
const disk = (more: DiskConfig): VmConfig => vm({ disks: [more] });
const net = (more: NetConfig): VmConfig => vm({ net: [more] });
const fs = (more: Partial<FsConfig>): VmConfig => vm({ fs: [{ tag: 'root', socket: '/f', ...more }] });
const vsock = (more: Partial<VsockConfig>): VmConfig => vm({ vsock: { cid: 3, socket: '/v', ...more } });

/** As many devices, one behind the IOMMU, and memory that can be added. */
const crowd = (count: number): VmConfig =>
  vm({
    memory: { size: 64 * MIB, hotplug_size: 2 * MIB },
    net: Array.from({ length: count }, (_, i) => ({ tap: `tap${i}`, iommu: i === 0 })),
  });

describe('defaults', () => {
  it('are those of Cloud Hypervisor where it has the same', () => {
    expect(checkConfig(minimal)).toEqual({
      payload: { kernel: '/boot/vmlinux' },
      cpus: { boot_vcpus: 1, max_vcpus: 1, hide: [] },
      memory: { size: 512 * MIB, shared: true, hugepages: false, hotplug_size: 0, hotplugged_size: 0 },
      disks: [],
      net: [],
      fs: [],
      serial: { mode: 'Null' },
      console: { mode: 'Off' },
    });
  });

  it('give every device queues and an id, numbered over all of them past the ids that are taken', () => {
    const checked = checkConfig(
      vm({
        disks: [{ path: '/d' }, { vhost_socket: '/b', id: '_net2' }, { path: '/e', readonly: true }],
        net: [{ vhost_socket: '/n' }, { tap: 'tap0', mac: '52:54:00:AB:cd:ef' }],
        fs: [{ tag: 'root', socket: '/f' }],
        vsock: { cid: 3, socket: '/v' },
      }),
    );

    expect(checked.disks).toEqual([
      {
        id: '_disk0',
        path: '/d',
        vhost_user: false,
        readonly: false,
        direct: false,
        num_queues: 1,
        queue_size: 128,
        iommu: false,
      },
      {
        id: '_net2',
        vhost_socket: '/b',
        vhost_user: true,
        readonly: false,
        direct: false,
        num_queues: 1,
        queue_size: 128,
        iommu: false,
      },
      {
        id: '_disk1',
        path: '/e',
        vhost_user: false,
        readonly: true,
        direct: false,
        num_queues: 1,
        queue_size: 128,
        iommu: false,
      },
    ]);
    expect(checked.net).toEqual([
      { id: '_net3', vhost_socket: '/n', vhost_user: true, num_queues: 2, queue_size: 256, iommu: false },
      {
        id: '_net4',
        tap: 'tap0',
        mac: '52:54:00:ab:cd:ef',
        vhost_user: false,
        num_queues: 2,
        queue_size: 256,
        iommu: false,
      },
    ]);
    expect(checked.fs).toEqual([
      { id: '_fs5', tag: 'root', socket: '/f', num_queues: 1, queue_size: 1024, iommu: false },
    ]);
    expect(checked.vsock).toEqual({ id: '_vsock6', cid: 3, socket: '/v', queue_size: 256, iommu: false });
  });

  it('do not change when a checked configuration is checked again', () => {
    const once = checkConfig(
      vm({ disks: [{ path: '/d' }, { vhost_socket: '/b' }], net: [{ tap: 't' }], vsock: { cid: 9, socket: '/v' } }),
    );
    expect(checkConfig(once)).toEqual(once);
  });
});

describe('limits', () => {
  const accepted: readonly (readonly [what: string, config: VmConfig])[] = [
    ['254 vCPUs', vm({ cpus: { boot_vcpus: 254, max_vcpus: 254 } })],
    ['2 MiB', vm({ memory: { size: 2 * MIB } })],
    ['2^45 bytes of huge pages', vm({ memory: { size: 2 ** 45, hugepages: true } })],
    ['a command line of 65535 bytes', vm({ payload: { kernel: '/k', cmdline: 'x'.repeat(65535) } })],
    ['19 devices', vm({ net: Array.from({ length: 19 }, (_, i) => ({ tap: `tap${i}` })) })],
    ['17 devices beside virtio-iommu and virtio-mem', crowd(17)],
    ['2^44 bytes and as many to be added', vm({ memory: { size: 2 ** 44, hotplug_size: 2 ** 44 } })],
    [
      'memory that is added from the start on',
      vm({ memory: { size: 64 * MIB, hotplug_size: 4 * MIB, hotplugged_size: 4 * MIB } }),
    ],
    ['256 queues of 32768', disk({ path: '/d', num_queues: 256, queue_size: 32768 })],
    ['a serial of 20 bytes', disk({ path: '/d', serial: 'x'.repeat(20) })],
    ['readers of one image', vm({ disks: Array(2).fill({ path: '/d', readonly: true }) })],
    ['MTU 68', net({ tap: 't', mtu: 68 })],
    ['MTU 65535', net({ tap: 't', mtu: 65535 })],
    ['254 rings', net({ tap: 't', num_queues: 254 })],
    ['a tag of 36 bytes', fs({ tag: 'x'.repeat(36) })],
    ['CID 3', vsock({ cid: 3 })],
    ['CID 2^32 - 2', vsock({ cid: 0xffff_fffe })],
    ['a serial port to a file', vm({ serial: { mode: 'File', file: '/tmp/x' } })],
    ['a console that goes nowhere', vm({ console: { mode: 'Null' } })],
  ];
  it.each(accepted)('admit %s', (_what, config) => {
    expect(() => checkConfig(config)).not.toThrow();
  });

  const refused: readonly (readonly [sentence: string, config: VmConfig])[] = [
    ['payload.kernel is empty', vm({ payload: { kernel: '' } })],
    ['payload.kernel contains a zero byte', vm({ payload: { kernel: '/k\0' } })],
    ['payload.initramfs is empty', vm({ payload: { kernel: '/k', initramfs: '' } })],
    ['payload.cmdline contains a zero byte', vm({ payload: { kernel: '/k', cmdline: 'a\0b' } })],
    [
      'payload.cmdline is 65536 bytes long, at most 65535 are possible',
      vm({ payload: { kernel: '/k', cmdline: 'é'.repeat(32768) } }),
    ],
    ['cpus.boot_vcpus: 0 is below the minimum of 1', vm({ cpus: { boot_vcpus: 0, max_vcpus: 0 } })],
    ['cpus.boot_vcpus: 255 is above the maximum of 254', vm({ cpus: { boot_vcpus: 255, max_vcpus: 255 } })],
    [
      'cpus.max_vcpus: 4 is not boot_vcpus (2), and vCPUs are not hotplugged',
      vm({ cpus: { boot_vcpus: 2, max_vcpus: 4 } }),
    ],
    ['memory.size: -1 is below the minimum of 2097152', vm({ memory: { size: -1 } })],
    ['memory.size: 35184372088833 is above the maximum of 35184372088832', vm({ memory: { size: 2 ** 45 + 1 } })],
    ['memory.size: 4194305 is not a multiple of 4096 bytes', vm({ memory: { size: 4 * MIB + 1 } })],
    ['memory.size: 3145728 is not a multiple of 2097152 bytes', vm({ memory: { size: 3 * MIB, hugepages: true } })],
    ['memory.size: 4194304.5 is not a whole number', vm({ memory: { size: 4 * MIB + 0.5 } })],
    ['memory.size: NaN is not a whole number', vm({ memory: { size: Number.NaN } })],
    [
      'memory.shared is false, and back ends serve only memory that is shared with them',
      vm({ memory: { size: 4 * MIB, shared: false } }),
    ],
    ['memory.file is empty', vm({ memory: { size: 4 * MIB, file: '' } })],
    [
      'disks, net, fs and vsock are 20 devices, at most 19 are possible',
      vm({ net: Array.from({ length: 19 }, (_, i) => ({ tap: `tap${i}` })), vsock: { cid: 3, socket: '/v' } }),
    ],
    [
      'disks, net, fs and vsock are 18 devices, at most 17 are possible; virtio-iommu and virtio-mem take 2 of 19',
      crowd(18),
    ],
    [
      'disks, net, fs and vsock are 19 devices, at most 18 are possible; virtio-iommu and virtio-mem take 1 of 19',
      vm({ net: Array.from({ length: 19 }, (_, i) => ({ tap: `tap${i}`, iommu: i === 18 })) }),
    ],
    [
      'memory.hotplug_size: 3145728 is not a multiple of 2097152 bytes',
      vm({ memory: { size: 64 * MIB, hotplug_size: 3 * MIB } }),
    ],
    [
      'memory.hotplug_size: -2097152 is below the minimum of 0',
      vm({ memory: { size: 64 * MIB, hotplug_size: -2 * MIB } }),
    ],
    [
      'memory.hotplug_size: 35184372088832 and a size of 67108864 are above the maximum of 35184372088832',
      vm({ memory: { size: 64 * MIB, hotplug_size: 2 ** 45 } }),
    ],
    [
      'memory.hotplugged_size: 6291456 is above the maximum of 4194304',
      vm({ memory: { size: 64 * MIB, hotplug_size: 4 * MIB, hotplugged_size: 6 * MIB } }),
    ],
    [
      'memory.hotplugged_size: 1048576 is not a multiple of 2097152 bytes',
      vm({ memory: { size: 64 * MIB, hotplug_size: 4 * MIB, hotplugged_size: MIB } }),
    ],
    ['disks[0]: exactly one of path and vhost_socket is needed, neither is given', disk({})],
    [
      'disks[0]: exactly one of path and vhost_socket is needed, both are given',
      disk({ path: '/d', vhost_socket: '/b' }),
    ],
    ['disks[0]: vhost_user is true and vhost_socket is missing', disk({ vhost_user: true })],
    ['disks[0]: vhost_user is true and vhost_socket is missing', disk({ path: '/d', vhost_user: true })],
    ['disks[0]: vhost_socket is given and vhost_user is false', disk({ vhost_socket: '/b', vhost_user: false })],
    ['disks[0].path is empty', disk({ path: '' })],
    ['disks[0].num_queues: 0 is below the minimum of 1', disk({ path: '/d', num_queues: 0 })],
    ['disks[0].num_queues: 257 is above the maximum of 256', disk({ path: '/d', num_queues: 257 })],
    ['disks[0].queue_size: 2 is below the minimum of 4', disk({ path: '/d', queue_size: 2 })],
    ['disks[0].queue_size: 100 is not a power of two', disk({ path: '/d', queue_size: 100 })],
    ['disks[0].queue_size: 65536 is above the maximum of 32768', disk({ path: '/d', queue_size: 65536 })],
    ['disks[0].serial is 21 bytes long, at most 20 are possible', disk({ path: '/d', serial: 'x'.repeat(21) })],
    [
      'disks[0].readonly is for the back end behind vhost_socket to decide, not for the VMM',
      disk({ vhost_socket: '/b', readonly: true }),
    ],
    [
      'disks[0].direct is for the back end behind vhost_socket to decide, not for the VMM',
      disk({ vhost_socket: '/b', direct: true }),
    ],
    [
      'disks[0].serial is for the back end behind vhost_socket to decide, not for the VMM',
      disk({ vhost_socket: '/b', serial: 'x' }),
    ],
    ['disks[1].path: /d is disks[0].path already', vm({ disks: [{ path: '/d', readonly: true }, { path: '/d' }] })],
    [
      'net[0].vhost_socket: /b is disks[0].vhost_socket already',
      vm({ disks: [{ vhost_socket: '/b' }], net: [{ vhost_socket: '/b' }] }),
    ],
    ['vsock.socket: /f is fs[0].socket already', { ...fs({}), vsock: { cid: 3, socket: '/f' } }],
    ['net[1].tap: tap0 is net[0].tap already', vm({ net: [{ tap: 'tap0' }, { tap: 'tap0' }] })],
    ['net[0]: exactly one of tap and vhost_socket is needed, neither is given', net({})],
    ['net[0]: vhost_user is true and vhost_socket is missing', net({ tap: 't', vhost_user: true })],
    ['net[0].num_queues: 3 rings are not pairs of receive and transmit', net({ tap: 't', num_queues: 3 })],
    ['net[0].num_queues: 1 is below the minimum of 2', net({ tap: 't', num_queues: 1 })],
    ['net[0].mtu: 67 is below the minimum of 68', net({ tap: 't', mtu: 67 })],
    ['net[0].mac: "52:54:00" is not a MAC address such as 52:54:00:12:34:56', net({ tap: 't', mac: '52:54:00' })],
    [
      'net[0].mac: 01:00:5e:00:00:01 is the MAC address of a group, not of one station',
      net({ tap: 't', mac: '01:00:5e:00:00:01' }),
    ],
    ['net[0].mac: 00:00:00:00:00:00 is the address of no station', net({ tap: 't', mac: '00:00:00:00:00:00' })],
    ['fs[0].tag is empty', fs({ tag: '' })],
    ['fs[0].tag is 38 bytes long, at most 36 are possible', fs({ tag: 'é'.repeat(19) })],
    ['fs[0].num_queues: 256 is above the maximum of 255', fs({ num_queues: 256 })],
    ['vsock.cid: 2 is below the minimum of 3', vsock({ cid: 2 })],
    ['vsock.cid: 4294967295 is above the maximum of 4294967294', vsock({ cid: 0xffff_ffff })],
    ['vsock.socket is empty', vsock({ socket: '' })],
    ['serial.file is missing, where mode File writes to', vm({ serial: { mode: 'File' } })],
    ['serial.file is given, and mode Tty writes to no file', vm({ serial: { mode: 'Tty', file: '/x' } })],
    ['console.mode: "Tty" needs a virtio console, which is not there; use serial', vm({ console: { mode: 'Tty' } })],
    ['disks[0].id: "a/b" is not 1 to 64 letters, digits or any of _ . : -', disk({ path: '/d', id: 'a/b' })],
    ['disks[0].id: "__disk" begins with two underscores, which is reserved', disk({ path: '/d', id: '__disk' })],
    ['disks[0].id: "vcpu0" is the name of counters of the VMM', disk({ path: '/d', id: 'vcpu0' })],
    [
      'net[0].id: "root" is the id of disks[0] already',
      vm({ disks: [{ path: '/d', id: 'root' }], net: [{ tap: 't', id: 'root' }] }),
    ],
  ];
  it.each(refused)('refuse: %s', (sentence, config) => {
    expect(() => checkConfig(config)).toThrow(expect.objectContaining({ code: 'VM_CONFIG', message: sentence }));
  });
});
