/**
 * Names of feature bits, by device. Source: VIRTIO 1.3, 5.1.3, 5.2.3, 5.10.3 Feature bits, 6 Reserved Feature Bits;
 * linux/virtio_net.h, linux/virtio_config.h.
 */

import { VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_FEATURE_NAMES } from '../../protocol/virtio/blk.ts';
import {
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_MAC,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_F_STATUS,
  VIRTIO_NET_FEATURE_NAMES,
} from '../../protocol/virtio/net.ts';
import {
  VHOST_F_LOG_ALL,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_ANY_LAYOUT,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_NOTIF_CONFIG_DATA,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_NOTIFY_ON_EMPTY,
  VIRTIO_F_ORDER_PLATFORM,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_RING_RESET,
  VIRTIO_F_SR_IOV,
  VIRTIO_F_VERSION_1,
} from '../../protocol/virtio/reserved-features.ts';
import {
  VIRTIO_VSOCK_CONFIG_BYTES,
  VIRTIO_VSOCK_F_NO_IMPLIED_STREAM,
  VIRTIO_VSOCK_F_SEQPACKET,
  VIRTIO_VSOCK_F_STREAM,
} from '../../protocol/virtio/vsock.ts';

/** Devices that `info` knows more of than its bits. */
export type DeviceType = 'blk' | 'net' | 'vsock' | 'unknown';

const RESERVED: ReadonlyMap<number, string> = new Map([
  [VIRTIO_F_NOTIFY_ON_EMPTY, 'NOTIFY_ON_EMPTY'],
  [VHOST_F_LOG_ALL, 'LOG_ALL'],
  [VIRTIO_F_ANY_LAYOUT, 'ANY_LAYOUT'],
  [VIRTIO_F_INDIRECT_DESC, 'INDIRECT_DESC'],
  [VIRTIO_F_EVENT_IDX, 'EVENT_IDX'],
  [VHOST_USER_F_PROTOCOL_FEATURES, 'PROTOCOL_FEATURES'],
  [VIRTIO_F_VERSION_1, 'VERSION_1'],
  [VIRTIO_F_ACCESS_PLATFORM, 'ACCESS_PLATFORM'],
  [VIRTIO_F_RING_PACKED, 'RING_PACKED'],
  [VIRTIO_F_IN_ORDER, 'IN_ORDER'],
  [VIRTIO_F_ORDER_PLATFORM, 'ORDER_PLATFORM'],
  [VIRTIO_F_SR_IOV, 'SR_IOV'],
  [VIRTIO_F_NOTIFICATION_DATA, 'NOTIFICATION_DATA'],
  [VIRTIO_F_NOTIF_CONFIG_DATA, 'NOTIF_CONFIG_DATA'],
  [VIRTIO_F_RING_RESET, 'RING_RESET'],
]);

const VSOCK: ReadonlyMap<number, string> = new Map([
  [VIRTIO_VSOCK_F_STREAM, 'STREAM'],
  [VIRTIO_VSOCK_F_SEQPACKET, 'SEQPACKET'],
  [VIRTIO_VSOCK_F_NO_IMPLIED_STREAM, 'NO_IMPLIED_STREAM'],
]);

const DEVICES: Readonly<Record<DeviceType, ReadonlyMap<number, string>>> = {
  blk: VIRTIO_BLK_FEATURE_NAMES,
  net: VIRTIO_NET_FEATURE_NAMES,
  vsock: VSOCK,
  unknown: new Map(),
};

/** The bits that are set in a mask, lowest first. */
export function bitsOf(mask: bigint): number[] {
  return Array.from({ length: 64 }, (_, bit) => bit).filter((bit) => ((mask >> BigInt(bit)) & 1n) === 1n);
}

/** Names of the bits set, by the first table that has one; `bit 42` where none has. */
export function namesOf(mask: bigint, ...tables: ReadonlyMap<number, string>[]): string[] {
  return bitsOf(mask).map((bit) => tables.find((table) => table.has(bit))?.get(bit) ?? `bit ${bit}`);
}

/** Names of a device's feature bits. */
export function featureNames(mask: bigint, type: DeviceType): string[] {
  return namesOf(mask, RESERVED, DEVICES[type]);
}

/** Bits that belong to the device: 0 to 23, and 50 to 63. Source: VIRTIO 1.3, 2.2 Feature Bits. */
const isDeviceBit = (bit: number) => bit <= 23 || bit >= 50;

/**
 * Guesses the device from what it offers: vhost-user does not tell. `configLength` is the length of the configuration
 * space in bytes, 0 where there is none or it is unknown.
 */
export function guessDevice(features: bigint, configLength: number): DeviceType {
  const bits = bitsOf(features).filter(isDeviceBit);
  const has = (...wanted: number[]) => wanted.some((bit) => bits.includes(bit));
  const onlyKnown = (table: ReadonlyMap<number, string>) => bits.every((bit) => table.has(bit));
  const couldBeNet = bits.length > 0 && onlyKnown(VIRTIO_NET_FEATURE_NAMES);
  const couldBeBlk = onlyKnown(VIRTIO_BLK_FEATURE_NAMES);
  // Bits that block devices do not have, beyond the first few that every device has.
  if (couldBeNet && !couldBeBlk && bits.some((bit) => bit > 4)) return 'net';
  // And a configuration space that reaches up to them.
  const reachesBlk = configLength === 0 || configLength >= 24;
  if (has(VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE) && couldBeBlk && reachesBlk) return 'blk';
  // Some back ends read zeroes beyond the eight bytes that there are.
  const saysVsock = configLength === VIRTIO_VSOCK_CONFIG_BYTES || has(VIRTIO_VSOCK_F_NO_IMPLIED_STREAM);
  if (saysVsock && configLength >= VIRTIO_VSOCK_CONFIG_BYTES && onlyKnown(VSOCK)) return 'vsock';
  // Few bits, all of which block devices have too, as with passt; block devices have SEG_MAX or BLK_SIZE.
  if (couldBeNet && has(VIRTIO_NET_F_MAC, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS)) {
    return 'net';
  }
  return 'unknown';
}
