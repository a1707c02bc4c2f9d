/** Disks. The configuration space is the back end's but for the number of queues. Source: VIRTIO 1.3, 5.2 Block Device. */

import { PeerError } from '../../../protocol/vhost-user/errors.ts';
import { VHOST_USER_PROTOCOL_F_CONFIG } from '../../../protocol/vhost-user/features.ts';
import {
  VIRTIO_BLK_CONFIG,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_MQ,
  VIRTIO_BLK_F_RO,
} from '../../../protocol/virtio/blk.ts';
import { VIRTIO_ID_BLOCK } from '../../../protocol/virtio/device-ids.ts';
import { hasFeature } from '../../../protocol/virtio/reserved-features.ts';
import { BLK_CONFIG_SIZES, decodeBlkConfig } from '../../driver/blk-config.ts';
import type { VhostUserFrontend } from '../../frontend/frontend.ts';
import type { CheckedDisk } from '../check-config.ts';
import { VmConfigError } from '../errors.ts';
import { attach, type DeviceOptions } from './attach.ts';
import { checkFields, type DeviceProfile, ringCount, withoutFeatures } from './profile.ts';
import type { VhostUserDevice } from './vhost-user-device.ts';

/** What a driver has to find again: it reads the capacity anew when it is told to, and nothing else. */
const MOVE_RULES = (
  [
    ['capacity', 8, 'not lower'],
    ['size_max', 4, 'not lower'],
    ['seg_max', 4, 'not lower'],
    ['blk_size', 4, 'same'],
    ['max_discard_sectors', 4, 'not lower'],
    ['max_discard_seg', 4, 'not lower'],
    ['max_write_zeroes_sectors', 4, 'not lower'],
    ['max_write_zeroes_seg', 4, 'not lower'],
  ] as const
).map(([name, bytes, rule]) => [{ name, bytes, offset: VIRTIO_BLK_CONFIG[name] }, rule] as const);

/** @throws VmConfigError, VmError - see `openDevice` */
export async function openDisk(config: CheckedDisk, options: DeviceOptions): Promise<VhostUserDevice> {
  const name = `disk ${config.id}`;
  return attach(name, config.vhost_socket, options, (frontend) => describeDisk(frontend, name, config));
}

async function describeDisk(
  frontend: VhostUserFrontend,
  name: string,
  { num_queues: queues, queue_size: queueSize }: CheckedDisk,
): Promise<DeviceProfile> {
  const { features } = frontend.capabilities;
  if (!frontend.hasProtocolFeature(VHOST_USER_PROTOCOL_F_CONFIG)) {
    throw new RangeError('the back end does not offer CONFIG, so nothing tells the capacity of the disk');
  }
  const { bytes, config } = await readLargest(frontend);
  const available = Math.min(ringCount(frontend), config.numQueues ?? 1);
  if (available === 0) throw new RangeError('the back end says that num_queues is 0');
  if (queues > available) throw new VmConfigError(`${name}: num_queues is ${queues}, its back end has ${available}`);
  return {
    name,
    deviceId: VIRTIO_ID_BLOCK,
    queueSizes: Array.from({ length: queues }, () => queueSize),
    features: queues > 1 ? features : withoutFeatures(features, VIRTIO_BLK_F_MQ),
    isServed: () => true,
    ringOf: (queue) => queue,
    readConfig: async (from) => {
      const read = await from.readConfig(0, bytes);
      decodeBlkConfig(read, features);
      return withQueues(read, queues);
    },
    isWritable: (offset, length, accepted) =>
      offset === VIRTIO_BLK_CONFIG.writeback && length === 1 && hasFeature(accepted, VIRTIO_BLK_F_CONFIG_WCE),
    needsState: () => false,
    isExclusive: true,
    checkMove: (before, now, accepted) => {
      if (hasFeature(features, VIRTIO_BLK_F_RO) && !hasFeature(accepted, VIRTIO_BLK_F_RO)) {
        throw new RangeError('the disk could be written to, the back end here serves it read-only');
      }
      checkFields(before, now, MOVE_RULES);
    },
  };
}

/** The configuration space in the largest of the known sizes that the back end has. */
async function readLargest(frontend: VhostUserFrontend) {
  let refused: unknown;
  for (const bytes of BLK_CONFIG_SIZES) {
    try {
      const config = decodeBlkConfig(await frontend.readConfig(0, bytes), frontend.capabilities.features);
      return { bytes, config };
    } catch (error) {
      if (!(error instanceof PeerError)) throw error;
      refused = error;
    }
  }
  throw refused;
}

/** With the number of queues that this guest has, where the space is long enough to say it. */
function withQueues(config: Uint8Array, queues: number): Uint8Array {
  if (config.length >= VIRTIO_BLK_CONFIG.num_queues + 2) {
    new DataView(config.buffer, config.byteOffset).setUint16(VIRTIO_BLK_CONFIG.num_queues, queues, true);
  }
  return config;
}
