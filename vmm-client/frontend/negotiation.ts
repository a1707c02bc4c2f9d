/**
 * The opening of every connection: what the back end can do, and what of it is used. The order is the one that QEMU
 * uses. Source: vhost-user, Feature negotiation, Multiple queue support.
 */

import { PeerError } from '../../protocol/vhost-user/errors.ts';
import {
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_RARP,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_STATUS,
} from '../../protocol/vhost-user/features.ts';
import { FRONTEND } from '../../protocol/vhost-user/messages.ts';
import { MAX_TABLE_REGIONS } from '../../protocol/vhost-user/payloads.ts';
import { featureMask, hasFeature, VHOST_USER_F_PROTOCOL_FEATURES } from '../../protocol/virtio/reserved-features.ts';
import type { FrontendConnection } from './connection.ts';

/** Protocol features that this front end uses where they are offered. */
export const DEFAULT_PROTOCOL_FEATURES = featureMask(
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_RARP,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_STATUS,
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
);

const INBAND = featureMask(VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS);
/** Without these nothing can be notified in band: a back end ends the connection. */
const INBAND_NEEDS = featureMask(VHOST_USER_PROTOCOL_F_BACKEND_REQ, VHOST_USER_PROTOCOL_F_REPLY_ACK);

/** Every protocol feature that this front end can use. Notifications in band are slow: only for those who ask for them. */
export const USABLE_PROTOCOL_FEATURES = DEFAULT_PROTOCOL_FEATURES | INBAND;

/** What a back end said of itself, and what of the protocol was taken. */
export interface Capabilities {
  /** Feature bits of device, ring and transport as offered. */
  readonly features: bigint;
  /** Protocol feature bits as offered; 0 where the back end has none. */
  readonly offeredProtocolFeatures: bigint;
  /** Those of them that this front end accepted. */
  readonly protocolFeatures: bigint;
  /** Answer to GET_QUEUE_NUM; undefined without MQ. Network back ends may count pairs. */
  readonly queueCount: number | undefined;
  /** Memory regions that the back end can hold at once. */
  readonly maxMemorySlots: number;
}

/**
 * Negotiates up to and including SET_OWNER.
 * @throws PeerError - refused, closed or timed out
 * @throws ProtocolError - an answer is malformed
 */
export async function negotiate(connection: FrontendConnection, wanted: bigint): Promise<Capabilities> {
  const features = await connection.call(FRONTEND.GET_FEATURES, undefined).catch((error: unknown) => {
    // Back ends that serve one front end leave the next one in the backlog of their socket.
    if (!(error instanceof PeerError)) throw error;
    throw new PeerError(`${error.message}; is it busy with another front end?`, { cause: error });
  });
  let offeredProtocolFeatures = 0n;
  let protocolFeatures = 0n;
  if (hasFeature(features, VHOST_USER_F_PROTOCOL_FEATURES)) {
    offeredProtocolFeatures = await connection.call(FRONTEND.GET_PROTOCOL_FEATURES, undefined);
    protocolFeatures = offeredProtocolFeatures & wanted & USABLE_PROTOCOL_FEATURES;
    if ((protocolFeatures & INBAND_NEEDS) !== INBAND_NEEDS) protocolFeatures &= ~INBAND;
    await connection.command(FRONTEND.SET_PROTOCOL_FEATURES, protocolFeatures);
    connection.protocolFeatures = protocolFeatures;
  }
  const queueCount = hasFeature(protocolFeatures, VHOST_USER_PROTOCOL_F_MQ)
    ? Number(await connection.call(FRONTEND.GET_QUEUE_NUM, undefined))
    : undefined;
  const maxMemorySlots = hasFeature(protocolFeatures, VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS)
    ? Number(await connection.call(FRONTEND.GET_MAX_MEM_SLOTS, undefined))
    : MAX_TABLE_REGIONS;
  await connection.command(FRONTEND.SET_OWNER, undefined);
  return { features, offeredProtocolFeatures, protocolFeatures, queueCount, maxMemorySlots };
}
