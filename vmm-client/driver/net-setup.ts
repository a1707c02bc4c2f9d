/**
 * What is settled before the queues of a network device run: features, queues, sizes, memory. Source: VIRTIO 1.3, 5.1.2
 * Virtqueues, 5.1.5 Device Initialization.
 */

import { PeerError } from '../../protocol/vhost-user/errors.ts';
import { VHOST_USER_PROTOCOL_F_CONFIG } from '../../protocol/vhost-user/features.ts';
import {
  ETHERNET_HEADER_BYTES,
  receiveQueueOf,
  transmitQueueOf,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_MAC,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_F_MTU,
  VIRTIO_NET_F_SPEED_DUPLEX,
  VIRTIO_NET_F_STATUS,
  VIRTIO_NET_HDR_BYTES,
  VIRTIO_NET_MAX_PACKET_BYTES,
} from '../../protocol/virtio/net.ts';
import {
  featureMask,
  hasFeature,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_VERSION_1,
} from '../../protocol/virtio/reserved-features.ts';
import type { VhostUserFrontend } from '../frontend/frontend.ts';
import { decodeNetConfig, type NetConfig, netConfigBytes } from './net-config.ts';
import { NetControlQueue } from './net-control-queue.ts';
import { NetReceiveQueue, type NetReceiveQueueOptions } from './net-receive-queue.ts';
import { NetTransmitQueue, type NetTransmitQueueOptions } from './net-transmit-queue.ts';
import { checkRingFeatures, type RingWishes, ringFeaturesOf, wantedRingFeatures } from './ring-features.ts';

const WANTED_FEATURES = featureMask(
  VIRTIO_NET_F_MAC,
  VIRTIO_NET_F_MTU,
  VIRTIO_NET_F_STATUS,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_F_SPEED_DUPLEX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_VERSION_1,
  VHOST_USER_F_PROTOCOL_FEATURES,
);
const MULTIQUEUE_FEATURES = featureMask(VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ);
const HOST_SEGMENTATION = featureMask(VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6);
const GUEST_SEGMENTATION = featureMask(VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6);

const DEFAULT_MTU = 1500;
const VLAN_TAG_BYTES = 4;
/** Bytes of a receive buffer that others can be merged with: of packets of the usual size, and of segments to be. */
const MERGEABLE_BYTES = 2048;
const MERGEABLE_GSO_BYTES = 4096;
/** Bytes of one descriptor: the largest fragment of a Linux guest's packets is 8 pages. */
const DEFAULT_SEGMENT_BYTES = 32768;
const PAGE_BYTES = 4096;
/** Index of the control queue where MQ was not negotiated. */
const CONTROL_QUEUE_WITHOUT_MQ = 2;

export interface NetDriverOptions extends RingWishes {
  /** Queue pairs to use. Default 1. */
  readonly pairs?: number;
  /** Entries of each queue, a power of two unless it is packed. Default 256. */
  readonly queueSize?: number;
  /** Offloads to accept where offered, such as CSUM and HOST_TSO4. Default none. */
  readonly offloads?: bigint;
  /** Features not to accept although offered and known. */
  readonly withoutFeatures?: bigint;
  /**
   * Whether the control queue is used. Back ends that offer CTRL_VQ often leave it to the virtual machine monitor.
   * Default: with several pairs, where GET_QUEUE_NUM counts one more than the pairs need.
   */
  readonly controlQueue?: boolean;
  /** MTU in bytes where the device does not tell it. Default 1500. */
  readonly mtu?: number;
  /** Bytes of one receive buffer, header included. Default: what a packet needs, or 2048 with MRG_RXBUF. */
  readonly receiveBufferBytes?: number;
  /** Bytes of one descriptor of a packet that is sent, at most. Default 32,768. */
  readonly segmentBytes?: number;
  /** How long a command on the control queue may take, in milliseconds. Default 10,000. */
  readonly timeoutMs?: number;
  /** Whether the back end is to keep track of what is in flight; a guest's network does without. Default false. */
  readonly trackInflight?: boolean;
}

export interface NetPlan {
  readonly queueSize: number;
  readonly receive: readonly NetReceiveQueueOptions[];
  readonly transmit: readonly NetTransmitQueueOptions[];
  /** Index of the control queue, where it is used. */
  readonly control: number | undefined;
  /** Bytes of the largest frame without a VLAN tag that may be sent unsegmented. */
  readonly maxFrameBytes: number;
  readonly memoryBytes: number;
}

/** The rings of all pairs and a control queue: what a back end answers that serves it. */
function countsControlQueue(config: NetConfig, queueCount: number | undefined): boolean {
  return config.maxPairs !== undefined && queueCount === 2 * config.maxPairs + 1;
}

/** The features to accept of those that are offered, with the control queue or without. */
export function wantedFeatures(config: NetConfig, queueCount: number | undefined, options: NetDriverOptions): bigint {
  const wantsMultiqueue = (options.pairs ?? 1) > 1;
  const wantsControl = options.controlQueue ?? (wantsMultiqueue && countsControlQueue(config, queueCount));
  const control = wantsControl ? featureMask(VIRTIO_NET_F_CTRL_VQ) : 0n;
  const multiqueue = wantsMultiqueue ? MULTIQUEUE_FEATURES : 0n;
  const wanted = WANTED_FEATURES | wantedRingFeatures(options) | (options.offloads ?? 0n) | control | multiqueue;
  return wanted & ~(options.withoutFeatures ?? 0n);
}

/**
 * Sizes of everything, from what the device says and the user wants. `queueCount` is the answer to GET_QUEUE_NUM, which
 * counts rings or pairs.
 * @throws PeerError - the device has less than is needed
 */
export function planNet(
  config: NetConfig,
  features: bigint,
  queueCount: number | undefined,
  options: NetDriverOptions,
): NetPlan {
  if (!hasFeature(features, VIRTIO_F_VERSION_1)) {
    throw new PeerError('the device does not offer VERSION_1: devices older than virtio 1.0 are not supported');
  }
  checkRingFeatures(features, options);
  const pairs = options.pairs ?? 1;
  const hasMultiqueue = hasFeature(features, VIRTIO_NET_F_MQ);
  const available = hasMultiqueue ? Math.min(config.maxPairs ?? queueCount ?? 1, queueCount ?? 1) : 1;
  if (pairs > available) {
    const why = pairs > 1 && !hasMultiqueue ? ' (it does not offer MQ)' : '';
    throw new PeerError(`${pairs} queue pairs are wanted, the device has ${available}${why}`);
  }
  const hasControl = hasFeature(features, VIRTIO_NET_F_CTRL_VQ);
  if (options.controlQueue === true && !hasControl) throw new PeerError('the device does not offer CTRL_VQ');
  const usesControl = hasControl && (options.controlQueue ?? countsControlQueue(config, queueCount));

  const queueSize = options.queueSize ?? 256;
  const maxFrameBytes = (config.mtu ?? options.mtu ?? DEFAULT_MTU) + ETHERNET_HEADER_BYTES;
  const segmentsArrive = (features & GUEST_SEGMENTATION) !== 0n;
  const mergeable = hasFeature(features, VIRTIO_NET_F_MRG_RXBUF);
  const mergeableBytes = segmentsArrive ? MERGEABLE_GSO_BYTES : MERGEABLE_BYTES;
  const wholeBytes =
    VIRTIO_NET_HDR_BYTES + (segmentsArrive ? VIRTIO_NET_MAX_PACKET_BYTES : maxFrameBytes + VLAN_TAG_BYTES);
  const receive: Omit<NetReceiveQueueOptions, 'index'> = {
    size: queueSize,
    bufferBytes: options.receiveBufferBytes ?? (mergeable ? mergeableBytes : wholeBytes),
    mergeable,
    features,
  };
  const transmit: Omit<NetTransmitQueueOptions, 'index'> = {
    size: queueSize,
    maxPacketBytes:
      (features & HOST_SEGMENTATION) === 0n ? maxFrameBytes + VLAN_TAG_BYTES : VIRTIO_NET_MAX_PACKET_BYTES,
    segmentBytes: options.segmentBytes ?? DEFAULT_SEGMENT_BYTES,
    ...ringFeaturesOf(features),
  };
  const queues = Array.from({ length: pairs }, (_, pair) => ({
    receive: { ...receive, index: receiveQueueOf(pair) },
    transmit: { ...transmit, index: transmitQueueOf(pair) },
  }));
  const pairBytes = queues.reduce(
    (sum, pair) => sum + NetReceiveQueue.memoryBytes(pair.receive) + NetTransmitQueue.memoryBytes(pair.transmit),
    0,
  );
  return {
    queueSize,
    receive: queues.map((pair) => pair.receive),
    transmit: queues.map((pair) => pair.transmit),
    control: usesControl ? (hasMultiqueue ? 2 * (config.maxPairs ?? 1) : CONTROL_QUEUE_WITHOUT_MQ) : undefined,
    maxFrameBytes,
    memoryBytes: pairBytes + (usesControl ? NetControlQueue.memoryBytes() : 0) + PAGE_BYTES,
  };
}

/** Reads and decodes as much of the configuration space as the offered features say there is; a back end may have none. */
export async function readNetConfig(frontend: VhostUserFrontend): Promise<NetConfig> {
  const { features } = frontend.capabilities;
  const length = netConfigBytes(features);
  // Without CONFIG the front end of a virtual machine makes the space up, so the fields are not the back end's.
  if (!frontend.hasProtocolFeature(VHOST_USER_PROTOCOL_F_CONFIG) || length === 0) {
    return decodeNetConfig(new Uint8Array(), 0n);
  }
  return decodeNetConfig(await frontend.readConfig(0, length), features);
}
