/**
 * What must be true of a configuration, whoever made it: the command line or a JSON request. Fills in the defaults and
 * the device ids of Cloud Hypervisor. Limits are in config-limits.ts, devices by themselves in check-devices.ts.
 */

import { checkDisk, checkFs, checkNet, checkVsock, Ids } from './check-devices.ts';
import type {
  ConsoleConfig,
  CpusConfig,
  DiskConfig,
  FsConfig,
  MemoryConfig,
  NetConfig,
  PayloadConfig,
  VmConfig,
  VsockConfig,
} from './config.ts';
import {
  checkBytes,
  checkRange,
  checkText,
  DEFAULTS,
  fail,
  HOTPLUG_BLOCK_BYTES,
  LIMITS,
  type Range,
} from './config-limits.ts';
import { CMDLINE_MAX_BYTES, MAX_VIRTIO_DEVICES, PAGE_BYTES } from './layout.ts';

/** Bytes of a huge page (x86-64, a page directory entry). */
const HUGE_PAGE_BYTES = 2 * 1024 * 1024;

type Filled<T, K extends keyof T> = T & { readonly [P in K]-?: NonNullable<T[P]> };
type DeviceKeys = 'id' | 'num_queues' | 'queue_size' | 'iommu';

export type CheckedDisk = Filled<DiskConfig, DeviceKeys | 'vhost_user' | 'readonly' | 'direct'>;
export type CheckedNet = Filled<NetConfig, DeviceKeys | 'vhost_user'>;
export type CheckedFs = Filled<FsConfig, DeviceKeys>;
export type CheckedVsock = Filled<VsockConfig, 'id' | 'queue_size' | 'iommu'>;

/** A configuration that `checkConfig` has passed: whatever has a default is there. */
export interface CheckedConfig extends VmConfig {
  readonly cpus: Filled<CpusConfig, 'hide'>;
  readonly memory: Filled<MemoryConfig, 'shared' | 'hugepages' | 'hotplug_size' | 'hotplugged_size'>;
  readonly disks: readonly CheckedDisk[];
  readonly net: readonly CheckedNet[];
  readonly fs: readonly CheckedFs[];
  readonly vsock?: CheckedVsock;
  readonly serial: ConsoleConfig;
  readonly console: ConsoleConfig;
}

function checkPayload(payload: PayloadConfig): PayloadConfig {
  checkText('payload.kernel', payload.kernel);
  checkText('payload.initramfs', payload.initramfs);
  if (payload.cmdline?.includes('\0') === true) fail('payload.cmdline contains a zero byte');
  checkBytes('payload.cmdline', payload.cmdline, CMDLINE_MAX_BYTES - 1);
  return payload;
}

function checkCpus(
  cpus: CpusConfig = { boot_vcpus: DEFAULTS.vcpus, max_vcpus: DEFAULTS.vcpus },
): CheckedConfig['cpus'] {
  const { boot_vcpus, max_vcpus } = cpus;
  checkRange('cpus.boot_vcpus', boot_vcpus, LIMITS.vcpus);
  checkRange('cpus.max_vcpus', max_vcpus, LIMITS.vcpus);
  if (max_vcpus !== boot_vcpus) {
    fail(`cpus.max_vcpus: ${max_vcpus} is not boot_vcpus (${boot_vcpus}), and vCPUs are not hotplugged`);
  }
  return { ...cpus, hide: cpus.hide ?? [] };
}

function checkMemory(memory: MemoryConfig = { size: DEFAULTS.memoryBytes }): CheckedConfig['memory'] {
  const { size, shared = true, hugepages = false } = memory;
  checkRange('memory.size', size, LIMITS.memoryBytes);
  const page = hugepages ? HUGE_PAGE_BYTES : PAGE_BYTES;
  if (size % page !== 0) fail(`memory.size: ${size} is not a multiple of ${page} bytes`);
  if (!shared) fail('memory.shared is false, and back ends serve only memory that is shared with them');
  checkText('memory.file', memory.file);
  const { hotplug_size = 0, hotplugged_size = 0 } = memory;
  checkHotplugSize('memory.hotplug_size', hotplug_size, LIMITS.hotplugBytes);
  const { maximum } = LIMITS.memoryBytes;
  if (size + hotplug_size > maximum) {
    fail(`memory.hotplug_size: ${hotplug_size} and a size of ${size} are above the maximum of ${maximum}`);
  }
  checkHotplugSize('memory.hotplugged_size', hotplugged_size, { minimum: 0, maximum: hotplug_size });
  return { ...memory, shared, hugepages, hotplug_size, hotplugged_size };
}

function checkHotplugSize(path: string, value: number, range: Range): void {
  checkRange(path, value, range);
  if (value % HOTPLUG_BLOCK_BYTES !== 0) fail(`${path}: ${value} is not a multiple of ${HOTPLUG_BLOCK_BYTES} bytes`);
}

function checkSerial(name: string, config: ConsoleConfig): ConsoleConfig {
  const { mode, file } = config;
  if (mode === 'File' && file === undefined) fail(`${name}.file is missing, where mode File writes to`);
  if (mode !== 'File' && file !== undefined) fail(`${name}.file is given, and mode ${mode} writes to no file`);
  checkText(`${name}.file`, file);
  return config;
}

/** Whether any device of the configuration is to be behind the virtio-iommu. */
export function wantsIommu({ disks = [], net = [], fs = [], vsock }: VmConfig): boolean {
  return [...disks, ...net, ...fs, vsock].some((device) => device?.iommu === true);
}

/** Slots that the VMM's own devices take: virtio-iommu, virtio-mem. */
function countOwnDevices(config: VmConfig): number {
  return Number(wantsIommu(config)) + Number((config.memory?.hotplug_size ?? 0) > 0);
}

/** Two devices cannot be one thing: a back end serves one front end, a disk image is locked by who writes. */
function checkDuplicates(uses: readonly (readonly [path: string, thing: string | undefined])[]): void {
  const seen = new Map<string, string>();
  for (const [path, thing] of uses) {
    if (thing === undefined) continue;
    const other = seen.get(thing);
    if (other !== undefined) fail(`${path}: ${thing} is ${other} already`);
    seen.set(thing, path);
  }
}

/**
 * The same configuration with every default filled in; checking it again changes nothing.
 * @throws VmConfigError - which field, its value and the limit
 */
export function checkConfig(config: VmConfig): CheckedConfig {
  const { vsock, ...others } = config;
  const { disks = [], net = [], fs = [], serial = { mode: 'Null' }, console = { mode: 'Off' } } = others;
  const count = disks.length + net.length + fs.length + (vsock === undefined ? 0 : 1);
  const own = countOwnDevices(config);
  const slots = MAX_VIRTIO_DEVICES - own;
  if (count > slots) {
    const why = own === 0 ? '' : `; virtio-iommu and virtio-mem take ${own} of ${MAX_VIRTIO_DEVICES}`;
    fail(`disks, net, fs and vsock are ${count} devices, at most ${slots} are possible${why}`);
  }
  const ids = new Ids([
    ...disks.map(({ id }, i) => [`disks[${i}]`, id] as const),
    ...net.map(({ id }, i) => [`net[${i}]`, id] as const),
    ...fs.map(({ id }, i) => [`fs[${i}]`, id] as const),
    ['vsock', vsock?.id],
  ]);
  const checked: CheckedConfig = {
    ...others,
    payload: checkPayload(config.payload),
    cpus: checkCpus(config.cpus),
    memory: checkMemory(config.memory),
    disks: disks.map((disk, i) => checkDisk(disk, `disks[${i}]`, ids)),
    net: net.map((each, i) => checkNet(each, `net[${i}]`, ids)),
    fs: fs.map((each, i) => checkFs(each, `fs[${i}]`, ids)),
    ...(vsock === undefined ? {} : { vsock: checkVsock(vsock, ids) }),
    serial: checkSerial('serial', serial),
    console: checkSerial('console', console),
  };
  if (console.mode !== 'Off' && console.mode !== 'Null') {
    fail(`console.mode: "${console.mode}" needs a virtio console, which is not there; use serial`);
  }
  checkDuplicates([
    ...disks.map(({ vhost_socket }, i) => [`disks[${i}].vhost_socket`, vhost_socket] as const),
    ...net.map(({ vhost_socket }, i) => [`net[${i}].vhost_socket`, vhost_socket] as const),
    ...fs.map(({ socket }, i) => [`fs[${i}].socket`, socket] as const),
    ['vsock.socket', vsock?.socket],
  ]);
  checkDuplicates(net.map(({ tap }, i) => [`net[${i}].tap`, tap] as const));
  // Readers of one image do not mind each other; a writer minds them.
  const written = new Set(disks.filter(({ readonly }) => readonly !== true).map(({ path }) => path));
  checkDuplicates(disks.map(({ path }, i) => [`disks[${i}].path`, written.has(path) ? path : undefined] as const));
  return checked;
}
