/**
 * QEMU under TCG with Debian's cloud kernel: the front end that most back ends meet first. Two machines: q35, where
 * disks are vhost-user-blk-pci and can be plugged, and microvm, where they are vhost-user-blk on virtio-mmio. Two
 * versions: the one that is installed, and a newer one beside it.
 */

import { join } from 'node:path';
import { Child } from '../child.ts';
import type { Cleanup } from '../cleanup.ts';
import { Guest } from './guest.ts';
import { type QemuOptions, qemuCommand } from './qemu-command.ts';
import { QmpConnection } from './qmp.ts';

export {
  newerKernelPeers,
  type QemuOptions,
  type QemuVersion,
  qemuPeers,
  qemuPeersOf,
  qemuVersions,
} from './qemu-command.ts';

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

  /** Adds a socket device to a free root port, and waits until the guest's driver has started it. */
  async plugSockets(id: string, socket: string, bus: string): Promise<void> {
    await this.qmp.execute('chardev-add', {
      id: `${id}-socket`,
      backend: { type: 'socket', data: { addr: { type: 'unix', data: { path: socket } }, server: false } },
    });
    await this.qmp.execute('device_add', { driver: 'vhost-user-vsock-pci', id, chardev: `${id}-socket`, bus });
    const driver = '/sys/bus/virtio/drivers/vmw_vsock_virtio_transport';
    await this.waitUntil(`[ -e ${driver}/virtio* ]`);
    // That is there before the driver has looked at the device. What asks for it again waits for that, and is refused.
    const { code } = await this.try(`basename ${driver}/virtio* >${driver}/bind`);
    if (code === 0) throw new Error('a device that had a driver got another');
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

  /** Takes it out again, when the guest has moved what it has there. */
  async unplugMemory(id: string, deadlineMs = 30_000): Promise<void> {
    await this.qmp.execute('device_del', { id });
    await this.qmp.waitForEvent(({ event, data }) => event === 'DEVICE_DELETED' && data.device === id, deadlineMs);
    await this.qmp.execute('object-del', { id: `${id}-memory` });
  }
}

/** Boots a guest that `cleanup` kills at the latest. */
export const bootQemu = async (cleanup: Cleanup, options: QemuOptions): Promise<QemuGuest> => {
  const guest = await launchQemu(cleanup, options);
  const negotiated = guest.qmp.negotiate();
  // When QEMU refuses its command line, its own words are the error to show, and waitUntilReady has them.
  negotiated.catch(() => {});
  await guest.waitUntilReady(options.bootDeadlineMs ?? 60_000);
  await negotiated;
  return guest;
};

/** Starts a QEMU that waits for another one's guest, which comes by `migrate`. The other one has the same options. */
export const awaitMigration = async (cleanup: Cleanup, options: QemuOptions): Promise<QemuGuest> => {
  const guest = await launchQemu(cleanup, { ...options, extra: [...(options.extra ?? []), '-incoming', 'defer'] });
  const ended = guest.child.waitForExit(30_000).then(() => {
    throw new Error(`QEMU does not wait for a migration:\n${guest.child.tail()}`);
  });
  await Promise.race([guest.qmp.negotiate(), ended]);
  ended.catch(() => {});
  return guest;
};

const launchQemu = async (cleanup: Cleanup, options: QemuOptions): Promise<QemuGuest> => {
  const qmpPath = join(cleanup.directory(), 'qmp');
  const qmp = await QmpConnection.listen(qmpPath);
  cleanup.add(() => qmp.close());
  const child = new Child(...qemuCommand(options, qmpPath));
  cleanup.add(() => child.stop());
  return new QemuGuest(child, qmp);
};
