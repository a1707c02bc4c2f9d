/** Which daemon serves a device that names a file or a TAP in the place of a socket, and with which options. Pure. */

import type { DiskConfig, NetConfig } from './config.ts';

/** A daemon of the suite. */
export interface DaemonCommand {
  /** What it is called in logs and errors: the id of the device. */
  readonly name: string;
  readonly program: 'vhost-user-blk' | 'vhost-user-net';
  /** Options of the device; how it is reached is the supervisor's. */
  readonly args: readonly string[];
}

/** For a disk with a `path`. `incoming`: the guest that writes to it is still elsewhere, and has the lock of the image. */
export function diskDaemon(
  disk: DiskConfig & { readonly id: string; readonly path: string },
  incoming = false,
): DaemonCommand {
  return {
    name: disk.id,
    program: 'vhost-user-blk',
    args: [
      `--blk-file=${disk.path}`,
      `--num-queues=${disk.num_queues ?? 1}`,
      ...(disk.readonly === true ? ['--read-only'] : []),
      ...(disk.direct === true ? ['--direct'] : []),
      ...(disk.serial === undefined ? [] : [`--serial=${disk.serial}`]),
      ...(disk.iommu === true ? ['--iommu'] : []),
      ...(incoming ? ['--incoming'] : []),
    ],
  };
}

/** For a network with a `tap`. */
export function netDaemon(net: NetConfig & { readonly id: string; readonly tap: string }): DaemonCommand {
  const pairs = Math.ceil((net.num_queues ?? 2) / 2);
  return {
    name: net.id,
    program: 'vhost-user-net',
    args: [
      `--tap=${net.tap}`,
      `--num-queue-pairs=${pairs}`,
      // This VMM serves no queue itself, and several pairs are not used without the control queue.
      '--ctrl-vq',
      ...(net.mac === undefined ? [] : [`--mac=${net.mac}`]),
      ...(net.mtu === undefined ? [] : [`--mtu=${net.mtu}`]),
      ...(net.iommu === true ? ['--iommu'] : []),
    ],
  };
}
