/**
 * The JSON schemas of VmConfig: components of the OpenAPI document, and what request bodies are checked against. They take
 * every field of Cloud Hypervisor's VmConfig. A field for something that is not here is marked `x-absent` with the reason
 * and takes only what means "none" or is Cloud Hypervisor's default, because clients send such fields.
 */

import { VIRTIO_BLK_ID_BYTES } from '../../protocol/virtio/blk.ts';
import { VIRTIO_FS_TAG_BYTES } from '../../protocol/virtio/fs.ts';
import type { VmConfig } from '../vmm/config.ts';
import { DEFAULTS, ID_PATTERN, LIMITS } from '../vmm/config-limits.ts';
import {
  absent,
  absentObject,
  flag,
  integer,
  list,
  object,
  optional,
  optionalText,
  type Properties,
  type Schema,
  text,
} from './schema.ts';

/** What Cloud Hypervisor's devices have in common: a place on a PCI bus. */
const PCI: Properties = {
  pci_segment: absent('there is no PCI bus', 0),
  pci_device_id: absent('there is no PCI bus'),
};
const DEVICE: Properties = {
  id: optional('string', { pattern: ID_PATTERN }),
  iommu: { ...flag(false), description: 'Whether it is behind the virtio-iommu.' },
  packed: { ...flag(false), description: 'Whether its driver is offered packed rings.' },
  ...PCI,
};
const NO_IOMMU: Properties = { iommu: absent('it is not behind an IOMMU'), ...PCI };
const RATE_LIMITER = absent('rates are not limited here');

const VHOST_USER: Properties = {
  vhost_user: flag(false),
  vhost_socket: optional('string', { minLength: 1, description: 'Unix socket of a vhost-user back end.' }),
};

const console = (modes: readonly string[], hint: string): Schema =>
  object(
    {
      mode: { enum: modes, 'x-hint': hint },
      file: optionalText,
      socket: absent('a serial port does not go to a socket'),
      ...NO_IOMMU,
      id: absent('a console has no id'),
    },
    ['mode'],
  );

const CpusConfig = object(
  {
    boot_vcpus: integer(LIMITS.vcpus),
    max_vcpus: integer(LIMITS.vcpus),
    hide: optional('array', {
      items: text,
      description: 'CPUID features that the guest is not to see (ringside only).',
    }),
    topology: absent('the topology of vCPUs is not configured'),
    kvm_hyperv: absent('there are no Hyper-V enlightenments'),
    max_phys_bits: absent('the bits of a physical address are those of the host', 46),
    affinity: absent('vCPUs are not pinned'),
    features: absentObject('AMX is not configured', { amx: [] }),
    nested: absent('whether guests can be hosts is up to the host', true),
    core_scheduling: absent('cores are not scheduled by cookie', 'Vm', 'Off'),
    profile: absent('there are no profiles of CPUs', 'host', 'Host'),
  },
  ['boot_vcpus', 'max_vcpus'],
);

const MemoryConfig = object(
  {
    size: { ...integer(LIMITS.memoryBytes), description: 'Bytes.' },
    shared: flag(true),
    hugepages: flag(false),
    file: optional('string', {
      minLength: 1,
      description: 'Where memory is, in the place of a memfd (ringside only).',
    }),
    mergeable: absent('memory that is shared with back ends cannot be merged'),
    hotplug_method: absent('memory is added by virtio-mem', 'Acpi', 'VirtioMem'),
    hotplug_size: optional('integer', { ...LIMITS.hotplugBytes, description: 'Bytes that vm.resize may add.' }),
    hotplugged_size: optional('integer', { ...LIMITS.hotplugBytes, description: 'Bytes added from the start on.' }),
    hugepage_size: absent('huge pages have the size that the host has set'),
    prefault: absent('memory is not faulted in beforehand'),
    reserve: absent('memory is not reserved beforehand'),
    zones: absent('memory has no zones'),
    thp: absent('transparent huge pages are up to the host', true),
  },
  ['size'],
);

const PayloadConfig = object(
  {
    kernel: { ...text, description: 'Path of a vmlinux (ELF) or bzImage.' },
    initramfs: optionalText,
    cmdline: optional('string'),
    firmware: absent('firmware is not started, only a kernel'),
    igvm: absent('IGVM files are not started, only a kernel'),
    host_data: absent('there are no confidential guests'),
    fw_cfg_config: absent('there is no fw_cfg device'),
  },
  ['kernel'],
);

const DiskConfig = object({
  ...DEVICE,
  ...VHOST_USER,
  path: optional('string', { minLength: 1, description: 'Image or block device that the VMM starts a back end for.' }),
  readonly: flag(false),
  direct: flag(false),
  num_queues: integer(LIMITS.queues, DEFAULTS.disk.num_queues),
  queue_size: integer(LIMITS.queueSize, DEFAULTS.disk.queue_size),
  serial: optional('string', { minLength: 1, maxLength: VIRTIO_BLK_ID_BYTES }),
  rate_limit_group: RATE_LIMITER,
  rate_limiter_config: RATE_LIMITER,
  disable_io_uring: absent('the back end chooses how it does I/O'),
  disable_aio: absent('the back end chooses how it does I/O'),
  queue_affinity: absent('queues are not pinned'),
  backing_files: absent('images have no backing files'),
  sparse: absent('the back end punches holes where the file system can', true),
  image_type: absent('images are raw', 'Unknown', 'Raw'),
  lock_granularity: absent('the back end locks the image as a whole', 'ByteRange', 'Full'),
});

const NO_ADDRESS = 'the VMM does not configure TAP devices; make one and give its name as tap';
const OFFLOADS = absent('offloads are negotiated between driver and back end', true);
const NetConfig = object({
  ...DEVICE,
  ...VHOST_USER,
  tap: optional('string', { minLength: 1, description: 'TAP device that the VMM starts a back end for.' }),
  mac: optional('string', { pattern: '^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$' }),
  mtu: optional('integer', LIMITS.mtu),
  num_queues: { ...integer(LIMITS.netQueues, DEFAULTS.net.num_queues), description: 'Rings: two for each pair.' },
  queue_size: integer(LIMITS.queueSize, DEFAULTS.net.queue_size),
  ip: absent(NO_ADDRESS, '192.168.249.1'),
  mask: absent(NO_ADDRESS, '255.255.255.0'),
  host_mac: absent(NO_ADDRESS),
  vhost_mode: absent('the VMM dials back ends and does not wait for them', 'Client'),
  fds: absent('descriptors are not taken over'),
  rate_limiter_config: RATE_LIMITER,
  offload_tso: OFFLOADS,
  offload_ufo: OFFLOADS,
  offload_csum: OFFLOADS,
});

const FsConfig = object(
  {
    ...DEVICE,
    tag: { ...text, maxLength: VIRTIO_FS_TAG_BYTES },
    socket: { ...text, description: 'Unix socket of a vhost-user back end.' },
    num_queues: integer(LIMITS.fsQueues, DEFAULTS.fs.num_queues),
    queue_size: integer(LIMITS.queueSize, DEFAULTS.fs.queue_size),
  },
  ['tag', 'socket'],
);

const VsockConfig = object(
  {
    ...DEVICE,
    cid: integer(LIMITS.cid),
    socket: { ...text, description: 'Unix socket of a vhost-user back end.' },
    queue_size: integer(LIMITS.queueSize, DEFAULTS.vsock.queue_size),
  },
  ['cid', 'socket'],
);

const OLD_PAYLOAD = 'payload has replaced it';
const NO_DEVICE = (what: string): Schema => absent(`there is no ${what} device`);
const VmConfigSchema: Schema = object(
  {
    payload: { $ref: '#/components/schemas/PayloadConfig' },
    cpus: { $ref: '#/components/schemas/CpusConfig' },
    memory: { $ref: '#/components/schemas/MemoryConfig' },
    disks: list('DiskConfig'),
    net: list('NetConfig'),
    fs: list('FsConfig'),
    vsock: { ...VsockConfig, type: ['object', 'null'] },
    serial: { $ref: '#/components/schemas/SerialConfig' },
    console: { $ref: '#/components/schemas/ConsoleConfig' },
    kernel: absent(OLD_PAYLOAD),
    initramfs: absent(OLD_PAYLOAD),
    cmdline: absent(OLD_PAYLOAD),
    rng: {
      ...object({
        ...NO_IOMMU,
        id: absent('there is no rng device'),
        src: absent('there is no rng device', '/dev/urandom'),
      }),
      'x-absent': 'there is no rng device',
    },
    balloon: NO_DEVICE('balloon'),
    pmem: NO_DEVICE('pmem'),
    devices: NO_DEVICE('VFIO'),
    user_devices: NO_DEVICE('vfio-user'),
    vdpa: NO_DEVICE('vDPA'),
    generic_vhost_user: NO_DEVICE('generic vhost-user'),
    rtc: NO_DEVICE('RTC'),
    tpm: NO_DEVICE('TPM'),
    pvpanic: NO_DEVICE('pvpanic'),
    watchdog: NO_DEVICE('watchdog'),
    iommu: NO_DEVICE('IOMMU'),
    debug_console: absentObject('there is no debug console', { mode: ['Off'], file: [], iobase: [0xe9] }),
    numa: absent('there are no NUMA nodes'),
    platform: absentObject('there is nothing to configure about the platform', {
      num_pci_segments: [1],
      iommu_address_width_bits: [64],
      vfio_p2p_dma: [true],
    }),
    pci_segments: absent('there is no PCI bus'),
    rate_limit_groups: RATE_LIMITER,
    sgx_epc: absent('there is no SGX memory'),
    gdb: absent('there is no debugger'),
    landlock_enable: absent('the VMM does not confine itself'),
    landlock_rules: absent('the VMM does not confine itself'),
  } satisfies Properties & Record<keyof VmConfig, Schema>,
  ['payload'],
);

export const VM_CONFIG_SCHEMAS: Readonly<Record<string, Schema>> = {
  VmConfig: VmConfigSchema,
  PayloadConfig,
  CpusConfig,
  MemoryConfig,
  DiskConfig,
  NetConfig,
  FsConfig,
  VsockConfig,
  SerialConfig: console(['Off', 'Null', 'Tty', 'File'], 'a serial port goes nowhere else'),
  ConsoleConfig: console(['Off', 'Null'], 'there is no virtio console; use serial'),
};
