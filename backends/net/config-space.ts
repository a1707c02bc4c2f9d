/** Feature bits and configuration space of the network device. Source: VIRTIO 1.3, 5.1.3, 5.1.4. */

import {
  TUN_F_CSUM,
  TUN_F_TSO_ECN,
  TUN_F_TSO4,
  TUN_F_TSO6,
  TUN_F_UFO,
  TUN_F_USO4,
  TUN_F_USO6,
} from '../../protocol/sys/tap.ts';
import {
  VIRTIO_NET_CONFIG,
  VIRTIO_NET_CONFIG_BYTES,
  VIRTIO_NET_DUPLEX_FULL,
  VIRTIO_NET_DUPLEX_UNKNOWN,
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
  VIRTIO_NET_F_CTRL_MAC_ADDR,
  VIRTIO_NET_F_CTRL_RX,
  VIRTIO_NET_F_CTRL_RX_EXTRA,
  VIRTIO_NET_F_CTRL_VLAN,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_GUEST_ANNOUNCE,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_ECN,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_UFO,
  VIRTIO_NET_F_GUEST_USO4,
  VIRTIO_NET_F_GUEST_USO6,
  VIRTIO_NET_F_HOST_ECN,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_UFO,
  VIRTIO_NET_F_HOST_USO,
  VIRTIO_NET_F_MAC,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_F_MTU,
  VIRTIO_NET_F_SPEED_DUPLEX,
  VIRTIO_NET_F_STATUS,
  VIRTIO_NET_SPEED_UNKNOWN,
} from '../../protocol/virtio/net.ts';
import { featureMask, hasFeature } from '../../protocol/virtio/reserved-features.ts';

/** What the device is, as told to drivers. */
export interface NetProfile {
  /** The guest's address, 6 bytes; undefined lets the driver choose. */
  readonly mac: Uint8Array | undefined;
  readonly pairs: number;
  /** Bytes. */
  readonly mtu: number;
  /** Mbit/s; 0 when unknown. */
  readonly speed: number;
  readonly controlQueue: boolean;
  /** The host's kernel knows UDP segmentation. */
  readonly uso: boolean;
}

const ALWAYS = featureMask(
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_ECN,
  VIRTIO_NET_F_GUEST_UFO,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_ECN,
  VIRTIO_NET_F_HOST_UFO,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_F_MTU,
  VIRTIO_NET_F_STATUS,
  VIRTIO_NET_F_SPEED_DUPLEX,
);

const UDP_SEGMENTATION = featureMask(VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_USO);

const CONTROL = featureMask(
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_CTRL_RX,
  VIRTIO_NET_F_CTRL_RX_EXTRA,
  VIRTIO_NET_F_CTRL_VLAN,
  VIRTIO_NET_F_CTRL_MAC_ADDR,
  VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
  VIRTIO_NET_F_GUEST_ANNOUNCE,
);

/**
 * Feature bits of the device. MQ and GUEST_ANNOUNCE depend on a control queue: with several pairs and without one of ours
 * they are for front ends that serve it themselves.
 */
export function netFeatures({ mac, pairs, controlQueue, uso }: NetProfile): bigint {
  let features = ALWAYS;
  if (mac !== undefined) features |= featureMask(VIRTIO_NET_F_MAC);
  if (uso) features |= UDP_SEGMENTATION;
  if (controlQueue) features |= CONTROL;
  if (pairs > 1) features |= featureMask(VIRTIO_NET_F_MQ, VIRTIO_NET_F_GUEST_ANNOUNCE);
  return features;
}

/** The configuration space; `status` is VIRTIO_NET_S_ bits. */
export function encodeNetConfig({ mac, pairs, mtu, speed }: NetProfile, status: number): Uint8Array {
  const bytes = new Uint8Array(VIRTIO_NET_CONFIG_BYTES);
  const data = new DataView(bytes.buffer);
  if (mac !== undefined) bytes.set(mac, VIRTIO_NET_CONFIG.mac);
  data.setUint16(VIRTIO_NET_CONFIG.status, status, true);
  data.setUint16(VIRTIO_NET_CONFIG.max_virtqueue_pairs, pairs, true);
  data.setUint16(VIRTIO_NET_CONFIG.mtu, mtu, true);
  data.setUint32(VIRTIO_NET_CONFIG.speed, speed === 0 ? VIRTIO_NET_SPEED_UNKNOWN : speed, true);
  data.setUint8(VIRTIO_NET_CONFIG.duplex, speed === 0 ? VIRTIO_NET_DUPLEX_UNKNOWN : VIRTIO_NET_DUPLEX_FULL);
  return bytes;
}

const OFFLOADS: readonly [bit: number, offload: number][] = [
  [VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM],
  [VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4],
  [VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6],
  [VIRTIO_NET_F_GUEST_ECN, TUN_F_TSO_ECN],
  [VIRTIO_NET_F_GUEST_UFO, TUN_F_UFO],
  [VIRTIO_NET_F_GUEST_USO4, TUN_F_USO4],
  [VIRTIO_NET_F_GUEST_USO6, TUN_F_USO6],
];

/** Bits of GUEST_ features that say what a driver takes: those of CTRL_GUEST_OFFLOADS_SET. */
export const GUEST_OFFLOADS = featureMask(...OFFLOADS.map(([bit]) => bit));

/** What the TAP may give us, for a driver that takes these GUEST_ features. Without GUEST_CSUM nothing, 5.1.3.1. */
export function tapOffloads(accepted: bigint): number {
  if (!hasFeature(accepted, VIRTIO_NET_F_GUEST_CSUM)) return 0;
  // Kernels want USO4 and USO6 together.
  const both = hasFeature(accepted, VIRTIO_NET_F_GUEST_USO4) && hasFeature(accepted, VIRTIO_NET_F_GUEST_USO6);
  let offloads = 0;
  for (const [bit, offload] of OFFLOADS) {
    if (hasFeature(accepted, bit) && (both || (offload !== TUN_F_USO4 && offload !== TUN_F_USO6))) offloads |= offload;
  }
  // 5.1.3.1: ECN is a kind of TSO; kernels refuse it alone.
  return (offloads & (TUN_F_TSO4 | TUN_F_TSO6)) === 0 ? offloads & ~TUN_F_TSO_ECN : offloads;
}

/** Whether packets larger than the MTU come with these offloads. */
export function hasSegmentation(offloads: number): boolean {
  return (offloads & (TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_UFO | TUN_F_USO4 | TUN_F_USO6)) !== 0;
}
