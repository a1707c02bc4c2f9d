/** What a network device says of itself in its configuration space. Source: VIRTIO 1.3, 5.1.4, 5.1.5 Device Initialization. */

import {
  ETHERNET_ADDRESS_BYTES,
  VIRTIO_NET_CONFIG,
  VIRTIO_NET_DUPLEX_FULL,
  VIRTIO_NET_F_MAC,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_MTU,
  VIRTIO_NET_F_SPEED_DUPLEX,
  VIRTIO_NET_F_STATUS,
  VIRTIO_NET_MAX_PAIRS,
  VIRTIO_NET_MIN_MTU,
  VIRTIO_NET_S_LINK_UP,
  VIRTIO_NET_SPEED_UNKNOWN,
} from '../../protocol/virtio/net.ts';
import { hasFeature } from '../../protocol/virtio/reserved-features.ts';

/** Fields are undefined where their feature is not offered, or where the device does not know. */
export interface NetConfig {
  /** Six bytes. */
  readonly mac: Uint8Array | undefined;
  readonly linkUp: boolean | undefined;
  /** Queue pairs that there are. */
  readonly maxPairs: number | undefined;
  /** Bytes of an Ethernet frame without its header, at most. */
  readonly mtu: number | undefined;
  readonly speedMbps: number | undefined;
  readonly fullDuplex: boolean | undefined;
}

/** Feature bits, and where the fields that come with them end. */
const FEATURE_FIELDS_END: readonly (readonly [number, number])[] = [
  [VIRTIO_NET_F_MAC, VIRTIO_NET_CONFIG.mac + ETHERNET_ADDRESS_BYTES],
  [VIRTIO_NET_F_STATUS, VIRTIO_NET_CONFIG.status + 2],
  [VIRTIO_NET_F_MQ, VIRTIO_NET_CONFIG.max_virtqueue_pairs + 2],
  [VIRTIO_NET_F_MTU, VIRTIO_NET_CONFIG.mtu + 2],
  [VIRTIO_NET_F_SPEED_DUPLEX, VIRTIO_NET_CONFIG.duplex + 1],
];

/** Bytes of the configuration space that a device with these features must have; 0: none has a field. */
export function netConfigBytes(features: bigint): number {
  return FEATURE_FIELDS_END.reduce((most, [bit, end]) => (hasFeature(features, bit) ? Math.max(most, end) : most), 0);
}

/**
 * Decodes what was read of the configuration space of a device with the given features.
 * @throws RangeError - it is too short for a feature it offers, or a field is outside its limits
 */
export function decodeNetConfig(bytes: Uint8Array, features: bigint): NetConfig {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const at = VIRTIO_NET_CONFIG;
  const has = (bit: number) => hasFeature(features, bit);
  const needed = netConfigBytes(features);
  if (bytes.length < needed) {
    throw new RangeError(`the configuration space has ${bytes.length} bytes, the features offered need ${needed}`);
  }
  const maxPairs = has(VIRTIO_NET_F_MQ) ? view.getUint16(at.max_virtqueue_pairs, true) : undefined;
  if (maxPairs === 0 || (maxPairs ?? 1) > VIRTIO_NET_MAX_PAIRS) {
    throw new RangeError(
      `max_virtqueue_pairs is ${maxPairs}: a network device has from 1 to ${VIRTIO_NET_MAX_PAIRS} queue pairs`,
    );
  }
  const mtu = has(VIRTIO_NET_F_MTU) ? view.getUint16(at.mtu, true) : undefined;
  if (mtu !== undefined && mtu < VIRTIO_NET_MIN_MTU) {
    throw new RangeError(`an MTU of ${mtu} bytes is below the least that is allowed, ${VIRTIO_NET_MIN_MTU}`);
  }
  const speed = has(VIRTIO_NET_F_SPEED_DUPLEX) ? view.getUint32(at.speed, true) : VIRTIO_NET_SPEED_UNKNOWN;
  const duplex = has(VIRTIO_NET_F_SPEED_DUPLEX) ? view.getUint8(at.duplex) : undefined;
  return {
    mac: has(VIRTIO_NET_F_MAC) ? Uint8Array.from(bytes.subarray(at.mac, at.mac + ETHERNET_ADDRESS_BYTES)) : undefined,
    linkUp: has(VIRTIO_NET_F_STATUS) ? (view.getUint16(at.status, true) & VIRTIO_NET_S_LINK_UP) !== 0 : undefined,
    maxPairs,
    mtu,
    // The standard names 0 to 2^31 - 1; everything else is unknown.
    speedMbps: speed < 0x8000_0000 ? speed : undefined,
    fullDuplex: duplex === VIRTIO_NET_DUPLEX_FULL ? true : duplex === 0 ? false : undefined,
  };
}
