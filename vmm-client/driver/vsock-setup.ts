/**
 * What is settled before the queues of a socket device run: its configuration, features, sizes, memory. Source: VIRTIO
 * 1.3, 5.10.2 Virtqueues, 5.10.3 Feature bits, 5.10.4 Device configuration layout, 5.10.5 Device Initialization.
 */

import { PeerError } from '../../protocol/vhost-user/errors.ts';
import { VHOST_USER_PROTOCOL_F_CONFIG } from '../../protocol/vhost-user/features.ts';
import {
  featureMask,
  hasFeature,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_VERSION_1,
} from '../../protocol/virtio/reserved-features.ts';
import {
  VIRTIO_VSOCK_CONFIG_BYTES,
  VIRTIO_VSOCK_F_NO_IMPLIED_STREAM,
  VIRTIO_VSOCK_F_SEQPACKET,
  VIRTIO_VSOCK_F_STREAM,
  VIRTIO_VSOCK_MAX_CID,
  VIRTIO_VSOCK_MAX_PACKET_BYTES,
  VIRTIO_VSOCK_MIN_CID,
  VIRTIO_VSOCK_QUEUES,
  VIRTIO_VSOCK_RX_QUEUE,
  VIRTIO_VSOCK_TX_QUEUE,
  VIRTIO_VSOCK_TYPE_SEQPACKET,
} from '../../protocol/virtio/vsock.ts';
import type { VhostUserFrontend } from '../frontend/frontend.ts';
import { checkRingFeatures, type RingWishes, ringFeaturesOf, wantedRingFeatures } from './ring-features.ts';
import type { RingFeatures } from './virtqueue.ts';
import { VsockEventQueue } from './vsock-event-queue.ts';
import { VsockReceiveQueue, type VsockReceiveQueueOptions } from './vsock-receive-queue.ts';
import { VsockTransmitQueue, type VsockTransmitQueueOptions } from './vsock-transmit-queue.ts';

const WANTED_FEATURES = featureMask(
  VIRTIO_VSOCK_F_STREAM,
  VIRTIO_VSOCK_F_SEQPACKET,
  VIRTIO_VSOCK_F_NO_IMPLIED_STREAM,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_VERSION_1,
  VHOST_USER_F_PROTOCOL_FEATURES,
);

/** Bytes of a socket's buffer as Linux has them by default. Source: net/vmw_vsock/af_vsock.c. */
const DEFAULT_BUFFER_BYTES = 256 * 1024;
/** How long Linux waits for the answer to SHUTDOWN. Source: net/vmw_vsock/virtio_transport_common.c. */
const CLOSE_TIMEOUT_MS = 8000;
const PAGE_BYTES = 4096;
const MAX_BUFFER_BYTES = 0x7fff_ffff;

export interface VsockDriverOptions extends RingWishes {
  /** Entries of the receive and the transmit queue, a power of two unless they are packed. Default 256. */
  readonly queueSize?: number;
  /** Features not to accept although offered and known. */
  readonly withoutFeatures?: bigint;
  /** The guest's CID, for back ends whose configuration space cannot be read. */
  readonly guestCid?: number;
  /** Bytes of payload of one packet, either way, at most. Default 65,536. */
  readonly payloadBytes?: number;
  /** Bytes that a connection keeps of what has come and nobody has read. Default 262,144. */
  readonly bufferBytes?: number;
  /** How long the other side may take to accept a connection, in milliseconds. Default 10,000. */
  readonly timeoutMs?: number;
  /** How long it may take to answer the end of a connection before it is reset, in milliseconds. Default 8,000. */
  readonly closeTimeoutMs?: number;
  /** How long to poll the queues in vain before sleeping, in milliseconds. Default 0. */
  readonly pollMs?: number;
}

export interface VsockPlan {
  readonly receive: VsockReceiveQueueOptions;
  readonly transmit: VsockTransmitQueueOptions;
  readonly ring: RingFeatures;
  readonly bufferBytes: number;
  readonly connectTimeoutMs: number;
  readonly closeTimeoutMs: number;
  readonly memoryBytes: number;
}

/** The features to accept of those that are offered. */
export function wantedVsockFeatures(options: VsockDriverOptions): bigint {
  return (WANTED_FEATURES | wantedRingFeatures(options)) & ~(options.withoutFeatures ?? 0n);
}

/** Whether sockets of a type are possible: without any bit streams are. Source: VIRTIO 1.3, 5.10.3. */
export function hasSocketType(features: bigint, type: number): boolean {
  if (type === VIRTIO_VSOCK_TYPE_SEQPACKET) return hasFeature(features, VIRTIO_VSOCK_F_SEQPACKET);
  return hasFeature(features, VIRTIO_VSOCK_F_STREAM) || !hasFeature(features, VIRTIO_VSOCK_F_NO_IMPLIED_STREAM);
}

/**
 * Sizes of everything. `queueCount` is the answer to GET_QUEUE_NUM.
 * @throws PeerError - the device has less than is needed
 * @throws RangeError - a size that does not work
 */
export function planVsock(features: bigint, queueCount: number | undefined, options: VsockDriverOptions): VsockPlan {
  if (!hasFeature(features, VIRTIO_F_VERSION_1)) {
    throw new PeerError('the device does not offer VERSION_1: devices older than virtio 1.0 are not supported');
  }
  checkRingFeatures(features, options);
  if (queueCount !== undefined && queueCount < VIRTIO_VSOCK_QUEUES) {
    throw new PeerError(`the device has ${queueCount} queues, a socket device needs ${VIRTIO_VSOCK_QUEUES}`);
  }
  const bufferBytes = options.bufferBytes ?? DEFAULT_BUFFER_BYTES;
  if (!(bufferBytes >= 1 && bufferBytes <= MAX_BUFFER_BYTES)) {
    throw new RangeError(`buffers of ${bufferBytes} bytes: from 1 to ${MAX_BUFFER_BYTES} are possible`);
  }
  const ring = ringFeaturesOf(features);
  const sizes = {
    size: options.queueSize ?? 256,
    payloadBytes: options.payloadBytes ?? VIRTIO_VSOCK_MAX_PACKET_BYTES,
    ...ring,
  };
  const receive = { ...sizes, index: VIRTIO_VSOCK_RX_QUEUE };
  const transmit = { ...sizes, index: VIRTIO_VSOCK_TX_QUEUE };
  return {
    receive,
    transmit,
    ring,
    bufferBytes,
    connectTimeoutMs: options.timeoutMs ?? 10_000,
    closeTimeoutMs: options.closeTimeoutMs ?? CLOSE_TIMEOUT_MS,
    memoryBytes:
      VsockReceiveQueue.memoryBytes(receive) +
      VsockTransmitQueue.memoryBytes(transmit) +
      VsockEventQueue.memoryBytes() +
      PAGE_BYTES,
  };
}

/**
 * Decodes the configuration space.
 * @throws RangeError - it is too short, or the CID is none that a guest can have
 */
export function decodeGuestCid(bytes: Uint8Array): number {
  if (bytes.length < VIRTIO_VSOCK_CONFIG_BYTES) {
    throw new RangeError(
      `the configuration space has ${bytes.length} bytes, guest_cid needs ${VIRTIO_VSOCK_CONFIG_BYTES}`,
    );
  }
  const cid = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getBigUint64(0, true);
  if (cid < BigInt(VIRTIO_VSOCK_MIN_CID) || cid > BigInt(VIRTIO_VSOCK_MAX_CID)) {
    throw new RangeError(`guest_cid is ${cid}: guests have from ${VIRTIO_VSOCK_MIN_CID} to ${VIRTIO_VSOCK_MAX_CID}`);
  }
  return Number(cid);
}

/**
 * The guest's CID, as the user or the back end says.
 * @throws PeerError - neither does
 */
export async function readGuestCid(frontend: VhostUserFrontend, options: VsockDriverOptions): Promise<number> {
  if (options.guestCid !== undefined) return options.guestCid;
  if (!frontend.hasProtocolFeature(VHOST_USER_PROTOCOL_F_CONFIG)) {
    throw new PeerError('the back end does not offer CONFIG, so that the CID of the guest has to be given');
  }
  return decodeGuestCid(await frontend.readConfig(0, VIRTIO_VSOCK_CONFIG_BYTES));
}
