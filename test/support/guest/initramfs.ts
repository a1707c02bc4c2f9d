/**
 * The file system a test guest boots from: a static busybox, kernel modules, the init script beside this file and,
 * where asked, programs of the host with the libraries they need. Built on first use and kept in .cache/guests under
 * a hash of what went into it.
 */

import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { cacheDirectory, type PeerName, peerPath } from '../peers.ts';
import { CpioArchive } from './cpio.ts';

const INIT = fileURLToPath(new URL('init.sh', import.meta.url));

/** Before the others: a device behind an IOMMU waits for it. */
const IOMMU_MODULES = ['virtio-iommu'];

/** In the order in which they need each other. One that the kernel has built in has no file and is left out. */
const MODULES = [
  'virtio_ring',
  'virtio',
  'virtio_pci_legacy_dev',
  'virtio_pci_modern_dev',
  'virtio_pci',
  'virtio_mmio',
  'virtio_blk',
];

/** The same for a guest with a network interface. */
const NETWORK_MODULES = [
  ...['failover', 'net_failover', 'virtio_net', 'crc-ccitt', 'ipv6'],
  ...['llc', 'stp', 'garp', 'mrp', '8021q'],
];

/** The same for a guest that mounts a file system of the host. */
const SHARED_FILE_SYSTEM_MODULES = ['fuse', 'virtiofs'];

/** The same for a guest with a socket device. */
const SOCKET_MODULES = ['vsock', 'vmw_vsock_virtio_transport_common', 'vmw_vsock_virtio_transport'];

/** The same for a guest whose memory grows. */
const MEMORY_MODULES = ['virtio_mem'];

/** The same for a guest that hears of its power button. */
const POWER_BUTTON_MODULES = ['evdev', 'button'];

export interface InitramfsContents {
  /** Directory of the modules of one kernel release. */
  readonly modules: string;
  /** Adds the driver of virtio-iommu. */
  readonly iommu?: boolean;
  /** Adds what virtiofs needs. */
  readonly sharedFileSystem?: boolean;
  /** Adds what a network interface needs. */
  readonly network?: boolean;
  /** Adds what a socket device needs. */
  readonly sockets?: boolean;
  /** Adds the driver of virtio-mem. */
  readonly memory?: boolean;
  /** Adds what makes an input device of the power button. */
  readonly powerButton?: boolean;
  /** Programs of the host that the guest's scripts call. */
  readonly programs?: readonly PeerName[];
  /** Paths of more programs, static ones. */
  readonly staticPrograms?: readonly string[];
}

/** Builds the archive, or finds it built. Returns its path. */
export const buildInitramfs = (contents: InitramfsContents): string => {
  const names = [
    ...(contents.iommu === true ? IOMMU_MODULES : []),
    ...MODULES,
    ...(contents.network === true ? NETWORK_MODULES : []),
    ...(contents.sharedFileSystem === true ? SHARED_FILE_SYSTEM_MODULES : []),
    ...(contents.sockets === true ? SOCKET_MODULES : []),
    ...(contents.memory === true ? MEMORY_MODULES : []),
    ...(contents.powerButton === true ? POWER_BUTTON_MODULES : []),
  ];
  const modules = findModules(contents.modules, names);
  const programs = [...(contents.programs ?? []).map((name) => peerPath(name)), ...(contents.staticPrograms ?? [])];
  const libraries = [...new Set(programs.flatMap(librariesOf))];
  const sources = [peerPath('static busybox'), INIT, ...modules, ...programs, ...libraries];

  const hash = createHash('sha256');
  for (const source of sources) {
    const { size, mtimeMs } = statSync(source);
    hash.update(`${source} ${size} ${mtimeMs}\n`);
  }
  const directory = join(cacheDirectory, 'guests');
  const path = join(directory, `${hash.digest('hex').slice(0, 20)}.cpio`);
  if (existsSync(path)) return path;

  const archive = new CpioArchive()
    .directory('proc')
    .directory('sys')
    .directory('tmp')
    .directory('mnt')
    .characterDevice('dev/console', 5, 1)
    .copy('bin/busybox', peerPath('static busybox'))
    .copy('init', INIT)
    .file('modules/order', modules.map((module) => `${basename(module)}\n`).join(''), 0o644);
  for (const module of modules) archive.copy(`modules/${basename(module)}`, module);
  for (const program of programs) archive.copy(`usr/bin/${basename(program)}`, program);
  for (const library of libraries) archive.copy(library.slice(1), library);

  mkdirSync(directory, { recursive: true });
  // Whole or not at all: two test processes may build the same one.
  writeFileSync(`${path}.${process.pid}`, archive.toBuffer());
  renameSync(`${path}.${process.pid}`, path);
  return path;
};

export const findModules = (root: string, names: readonly string[]): string[] => {
  const files = new Map<string, string>();
  for (const entry of readdirSync(join(root, 'kernel'), { recursive: true, encoding: 'utf8' })) {
    if (entry.endsWith('.ko')) files.set(basename(entry, '.ko'), join(root, 'kernel', entry));
  }
  return names.flatMap((name) => files.get(name) ?? []);
};

/** Shared libraries and the loader of a program, by the paths under which it looks for them. */
export const librariesOf = (program: string): string[] => {
  if (!readFileSync(program).subarray(0, 4096).includes('/ld-linux')) return [];
  const listing = execFileSync('ldd', [program], { encoding: 'utf8' });
  return [...listing.matchAll(/(?:=> |^\s+)(\/\S+) \(0x/gm)].map((match) => match[1] ?? '');
};
