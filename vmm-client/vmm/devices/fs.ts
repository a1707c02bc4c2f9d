/**
 * Shared file systems. The configuration space is the VMM's: the tag is what the guest mounts by, and back ends know it
 * only where they offer CONFIG. Source: VIRTIO 1.3, 5.11 File System Device.
 */

import { VIRTIO_ID_FS } from '../../../protocol/virtio/device-ids.ts';
import {
  VIRTIO_FS_CONFIG,
  VIRTIO_FS_CONFIG_BYTES,
  VIRTIO_FS_F_NOTIFICATION,
  VIRTIO_FS_FIRST_REQUEST_QUEUE,
} from '../../../protocol/virtio/fs.ts';
import type { VhostUserFrontend } from '../../frontend/frontend.ts';
import type { CheckedFs } from '../check-config.ts';
import { VmConfigError } from '../errors.ts';
import { attach, type DeviceOptions } from './attach.ts';
import { type DeviceProfile, ringCount, withoutFeatures } from './profile.ts';
import type { VhostUserDevice } from './vhost-user-device.ts';

/** @throws VmConfigError, VmError - see `openDevice` */
export async function openFs(config: CheckedFs, options: DeviceOptions): Promise<VhostUserDevice> {
  const name = `fs ${config.id}`;
  return attach(name, config.socket, options, (frontend) => describeFs(frontend, name, config));
}

function describeFs(
  frontend: VhostUserFrontend,
  name: string,
  { tag, num_queues: requestQueues, queue_size: queueSize }: CheckedFs,
): DeviceProfile {
  const queues = VIRTIO_FS_FIRST_REQUEST_QUEUE + requestQueues;
  // Without MQ nothing is said of rings: the two that every file system has are there.
  const rings =
    frontend.capabilities.queueCount === undefined ? VIRTIO_FS_FIRST_REQUEST_QUEUE + 1 : ringCount(frontend);
  if (queues > rings) {
    const available = Math.max(0, rings - VIRTIO_FS_FIRST_REQUEST_QUEUE);
    throw new VmConfigError(`${name}: num_queues is ${requestQueues}, its back end has ${available} request queues`);
  }
  const config = new Uint8Array(VIRTIO_FS_CONFIG_BYTES);
  config.set(new TextEncoder().encode(tag), VIRTIO_FS_CONFIG.tag);
  new DataView(config.buffer).setUint32(VIRTIO_FS_CONFIG.num_request_queues, requestQueues, true);
  return {
    name,
    deviceId: VIRTIO_ID_FS,
    queueSizes: Array.from({ length: queues }, () => queueSize),
    features: withoutFeatures(frontend.capabilities.features, VIRTIO_FS_F_NOTIFICATION),
    isServed: () => true,
    ringOf: (queue) => queue,
    readConfig: async () => config,
    isWritable: () => false,
    // Files that the guest has open.
    needsState: () => true,
    checkMove: (before, now) => {
      if (!Buffer.from(before).equals(now)) throw new RangeError('the file system had another tag or number of queues');
    },
  };
}
