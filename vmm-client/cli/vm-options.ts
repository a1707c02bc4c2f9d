/** From the options of `ringside vm run` to the configuration of a machine. Pure; ranges are checked with the whole of it. */

import type {
  ConsoleConfig,
  CpusConfig,
  DiskConfig,
  FsConfig,
  MemoryConfig,
  NetConfig,
  VmConfig,
  VsockConfig,
} from '../vmm/config.ts';
import { bytes, count, oneOf, parseFields, text, toggle } from './fields.ts';
import { UsageError } from './quantity.ts';

/** The options as commander has parsed them. */
export interface MachineOptions {
  readonly kernel: string;
  readonly initramfs?: string;
  readonly cmdline?: string;
  readonly cpus?: CpusConfig;
  readonly memory?: MemoryConfig;
  readonly disk?: readonly DiskConfig[];
  readonly net?: readonly NetConfig[];
  readonly fs?: readonly FsConfig[];
  readonly vsock?: VsockConfig;
  readonly serial: ConsoleConfig;
  readonly console: ConsoleConfig;
}

const DEVICE = { num_queues: count, queue_size: count, iommu: toggle, packed: toggle, id: text };

/** @throws UsageError - `name` is needed and missing */
function need<T>(value: T | undefined, name: string): T {
  if (value === undefined) throw new UsageError(`the field '${name}' is missing`);
  return value;
}

/** `4`, `boot=4`, `boot=4,max=4,hide=cx16+xsave`. @throws UsageError */
export function parseCpus(value: string): CpusConfig {
  const { boot, max, hide } = parseFields(value, { boot: count, max: count, hide: text }, 'boot');
  const vcpus = need(boot, 'boot');
  return {
    boot_vcpus: vcpus,
    max_vcpus: max ?? vcpus,
    ...(hide === undefined ? {} : { hide: hide.split('+') }),
  };
}

/** `4G`, `size=4G,hotplug_size=12G`. @throws UsageError */
export function parseMemory(value: string): MemoryConfig {
  const { hotplug_method, ...fields } = parseFields(
    value,
    {
      size: bytes,
      hotplug_size: bytes,
      hotplugged_size: bytes,
      hotplug_method: oneOf('virtio-mem'),
      shared: toggle,
      hugepages: toggle,
      file: text,
    },
    'size',
  );
  return { ...fields, size: need(fields.size, 'size') };
}

/** `path=disk.img,readonly=on`, `socket=blk.sock`. @throws UsageError */
export function parseDisk(value: string): DiskConfig {
  const { socket, ...fields } = parseFields(value, {
    path: text,
    socket: text,
    vhost_user: toggle,
    readonly: toggle,
    direct: toggle,
    serial: text,
    ...DEVICE,
  });
  return socket === undefined ? fields : { ...fields, vhost_socket: socket };
}

/** `tap=vm1,mac=52:54:00:12:34:56`, `socket=net.sock`. @throws UsageError */
export function parseNet(value: string): NetConfig {
  const { socket, vhost_mode, ...fields } = parseFields(value, {
    tap: text,
    socket: text,
    vhost_user: toggle,
    // We dial; the back end listens.
    vhost_mode: oneOf('client'),
    mac: text,
    mtu: count,
    ...DEVICE,
  });
  return socket === undefined ? fields : { ...fields, vhost_socket: socket };
}

/** `cid=3,socket=vsock.sock`. @throws UsageError */
export function parseVsock(value: string): VsockConfig {
  const fields = parseFields(value, { cid: count, socket: text, ...DEVICE });
  return { ...fields, cid: need(fields.cid, 'cid'), socket: need(fields.socket, 'socket') };
}

/** `tag=home,socket=fs.sock`. @throws UsageError */
export function parseFs(value: string): FsConfig {
  const fields = parseFields(value, { tag: text, socket: text, ...DEVICE });
  return { ...fields, tag: need(fields.tag, 'tag'), socket: need(fields.socket, 'socket') };
}

/** `tty`, `off`, `null`, `file=guest.log`. @throws UsageError */
export function parseSerial(value: string): ConsoleConfig {
  if (value === 'tty') return { mode: 'Tty' };
  if (value === 'off') return { mode: 'Off' };
  if (value === 'null') return { mode: 'Null' };
  if (value.startsWith('file=') && value.length > 'file='.length) {
    return { mode: 'File', file: value.slice('file='.length) };
  }
  throw new UsageError(`'${value}' is none of tty, off, null and file=<path>`);
}

/** There is no virtio console. @throws UsageError */
export function parseConsole(value: string): ConsoleConfig {
  return { mode: oneOf('off', 'null')(value) === 'off' ? 'Off' : 'Null' };
}

/** A path, or `path=<path>`. @throws UsageError */
export function parseApiSocket(value: string): string {
  return need(parseFields(value, { path: text }, 'path').path, 'path');
}

/** The configuration, not checked yet. */
export function toVmConfig(options: MachineOptions): VmConfig {
  const { kernel, initramfs, cmdline, cpus, memory, disk, net, fs, vsock, serial, console } = options;
  return {
    payload: {
      kernel,
      ...(initramfs === undefined ? {} : { initramfs }),
      ...(cmdline === undefined ? {} : { cmdline }),
    },
    ...(cpus === undefined ? {} : { cpus }),
    ...(memory === undefined ? {} : { memory }),
    ...(disk === undefined ? {} : { disks: disk }),
    ...(net === undefined ? {} : { net }),
    ...(fs === undefined ? {} : { fs }),
    ...(vsock === undefined ? {} : { vsock }),
    serial,
    console,
  };
}

/** The fields of a configuration that are called otherwise on the command line. */
const SPELLINGS: readonly (readonly [RegExp, string])[] = [
  [/^payload\.(\w+)/, '--$1'],
  [/^disks\[(\d+)\](?:\.|(?=:))/, '--disk [$1]: '],
  [/^(net|fs)\[(\d+)\](?:\.|(?=:))/, '--$1 [$2]: '],
  [/^(cpus|memory|vsock|serial|console)\./, '--$1: '],
  [/: : /, ': '],
  [/\bvhost_socket\b/g, 'socket'],
  [/\b(boot|max)_vcpus\b/g, '$1'],
];

/** What is wrong about the whole configuration, in the words of the options: `--disk [0]: queue_size: 100 is not ...`. */
export function inOptionWords(sentence: string): string {
  return SPELLINGS.reduce((text, [pattern, words]) => text.replace(pattern, words), sentence);
}
