import type { FastifyInstance } from 'fastify';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createApp } from '../../../../vmm-client/api/app.ts';
import { FakeControl } from '../../../support/vm/fake-control.ts';

const control = new FakeControl();
const created = control.configs;
const log = { info: () => undefined, error: () => undefined };

const payload = { kernel: '/boot/vmlinux' };

/** Every field that Cloud Hypervisor's VmConfig has, with a value that means "none" or is its default. */
const everythingThatMeansNothing = {
  cpus: {
    boot_vcpus: 2,
    max_vcpus: 2,
    topology: null,
    kvm_hyperv: false,
    max_phys_bits: 46,
    affinity: null,
    features: { amx: false },
    nested: true,
    core_scheduling: 'Vm',
    profile: 'host',
  },
  memory: {
    size: 1 << 30,
    mergeable: false,
    hotplug_method: 'Acpi',
    hotplug_size: null,
    hotplugged_size: null,
    shared: true,
    hugepages: false,
    hugepage_size: null,
    prefault: false,
    reserve: false,
    zones: null,
    thp: true,
  },
  payload: { firmware: null, kernel: '/boot/vmlinux', cmdline: 'console=ttyS0', initramfs: null, igvm: null },
  rate_limit_groups: null,
  disks: [
    {
      path: '/disk',
      readonly: false,
      direct: true,
      iommu: false,
      num_queues: 2,
      queue_size: 256,
      vhost_user: false,
      vhost_socket: null,
      rate_limit_group: null,
      rate_limiter_config: null,
      id: null,
      disable_io_uring: false,
      disable_aio: false,
      pci_segment: 0,
      pci_device_id: null,
      serial: null,
      queue_affinity: null,
      backing_files: false,
      sparse: true,
      image_type: 'Unknown',
      lock_granularity: 'ByteRange',
    },
  ],
  net: [
    {
      tap: null,
      ip: '192.168.249.1',
      mask: '255.255.255.0',
      mac: '2e:89:a8:e4:bf:49',
      host_mac: null,
      mtu: null,
      iommu: false,
      num_queues: 2,
      queue_size: 256,
      vhost_user: true,
      vhost_socket: '/net',
      vhost_mode: 'Client',
      id: 'net_0',
      fds: null,
      rate_limiter_config: null,
      pci_segment: 0,
      offload_tso: true,
      offload_ufo: true,
      offload_csum: true,
    },
  ],
  rng: { src: '/dev/urandom', iommu: false },
  balloon: null,
  generic_vhost_user: null,
  fs: null,
  pmem: [],
  serial: { file: null, mode: 'Tty', socket: null },
  console: { file: null, mode: 'Off', iommu: false, socket: null },
  debug_console: { file: null, mode: 'Off', iobase: 233 },
  devices: [],
  user_devices: null,
  vdpa: null,
  vsock: null,
  pvpanic: false,
  iommu: false,
  numa: null,
  watchdog: false,
  rtc: null,
  gdb: false,
  pci_segments: null,
  platform: { num_pci_segments: 1, iommu_segments: null, system_uuid: null, iommufd: false, vfio_p2p_dma: true },
  tpm: null,
  landlock_enable: false,
  landlock_rules: null,
};

const refused: readonly (readonly [sentence: string, body: unknown])[] = [
  ['the body: null is not an object', null],
  ['the body: a list is not an object', []],
  ['the body: 7 is not an object', 7],
  ['payload is missing', {}],
  ['payload: null is not an object', { payload: null }],
  ['payload.kernel is missing', { payload: {} }],
  ['payload.kernel: 5 is not a string', { payload: { kernel: 5 } }],
  ['payload.kernel is empty', { payload: { kernel: '' } }],
  ['payload.kernel contains a zero byte', { payload: { kernel: '/k\0' } }],
  ['payload.firmware: firmware is not started, only a kernel', { payload: { kernel: '/k', firmware: '/f' } }],
  ['kernel: payload has replaced it', { payload, kernel: { path: '/k' } }],
  ['disk: there is no such field', { payload, disk: [{ path: '/d' }] }],
  ['"\\u001b[2J": there is no such field', { payload, '\x1b[2J': 1 }],
  ['constructor: there is no such field', { payload, constructor: 1 }],
  ['cpus.max_vcpus is missing', { payload, cpus: { boot_vcpus: 1 } }],
  ['cpus.boot_vcpus: 0 is below the minimum of 1', { payload, cpus: { boot_vcpus: 0, max_vcpus: 1 } }],
  ['cpus.boot_vcpus: 255 is above the maximum of 254', { payload, cpus: { boot_vcpus: 255, max_vcpus: 255 } }],
  ['cpus.boot_vcpus: "2" is not a whole number', { payload, cpus: { boot_vcpus: '2', max_vcpus: 2 } }],
  ['cpus.boot_vcpus: 1.5 is not a whole number', { payload, cpus: { boot_vcpus: 1.5, max_vcpus: 2 } }],
  [
    'cpus.max_vcpus: 4 is not boot_vcpus (2), and vCPUs are not hotplugged',
    { payload, cpus: { boot_vcpus: 2, max_vcpus: 4 } },
  ],
  ['cpus.features: AMX is not configured', { payload, cpus: { boot_vcpus: 1, max_vcpus: 1, features: 3 } }],
  [
    'cpus.features.amx: AMX is not configured',
    { payload, cpus: { boot_vcpus: 1, max_vcpus: 1, features: { amx: true } } },
  ],
  [
    'cpus.topology: the topology of vCPUs is not configured',
    { payload, cpus: { boot_vcpus: 1, max_vcpus: 1, topology: { packages: 1 } } },
  ],
  ['cpus.hide[1]: 4 is not a string', { payload, cpus: { boot_vcpus: 1, max_vcpus: 1, hide: ['cx16', 4] } }],
  ['memory.size is missing', { payload, memory: {} }],
  ['memory.size: -1 is below the minimum of 2097152', { payload, memory: { size: -1 } }],
  ['memory.size: 1e+30 is above the maximum of 35184372088832', { payload, memory: { size: 1e30 } }],
  ['memory.size: "512M" is not a whole number', { payload, memory: { size: '512M' } }],
  ['memory.size: 4194305 is not a multiple of 4096 bytes', { payload, memory: { size: 4194305 } }],
  [
    'memory.shared is false, and back ends serve only memory that is shared with them',
    { payload, memory: { size: 1 << 26, shared: false } },
  ],
  ['memory.shared: "on" is not true or false', { payload, memory: { size: 1 << 26, shared: 'on' } }],
  ['memory.hotplug_size: -1 is below the minimum of 0', { payload, memory: { size: 1 << 26, hotplug_size: -1 } }],
  [
    'memory.hotplug_size: 1048576 is not a multiple of 2097152 bytes',
    { payload, memory: { size: 1 << 26, hotplug_size: 1 << 20 } },
  ],
  [
    'memory.hotplugged_size: 2097152 is above the maximum of 0',
    { payload, memory: { size: 1 << 26, hotplugged_size: 1 << 21 } },
  ],
  [
    'memory.hotplug_method: memory is added by virtio-mem',
    { payload, memory: { size: 1 << 26, hotplug_method: 'Dimm' } },
  ],
  ['memory.zones: memory has no zones', { payload, memory: { size: 1 << 26, zones: [{ id: 'a', size: 1 }] } }],
  ['memory.prefault: memory is not faulted in beforehand', { payload, memory: { size: 1 << 26, prefault: true } }],
  ['disks: an object is not a list or null', { payload, disks: { path: '/d' } }],
  ['disks[0]: "/d" is not an object', { payload, disks: ['/d'] }],
  [
    'disks[1]: exactly one of path and vhost_socket is needed, neither is given',
    { payload, disks: [{ path: '/d' }, {}] },
  ],
  ['disks[0]: vhost_user is true and vhost_socket is missing', { payload, disks: [{ path: '/d', vhost_user: true }] }],
  ['disks[0].queue_size: 70000 is above the maximum of 32768', { payload, disks: [{ path: '/d', queue_size: 70000 }] }],
  ['disks[0].queue_size: 48 is not a power of two', { payload, disks: [{ path: '/d', queue_size: 48 }] }],
  ['disks[0].num_queues: null is not a whole number', { payload, disks: [{ path: '/d', num_queues: null }] }],
  ['disks[0].iommu: "on" is not true or false', { payload, disks: [{ path: '/d', iommu: 'on' }] }],
  ['console.iommu: it is not behind an IOMMU', { payload, console: { mode: 'Off', iommu: true } }],
  [
    'disks[0].rate_limiter_config: rates are not limited here',
    { payload, disks: [{ path: '/d', rate_limiter_config: { ops: { size: 1, refill_time: 1 } } }] },
  ],
  ['disks[0].image_type: images are raw', { payload, disks: [{ path: '/d', image_type: 'Qcow2' }] }],
  [
    'disks[0].serial: "aaaaaaaaaaaaaaaaaaaaa" is longer than 20 characters',
    { payload, disks: [{ path: '/d', serial: 'a'.repeat(21) }] },
  ],
  ['disks[0].id: "a b" does not match ^[A-Za-z0-9_.:-]{1,64}$', { payload, disks: [{ path: '/d', id: 'a b' }] }],
  [
    'disks[1].id: "x" is the id of disks[0] already',
    {
      payload,
      disks: [
        { path: '/d', id: 'x' },
        { path: '/e', id: 'x' },
      ],
    },
  ],
  [
    'net[0].ip: the VMM does not configure TAP devices; make one and give its name as tap',
    { payload, net: [{ tap: 't', ip: '10.0.0.1' }] },
  ],
  ['net[0].mac: "x" does not match ^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$', { payload, net: [{ tap: 't', mac: 'x' }] }],
  [
    'net[0].mac: 33:33:00:00:00:01 is the MAC address of a group, not of one station',
    { payload, net: [{ tap: 't', mac: '33:33:00:00:00:01' }] },
  ],
  ['net[0].mtu: 20 is below the minimum of 68', { payload, net: [{ tap: 't', mtu: 20 }] }],
  [
    'net[0].vhost_mode: the VMM dials back ends and does not wait for them',
    { payload, net: [{ vhost_socket: '/n', vhost_mode: 'Server' }] },
  ],
  ['net[0].fds: descriptors are not taken over', { payload, net: [{ tap: 't', fds: [3] }] }],
  ['fs[0].tag is missing', { payload, fs: [{ socket: '/f' }] }],
  ['vsock.cid: 2 is below the minimum of 3', { payload, vsock: { cid: 2, socket: '/v' } }],
  ['vsock.cid: 4294967295 is above the maximum of 4294967294', { payload, vsock: { cid: 4294967295, socket: '/v' } }],
  [
    'serial.mode: "Pty" is not one of "Off", "Null", "Tty", "File"; a serial port goes nowhere else',
    { payload, serial: { mode: 'Pty' } },
  ],
  ['serial.mode is missing', { payload, serial: {} }],
  ['serial.file is missing, where mode File writes to', { payload, serial: { mode: 'File' } }],
  [
    'console.mode: "Tty" is not one of "Off", "Null"; there is no virtio console; use serial',
    { payload, console: { mode: 'Tty' } },
  ],
  [
    'console.mode: an object is not one of "Off", "Null"; there is no virtio console; use serial',
    { payload, console: { mode: {} } },
  ],
  ['rng.src: there is no rng device', { payload, rng: { src: '/dev/random' } }],
  ['rng: there is no rng device', { payload, rng: 'yes' }],
  ['balloon: there is no balloon device', { payload, balloon: { size: 0 } }],
  ['pmem: there is no pmem device', { payload, pmem: [{ file: '/p' }] }],
  ['devices: there is no VFIO device', { payload, devices: [{ path: '/sys/x' }] }],
  [
    'platform.num_pci_segments: there is nothing to configure about the platform',
    { payload, platform: { num_pci_segments: 2 } },
  ],
  ['platform.tdx: there is no such field', { payload, platform: { tdx: true } }],
  ['numa: there are no NUMA nodes', { payload, numa: [{ guest_numa_id: 0 }] }],
  ['tpm: there is no TPM device', { payload, tpm: { socket: '/t' } }],
  ['landlock_enable: the VMM does not confine itself', { payload, landlock_enable: true }],
  ['watchdog: there is no watchdog device', { payload, watchdog: true }],
];

describe.each([true, false])('vm.create, schemas compiled beforehand: %s', (compileSchemas) => {
  let app: FastifyInstance;
  const create = (body: string) => app.inject({ method: 'PUT', url: '/api/v1/vm.create', payload: body });

  beforeAll(async () => {
    app = createApp({ control, log, version: '1.2.3', compileSchemas }, () => false);
    await app.ready();
  });
  afterAll(() => app.close());

  it.each(refused)('refuses: %s', async (sentence, body) => {
    created.length = 0;

    const response = await create(JSON.stringify(body));

    expect(response.json()).toEqual([`vm.create: ${sentence}`]);
    expect(response.statusCode).toBe(400);
    expect(created).toEqual([]);
  });

  it('refuses numbers that JSON can write and no machine can count', async () => {
    const response = await create('{"payload":{"kernel":"/k"},"memory":{"size":1e999}}');
    expect(response.json()).toEqual(['vm.create: memory.size: Infinity is not a whole number']);
  });

  it('refuses a __proto__ without setting it', async () => {
    const response = await create('{"payload":{"kernel":"/k"},"__proto__":{"disks":[{"path":"/d"}]}}');
    expect(response.json()).toEqual(['vm.create: __proto__: there is no such field']);
  });

  it('survives a value nested as deep as a body can be', async () => {
    const depth = 500_000;
    const response = await create(`{"payload":${'['.repeat(depth)}${']'.repeat(depth)}}`);
    expect(response.json()).toEqual(['vm.create: payload: a list is not an object']);
  });

  it('cuts a long value', async () => {
    const response = await create(JSON.stringify({ payload, memory: { size: 'x'.repeat(5000) } }));
    expect(response.json()).toEqual([`vm.create: memory.size: "${'x'.repeat(63)}... is not a whole number`]);
  });

  it('takes memory to be added and devices behind the IOMMU', async () => {
    created.length = 0;
    const memory = { size: 1 << 30, hotplug_size: 2 ** 32, hotplugged_size: 1 << 21, hotplug_method: 'VirtioMem' };

    const response = await create(
      JSON.stringify({ payload, memory, disks: [{ path: '/d', iommu: true }], vsock: null }),
    );

    expect(response.statusCode).toBe(204);
    expect(created).toMatchObject([
      { memory: { hotplug_size: 2 ** 32, hotplugged_size: 1 << 21 }, disks: [{ iommu: true }] },
    ]);
  });

  it('takes the fields that say none and drops them', async () => {
    created.length = 0;

    const response = await create(JSON.stringify(everythingThatMeansNothing));

    expect(response.body).toBe('');
    expect(response.statusCode).toBe(204);
    expect(created).toEqual([
      {
        cpus: { boot_vcpus: 2, max_vcpus: 2, hide: [] },
        memory: { size: 1 << 30, shared: true, hugepages: false, hotplug_size: 0, hotplugged_size: 0 },
        payload: { kernel: '/boot/vmlinux', cmdline: 'console=ttyS0' },
        disks: [
          {
            id: '_disk0',
            path: '/disk',
            readonly: false,
            direct: true,
            num_queues: 2,
            queue_size: 256,
            iommu: false,
            vhost_user: false,
          },
        ],
        net: [
          {
            id: 'net_0',
            mac: '2e:89:a8:e4:bf:49',
            num_queues: 2,
            queue_size: 256,
            iommu: false,
            vhost_user: true,
            vhost_socket: '/net',
          },
        ],
        fs: [],
        serial: { mode: 'Tty' },
        console: { mode: 'Off' },
      },
    ]);
  });

  it('takes what libvirt sends for a domain with a kernel, a disk and no serial port', async () => {
    created.length = 0;

    const response = await create(
      '{"cpus":{"boot_vcpus":2,"max_vcpus":2},"memory":{"size":1073741824},"payload":{"kernel":"/k","cmdline":"root=/dev/vda",' +
        '"initramfs":"/i"},"disks":[{"path":"/d","readonly":true}]}',
    );

    expect(response.statusCode).toBe(204);
    expect(created).toMatchObject([{ disks: [{ path: '/d', readonly: true }] }]);
  });
});
