/** What must be true of one device of a configuration, whatever the others are; with its defaults and its id filled in. */

import { VIRTIO_BLK_ID_BYTES } from '../../protocol/virtio/blk.ts';
import { VIRTIO_FS_TAG_BYTES } from '../../protocol/virtio/fs.ts';
import type { CheckedDisk, CheckedFs, CheckedNet, CheckedVsock } from './check-config.ts';
import type { DiskConfig, FsConfig, NetConfig, VsockConfig } from './config.ts';
import { checkBytes, checkRange, checkText, DEFAULTS, fail, ID_PATTERN, LIMITS } from './config-limits.ts';

/** Keys of the counters that are not a device's. */
const OWN_COUNTERS = /^(?:vm|vcpu\d+)$/;

function checkQueueSize(path: string, value: number): void {
  checkRange(`${path}.queue_size`, value, LIMITS.queueSize);
  if ((value & (value - 1)) !== 0) fail(`${path}.queue_size: ${value} is not a power of two`);
}

/** Makes the ids that are missing: prefix and a number that counts over all devices, past the ids that are taken. */
export class Ids {
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

/** @throws VmConfigError */
export function checkDisk(disk: DiskConfig, path: string, ids: Ids): CheckedDisk {
  const {
    num_queues,
    queue_size,
    readonly = false,
    direct = false,
    iommu = false,
    serial,
  } = {
    ...DEFAULTS.disk,
    ...disk,
  };
  const vhost_user = checkSource(path, disk, 'path');
  checkRange(`${path}.num_queues`, num_queues, LIMITS.queues);
  checkQueueSize(path, queue_size);
  checkText(`${path}.serial`, serial);
  checkBytes(`${path}.serial`, serial, VIRTIO_BLK_ID_BYTES);
  if (vhost_user) {
    const misplaced = [readonly && 'readonly', direct && 'direct', serial !== undefined && 'serial'].find(Boolean);
    if (misplaced) fail(`${path}.${misplaced} is for the back end behind vhost_socket to decide, not for the VMM`);
  }
  return { ...disk, id: ids.fill(disk.id, '_disk'), vhost_user, readonly, direct, num_queues, queue_size, iommu };
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

/** @throws VmConfigError */
export function checkNet(net: NetConfig, path: string, ids: Ids): CheckedNet {
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
    iommu: net.iommu ?? false,
  };
}

/** @throws VmConfigError */
export function checkFs(fs: FsConfig, path: string, ids: Ids): CheckedFs {
  const { num_queues, queue_size } = { ...DEFAULTS.fs, ...fs };
  checkText(`${path}.tag`, fs.tag);
  checkBytes(`${path}.tag`, fs.tag, VIRTIO_FS_TAG_BYTES);
  checkText(`${path}.socket`, fs.socket);
  checkRange(`${path}.num_queues`, num_queues, LIMITS.fsQueues);
  checkQueueSize(path, queue_size);
  return { ...fs, id: ids.fill(fs.id, '_fs'), num_queues, queue_size, iommu: fs.iommu ?? false };
}

/** @throws VmConfigError */
export function checkVsock(vsock: VsockConfig, ids: Ids): CheckedVsock {
  const { queue_size } = { ...DEFAULTS.vsock, ...vsock };
  checkRange('vsock.cid', vsock.cid, LIMITS.cid);
  checkText('vsock.socket', vsock.socket);
  checkQueueSize('vsock', queue_size);
  return { ...vsock, id: ids.fill(vsock.id, '_vsock'), queue_size, iommu: vsock.iommu ?? false };
}
