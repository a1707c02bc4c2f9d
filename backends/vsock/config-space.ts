/** Feature bits and configuration space of the socket device. Source: VIRTIO 1.3, 5.10.3, 5.10.4. */

import { featureMask, hasFeature } from '../../protocol/virtio/reserved-features.ts';
import {
  VIRTIO_VSOCK_CONFIG_BYTES,
  VIRTIO_VSOCK_F_NO_IMPLIED_STREAM,
  VIRTIO_VSOCK_F_SEQPACKET,
  VIRTIO_VSOCK_F_STREAM,
  VIRTIO_VSOCK_TYPE_SEQPACKET,
  VIRTIO_VSOCK_TYPE_STREAM,
} from '../../protocol/virtio/vsock.ts';

export const VSOCK_FEATURES = featureMask(
  VIRTIO_VSOCK_F_STREAM,
  VIRTIO_VSOCK_F_SEQPACKET,
  VIRTIO_VSOCK_F_NO_IMPLIED_STREAM,
);

/** The configuration space: the guest's CID as a u64. */
export function encodeVsockConfig(guestCid: number): Uint8Array {
  const bytes = new Uint8Array(VIRTIO_VSOCK_CONFIG_BYTES);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(guestCid), true);
  return bytes;
}

/** Whether a driver with these features may use sockets of this type. Streams are implied unless it said otherwise. */
export function isTypeNegotiated(accepted: bigint, type: number): boolean {
  if (type === VIRTIO_VSOCK_TYPE_SEQPACKET) return hasFeature(accepted, VIRTIO_VSOCK_F_SEQPACKET);
  if (type !== VIRTIO_VSOCK_TYPE_STREAM) return false;
  return hasFeature(accepted, VIRTIO_VSOCK_F_STREAM) || !hasFeature(accepted, VIRTIO_VSOCK_F_NO_IMPLIED_STREAM);
}
