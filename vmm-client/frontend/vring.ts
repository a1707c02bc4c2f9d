/** One virtqueue as the front end tells it to the back end. Source: vhost-user, Ring states, Starting and stopping rings. */

import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { ProtocolError } from '../../protocol/vhost-user/errors.ts';
import { FRONTEND } from '../../protocol/vhost-user/messages.ts';
import type { VringAddress } from '../../protocol/vhost-user/payloads.ts';
import { hasFeature, VHOST_USER_F_PROTOCOL_FEATURES } from '../../protocol/virtio/reserved-features.ts';
import type { FrontendConnection } from './connection.ts';

/** A vring and its descriptors, which stay the driver's. Addresses are user addresses of shared memory. */
export interface Vring {
  readonly index: number;
  /** Entries. */
  readonly size: number;
  readonly descriptorTable: number;
  readonly availRing: number;
  readonly usedRing: number;
  /**
   * The three addresses are I/O virtual ones, as a guest's driver wrote them. Otherwise, where the device is behind an
   * IOMMU, they are looked up in its mappings.
   */
  readonly hasIova?: boolean;
  /** Written by the driver, read by the back end. Undefined: the back end has to poll. */
  readonly kick: OwnedFd | undefined;
  /** Written by the back end, read by the driver. Undefined: the driver polls. */
  readonly call: OwnedFd | undefined;
  /** Written by the back end when the ring is broken. */
  readonly error: OwnedFd | undefined;
  /**
   * Called when the back end came back after it died and before it gets the ring again; returns the new base.
   * `keepsInflight` says that it knows from the in-flight region what it had taken; where not, the driver has to make
   * everything that is unfinished available again. Undefined: nobody can say any more, and it does not get the ring.
   */
  resume(keepsInflight: boolean): number | undefined;
  /** Signals the kick descriptor. */
  notify(): void;
}

/** What a ring is started with, besides what its driver says of it. */
export interface VringStart {
  /**
   * Where the back end goes on, as GET_VRING_BASE said it: in a split ring a free-running index into the available ring
   * (16 bits), in a packed one two positions and their wrap counters (32 bits).
   */
  readonly base: number;
  /** The ring's place in the addresses that the back end is told. */
  readonly address: VringAddress;
  readonly features: bigint;
  /** Kicks, calls and errors are messages: the back end gets no descriptors. */
  readonly isInband: boolean;
}

/**
 * Hands one ring over and starts it. All messages go out at once; the acknowledgements are awaited together.
 * @throws PeerError - refused, closed or timed out
 */
export async function startVring(connection: FrontendConnection, vring: Vring, start: VringStart): Promise<void> {
  const { index } = vring;
  const hasEnable = hasFeature(start.features, VHOST_USER_F_PROTOCOL_FEATURES);
  const withFd = (fd: OwnedFd | undefined) => [{ index, noFd: fd === undefined }, fd ? [fd] : []] as const;
  const notifications = () => [
    connection.command(FRONTEND.SET_VRING_CALL, ...withFd(vring.call)),
    connection.command(FRONTEND.SET_VRING_KICK, ...withFd(vring.kick)),
    connection.command(FRONTEND.SET_VRING_ERR, ...withFd(vring.error)),
  ];
  await Promise.all([
    connection.command(FRONTEND.SET_VRING_NUM, { index, num: vring.size }),
    connection.command(FRONTEND.SET_VRING_BASE, { index, num: start.base }),
    connection.command(FRONTEND.SET_VRING_ADDR, start.address),
    ...(start.isInband ? [] : notifications()),
    ...(hasEnable ? [connection.command(FRONTEND.SET_VRING_ENABLE, { index, num: 1 })] : []),
    // Starts the ring where no SET_VRING_KICK does.
    ...(start.isInband ? [connection.command(FRONTEND.VRING_KICK, { index, num: 0 })] : []),
  ]);
  // Requests that were made available while nobody listened would wait for the next one's kick.
  vring.notify();
}

/**
 * Stops a ring (GET_VRING_BASE), which is answered once nothing of it is in flight. With `features` given it is disabled
 * before. Returns the base to go on from.
 * @throws PeerError - closed or timed out
 * @throws ProtocolError - the answer is for another ring
 */
export async function stopVring(connection: FrontendConnection, index: number, features = 0n): Promise<number> {
  const disabled = hasFeature(features, VHOST_USER_F_PROTOCOL_FEATURES)
    ? connection.command(FRONTEND.SET_VRING_ENABLE, { index, num: 0 })
    : undefined;
  const [reply] = await Promise.all([connection.call(FRONTEND.GET_VRING_BASE, { index, num: 0 }), disabled]);
  if (reply.index !== index) throw new ProtocolError(`GET_VRING_BASE of ring ${index} was answered for ${reply.index}`);
  return reply.num;
}
