/**
 * What must be true of a configuration, whoever made it: the command line or a JSON request. Fills in the defaults and
 * the device ids of Cloud Hypervisor. Limits are here and nowhere else; the JSON schemas of the API take them from here.
 */

import { VIRTIO_BLK_ID_BYTES } from '../../protocol/virtio/blk.ts';
import { VIRTIO_FS_TAG_BYTES } from '../../protocol/virtio/fs.ts';
import { VIRTIO_NET_MAX_MTU, VIRTIO_NET_MIN_MTU } from '../../protocol/virtio/net.ts';
import { VIRTQ_MAX_SIZE } from '../../protocol/virtio/split-ring.ts';
import { VIRTIO_VSOCK_MAX_CID, VIRTIO_VSOCK_MIN_CID } from '../../protocol/virtio/vsock.ts';
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
import { VmConfigError } from './errors.ts';
import { CMDLINE_MAX_BYTES, HIGH_RAM_ADDRESS, MAX_VCPUS, MAX_VIRTIO_DEVICES, PAGE_BYTES } from './layout.ts';

/** Bytes of a huge page (x86-64, a page directory entry). */
const HUGE_PAGE_BYTES = 2 * 1024 * 1024;

interface Range {
  readonly minimum: number;
  readonly maximum: number;
}

/** Ranges of numbers; both ends are possible. */
export const LIMITS = {
  vcpus: { minimum: 1, maximum: MAX_VCPUS },
  /** Something above 1 MiB, where the kernel goes; half of what 46 bits of address reach (Cloud Hypervisor's default). */
  memoryBytes: { minimum: 2 * HIGH_RAM_ADDRESS, maximum: 2 ** 45 },
  /** vhost-user names a queue in one byte (VHOST_USER_SET_VRING_KICK, bits 0-7). */
  queues: { minimum: 1, maximum: 256 },
  /** The high-priority queue of a file system is one more. */
  fsQueues: { minimum: 1, maximum: 255 },
  /** Receive and transmit rings of network devices: whole pairs, and room for the control queue. */
  netQueues: { minimum: 2, maximum: 254 },
  /** Entries; a power of two (VIRTIO 1.3, 2.7), and the smallest that holds a request of three descriptors. */
  queueSize: { minimum: 4, maximum: VIRTQ_MAX_SIZE },
  mtu: { minimum: VIRTIO_NET_MIN_MTU, maximum: VIRTIO_NET_MAX_MTU },
  cid: { minimum: VIRTIO_VSOCK_MIN_CID, maximum: VIRTIO_VSOCK_MAX_CID },
} as const satisfies Readonly<Record<string, Range>>;

/** Keys of the counters that are not a device's. */
const OWN_COUNTERS = /^(?:vm|vcpu\d+)$/;
/** How a device may be called: ids are keys of the counters and go into names of sockets. */
export const ID_PATTERN = '^[A-Za-z0-9_.:-]{1,64}$';

/** Defaults of Cloud Hypervisor, but for `shared`, `console` and the queue of vsock, whose size it fixes at 256. */
export const DEFAULTS = {
  vcpus: 1,
  memoryBytes: 512 * 1024 * 1024,
  disk: { num_queues: 1, queue_size: 128 },
  net: { num_queues: 2, queue_size: 256 },
  fs: { num_queues: 1, queue_size: 1024 },
  vsock: { queue_size: 256 },
} as const;

type Filled<T, K extends keyof T> = T & { readonly [P in K]-?: NonNullable<T[P]> };
type DeviceKeys = 'id' | 'num_queues' | 'queue_size';

export type CheckedDisk = Filled<DiskConfig, DeviceKeys | 'vhost_user' | 'readonly' | 'direct'>;
export type CheckedNet = Filled<NetConfig, DeviceKeys | 'vhost_user'>;
export type CheckedFs = Filled<FsConfig, DeviceKeys>;
export type CheckedVsock = Filled<VsockConfig, 'id' | 'queue_size'>;

/** A configuration that `checkConfig` has passed: whatever has a default is there. */
export interface CheckedConfig extends VmConfig {
  readonly cpus: Filled<CpusConfig, 'hide'>;
  readonly memory: Filled<MemoryConfig, 'shared' | 'hugepages'>;
  readonly disks: readonly CheckedDisk[];
  readonly net: readonly CheckedNet[];
  readonly fs: readonly CheckedFs[];
  readonly vsock?: CheckedVsock;
  readonly serial: ConsoleConfig;
  readonly console: ConsoleConfig;
}

/** What is wrong about a number outside of its range. */
export function describeRange(path: string, value: number, { minimum, maximum }: Range): string | undefined {
  if (!Number.isInteger(value)) return `${path}: ${value} is not a whole number`;
  if (value < minimum) return `${path}: ${value} is below the minimum of ${minimum}`;
  return value > maximum ? `${path}: ${value} is above the maximum of ${maximum}` : undefined;
}

function fail(sentence: string): never {
  throw new VmConfigError(sentence);
}

function checkRange(path: string, value: number, range: Range): void {
  const sentence = describeRange(path, value, range);
  if (sentence !== undefined) fail(sentence);
}

/** @throws VmConfigError - the kernel would end the string elsewhere than we do, or there is none */
function checkText(path: string, value: string | undefined): void {
  if (value === undefined) return;
  if (value === '') fail(`${path} is empty`);
  if (value.includes('\0')) fail(`${path} contains a zero byte`);
}

function checkBytes(path: string, value: string | undefined, maximum: number): void {
  const length = Buffer.byteLength(value ?? '');
  if (length > maximum) fail(`${path} is ${length} bytes long, at most ${maximum} are possible`);
}

function checkQueueSize(path: string, value: number): void {
  checkRange(`${path}.queue_size`, value, LIMITS.queueSize);
  if ((value & (value - 1)) !== 0) fail(`${path}.queue_size: ${value} is not a power of two`);
}

/** Makes the ids that are missing: prefix and a number that counts over all devices, past the ids that are taken. */
class Ids {
  readonly #taken: ReadonlySet<string>;
  #next = 0;

  constructor(devices: readonly (readonly [path: string, id: string | undefined])[]) {
    const taken = new Map<string, string>();
    for (const [path, id] of devices) {
      if (id === undefined) continue;
      if (!new RegExp(ID_PATTERN).test(id)) {
        fail(`${path}.id: ${JSON.stringify(id)} is not 1 to 64 letters, digits or any of _ . : -`);
      }
      if (id.startsWith('__')) fail(`${path}.id: "${id}" begins with two underscores, which is reserved`);
      if (OWN_COUNTERS.test(id)) fail(`${path}.id: "${id}" is the name of counters of the VMM`);
      const other = taken.get(id);
      if (other !== undefined) fail(`${path}.id: "${id}" is the id of ${other} already`);
      taken.set(id, path);
    }
    this.#taken = new Set(taken.keys());
  }

  fill(id: string | undefined, prefix: string): string {
    if (id !== undefined) return id;
    let made: string;
    do {
      made = `${prefix}${this.#next}`;
      this.#next += 1;
    } while (this.#taken.has(made));
    return made;
  }
}

interface Source {
  readonly vhost_user?: boolean;
  readonly vhost_socket?: string;
}

/** Whether a device has its back end at `vhost_socket`, and not from us at `own`. @throws VmConfigError - both, none */
function checkSource<K extends string>(
  path: string,
  device: Source & { readonly [P in K]?: string | undefined },
  own: K,
): boolean {
  const { vhost_user, vhost_socket } = device;
  const isVhostUser = vhost_socket !== undefined;
  if (vhost_user === true && !isVhostUser) fail(`${path}: vhost_user is true and vhost_socket is missing`);
  if (isVhostUser === (device[own] !== undefined)) {
    fail(`${path}: exactly one of ${own} and vhost_socket is needed, ${isVhostUser ? 'both are' : 'neither is'} given`);
  }
  if (vhost_user === false && isVhostUser) fail(`${path}: vhost_socket is given and vhost_user is false`);
  checkText(`${path}.${own}`, device[own]);
  checkText(`${path}.vhost_socket`, vhost_socket);
  return isVhostUser;
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
  return { ...memory, shared, hugepages };
}

function checkDisk(disk: DiskConfig, path: string, ids: Ids): CheckedConfig['disks'][number] {
  const { num_queues, queue_size, readonly = false, direct = false, serial } = { ...DEFAULTS.disk, ...disk };
  const vhost_user = checkSource(path, disk, 'path');
  checkRange(`${path}.num_queues`, num_queues, LIMITS.queues);
  checkQueueSize(path, queue_size);
  checkText(`${path}.serial`, serial);
  checkBytes(`${path}.serial`, serial, VIRTIO_BLK_ID_BYTES);
  if (vhost_user) {
    const misplaced = [readonly && 'readonly', direct && 'direct', serial !== undefined && 'serial'].find(Boolean);
    if (misplaced) fail(`${path}.${misplaced} is for the back end behind vhost_socket to decide, not for the VMM`);
  }
  return { ...disk, id: ids.fill(disk.id, '_disk'), vhost_user, readonly, direct, num_queues, queue_size };
}

function checkMac(path: string, mac: string): void {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(mac)) {
    fail(`${path}: ${JSON.stringify(mac)} is not a MAC address such as 52:54:00:12:34:56`);
  }
  if ((Number.parseInt(mac.slice(0, 2), 16) & 1) !== 0) {
    fail(`${path}: ${mac} is the MAC address of a group, not of one station`);
  }
  if (/^[0:]*$/.test(mac)) fail(`${path}: ${mac} is the address of no station`);
}

function checkNet(net: NetConfig, path: string, ids: Ids): CheckedConfig['net'][number] {
  const { num_queues, queue_size } = { ...DEFAULTS.net, ...net };
  const vhost_user = checkSource(path, net, 'tap');
  checkRange(`${path}.num_queues`, num_queues, LIMITS.netQueues);
  if (num_queues % 2 !== 0) fail(`${path}.num_queues: ${num_queues} rings are not pairs of receive and transmit`);
  checkQueueSize(path, queue_size);
  if (net.mtu !== undefined) checkRange(`${path}.mtu`, net.mtu, LIMITS.mtu);
  if (net.mac !== undefined) checkMac(`${path}.mac`, net.mac);
  return {
    ...net,
    ...(net.mac === undefined ? {} : { mac: net.mac.toLowerCase() }),
    id: ids.fill(net.id, '_net'),
    vhost_user,
    num_queues,
    queue_size,
  };
}

function checkFs(fs: FsConfig, path: string, ids: Ids): CheckedConfig['fs'][number] {
  const { num_queues, queue_size } = { ...DEFAULTS.fs, ...fs };
  checkText(`${path}.tag`, fs.tag);
  checkBytes(`${path}.tag`, fs.tag, VIRTIO_FS_TAG_BYTES);
  checkText(`${path}.socket`, fs.socket);
  checkRange(`${path}.num_queues`, num_queues, LIMITS.fsQueues);
  checkQueueSize(path, queue_size);
  return { ...fs, id: ids.fill(fs.id, '_fs'), num_queues, queue_size };
}

function checkVsock(vsock: VsockConfig, ids: Ids): Filled<VsockConfig, 'id' | 'queue_size'> {
  const { queue_size } = { ...DEFAULTS.vsock, ...vsock };
  checkRange('vsock.cid', vsock.cid, LIMITS.cid);
  checkText('vsock.socket', vsock.socket);
  checkQueueSize('vsock', queue_size);
  return { ...vsock, id: ids.fill(vsock.id, '_vsock'), queue_size };
}

function checkSerial(name: string, config: ConsoleConfig): ConsoleConfig {
  const { mode, file } = config;
  if (mode === 'File' && file === undefined) fail(`${name}.file is missing, where mode File writes to`);
  if (mode !== 'File' && file !== undefined) fail(`${name}.file is given, and mode ${mode} writes to no file`);
  checkText(`${name}.file`, file);
  return config;
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
  if (count > MAX_VIRTIO_DEVICES) {
    fail(`disks, net, fs and vsock are ${count} devices, at most ${MAX_VIRTIO_DEVICES} are possible`);
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
