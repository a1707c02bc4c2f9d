/**
 * QEMU's command line for a test guest: what a test may ask for, and the arguments that follow from it. Both ends of a
 * migration are started with the same ones, but for sockets.
 */

import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { type PeerName, peerPath } from '../peers.ts';
import { buildInitramfs } from './initramfs.ts';

/** Which QEMU: that of the machine, or the newer one that scripts/setup unpacks. */
export type QemuVersion = Extract<PeerName, 'qemu-system-x86_64' | 'newer qemu-system-x86_64'>;

export const qemuVersions: readonly QemuVersion[] = ['qemu-system-x86_64', 'newer qemu-system-x86_64'];

/** What a test needs to boot a guest with a version of it. */
export const qemuPeersOf = (version: QemuVersion): readonly PeerName[] => [
  version,
  'cloud kernel',
  'cloud kernel modules',
  'static busybox',
];

/** The same with the installed QEMU. */
export const qemuPeers = qemuPeersOf('qemu-system-x86_64');

/** What a guest with virtio-iommu needs besides: Debian 12's kernel was built without its driver. */
export const newerKernelPeers: readonly PeerName[] = ['newer cloud kernel', 'newer cloud kernel modules'];

/** A virtio-net-pci device whose data path is a vhost-user back end. */
export interface QemuInterface {
  readonly socket: string;
  readonly queuePairs?: number;
  /** More properties of the device, `csum=off` for instance. */
  readonly properties?: string;
}

export interface QemuOptions {
  readonly machine: 'q35' | 'microvm';
  /** The installed one by default. */
  readonly version?: QemuVersion;
  /** Puts an IOMMU before the devices of a q35: their drivers then use I/O virtual addresses. */
  readonly iommu?: 'intel' | 'virtio';
  /** Sockets of vhost-user-blk back ends; the first becomes /dev/vda. */
  readonly sockets?: readonly string[];
  /** Whether QEMU listens at those sockets, and the back ends dial. */
  readonly listens?: boolean;
  /** Network interfaces; the first becomes eth0. */
  readonly interfaces?: readonly QemuInterface[];
  /** Socket of a vhost-user-vsock back end, on q35. */
  readonly vsockSocket?: string;
  /** Modules for a socket device that is plugged in later. */
  readonly vsockModules?: boolean;
  /** Paths of more programs, static ones. */
  readonly staticPrograms?: readonly string[];
  readonly programs?: readonly PeerName[];
  readonly memoryMiB?: number;
  /** More properties of the guest's memory, `hugetlb=on` for instance. */
  readonly memoryProperties?: string;
  readonly cpus?: number;
  /** More properties of each disk, `num-queues=2` for instance. */
  readonly diskProperties?: string;
  /** More properties of each device on PCI that has a back end, `packed=on` for instance. */
  readonly deviceProperties?: string;
  /** More of the kernel's command line. */
  readonly kernelArguments?: string;
  /** More of the command line. */
  readonly extra?: readonly string[];
  readonly bootDeadlineMs?: number;
}

/** Program and arguments. QEMU connects to `qmpPath`, where somebody listens. */
export const qemuCommand = (options: QemuOptions, qmpPath: string): [program: string, args: string[]] => {
  const version = options.version ?? 'qemu-system-x86_64';
  // A kernel with a driver for it.
  const kernel = options.iommu === 'virtio' ? 'newer cloud kernel' : 'cloud kernel';
  const initramfs = buildInitramfs({
    modules: peerPath(`${kernel} modules`),
    iommu: options.iommu === 'virtio',
    network: options.interfaces !== undefined,
    sockets: options.vsockModules ?? options.vsockSocket !== undefined,
    ...(options.programs && { programs: options.programs }),
    ...(options.staticPrograms && { staticPrograms: options.staticPrograms }),
  });
  const memoryMiB = options.memoryMiB ?? 384;
  const memoryProperties = commaBefore(options.memoryProperties);
  const args = [
    ...firmwareArguments(version),
    ...machineArguments(options.machine),
    ...['-accel', 'tcg', '-cpu', 'max', '-smp', String(options.cpus ?? 1)],
    ...['-object', `memory-backend-memfd,id=memory,size=${memoryMiB}M,share=on${memoryProperties}`],
    ...['-m', `${memoryMiB}M,slots=4,maxmem=${memoryMiB + 2048}M`],
    ...['-nodefaults', '-no-user-config', '-nographic', '-serial', 'stdio'],
    ...['-chardev', `socket,id=qmp,path=${qmpPath},server=off`, '-mon', 'chardev=qmp,mode=control'],
    ...['-kernel', peerPath(kernel), '-initrd', initramfs, '-append', kernelArguments(options)],
    // Before the devices that it is for.
    ...iommuArguments(options.iommu),
    ...(options.sockets ?? []).flatMap((socket, index) => diskArguments(options, socket, index)),
    ...(options.interfaces ?? []).flatMap((nic, index) => interfaceArguments(options, nic, index)),
    ...(options.vsockSocket === undefined ? [] : vsockArguments(options, options.vsockSocket)),
    ...(options.extra ?? []),
  ];
  return [peerPath(version), args];
};

const commaBefore = (properties: string | undefined): string => (properties === undefined ? '' : `,${properties}`);

/** The newer one would take the other's firmware. */
const firmwareArguments = (version: QemuVersion): string[] => {
  if (version === 'qemu-system-x86_64') return [];
  const share = join(dirname(peerPath(version)), '../share');
  return ['-L', join(share, 'qemu'), '-L', join(share, 'seabios')];
};

const machineArguments = (machine: QemuOptions['machine']): string[] =>
  machine === 'q35'
    ? ['-machine', 'q35,memory-backend=memory,graphics=off,vmport=off,i8042=off']
    : // Without ACPI the cloud kernel finds no virtio-mmio device: it is built without their command line parameter.
      [
        ...['-machine', 'microvm,memory-backend=memory,acpi=on,auto-kernel-cmdline=off,isa-serial=on,rtc=on'],
        ...['-global', 'virtio-mmio.force-legacy=false'],
      ];

const iommuArguments = (iommu: QemuOptions['iommu']): string[] => {
  if (iommu === undefined) return [];
  return ['-device', iommu === 'intel' ? 'intel-iommu,intremap=off,device-iotlb=on' : 'virtio-iommu-pci'];
};

/** What every device with a back end is given on PCI. A transitional device cannot be behind an IOMMU. */
const deviceProperties = ({ iommu, deviceProperties }: QemuOptions): string =>
  commaBefore(deviceProperties) + (iommu === undefined ? '' : ',iommu_platform=on,ats=on,disable-legacy=on');

/** The older one waits a second before it dials again; the other does not have to. */
const reconnect = ({ version }: QemuOptions): string =>
  version === 'newer qemu-system-x86_64' ? 'reconnect-ms=50' : 'reconnect=1';

const diskArguments = (options: QemuOptions, socket: string, index: number): string[] => {
  const driver = options.machine === 'q35' ? 'vhost-user-blk-pci' : 'vhost-user-blk';
  const properties = commaBefore(options.diskProperties) + deviceProperties(options);
  const how = options.listens === true ? 'server=on,wait=on' : reconnect(options);
  return [
    ...['-chardev', `socket,id=disk${index}-socket,path=${socket},${how}`],
    ...['-device', `${driver},id=disk${index},chardev=disk${index}-socket${properties}`],
  ];
};

/**
 * QEMU 7.2 crashes when it is to use MSI-X for a vhost-user-net under TCG. The newer QEMU has no boot ROM of its own
 * for the device.
 */
const interfaceArguments = (options: QemuOptions, nic: QemuInterface, index: number): string[] => {
  const id = `net${index}`;
  const properties = commaBefore(nic.properties) + deviceProperties(options);
  const queues = nic.queuePairs ?? 1;
  return [
    ...['-chardev', `socket,id=${id}-socket,path=${nic.socket},${reconnect(options)}`],
    ...['-netdev', `vhost-user,id=${id},chardev=${id}-socket,queues=${queues}`],
    ...[
      '-device',
      `virtio-net-pci,id=${id}-device,netdev=${id},vectors=0,romfile=,mq=${queues > 1 ? 'on' : 'off'}${properties}`,
    ],
  ];
};

/** Without `reconnect`: this device of QEMU does not wait for a connection, and does not set one up again. */
const vsockArguments = (options: QemuOptions, socket: string): string[] => [
  ...['-chardev', `socket,id=vsock-socket,path=${socket}`],
  ...['-device', `vhost-user-vsock-pci,id=vsock,chardev=vsock-socket${deviceProperties(options)}`],
];

const kernelArguments = (options: QemuOptions): string => {
  const args = [
    'console=ttyS0 quiet loglevel=2 panic=0 mitigations=off random.trust_cpu=on memhp_default_state=online_movable',
  ];
  // microvm has no timer that the kernel could measure the TSC with.
  if (options.machine === 'microvm') args.push(`tsc_early_khz=${hostKilohertz()}`);
  // Strict: a translation is taken back when its buffer is, and not some time later with others.
  if (options.iommu !== undefined) args.push('intel_iommu=on iommu=nopt iommu.strict=1 iommu.passthrough=0');
  if (options.kernelArguments !== undefined) args.push(options.kernelArguments);
  return args.join(' ');
};

const hostKilohertz = (): number => {
  const match = /^cpu MHz\s*:\s*([\d.]+)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'));
  return Math.round(Number(match?.[1] ?? '2000') * 1000);
};
