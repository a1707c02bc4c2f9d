/**
 * What a back end has been handed: features, memory, the in-flight region, rings, a dirty log. Kept so that it can be
 * changed piece by piece while rings run, and handed to another back end in one go.
 * Source: vhost-user, Starting and stopping rings, Migration.
 */

import { IOTLB_READ, IOTLB_WRITE } from '../../protocol/memory/iotlb.ts';
import { closeAll } from '../../protocol/vhost-user/endpoint.ts';
import { PeerError } from '../../protocol/vhost-user/errors.ts';
import {
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_STATUS,
} from '../../protocol/vhost-user/features.ts';
import { FRONTEND } from '../../protocol/vhost-user/messages.ts';
import type { VringAddress } from '../../protocol/vhost-user/payloads.ts';
import {
  VIRTIO_STATUS_ACKNOWLEDGE,
  VIRTIO_STATUS_DRIVER,
  VIRTIO_STATUS_DRIVER_OK,
  VIRTIO_STATUS_FEATURES_OK,
} from '../../protocol/virtio/device-status.ts';
import {
  featureMask,
  hasFeature,
  VHOST_F_LOG_ALL,
  VIRTIO_F_ACCESS_PLATFORM,
} from '../../protocol/virtio/reserved-features.ts';
import type { FrontendConnection } from './connection.ts';
import type { DirtyBitmap } from './dirty-bitmap.ts';
import { type InflightRegion, type SharedRegion, sendInflight, sendMemory } from './hand-over.ts';
import type { InbandNotifications } from './inband.ts';
import type { IoMappings } from './io-mappings.ts';
import { startVring, stopVring, type Vring } from './vring.ts';

/** SET_VRING_ADDR: log the writes to the used ring. Source: linux/vhost_types.h. */
const VHOST_VRING_F_LOG = 1;
/** Device status once the features are settled. */
const STATUS_NEGOTIATED = VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK;
const LOG_ALL = featureMask(VHOST_F_LOG_ALL);

/** A ring, and where a back end goes on in it. */
export interface PositionedRing {
  readonly vring: Vring;
  readonly base: number;
}

/** Where a ring lies. */
export type RingPlace = Pick<Vring, 'descriptorTable' | 'availRing' | 'usedRing'>;

export class DeviceSetup {
  /** Settled with the driver; undefined before. */
  features: bigint | undefined;
  memory: readonly SharedRegion[] = [];
  /** Rings that a back end which comes back gets again. */
  readonly vrings = new Map<number, Vring>();
  /** Rings that the back end may have started, though it refused some of what it was told of them. */
  readonly touched = new Set<number>();
  inflight: InflightRegion | undefined;
  log: DirtyBitmap | undefined;
  readonly iommu: IoMappings | undefined;
  readonly inband: InbandNotifications;

  /** Takes `inband` over, which carries notifications where they are messages. */
  constructor(iommu: IoMappings | undefined, inband: InbandNotifications) {
    this.iommu = iommu;
    this.inband = inband;
  }

  /** Addresses in rings and descriptors are the IOMMU's. */
  get hasIova(): boolean {
    return hasFeature(this.features ?? 0n, VIRTIO_F_ACCESS_PLATFORM);
  }

  /** Tells features, with those of a running dirty log, and the device status that goes with them. */
  async sendFeatures(connection: FrontendConnection): Promise<void> {
    if (this.log !== undefined) await sendLog(connection, this.log);
    const features = (this.features ?? 0n) | (this.log === undefined ? 0n : LOG_ALL);
    await connection.command(FRONTEND.SET_FEATURES, features);
    connection.features = features;
    await raiseStatus(connection, STATUS_NEGOTIATED);
  }

  /** Starts rings, tells of each, then says that the driver is ready. */
  async start(
    connection: FrontendConnection,
    rings: readonly PositionedRing[],
    onStarted: (vring: Vring) => void = () => undefined,
  ): Promise<void> {
    const features = this.features ?? 0n;
    const isInband = connection.has(VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS);
    for (const { vring, base } of rings) {
      this.touched.add(vring.index);
      if (isInband) this.inband.add(vring, () => sendKick(connection, vring.index));
      await startVring(connection, vring, { base, address: this.addressOf(vring), features, isInband });
      onStarted(vring);
    }
    if (rings.length > 0) await raiseStatus(connection, VIRTIO_STATUS_DRIVER_OK);
  }

  /** Stops a ring, which no back end gets again, and resolves with its base when nothing of it is in flight. */
  async stop(connection: FrontendConnection, index: number): Promise<number> {
    this.vrings.delete(index);
    this.touched.delete(index);
    const base = await stopVring(connection, index);
    this.inband.remove(index);
    return base;
  }

  /** Resets the device in the ways that the back end has. Its rings are stopped then. */
  async reset(connection: FrontendConnection): Promise<void> {
    if (connection.has(VHOST_USER_PROTOCOL_F_RESET_DEVICE)) await connection.command(FRONTEND.RESET_DEVICE, undefined);
    if (connection.has(VHOST_USER_PROTOCOL_F_STATUS)) await connection.command(FRONTEND.SET_STATUS, 0n);
    connection.status = 0;
    this.inband.close();
  }

  /** Hands everything but rings to a back end that has nothing, with an in-flight region that may be another one. */
  async send(connection: FrontendConnection, inflight: InflightRegion | undefined): Promise<void> {
    if (this.features !== undefined) await this.sendFeatures(connection);
    if (this.memory.length > 0) await sendMemory(connection, this.memory);
    if (inflight !== undefined) await sendInflight(connection, inflight);
  }

  /** Brings a back end that came back to the state that the one before it had. */
  async replay(connection: FrontendConnection): Promise<void> {
    // What the dead one wrote last, nobody marked. Of one whose rings were stopped in order there is no such thing.
    for (const { region } of this.log === undefined || this.vrings.size === 0 ? [] : this.memory) {
      this.log?.mark({ guestAddress: region.guestAddress, length: region.size });
    }
    await this.send(connection, this.inflight);
    for (const vring of [...this.vrings.values()]) {
      const base = vring.resume(this.inflight !== undefined);
      if (base === undefined) this.vrings.delete(vring.index);
      else await this.start(connection, [{ vring, base }]);
    }
  }

  /** Tells the places of all rings again, when their used rings are to be logged or no longer. */
  async sendAddresses(connection: FrontendConnection): Promise<void> {
    await Promise.all(
      [...this.vrings.values()].map((vring) => connection.command(FRONTEND.SET_VRING_ADDR, this.addressOf(vring))),
    );
  }

  /** The place of a ring as the back end is told. @throws RangeError - the IOMMU or the memory has no such address */
  addressOf(vring: Vring): VringAddress {
    const { index } = vring;
    const isLogged = this.log !== undefined;
    const usedLog = isLogged ? BigInt(this.guestPlaceOf(vring).usedRing) : 0n;
    const { descriptorTable, availRing, usedRing } = this.hasIova ? this.guestPlaceOf(vring) : vring;
    const addresses = { descriptor: descriptorTable, used: usedRing, available: availRing, log: usedLog };
    return { index, flags: isLogged ? VHOST_VRING_F_LOG : 0, ...addresses };
  }

  /** The place of a ring as its driver knows it: guest addresses, which are I/O virtual ones behind an IOMMU. */
  guestPlaceOf(vring: Vring): RingPlace {
    const { descriptorTable, availRing, usedRing } = vring;
    if (vring.hasIova === true) return { descriptorTable, availRing, usedRing };
    return {
      descriptorTable: this.#guestAddressOf(vring, descriptorTable),
      availRing: this.#guestAddressOf(vring, availRing),
      usedRing: this.#guestAddressOf(vring, usedRing),
    };
  }

  #guestAddressOf({ index }: Vring, userAddress: number): number {
    const found = this.hasIova ? this.iommu?.iovaOf(userAddress) : guestAddressIn(this.memory, userAddress);
    if (found !== undefined) return found;
    throw new RangeError(
      `ring ${index}: user address 0x${userAddress.toString(16)} is nowhere in what the device can reach`,
    );
  }

  /** Has the IOMMU map regions that have a place there. */
  async map(memory: readonly SharedRegion[]): Promise<void> {
    for (const { iova, region } of memory) {
      if (iova === undefined) continue;
      const { size, userAddress } = region;
      await this.iommu?.map({ iova, size, userAddress, permission: IOTLB_READ | IOTLB_WRITE });
    }
  }

  /** Ends that. A back end that is not there any more uses none of it. */
  async unmap(memory: readonly SharedRegion[]): Promise<void> {
    for (const { iova, region } of memory) if (iova !== undefined) await this.iommu?.unmap(iova, region.size);
  }

  /** Takes everything back but the dirty log, which outlives resets. */
  forget(): void {
    this.features = undefined;
    this.memory = [];
    this.vrings.clear();
    this.touched.clear();
    this.setInflight(undefined);
    this.inband.close();
  }

  /** Takes over another in-flight region. */
  setInflight(inflight: InflightRegion | undefined): void {
    this.inflight?.fd.close();
    this.inflight = inflight;
  }
}

function guestAddressIn(memory: readonly SharedRegion[], userAddress: number): number | undefined {
  const found = memory.find(({ region }) => {
    const offset = userAddress - region.userAddress;
    return offset >= 0 && offset < region.size;
  });
  return found && found.region.guestAddress + (userAddress - found.region.userAddress);
}

function sendKick(connection: FrontendConnection, index: number): Promise<void> {
  return connection.command(FRONTEND.VRING_KICK, { index, num: 0 });
}

/** Sets bits of the device status. @throws PeerError - the device does not accept the features */
async function raiseStatus(connection: FrontendConnection, bits: number): Promise<void> {
  if (!connection.has(VHOST_USER_PROTOCOL_F_STATUS) || (connection.status & bits) === bits) return;
  connection.status |= bits;
  await connection.command(FRONTEND.SET_STATUS, BigInt(connection.status));
  if (bits !== STATUS_NEGOTIATED) return;
  const status = Number(await connection.call(FRONTEND.GET_STATUS, undefined));
  if ((status & VIRTIO_STATUS_FEATURES_OK) === 0) {
    throw new PeerError(`the device does not accept its features (status 0x${status.toString(16)})`);
  }
}

/** End of the guest addresses of memory, up to which a dirty log has to reach. */
export function coveredBytes(memory: readonly SharedRegion[]): number {
  return memory.reduce((top, { region }) => Math.max(top, region.guestAddress + region.size), 0);
}

/** Gives a back end the log to write in. What it answers differs from one implementation to the next, and says nothing. */
export async function sendLog(connection: FrontendConnection, { length, memfd }: DirtyBitmap): Promise<void> {
  const { fds } = await connection.callRaw(FRONTEND.SET_LOG_BASE, { size: length, offset: 0 }, [memfd]);
  closeAll(fds);
}
