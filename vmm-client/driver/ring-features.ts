/** What drivers ask of the rings, and what they got. Source: VIRTIO 1.3, 6 Reserved Feature Bits. */

import { PeerError } from '../../protocol/vhost-user/errors.ts';
import {
  featureMask,
  hasFeature,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_RING_PACKED,
} from '../../protocol/virtio/reserved-features.ts';
import type { RingFeatures } from './virtqueue.ts';

export interface RingWishes {
  /** Packed rings instead of split ones. Default false. */
  readonly packed?: boolean;
  /** Used entries in the order of the available ones, batches by one of them. Default false. */
  readonly inOrder?: boolean;
}

/** Features to accept for what is wished. */
export function wantedRingFeatures({ packed = false, inOrder = false }: RingWishes): bigint {
  return (packed ? featureMask(VIRTIO_F_RING_PACKED) : 0n) | (inOrder ? featureMask(VIRTIO_F_IN_ORDER) : 0n);
}

/** @throws PeerError - something that was wished is not among the negotiated features */
export function checkRingFeatures(features: bigint, { packed = false, inOrder = false }: RingWishes): void {
  if (packed && !hasFeature(features, VIRTIO_F_RING_PACKED)) {
    throw new PeerError('packed rings are wanted, the device does not offer RING_PACKED');
  }
  if (inOrder && !hasFeature(features, VIRTIO_F_IN_ORDER)) {
    throw new PeerError('buffers are wanted back in order, the device does not offer IN_ORDER');
  }
}

/** What the negotiated features say of the rings. */
export function ringFeaturesOf(features: bigint): RingFeatures {
  return {
    packed: hasFeature(features, VIRTIO_F_RING_PACKED),
    indirect: hasFeature(features, VIRTIO_F_INDIRECT_DESC),
    eventIdx: hasFeature(features, VIRTIO_F_EVENT_IDX),
    inOrder: hasFeature(features, VIRTIO_F_IN_ORDER),
  };
}
