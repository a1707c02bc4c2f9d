/**
 * The JSON schemas of VmConfig: components of the OpenAPI document, and what request bodies are checked against. They take
 * every field of Cloud Hypervisor's VmConfig. A field for something that is not here is marked `x-absent` with the reason
 * and takes only what means "none" or is Cloud Hypervisor's default, because clients send such fields.
 */

import { VIRTIO_BLK_ID_BYTES } from '../../protocol/virtio/blk.ts';
import { VIRTIO_FS_TAG_BYTES } from '../../protocol/virtio/fs.ts';
import { DEFAULTS, ID_PATTERN, LIMITS } from '../vmm/check-config.ts';
import type { VmConfig } from '../vmm/config.ts';

/** A JSON schema (2020-12, the part that this file uses). */
export interface Schema {
  readonly $ref?: string;
  readonly type?: string | readonly string[];
  readonly enum?: readonly unknown[];
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly additionalProperties?: Schema;
  readonly items?: Schema;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly minLength?: number;
  readonly maxLength?: number;
  readonly pattern?: string;
  readonly default?: unknown;
  readonly description?: string;
  /** Why there is no such thing here. The value has been looked at and is dropped. */
  readonly 'x-absent'?: string;
  /** What else to say when the value is not one of `enum`. */
  readonly 'x-hint'?: string;
}

/** A field that may only say "none", or one of `defaults`. */
const absent = (reason: string, ...defaults: readonly unknown[]): Schema => ({
  enum: [null, false, [], {}, ...defaults],
  'x-absent': reason,
});
const UNKNOWN = absent('there is no such field');

type Properties = Readonly<Record<string, Schema>>;

const object = (properties: Properties, required: readonly string[] = [], type: Schema['type'] = 'object'): Schema => ({
  type,
  properties,
  required,
  additionalProperties: UNKNOWN,
});
/** The same for an object, whose fields take what is listed for each. */
const absentObject = (reason: string, fields: Readonly<Record<string, readonly unknown[]>>): Schema => ({
  ...object(
    Object.fromEntries(Object.entries(fields).map(([name, defaults]) => [name, absent(reason, ...defaults)])),
    [],
    ['object', 'null'],
  ),
  'x-absent': reason,
});
const optional = (type: string, more: Schema = {}): Schema => ({ ...more, type: [type, 'null'] });
const list = (name: string): Schema => optional('array', { items: { $ref: `#/components/schemas/${name}` } });
const flag = (value: boolean): Schema => ({ type: 'boolean', default: value });
const integer = (limits: { readonly minimum: number; readonly maximum: number }, value?: number): Schema => ({
  type: 'integer',
  ...limits,
  ...(value === undefined ? {} : { default: value }),
});
const text: Schema = { type: 'string', minLength: 1 };
const optionalText = optional('string', { minLength: 1 });

/** What Cloud Hypervisor's devices have in common: a place on a PCI bus. */
const PCI: Properties = {
  iommu: absent('there is no IOMMU for devices'),
  pci_segment: absent('there is no PCI bus', 0),
  pci_device_id: absent('there is no PCI bus'),
};
const ID: Properties = { id: optional('string', { pattern: ID_PATTERN }) };
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
      ...PCI,
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

const NOT_HOTPLUGGED = 'memory is not hotplugged';
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
    hotplug_method: absent(NOT_HOTPLUGGED, 'Acpi'),
    hotplug_size: absent(NOT_HOTPLUGGED, 0),
    hotplugged_size: absent(NOT_HOTPLUGGED, 0),
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
  ...ID,
  ...PCI,
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
  ...ID,
  ...PCI,
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
    ...ID,
    ...PCI,
    tag: { ...text, maxLength: VIRTIO_FS_TAG_BYTES },
    socket: { ...text, description: 'Unix socket of a vhost-user back end.' },
    num_queues: integer(LIMITS.fsQueues, DEFAULTS.fs.num_queues),
    queue_size: integer(LIMITS.queueSize, DEFAULTS.fs.queue_size),
  },
  ['tag', 'socket'],
);

const VsockConfig = object(
  {
    ...ID,
    ...PCI,
    cid: integer(LIMITS.cid),
    socket: { ...text, description: 'Unix socket of a vhost-user back end.' },
    queue_size: integer(LIMITS.queueSize, DEFAULTS.vsock.queue_size),
  },
  ['cid', 'socket'],
  ['object', 'null'],
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
    vsock: { $ref: '#/components/schemas/VsockConfig' },
    serial: { $ref: '#/components/schemas/SerialConfig' },
    console: { $ref: '#/components/schemas/ConsoleConfig' },
    kernel: absent(OLD_PAYLOAD),
    initramfs: absent(OLD_PAYLOAD),
    cmdline: absent(OLD_PAYLOAD),
    rng: {
      ...object({
        ...PCI,
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
