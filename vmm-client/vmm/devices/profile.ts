/** How a kind of device is carried by a vhost-user back end: what differs between disks, networks and the others. */

import {
  featureMask,
  hasFeature,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_ORDER_PLATFORM,
  VIRTIO_F_VERSION_1,
} from '../../../protocol/virtio/reserved-features.ts';
import type { VhostUserFrontend } from '../../frontend/frontend.ts';

export interface DeviceProfile {
  /** For messages, such as `disk _disk0`. */
  readonly name: string;
  readonly deviceId: number;
  /** Entries that each queue of the guest can have. */
  readonly queueSizes: readonly number[];
  /** Device features offered to the guest, before `offeredFeatures`. */
  readonly features: bigint;
  /** Whether anybody serves the queue; one that nobody does is the guest's to set up, and stays silent. */
  isServed(queue: number): boolean;
  /** The back end's ring of a queue, given what the driver accepted. */
  ringOf(queue: number, features: bigint): number;
  /** The configuration space as the guest is to see it. @throws PeerError, ProtocolError, RangeError */
  readConfig(frontend: VhostUserFrontend): Promise<Uint8Array>;
  /** Whether a driver that accepted `features` can write there. */
  isWritable(offset: number, length: number, features: bigint): boolean;
}

/** The first and last bit that is not a device's own. Source: VIRTIO 1.3, 2.2 Feature Bits. */
const FIRST_RESERVED = 24;
const LAST_RESERVED = 49;
const RESERVED = ((1n << BigInt(LAST_RESERVED + 1)) - 1n) & ~((1n << BigInt(FIRST_RESERVED)) - 1n);

/**
 * Features of ring and transport that go through. All others need something of this VMM that it has not: packed rings,
 * an IOMMU, data in notifications, the reset of one queue; or are between front end and back end.
 */
const CARRIED = featureMask(
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_VERSION_1,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_ORDER_PLATFORM,
);

/** Of the features in `mask` those that the guest may be offered. */
export function offeredFeatures(mask: bigint): bigint {
  return mask & (~RESERVED | CARRIED);
}

/** The part of `features` that is left without `bits`. */
export function withoutFeatures(features: bigint, ...bits: readonly number[]): bigint {
  return features & ~featureMask(...bits);
}

/** @throws RangeError - the back end is of a time before VERSION_1 */
export function checkVersion(features: bigint): void {
  if (!hasFeature(features, VIRTIO_F_VERSION_1)) {
    throw new RangeError('the back end does not offer VERSION_1, which virtio-mmio devices have');
  }
}

/**
 * How many rings a back end has by its own account; 1 where it does not say.
 * @throws RangeError - none at all
 */
export function ringCount(frontend: VhostUserFrontend): number {
  const { queueCount } = frontend.capabilities;
  if (queueCount === 0) throw new RangeError('the back end says it has no queues');
  return queueCount ?? 1;
}
