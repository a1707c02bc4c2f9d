/**
 * The programs of other projects that interop tests talk to: where each is, which version, and what to do without it.
 * scripts/setup --peers brings them. A test without its peer is skipped and says why; with CI=true it fails, so that
 * a run that looks green has met them all.
 */

import { execFileSync } from 'node:child_process';
import { accessSync, constants, existsSync, readdirSync, readFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, it } from 'vitest';

/** The checkout. */
export const projectDirectory = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '');

/** Where scripts/setup unpacks, and where built guests are kept. */
export const cacheDirectory = join(projectDirectory, '.cache');

const unpacked = join(cacheDirectory, 'peers');

const findProgram = (name: string): string | undefined => {
  // Debian keeps some of them where only root's PATH leads.
  const directories = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin', '/usr/bin', '/bin'];
  for (const directory of directories) {
    const path = join(directory, name);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      // The next one, then.
    }
  }
  return undefined;
};

const findFile = (path: string): string | undefined => (existsSync(path) ? path : undefined);

/** A guest has no loader: only a busybox without an interpreter runs there. */
const findStaticBusybox = (): string | undefined => {
  const path = findProgram('busybox');
  if (path === undefined) return undefined;
  return readFileSync(path).subarray(0, 4096).includes('/ld-linux') ? undefined : path;
};

const findModules = (root: string): string | undefined => {
  if (!existsSync(root)) return undefined;
  const release = readdirSync(root)[0];
  return release === undefined ? undefined : join(root, release);
};

/** CAP_NET_ADMIN makes TAP interfaces, CAP_SYS_ADMIN the network namespaces they are kept in (linux/capability.h). */
const findTap = (): string | undefined => {
  const effective = /^CapEff:\s+(\w+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1];
  const needed = (1n << 12n) | (1n << 21n);
  return (BigInt(`0x${effective}`) & needed) === needed ? findFile('/dev/net/tun') : undefined;
};

/** KVM for whoever runs the tests: the file is there on many machines that do not let everyone use it. */
const findKvm = (): string | undefined => {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
    return '/dev/kvm';
  } catch {
    return undefined;
  }
};

interface Peer {
  readonly path: () => string | undefined;
  /** What to say when it is not there, where that is not for scripts/setup to change. */
  readonly lack?: string;
  /** What to run on the path to learn the version; without it the path tells. */
  readonly versionArguments?: readonly string[];
}

const PEERS = {
  'user-mode-linux': { path: () => findProgram('linux.uml'), versionArguments: ['--version'] },
  'user-mode-linux modules': { path: () => findModules('/usr/lib/uml/modules') },
  'qemu-system-x86_64': { path: () => findProgram('qemu-system-x86_64'), versionArguments: ['--version'] },
  'newer qemu-system-x86_64': {
    path: () => findFile(join(unpacked, 'qemu/usr/bin/qemu-system-x86_64')),
    versionArguments: ['--version'],
  },
  'qemu-storage-daemon': { path: () => findProgram('qemu-storage-daemon'), versionArguments: ['--version'] },
  'cloud kernel': { path: () => findFile(join(unpacked, 'linux/vmlinuz')) },
  'cloud kernel modules': {
    path: () =>
      findModules(join(unpacked, 'linux/lib/modules')) ?? findModules(join(unpacked, 'linux/usr/lib/modules')),
  },
  'newer cloud kernel': { path: () => findFile(join(unpacked, 'linux-13/vmlinuz')) },
  'newer cloud kernel modules': {
    path: () =>
      findModules(join(unpacked, 'linux-13/usr/lib/modules')) ?? findModules(join(unpacked, 'linux-13/lib/modules')),
  },
  'static busybox': { path: findStaticBusybox },
  // One of them unpacks the kernel, whichever it was packed with.
  gzip: { path: () => findProgram('gzip'), versionArguments: ['--version'] },
  lz4: { path: () => findProgram('lz4'), versionArguments: ['--version'] },
  xz: { path: () => findProgram('xz'), versionArguments: ['--version'] },
  zstd: { path: () => findProgram('zstd'), versionArguments: ['--version'] },
  fio: { path: () => findProgram('fio'), versionArguments: ['--version'] },
  'mkfs.ext4': { path: () => findProgram('mkfs.ext4'), versionArguments: ['-V'] },
  debugfs: { path: () => findProgram('debugfs'), versionArguments: ['-V'] },
  e2fsck: { path: () => findProgram('e2fsck'), versionArguments: ['-V'] },
  blkdiscard: { path: () => findProgram('blkdiscard'), versionArguments: ['--version'] },
  fallocate: { path: () => findProgram('fallocate'), versionArguments: ['--version'] },
  gcc: { path: () => findProgram('gcc'), versionArguments: ['--version'] },
  libblkio: { path: () => findFile(join(unpacked, 'libblkio/usr')) },
  'TAP interfaces': { path: findTap, lack: 'TAP interfaces need /dev/net/tun and root' },
  KVM: { path: findKvm, lack: 'virtual machines need a /dev/kvm that may be read and written' },
  ip: { path: () => findProgram('ip'), versionArguments: ['-V'] },
  iperf3: { path: () => findProgram('iperf3'), versionArguments: ['--version'] },
  bash: { path: () => findProgram('bash'), versionArguments: ['--version'] },
  ping: { path: () => findProgram('ping'), versionArguments: ['-V'] },
  ethtool: { path: () => findProgram('ethtool'), versionArguments: ['--version'] },
  socat: { path: () => findProgram('socat'), versionArguments: ['-V'] },
  tcpdump: { path: () => findProgram('tcpdump'), versionArguments: ['--version'] },
  virsh: { path: () => findProgram('virsh'), versionArguments: ['--version'] },
  'QEMU driver of libvirt': {
    path: () => findFile('/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so'),
  },
  virtiofsd: { path: () => findFile(join(unpacked, 'virtiofsd/usr/libexec/virtiofsd')) },
  chromium: { path: () => findProgram('chromium'), versionArguments: ['--version'] },
  'dpdk-testpmd': { path: () => findProgram('dpdk-testpmd') },
} satisfies Record<string, Peer>;

export type PeerName = keyof typeof PEERS;

/** Path of a peer. @throws Error - when it is not there; gate the test by describeWithPeers first. */
export const peerPath = (name: PeerName): string => {
  const path = PEERS[name].path();
  if (path === undefined) throw new Error(lackOf(name));
  return path;
};

/** First line of what the peer says about its version, for reports. */
export const peerVersion = (name: PeerName): string => {
  const path = peerPath(name);
  const peer: Peer = PEERS[name];
  if (peer.versionArguments === undefined) return path;
  // e2fsprogs print theirs to stderr.
  const text = execFileSync('sh', ['-c', '"$@" 2>&1', 'sh', path, ...peer.versionArguments], { encoding: 'utf8' });
  return text.split('\n', 1)[0] ?? '';
};

const lackOf = (name: PeerName): string => {
  const peer: Peer = PEERS[name];
  return peer.lack ?? `${name} is not on this machine (scripts/setup --peers brings it)`;
};

/**
 * A describe() that needs peers. Without one of them its tests are skipped and the reason goes to stderr; with CI=true
 * a test that fails with the reason stands in their place.
 */
export const describeWithPeers = (peers: readonly PeerName[], title: string, body: () => void): void => {
  const absent = peers.find((name) => PEERS[name].path() === undefined);
  if (absent === undefined) {
    describe(title, body);
  } else if (process.env.CI === 'true') {
    describe(title, () => {
      it(`finds ${absent}`, () => {
        throw new Error(lackOf(absent));
      });
    });
  } else {
    process.stderr.write(`skipped: ${title}: ${lackOf(absent)}\n`);
    describe.skip(title, body);
  }
};
