/**
 * What is settled before the queues of a block device run: features, sizes, memory. Source: VIRTIO 1.3, 5.2.5 Device
 * Initialization.
 */

import { PeerError } from '../../protocol/vhost-user/errors.ts';
import {
  VIRTIO_BLK_F_BLK_SIZE,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_MQ,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_F_SEG_MAX,
  VIRTIO_BLK_F_SIZE_MAX,
  VIRTIO_BLK_F_TOPOLOGY,
  VIRTIO_BLK_F_WRITE_ZEROES,
} from '../../protocol/virtio/blk.ts';
import {
  featureMask,
  hasFeature,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_VERSION_1,
} from '../../protocol/virtio/reserved-features.ts';
import type { VhostUserFrontend } from '../frontend/frontend.ts';
import { BLK_CONFIG_SIZES, type BlkConfig, decodeBlkConfig } from './blk-config.ts';
import { BlkQueue, type BlkQueueOptions } from './blk-queue.ts';
import { checkRingFeatures, type RingWishes, ringFeaturesOf, wantedRingFeatures } from './ring-features.ts';

const WANTED_FEATURES = featureMask(
  VIRTIO_BLK_F_SIZE_MAX,
  VIRTIO_BLK_F_SEG_MAX,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_F_BLK_SIZE,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_TOPOLOGY,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_MQ,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_VERSION_1,
  VHOST_USER_F_PROTOCOL_FEATURES,
);

const PAGE_BYTES = 4096;
const MAX_REQUEST_BYTES = 1024 * 1024;
/** Segments of one request, where the device names no limit. */
const DEFAULT_SEG_MAX = 126;

const DEFAULT_DATA_BYTES = 16 * 1024 * 1024;

export interface BlkDriverOptions extends RingWishes {
  /** Queues to use. Default 1. */
  readonly queues?: number;
  /** Entries of each queue, a power of two unless it is packed. Default 256. */
  readonly queueSize?: number;
  /** Shared memory for data, in bytes. Default 16 MiB. */
  readonly dataBytes?: number;
  /** How long requests may go without any completion, in milliseconds. Default 30,000. */
  readonly timeoutMs?: number;
  /** Features not to accept although offered and known. */
  readonly withoutFeatures?: bigint;
}

export interface QueuePlan {
  readonly queues: readonly BlkQueueOptions[];
  readonly queueSize: number;
  readonly maxRequestBytes: number;
  /** Shared memory for rings, slots and data. */
  readonly memoryBytes: number;
}

/** The features to accept of those that are offered. */
export function wantedBlkFeatures(options: BlkDriverOptions): bigint {
  return (WANTED_FEATURES | wantedRingFeatures(options)) & ~(options.withoutFeatures ?? 0n);
}

/**
 * Sizes of everything, from what the device says and the user wants. `queueCount` is the answer to GET_QUEUE_NUM.
 * @throws PeerError - the device has less than is needed
 */
export function planQueues(
  config: BlkConfig,
  features: bigint,
  queueCount: number | undefined,
  options: BlkDriverOptions,
): QueuePlan {
  if (!hasFeature(features, VIRTIO_F_VERSION_1)) {
    throw new PeerError('the device does not offer VERSION_1: devices older than virtio 1.0 are not supported');
  }
  checkRingFeatures(features, options);
  const count = options.queues ?? 1;
  const available = Math.min(config.numQueues ?? 1, queueCount ?? Number.POSITIVE_INFINITY);
  if (count > available) throw new PeerError(`${count} queues are wanted, the device has ${available}`);

  const size = options.queueSize ?? 256;
  // A limit of 0 says nothing.
  const segmentBytes = config.sizeMax || MAX_REQUEST_BYTES;
  const segments = Math.min(config.segMax || DEFAULT_SEG_MAX, size - 2, Math.ceil(MAX_REQUEST_BYTES / segmentBytes));
  const maxSegments = Math.max(1, segments);
  const blocks = Math.floor(Math.min(MAX_REQUEST_BYTES, segmentBytes * maxSegments) / config.blockSize);
  const queue: Omit<BlkQueueOptions, 'index'> = {
    ...ringFeaturesOf(features),
    size,
    segmentBytes,
    maxSegments,
  };
  return {
    queues: Array.from({ length: count }, (_, index) => ({ ...queue, index })),
    queueSize: size,
    maxRequestBytes: Math.max(1, blocks) * config.blockSize,
    memoryBytes: count * BlkQueue.memoryBytes(queue) + (options.dataBytes ?? DEFAULT_DATA_BYTES) + PAGE_BYTES,
  };
}

/** Reads and decodes the configuration space, in the largest of the known sizes that the back end has. */
export async function readBlkConfig(frontend: VhostUserFrontend): Promise<BlkConfig> {
  let refused: unknown;
  for (const size of BLK_CONFIG_SIZES) {
    try {
      return decodeBlkConfig(await frontend.readConfig(0, size), frontend.capabilities.features);
    } catch (error) {
      if (!(error instanceof PeerError)) throw error;
      refused = error;
    }
  }
  throw refused;
}
