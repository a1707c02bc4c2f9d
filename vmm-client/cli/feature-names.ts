/**
 * Names of feature bits, by device. Source: VIRTIO 1.3, 5.1.3, 5.2.3, 5.10.3 Feature bits, 6 Reserved Feature Bits;
 * linux/virtio_net.h, linux/virtio_config.h.
 */

import { VIRTIO_BLK_FEATURE_NAMES } from '../../protocol/virtio/blk.ts';

/** Devices that `info` knows more of than its bits. */
export type DeviceType = 'blk' | 'net' | 'vsock' | 'unknown';

const RESERVED: ReadonlyMap<number, string> = new Map([
  [24, 'NOTIFY_ON_EMPTY'],
  [26, 'LOG_ALL'],
  [27, 'ANY_LAYOUT'],
  [28, 'INDIRECT_DESC'],
  [29, 'EVENT_IDX'],
  [30, 'PROTOCOL_FEATURES'],
  [32, 'VERSION_1'],
  [33, 'ACCESS_PLATFORM'],
  [34, 'RING_PACKED'],
  [35, 'IN_ORDER'],
  [36, 'ORDER_PLATFORM'],
  [37, 'SR_IOV'],
  [38, 'NOTIFICATION_DATA'],
  [39, 'NOTIF_CONFIG_DATA'],
  [40, 'RING_RESET'],
]);

const NET: ReadonlyMap<number, string> = new Map([
  [0, 'CSUM'],
  [1, 'GUEST_CSUM'],
  [2, 'CTRL_GUEST_OFFLOADS'],
  [3, 'MTU'],
  [5, 'MAC'],
  [7, 'GUEST_TSO4'],
  [8, 'GUEST_TSO6'],
  [9, 'GUEST_ECN'],
  [10, 'GUEST_UFO'],
  [11, 'HOST_TSO4'],
  [12, 'HOST_TSO6'],
  [13, 'HOST_ECN'],
  [14, 'HOST_UFO'],
  [15, 'MRG_RXBUF'],
  [16, 'STATUS'],
  [17, 'CTRL_VQ'],
  [18, 'CTRL_RX'],
  [19, 'CTRL_VLAN'],
  [20, 'CTRL_RX_EXTRA'],
  [21, 'GUEST_ANNOUNCE'],
  [22, 'MQ'],
  [23, 'CTRL_MAC_ADDR'],
  [53, 'NOTF_COAL'],
  [54, 'GUEST_USO4'],
  [55, 'GUEST_USO6'],
  [56, 'HOST_USO'],
  [57, 'HASH_REPORT'],
  [59, 'GUEST_HDRLEN'],
  [60, 'RSS'],
  [61, 'RSC_EXT'],
  [62, 'STANDBY'],
  [63, 'SPEED_DUPLEX'],
]);

const VSOCK: ReadonlyMap<number, string> = new Map([
  [0, 'STREAM'],
  [1, 'SEQPACKET'],
  [2, 'NO_IMPLIED_STREAM'],
]);

const DEVICES: Readonly<Record<DeviceType, ReadonlyMap<number, string>>> = {
  blk: VIRTIO_BLK_FEATURE_NAMES,
  net: NET,
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

/** Bits 0 to 23 belong to the device, and 24 and up to ring and transport (except a few that only newer devices have). */
const DEVICE_BITS = 0xff_ffffn;

/**
 * Guesses the device from what it offers: vhost-user does not tell. `configLength` is the length of the configuration
 * space in bytes, 0 where there is none or it is unknown.
 */
export function guessDevice(features: bigint, configLength: number): DeviceType {
  const bits = bitsOf(features & DEVICE_BITS);
  const has = (...wanted: number[]) => wanted.some((bit) => bits.includes(bit));
  const onlyKnown = (table: ReadonlyMap<number, string>) => bits.every((bit) => table.has(bit));
  // Above the bits of block devices.
  if (has(18, 19, 20, 21, 22, 23) && onlyKnown(NET)) return 'net';
  // SEG_MAX or BLK_SIZE, and a configuration space that reaches up to them.
  if (has(2, 6) && onlyKnown(VIRTIO_BLK_FEATURE_NAMES) && (configLength === 0 || configLength >= 24)) return 'blk';
  if (configLength === 8 && bits.every((bit) => bit <= 2)) return 'vsock';
  // MTU, MAC, MRG_RXBUF.
  if (has(3, 5, 15) && onlyKnown(NET)) return 'net';
  return 'unknown';
}
