/**
 * Moving a device from one back end to another while its driver knows nothing of it: its rings are stopped, what is to be
 * known is taken, another back end gets it and goes on. Until that is done the first one can go on instead.
 * Source: vhost-user, Migrating back-end state, Suspended device state.
 */

import { PeerError } from '../../protocol/vhost-user/errors.ts';
import {
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
} from '../../protocol/vhost-user/features.ts';
import { FRONTEND } from '../../protocol/vhost-user/messages.ts';
import {
  featureMask,
  VHOST_F_LOG_ALL,
  VHOST_USER_F_PROTOCOL_FEATURES,
} from '../../protocol/virtio/reserved-features.ts';
import { CONFIG_FLAG_MIGRATION, readConfig, writeConfig } from './config-access.ts';
import type { FrontendConnection } from './connection.ts';
import type { DeviceSetup, PositionedRing } from './device-setup.ts';
import { loadDeviceState, saveDeviceState } from './device-state.ts';
import { type InflightRegion, requestInflight, type SharedRegion, sendInflight } from './hand-over.ts';
import type { Link } from './link.ts';
import {
  captureInflight,
  type DeviceSnapshot,
  fillInflight,
  type InflightSnapshot,
  recreateInflight,
} from './snapshot.ts';
import { stopVring, type Vring } from './vring.ts';

export interface SuspendOptions {
  /** Bytes of configuration space to take along. Default 0. */
  readonly configBytes?: number;
  /** How long the back end's own state may take, in milliseconds. Default 10,000. */
  readonly stateTimeoutMs?: number;
}

const STATE_TIMEOUT_MS = 10_000;
const LOG_ALL = featureMask(VHOST_F_LOG_ALL);
const PROTOCOL_FEATURES = featureMask(VHOST_USER_F_PROTOCOL_FEATURES);

/** What a front end lends to its migration. */
export interface MigrationHost {
  readonly setup: DeviceSetup;
  /** The one that is used. */
  link(): Link;
  /** Opens a link to another back end, which is not used yet. @throws SysError, PeerError, ProtocolError */
  openLink(path: string, waitMs: number): Promise<Link>;
  /** Uses a link from now on. As long as it is only tried, nobody hears that it broke. */
  use(link: Link, isTried: boolean): void;
}

export class Migration {
  readonly #host: MigrationHost;
  #suspended: readonly PositionedRing[] = [];

  constructor(host: MigrationHost) {
    this.#host = host;
  }

  /**
   * Stops all rings, once nothing is in flight, and takes what another back end needs. Drivers may go on to make requests
   * available. What follows is `resume`, `moveTo`, or the end of this front end and `restore` on another.
   * @throws PeerError, ProtocolError - it failed; the device runs on, after a reconnect where it went wrong half-way
   */
  async suspend(options: SuspendOptions = {}): Promise<DeviceSnapshot> {
    const { setup } = this.#host;
    const link = this.#host.link();
    const connection = await link.connected();
    this.#suspended = await this.#stopRings(connection);
    try {
      return await this.#capture(connection, options);
    } catch (error) {
      if (link.state === 'connected') await this.resume();
      else this.#giveBack(setup);
      throw error;
    }
  }

  /**
   * Lets the present back end go on after `suspend`.
   * @throws PeerError - it refused, or died meanwhile; after a reconnect it goes on all the same
   */
  async resume(): Promise<void> {
    const { setup } = this.#host;
    const link = this.#host.link();
    await link.connected();
    const rings = this.#suspended;
    this.#giveBack(setup);
    try {
      await link.command((connection) => setup.start(connection, rings));
    } catch (error) {
      // Some are started and some are not: only the end of the connection makes that one state.
      if (link.state === 'connected') link.hangUp(error as Error);
      throw error;
    }
  }

  /**
   * Tells a back end of which nothing is in use that its device goes elsewhere, as it hears of rings that stop while a dirty
   * log is on: one that keeps others away from a disk does so no more. It can be used again all the same.
   */
  async leave(): Promise<void> {
    const { setup } = this.#host;
    if (setup.features !== undefined) return;
    await this.#host.link().command(async (connection) => {
      await connection.command(FRONTEND.SET_FEATURES, PROTOCOL_FEATURES | LOG_ALL);
      // Not GET_VRING_BASE: there are back ends (DPDK's) that have nothing to say it of before a ring was described.
      await setup.reset(connection);
      await connection.command(FRONTEND.SET_FEATURES, PROTOCOL_FEATURES);
    });
  }

  /**
   * Lets the back end at `path` go on instead of the suspended one, whose connection is closed then. `waitMs` is how long
   * to wait for somebody to listen there.
   * @throws SysError, PeerError, ProtocolError - that failed; the device is suspended as before
   */
  async moveTo(path: string, snapshot: DeviceSnapshot, waitMs = 0): Promise<void> {
    const { setup } = this.#host;
    const previous = this.#host.link();
    const next = await this.#host.openLink(path, waitMs);
    const started = new Set<Vring>();
    let inflight: InflightRegion | undefined;
    try {
      inflight = await this.#prepare(next, snapshot);
      // The driver may hear of the new back end as soon as a ring runs, and ask it then, not the one before.
      this.#host.use(next, true);
      await next.command((connection) => setup.start(connection, this.#suspended, (vring) => started.add(vring)));
      if (next.state !== 'connected') throw new PeerError('the back end went away');
    } catch (error) {
      this.#suspended = await stopAll(next.connection, this.#suspended, started);
      inflight?.fd.close();
      next.close();
      this.#host.use(previous, false);
      throw error;
    }
    setup.setInflight(inflight);
    this.#host.use(next, false);
    this.#giveBack(setup);
    // What the driver asked the back end before is answered first.
    await previous.connection.call(FRONTEND.GET_FEATURES, undefined).catch(() => undefined);
    previous.close();
  }

  /**
   * Lets this front end's back end, which has nothing yet, go on where a snapshot was taken. `memory` is the guest's as it
   * was then, `vrings` are the rings of the snapshot.
   * @throws PeerError, ProtocolError - the back end lacks what is needed, or refuses it
   * @throws RangeError - other rings
   */
  async restore(snapshot: DeviceSnapshot, memory: readonly SharedRegion[], vrings: readonly Vring[]): Promise<void> {
    if (vrings.length !== snapshot.rings.length) {
      throw new RangeError(`${vrings.length} rings for a snapshot of ${snapshot.rings.length}`);
    }
    const rings = snapshot.rings.map(({ index, size, base }) => {
      const vring = vrings.find((other) => other.index === index && other.size === size);
      if (vring === undefined)
        throw new RangeError(`the snapshot has a ring ${index} of ${size} entries, the driver not`);
      return { vring, base };
    });
    const { setup } = this.#host;
    const link = this.#host.link();
    setup.features = snapshot.features;
    setup.memory = [...memory];
    setup.setInflight(await this.#prepare(link, snapshot));
    await link.command((connection) => setup.start(connection, rings));
    for (const { vring } of rings) setup.vrings.set(vring.index, vring);
  }

  async #stopRings(connection: FrontendConnection): Promise<PositionedRing[]> {
    const { setup } = this.#host;
    const link = this.#host.link();
    const vrings = [...setup.vrings.values()];
    // A back end that comes back in the place of this one must not get them: they are somebody else's soon.
    setup.vrings.clear();
    // Nor must a kick in band start what is stopped.
    setup.inband.close();
    const stopped = await Promise.allSettled(vrings.map(({ index }) => stopVring(connection, index)));
    const failed = stopped.find((result) => result.status === 'rejected');
    if (failed === undefined) {
      return vrings.map((vring, i) => ({ vring, base: (stopped[i] as PromiseFulfilledResult<number>).value }));
    }
    for (const vring of vrings) setup.vrings.set(vring.index, vring);
    // Some are stopped and some are not: only the end of the connection makes that one state.
    link.hangUp(failed.reason);
    throw failed.reason;
  }

  async #capture(
    connection: FrontendConnection,
    { configBytes = 0, stateTimeoutMs = STATE_TIMEOUT_MS }: SuspendOptions,
  ): Promise<DeviceSnapshot> {
    const { setup } = this.#host;
    return {
      features: setup.features ?? 0n,
      protocolFeatures: connection.protocolFeatures,
      config: configBytes === 0 ? new Uint8Array() : await readConfig(connection, 0, configBytes),
      rings: this.#suspended.map(({ vring, base }) => {
        return { index: vring.index, size: vring.size, base, ...setup.guestPlaceOf(vring) };
      }),
      inflight: setup.inflight === undefined ? undefined : captureInflight(setup.inflight),
      deviceState: connection.has(VHOST_USER_PROTOCOL_F_DEVICE_STATE)
        ? await saveDeviceState(connection, stateTimeoutMs)
        : undefined,
    };
  }

  /** Hands over all but the rings. Returns the in-flight region that the back end got, the caller's. */
  async #prepare(link: Link, snapshot: DeviceSnapshot): Promise<InflightRegion | undefined> {
    const missing = snapshot.features & ~link.capabilities.features;
    if (missing !== 0n)
      throw new PeerError(`the back end lacks features of the device (mask 0x${missing.toString(16)})`);
    const { deviceState, config, inflight } = snapshot;
    const connection = await link.connected();
    const takesState = connection.has(VHOST_USER_PROTOCOL_F_DEVICE_STATE);
    if (deviceState !== undefined && deviceState.length > 0 && !takesState) {
      throw new PeerError(`the back end cannot take ${deviceState.length} bytes of device state`);
    }
    const isTracked = inflight !== undefined && connection.has(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD);
    await this.#host.setup.send(connection, undefined);
    const region = isTracked ? await refillInflight(connection, inflight) : undefined;
    try {
      if (region !== undefined) await sendInflight(connection, region);
      if (config.length > 0 && connection.has(VHOST_USER_PROTOCOL_F_CONFIG)) {
        await writeConfig(connection, 0, config, CONFIG_FLAG_MIGRATION);
      }
      if (deviceState !== undefined && takesState) await loadDeviceState(connection, deviceState, STATE_TIMEOUT_MS);
      return region;
    } catch (error) {
      region?.fd.close();
      throw error;
    }
  }

  #giveBack(setup: DeviceSetup): void {
    for (const { vring } of this.#suspended) setup.vrings.set(vring.index, vring);
    this.forget();
  }

  /** Rings that were suspended are nobody's any more. */
  forget(): void {
    this.#suspended = [];
  }
}

/**
 * A region with what was in flight at another back end: of this one's making, because it may keep more in the file of it,
 * or like the other's where their sizes differ. The caller owns its descriptor.
 */
async function refillInflight(connection: FrontendConnection, snapshot: InflightSnapshot): Promise<InflightRegion> {
  const { numQueues, queueSize, bytes } = snapshot;
  const made = await requestInflight(connection, numQueues, queueSize);
  if (made.area.mmapSize === bytes.length) {
    try {
      fillInflight(made, bytes);
      return made;
    } catch (error) {
      made.fd.close();
      throw error;
    }
  }
  made.fd.close();
  return recreateInflight(snapshot);
}

/** Where rings stand after those that were started have been stopped: they may have moved on. */
function stopAll(
  connection: FrontendConnection,
  rings: readonly PositionedRing[],
  started: ReadonlySet<Vring>,
): Promise<PositionedRing[]> {
  return Promise.all(
    rings.map(async ({ vring, base }) => {
      if (!started.has(vring)) return { vring, base };
      return { vring, base: await stopVring(connection, vring.index).catch(() => base) };
    }),
  );
}
