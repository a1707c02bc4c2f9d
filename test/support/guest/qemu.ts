/**
 * QEMU under TCG with Debian's cloud kernel: the front end that most back ends meet first. Two machines: q35, where
 * disks are vhost-user-blk-pci and can be plugged, and microvm, where they are vhost-user-blk on virtio-mmio.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Child } from '../child.ts';
import type { Cleanup } from '../cleanup.ts';
import { type PeerName, peerPath } from '../peers.ts';
import { Guest } from './guest.ts';
import { buildInitramfs } from './initramfs.ts';
import { QmpConnection } from './qmp.ts';

/** What a test needs for bootQemu. */
export const qemuPeers: readonly PeerName[] = [
  'qemu-system-x86_64',
  'cloud kernel',
  'cloud kernel modules',
  'static busybox',
];

/** A virtio-net-pci device whose data path is a vhost-user back end. */
export interface QemuInterface {
  readonly socket: string;
  readonly queuePairs?: number;
  /** More properties of the device, `csum=off` for instance. */
  readonly properties?: string;
}

export interface QemuOptions {
  readonly machine: 'q35' | 'microvm';
  /** Sockets of vhost-user-blk back ends; the first becomes /dev/vda. */
  readonly sockets?: readonly string[];
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
  readonly cpus?: number;
  /** More properties of each disk, `num-queues=2` for instance. */
  readonly diskProperties?: string;
  /** More of the command line. */
  readonly extra?: readonly string[];
  readonly bootDeadlineMs?: number;
}

/** A guest in QEMU with the machine's own control connection. */
export class QemuGuest extends Guest {
  readonly qmp: QmpConnection;

  constructor(child: Child, qmp: QmpConnection) {
    super(child);
    this.qmp = qmp;
  }

  /** Presses the reset button and waits for the next boot. */
  reset(deadlineMs?: number): Promise<void> {
    return this.waitForNextBoot(() => this.qmp.execute('system_reset'), deadlineMs);
  }

  /** Adds a vhost-user-blk disk to a free root port. With `listen` QEMU listens at the socket and the back end dials. */
  async plugDisk(id: string, socket: string, bus: string, listen = false): Promise<void> {
    await this.qmp.execute('chardev-add', {
      id: `${id}-socket`,
      backend: {
        type: 'socket',
        data: { addr: { type: 'unix', data: { path: socket } }, server: listen, ...(listen && { wait: false }) },
      },
    });
    await this.qmp.execute('device_add', {
      driver: 'vhost-user-blk-pci',
      id,
      chardev: `${id}-socket`,
      bus,
      // By default QEMU asks for a queue for each CPU, and refuses a back end with fewer.
      'num-queues': 1,
    });
  }

  /** Takes a disk or a socket device out again and waits until the guest has let go of it. */
  async unplug(id: string, deadlineMs = 30_000): Promise<void> {
    await this.qmp.execute('device_del', { id });
    await this.qmp.waitForEvent(({ event, data }) => event === 'DEVICE_DELETED' && data.device === id, deadlineMs);
    await this.qmp.execute('chardev-remove', { id: `${id}-socket` });
  }

  /** Adds a network interface to a free root port, with more properties of the device if need be. */
  async plugInterface(id: string, socket: string, bus: string, properties: Record<string, unknown>): Promise<void> {
    await this.qmp.execute('chardev-add', {
      id: `${id}-socket`,
      backend: { type: 'socket', data: { addr: { type: 'unix', data: { path: socket } }, server: false } },
    });
    await this.qmp.execute('netdev_add', { type: 'vhost-user', id, chardev: `${id}-socket` });
    await this.qmp.execute('device_add', {
      driver: 'virtio-net-pci',
      id: `${id}-device`,
      netdev: id,
      bus,
      vectors: 0,
      ...properties,
    });
  }

  /** Takes a network interface out again and waits until the guest has let go of it. */
  async unplugInterface(id: string, deadlineMs = 30_000): Promise<void> {
    await this.qmp.execute('device_del', { id: `${id}-device` });
    await this.qmp.waitForEvent(
      ({ event, data }) => event === 'DEVICE_DELETED' && data.device === `${id}-device`,
      deadlineMs,
    );
    // Takes the character device along.
    await this.qmp.execute('netdev_del', { id });
  }

  /** Adds a socket device to a free root port. */
  async plugSockets(id: string, socket: string, bus: string): Promise<void> {
    await this.qmp.execute('chardev-add', {
      id: `${id}-socket`,
      backend: { type: 'socket', data: { addr: { type: 'unix', data: { path: socket } }, server: false } },
    });
    await this.qmp.execute('device_add', { driver: 'vhost-user-vsock-pci', id, chardev: `${id}-socket`, bus });
  }

  /** Adds memory that back ends can map: the front end has to tell them of a new region. */
  async plugMemory(id: string, sizeBytes: number): Promise<void> {
    await this.qmp.execute('object-add', {
      'qom-type': 'memory-backend-memfd',
      id: `${id}-memory`,
      size: sizeBytes,
      share: true,
    });
    await this.qmp.execute('device_add', { driver: 'pc-dimm', id, memdev: `${id}-memory` });
  }
}

/** Boots a guest that `cleanup` kills at the latest. */
export const bootQemu = async (cleanup: Cleanup, options: QemuOptions): Promise<QemuGuest> => {
  const qmpPath = join(cleanup.directory(), 'qmp');
  const qmp = await QmpConnection.listen(qmpPath);
  cleanup.add(() => qmp.close());
  const initramfs = buildInitramfs({
    modules: peerPath('cloud kernel modules'),
    network: options.interfaces !== undefined,
    sockets: options.vsockModules ?? options.vsockSocket !== undefined,
    ...(options.programs && { programs: options.programs }),
    ...(options.staticPrograms && { staticPrograms: options.staticPrograms }),
  });
  const memoryMiB = options.memoryMiB ?? 384;
  const child = new Child(peerPath('qemu-system-x86_64'), [
    ...machineArguments(options.machine),
    ...['-accel', 'tcg', '-cpu', 'max', '-smp', String(options.cpus ?? 1)],
    ...['-object', `memory-backend-memfd,id=memory,size=${memoryMiB}M,share=on`],
    ...['-m', `${memoryMiB}M,slots=4,maxmem=${memoryMiB + 2048}M`],
    ...['-nodefaults', '-no-user-config', '-nographic', '-serial', 'stdio'],
    ...['-chardev', `socket,id=qmp,path=${qmpPath},server=off`, '-mon', 'chardev=qmp,mode=control'],
    ...['-kernel', peerPath('cloud kernel'), '-initrd', initramfs, '-append', kernelArguments(options.machine)],
    ...(options.sockets ?? []).flatMap((socket, index) => diskArguments(options, socket, index)),
    ...(options.interfaces ?? []).flatMap(interfaceArguments),
    ...(options.vsockSocket === undefined ? [] : vsockArguments(options.vsockSocket)),
    ...(options.extra ?? []),
  ]);
  cleanup.add(() => child.stop());
  const guest = new QemuGuest(child, qmp);
  const negotiated = qmp.negotiate();
  // When QEMU refuses its command line, its own words are the error to show, and waitUntilReady has them.
  negotiated.catch(() => {});
  await guest.waitUntilReady(options.bootDeadlineMs ?? 60_000);
  await negotiated;
  return guest;
};

const machineArguments = (machine: QemuOptions['machine']): string[] =>
  machine === 'q35'
    ? ['-machine', 'q35,memory-backend=memory,graphics=off,vmport=off,i8042=off']
    : // Without ACPI the cloud kernel finds no virtio-mmio device: it is built without their command line parameter.
      [
        ...['-machine', 'microvm,memory-backend=memory,acpi=on,auto-kernel-cmdline=off,isa-serial=on,rtc=on'],
        ...['-global', 'virtio-mmio.force-legacy=false'],
      ];

const diskArguments = (options: QemuOptions, socket: string, index: number): string[] => {
  const driver = options.machine === 'q35' ? 'vhost-user-blk-pci' : 'vhost-user-blk';
  const properties = options.diskProperties === undefined ? '' : `,${options.diskProperties}`;
  return [
    ...['-chardev', `socket,id=disk${index}-socket,path=${socket},reconnect=1`],
    ...['-device', `${driver},id=disk${index},chardev=disk${index}-socket${properties}`],
  ];
};

const interfaceArguments = (nic: QemuInterface, index: number): string[] => {
  const id = `net${index}`;
  const properties = nic.properties === undefined ? '' : `,${nic.properties}`;
  return [
    ...['-chardev', `socket,id=${id}-socket,path=${nic.socket},reconnect=1`],
    ...['-netdev', `vhost-user,id=${id},chardev=${id}-socket,queues=${nic.queuePairs ?? 1}`],
    ...['-device', `virtio-net-pci,id=${id}-device,netdev=${id},${interfaceProperties(nic.queuePairs)}${properties}`],
  ];
};

/** Without `reconnect`: this device of QEMU does not wait for a connection, and does not set one up again. */
const vsockArguments = (socket: string): string[] => [
  ...['-chardev', `socket,id=vsock-socket,path=${socket}`],
  ...['-device', 'vhost-user-vsock-pci,id=vsock,chardev=vsock-socket'],
];

/** QEMU 7.2 crashes when it is to use MSI-X for a vhost-user-net under TCG. */
const interfaceProperties = (queuePairs = 1): string => `vectors=0,mq=${queuePairs > 1 ? 'on' : 'off'}`;

const kernelArguments = (machine: QemuOptions['machine']): string => {
  const common =
    'console=ttyS0 quiet loglevel=2 panic=0 mitigations=off random.trust_cpu=on memhp_default_state=online_movable';
  // microvm has no timer that the kernel could measure the TSC with.
  return machine === 'q35' ? common : `${common} tsc_early_khz=${hostKilohertz()}`;
};

const hostKilohertz = (): number => {
  const match = /^cpu MHz\s*:\s*([\d.]+)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'));
  return Math.round(Number(match?.[1] ?? '2000') * 1000);
};
