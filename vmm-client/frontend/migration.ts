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
import { CONFIG_FLAG_MIGRATION, readConfig, writeConfig } from './config-access.ts';
import type { FrontendConnection } from './connection.ts';
import type { DeviceSetup, PositionedRing } from './device-setup.ts';
import { loadDeviceState, saveDeviceState } from './device-state.ts';
import type { SharedRegion } from './hand-over.ts';
import type { Link } from './link.ts';
import { captureInflight, type DeviceSnapshot, recreateInflight } from './snapshot.ts';
import { stopVring, type Vring } from './vring.ts';

export interface SuspendOptions {
  /** Bytes of configuration space to take along. Default 0. */
  readonly configBytes?: number;
  /** How long the back end's own state may take, in milliseconds. Default 10,000. */
  readonly stateTimeoutMs?: number;
}

const STATE_TIMEOUT_MS = 10_000;

/** What a front end lends to its migration. */
export interface MigrationHost {
  readonly setup: DeviceSetup;
  readonly link: Link;
  /** Opens a link to another back end, which is not used yet. @throws SysError, PeerError, ProtocolError */
  openLink(path: string, waitMs: number): Promise<Link>;
  /** Uses that link from now on, and closes the one before. */
  switchTo(link: Link): void;
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
    const { setup, link } = this.#host;
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

  /** Lets the present back end go on after `suspend`. @throws PeerError */
  async resume(): Promise<void> {
    const { setup, link } = this.#host;
    const rings = this.#suspended;
    await link.command((connection) => setup.start(connection, rings));
    this.#giveBack(setup);
  }

  /**
   * Lets the back end at `path` go on instead of the suspended one, whose connection is closed then. `waitMs` is how long
   * to wait for somebody to listen there.
   * @throws SysError, PeerError, ProtocolError - that failed; the device is suspended as before
   */
  async moveTo(path: string, snapshot: DeviceSnapshot, waitMs = 0): Promise<void> {
    const next = await this.#host.openLink(path, waitMs);
    const positions = new Map(this.#suspended.map((ring) => [ring.vring, ring]));
    try {
      await this.#restore(next, snapshot, this.#suspended, (vring) => positions.delete(vring));
    } catch (error) {
      // Rings that the other back end had started may have moved on.
      const started = this.#suspended.filter(({ vring }) => !positions.has(vring));
      for (const ring of started) {
        const base = await stopVring(next.connection, ring.vring.index).catch(() => ring.base);
        positions.set(ring.vring, { vring: ring.vring, base });
      }
      this.#suspended = [...positions.values()];
      next.close();
      throw error;
    }
    this.#host.switchTo(next);
    this.#giveBack(this.#host.setup);
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
    const { setup, link } = this.#host;
    setup.features = snapshot.features;
    setup.memory = [...memory];
    await this.#restore(link, snapshot, rings, (vring) => setup.vrings.set(vring.index, vring));
  }

  async #stopRings(connection: FrontendConnection): Promise<PositionedRing[]> {
    const { setup, link } = this.#host;
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

  async #restore(
    link: Link,
    snapshot: DeviceSnapshot,
    rings: readonly PositionedRing[],
    onStarted: (vring: Vring) => void,
  ): Promise<void> {
    const { setup } = this.#host;
    const missing = snapshot.features & ~link.capabilities.features;
    if (missing !== 0n)
      throw new PeerError(`the back end lacks features of the device (mask 0x${missing.toString(16)})`);
    const { deviceState, config, inflight } = snapshot;
    await link.command(async (connection) => {
      const takesState = connection.has(VHOST_USER_PROTOCOL_F_DEVICE_STATE);
      if (deviceState !== undefined && deviceState.length > 0 && !takesState) {
        throw new PeerError(`the back end cannot take ${deviceState.length} bytes of device state`);
      }
      const isTracked = inflight !== undefined && connection.has(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD);
      const region = isTracked ? recreateInflight(inflight) : undefined;
      try {
        await setup.send(connection, region);
        if (config.length > 0 && connection.has(VHOST_USER_PROTOCOL_F_CONFIG)) {
          await writeConfig(connection, 0, config, CONFIG_FLAG_MIGRATION);
        }
        if (deviceState !== undefined && takesState) await loadDeviceState(connection, deviceState, STATE_TIMEOUT_MS);
        for (const ring of rings) {
          await setup.start(connection, [ring]);
          onStarted(ring.vring);
        }
      } catch (error) {
        region?.fd.close();
        throw error;
      }
      setup.setInflight(region);
    });
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
