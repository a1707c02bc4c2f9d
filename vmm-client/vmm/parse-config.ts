/**
 * A configuration that came from a file or from another VMM, in JSON that nobody has looked at: every field has a type that
 * `checkConfig` can judge, or there is no configuration. (Requests of the API are judged by the schemas.)
 */

import { type CheckedConfig, checkConfig } from './check-config.ts';
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

/** What a value has to be. @throws VmConfigError - with `path`, where it is not */
type Check = (value: unknown, path: string) => void;

/** A check for each field; those marked must be there. */
interface Field {
  readonly check: Check;
  readonly needed: boolean;
}
type Fields<T> = { readonly [K in keyof Required<T>]: Field };

function refuse(path: string, what: string): never {
  throw new VmConfigError(`${path} is not ${what}`);
}

const is =
  (type: 'string' | 'number' | 'boolean', what: string): Check =>
  (value, path) => {
    if (typeof value !== type) refuse(path, what);
  };
const text = is('string', 'a string');
const number = is('number', 'a number');
const flag = is('boolean', 'true or false');
const oneOf =
  (...words: readonly string[]): Check =>
  (value, path) => {
    if (!words.includes(value as string)) refuse(path, `one of ${words.join(', ')}`);
  };
const list =
  (check: Check): Check =>
  (value, path) => {
    if (!Array.isArray(value)) refuse(path, 'a list');
    for (const [index, each] of value.entries()) check(each, `${path}[${index}]`);
  };

function object<T>(fields: Fields<T>): Check {
  return (value, path) => {
    if (typeof value !== 'object' || value === null || Array.isArray(value))
      refuse(path || 'the configuration', 'an object');
    const prefix = path === '' ? '' : `${path}.`;
    const named = new Map<string, Field>(Object.entries(fields));
    for (const [name, each] of Object.entries(value)) {
      const field = named.get(name);
      if (field === undefined) throw new VmConfigError(`${prefix}${name.slice(0, 64)}: there is no such field`);
      field.check(each, `${prefix}${name}`);
    }
    for (const [name, { needed }] of named) {
      if (needed && !Object.hasOwn(value, name)) throw new VmConfigError(`${prefix}${name} is missing`);
    }
  };
}

const may = (check: Check): Field => ({ check, needed: false });
const must = (check: Check): Field => ({ check, needed: true });

const DEVICE = {
  id: may(text),
  num_queues: may(number),
  queue_size: may(number),
  iommu: may(flag),
  packed: may(flag),
};
const VHOST_USER = { vhost_user: may(flag), vhost_socket: may(text) };
const console = object<ConsoleConfig>({ mode: must(oneOf('Off', 'Null', 'Tty', 'File')), file: may(text) });

const config = object<VmConfig>({
  payload: must(object<PayloadConfig>({ kernel: must(text), initramfs: may(text), cmdline: may(text) })),
  cpus: may(object<CpusConfig>({ boot_vcpus: must(number), max_vcpus: must(number), hide: may(list(text)) })),
  memory: may(
    object<MemoryConfig>({
      size: must(number),
      shared: may(flag),
      hugepages: may(flag),
      file: may(text),
      hotplug_size: may(number),
      hotplugged_size: may(number),
    }),
  ),
  disks: may(
    list(
      object<DiskConfig>({
        ...DEVICE,
        ...VHOST_USER,
        path: may(text),
        readonly: may(flag),
        direct: may(flag),
        serial: may(text),
      }),
    ),
  ),
  net: may(list(object<NetConfig>({ ...DEVICE, ...VHOST_USER, tap: may(text), mac: may(text), mtu: may(number) }))),
  fs: may(list(object<FsConfig>({ ...DEVICE, tag: must(text), socket: must(text) }))),
  vsock: may(object<VsockConfig>({ ...DEVICE, cid: must(number), socket: must(text) })),
  serial: may(console),
  console: may(console),
});

/** @throws VmConfigError - a field is missing, unknown, of the wrong type, or beyond a limit */
export function parseConfig(value: unknown): CheckedConfig {
  config(value, '');
  return checkConfig(value as VmConfig);
}
