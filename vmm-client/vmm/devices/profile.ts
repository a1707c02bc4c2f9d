/** How a kind of device is carried by a vhost-user back end: what differs between disks, networks and the others. */

import {
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
} from '../../../protocol/vhost-user/features.ts';
import {
  featureMask,
  hasFeature,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_ORDER_PLATFORM,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
} from '../../../protocol/virtio/reserved-features.ts';
import type { VhostUserFrontend } from '../../frontend/frontend.ts';
import type { IoMappings } from '../../frontend/io-mappings.ts';

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
  /** Whether the back end of a driver that accepted `features` knows things that no other one can find out. */
  needsState(features: bigint): boolean;
  /**
   * Whether a driver that accepted `features` and saw the configuration space `before` can go on with `now`.
   * @throws RangeError - it cannot; the sentence says what differs
   */
  checkMove(before: Uint8Array, now: Uint8Array, features: bigint): void;
  /** Whether back ends keep others away from what they serve, until its guest goes elsewhere. Default false. */
  readonly isExclusive?: boolean;
  /** The station (6 bytes) that a network is to find here, of a driver that accepted `features`. Absent: no network. */
  stationOf?(config: Uint8Array, features: bigint): Uint8Array | undefined;
}

/** The first and last bit that is not a device's own. Source: VIRTIO 1.3, 2.2 Feature Bits. */
const FIRST_RESERVED = 24;
const LAST_RESERVED = 49;
const RESERVED = ((1n << BigInt(LAST_RESERVED + 1)) - 1n) & ~((1n << BigInt(FIRST_RESERVED)) - 1n);

/**
 * Features of ring and transport that always go through. Of the others, some are a matter of configuration (an IOMMU,
 * packed rings), some need what this VMM has not (data in notifications, the reset of one queue), and some are between
 * front end and back end.
 */
const CARRIED = featureMask(
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_VERSION_1,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_ORDER_PLATFORM,
);

/** What a device is to be, besides what its back end makes of it. */
export interface DeviceTraits {
  /** It is behind an IOMMU, which its driver has to know of. */
  readonly hasIommu: boolean;
  /** Its driver may use packed rings. */
  readonly packed: boolean;
}

/** What the options of a device make of it. */
export function traitsOf({
  iommu,
  packed = false,
}: {
  readonly iommu?: IoMappings;
  readonly packed?: boolean;
}): DeviceTraits {
  return { hasIommu: iommu !== undefined, packed };
}

/** Of the features in `mask` those that the guest may be offered. */
export function offeredFeatures(mask: bigint, { hasIommu, packed }: DeviceTraits): bigint {
  const platform = hasIommu ? featureMask(VIRTIO_F_ACCESS_PLATFORM) : 0n;
  const layout = packed ? featureMask(VIRTIO_F_RING_PACKED) : 0n;
  return mask & (~RESERVED | CARRIED | platform | layout);
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

/** @throws RangeError - the back end cannot be what the device is to be */
export function checkTraits(frontend: VhostUserFrontend, { hasIommu, packed }: DeviceTraits): void {
  const { features } = frontend.capabilities;
  if (hasIommu && !hasFeature(features, VIRTIO_F_ACCESS_PLATFORM)) {
    throw new RangeError(
      'the back end does not offer ACCESS_PLATFORM, which iommu=on needs (ours: start it with --iommu)',
    );
  }
  if (hasIommu && !frontend.hasProtocolFeature(VHOST_USER_PROTOCOL_F_BACKEND_REQ)) {
    throw new RangeError('the back end does not offer BACKEND_REQ, so it cannot ask what the IOMMU maps');
  }
  if (packed && !hasFeature(features, VIRTIO_F_RING_PACKED)) {
    throw new RangeError('the back end does not offer RING_PACKED, which packed=on needs');
  }
  // Where a packed ring stands its driver knows, and nobody else but the back end that served it.
  if (packed && !frontend.hasProtocolFeature(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD)) {
    throw new RangeError('the back end does not offer INFLIGHT_SHMFD, so packed rings would not outlive its death');
  }
}

/** A number of the configuration space: little endian, `bytes` bytes at `offset`. */
export interface ConfigField {
  readonly name: string;
  readonly offset: number;
  readonly bytes: 1 | 2 | 4 | 8;
}

/** How a field may differ between two back ends of one device: not at all, or only to a higher number. */
export type FieldRule = 'same' | 'not lower';

/**
 * Compares fields of two configuration spaces. A field that one of them is too short for does not count.
 * @throws RangeError - one breaks its rule
 */
export function checkFields(
  before: Uint8Array,
  now: Uint8Array,
  fields: readonly (readonly [ConfigField, FieldRule])[],
): void {
  for (const [{ name, offset, bytes }, rule] of fields) {
    if (offset + bytes > before.length || offset + bytes > now.length) continue;
    const [was, is] = [readField(before, offset, bytes), readField(now, offset, bytes)];
    if (rule === 'same' ? is !== was : is < was) {
      throw new RangeError(`${name} was ${was}, the back end here has ${is}`);
    }
  }
}

function readField(config: Uint8Array, offset: number, bytes: number): bigint {
  const field = config.subarray(offset, offset + bytes);
  return field.reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n);
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
