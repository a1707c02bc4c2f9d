/**
 * A virtio device whose queues are served by a vhost-user back end. It hands the queues over when the driver is ready and
 * takes them back at a reset; in between the data path does not come by here. When the back end dies and comes back, the
 * front end hands everything over again and the queues go on where the used rings end. Suspended, it can go on with
 * another back end, in another process. Source: vhost-user, Starting and stopping rings, Inflight I/O tracking, Migration.
 */

import { PeerError } from '../../../protocol/vhost-user/errors.ts';
import { VHOST_USER_PROTOCOL_F_CONFIG } from '../../../protocol/vhost-user/features.ts';
import { featureMask, VHOST_USER_F_PROTOCOL_FEATURES } from '../../../protocol/virtio/reserved-features.ts';
import type { DirtyRange } from '../../frontend/dirty-bitmap.ts';
import type { VhostUserFrontend } from '../../frontend/frontend.ts';
import type { SharedRegion } from '../../frontend/hand-over.ts';
import type { IoMappings } from '../../frontend/io-mappings.ts';
import type { Vring } from '../../frontend/vring.ts';
import { VmError } from '../errors.ts';
import { isPeersFault } from './blame.ts';
import { type DeviceMemory, DeviceRings } from './device-rings.ts';
import { type DeviceProfile, offeredFeatures, traitsOf } from './profile.ts';
import {
  checkLogged,
  checkMovable,
  parseVhostUserState,
  runningState,
  snapshotOf,
  type VhostUserState,
} from './vhost-user-state.ts';
import type { Activation, DeviceState, VirtioDevice, VirtioDeviceListener } from './virtio-device.ts';
import { whileAlive } from './while-alive.ts';

export type { DeviceMemory } from './device-rings.ts';

export interface VhostUserDeviceOptions {
  readonly ram: DeviceMemory;
  /** Gets one line without its end for each thing that goes wrong or right again. */
  readonly log: (line: string) => void;
  /** How long a vCPU that activates or resets waits for a back end that is away, in milliseconds. Default 10,000. */
  readonly awayMs?: number;
  /** The device is behind this IOMMU, which somebody else fills; its front end was connected with the same. */
  readonly iommu?: IoMappings;
  /** Whether the driver is offered packed rings. Default false: split ones are served faster. */
  readonly packed?: boolean;
}

const DEFAULT_AWAY_MS = 10_000;
const PROTOCOL_FEATURES = featureMask(VHOST_USER_F_PROTOCOL_FEATURES);

export class VhostUserDevice implements VirtioDevice {
  readonly #profile: DeviceProfile;
  readonly #frontend: VhostUserFrontend;
  readonly #ram: DeviceMemory;
  readonly #rings: DeviceRings;
  readonly #log: (line: string) => void;
  readonly #awayMs: number;
  readonly features: bigint;
  #config: Uint8Array;
  #listener: VirtioDeviceListener | undefined;
  /** Set between the start of an activation and the end of the next reset. */
  #activation: Activation | undefined;
  /** Whether the queues were handed over. */
  #isRunning = false;
  #isSuspended = false;
  #needsReset = false;
  #lost: Error | undefined;
  #closed = false;
  #disconnects = 0;
  #reconnects = 0;
  #configChanges = 0;

  /** Takes the front end over. `config` is what the profile read of it. */
  constructor(
    profile: DeviceProfile,
    frontend: VhostUserFrontend,
    config: Uint8Array,
    options: VhostUserDeviceOptions,
  ) {
    this.#profile = profile;
    this.#frontend = frontend;
    this.#config = config;
    this.#ram = options.ram;
    this.#log = (line) => options.log(`${profile.name}: ${line}`);
    this.#awayMs = options.awayMs ?? DEFAULT_AWAY_MS;
    this.features = offeredFeatures(profile.features, traitsOf(options));
    this.#rings = new DeviceRings(profile, options.ram, options.iommu, (error) => this.#fail(error));
    frontend.on('configChange', () => void this.#refresh(true));
    frontend.on('channelFault', (error) => this.#log(`its request channel was closed: ${error.message}`));
    frontend.on('disconnect', (error) => {
      this.#disconnects += 1;
      this.#log(`the back end went away, waiting for it: ${error.message}`);
    });
    frontend.on('reconnect', () => this.#resumed());
    frontend.on('lost', (error) => {
      this.#lost = new PeerError(`the back end is lost: ${error.message}`);
      this.#fail(this.#lost);
    });
  }

  get name(): string {
    return this.#profile.name;
  }

  get deviceId(): number {
    return this.#profile.deviceId;
  }

  get queueSizes(): readonly number[] {
    return this.#profile.queueSizes;
  }

  get config(): Uint8Array {
    return this.#config;
  }

  get isConnected(): boolean {
    return this.#frontend.isConnected;
  }

  listen(listener: VirtioDeviceListener): void {
    this.#listener = listener;
  }

  async activate(activation: Activation): Promise<void> {
    this.#activation = activation;
    const vrings = this.#rings.place(activation);
    await this.#whileAlive(
      () => this.#handOver(activation.features, vrings),
      () => this.#frontend.takeBack(0),
    );
    this.#isRunning = true;
  }

  /** @throws PeerError - the back end is away or lost. Whatever the step throws */
  async #whileAlive<T>(step: () => Promise<T>, undo?: () => Promise<void>): Promise<T> {
    if (this.#lost !== undefined) throw this.#lost;
    return whileAlive(this.#frontend, this.#awayMs, step, undo);
  }

  async #handOver(features: bigint, vrings: readonly Vring[]): Promise<void> {
    const frontend = this.#frontend;
    await frontend.acceptFeatures(features | PROTOCOL_FEATURES);
    await frontend.setMemory(this.#ram.regions);
    if (vrings.length === 0) return;
    const numQueues = Math.max(...vrings.map(({ index }) => index)) + 1;
    await frontend.trackInflight(numQueues, Math.max(...vrings.map(({ size }) => size)));
    for (const vring of vrings) await frontend.startVring(vring, this.#rings.startBase(vring, features));
  }

  async stopQueue(index: number): Promise<void> {
    const ring = this.#profile.ringOf(index, this.#activation?.features ?? 0n);
    if (!this.#profile.isServed(index)) return;
    try {
      if (await this.#frontend.waitUntilConnected(this.#awayMs)) await this.#frontend.stopVring(ring);
    } catch (error) {
      this.#log(`queue ${index} was not stopped in order: ${(error as Error).message}`);
    }
  }

  async reset(): Promise<void> {
    await this.#frontend.takeBack(this.#awayMs);
    this.#activation = undefined;
    this.#isRunning = false;
    this.#isSuspended = false;
    this.#rings.close();
    this.#needsReset = false;
    // A reset changes what the driver could write.
    if (this.#frontend.isConnected) await this.#refresh(false);
  }

  async writeConfig(offset: number, bytes: Uint8Array, features: bigint): Promise<void> {
    const frontend = this.#frontend;
    if (!this.#profile.isWritable(offset, bytes.length, features)) return;
    if (!frontend.hasProtocolFeature(VHOST_USER_PROTOCOL_F_CONFIG)) return;
    if (!(await frontend.waitUntilConnected(this.#awayMs))) return;
    try {
      await frontend.writeConfig(offset, bytes);
    } catch (error) {
      this.#log(`configuration was not written: ${(error as Error).message}`);
      return;
    }
    await this.#refresh(false);
  }

  async suspend(): Promise<DeviceState> {
    const phase = this.#activation === undefined ? 'idle' : 'failed';
    const still: VhostUserState = { phase, config: this.#config.slice(), rings: [] };
    if (!this.#isRunning || this.#lost !== undefined) {
      if (phase === 'idle') await this.#leave();
      return still;
    }
    this.#checkMovable();
    try {
      const snapshot = await this.#whileAlive(() => this.#frontend.migration.suspend());
      this.#isSuspended = true;
      this.#rings.note(snapshot.rings);
      return runningState(this.#config, snapshot);
    } catch (error) {
      throw this.#explain('it cannot be suspended', error);
    }
  }

  /** The guest moves, and may use the device there though it never did here: its back end is not to be in the way. */
  async #leave(): Promise<void> {
    const frontend = this.#frontend;
    if (this.#profile.isExclusive !== true || !frontend.dirtyLog.isOn || !frontend.isConnected) return;
    try {
      await frontend.migration.leave();
    } catch (error) {
      this.#log(`it was not told that its guest moves: ${(error as Error).message}`);
    }
  }

  async resume(): Promise<void> {
    if (!this.#isSuspended) return;
    try {
      await this.#whileAlive(() => this.#frontend.migration.resume());
    } catch (error) {
      throw this.#explain('it does not go on', error);
    }
    this.#isSuspended = false;
  }

  async restore(value: DeviceState, activation: Activation | undefined): Promise<void> {
    const state = parseVhostUserState(this.name, value);
    if ((state.phase === 'idle') !== (activation === undefined)) {
      const is = activation === undefined ? 'not ready' : 'ready';
      throw new VmError(`${this.name}: it cannot go on here: its driver is ${is}, the device is ${state.phase}`);
    }
    try {
      const features = activation?.features ?? this.features;
      this.#profile.checkMove(state.config, this.#config, features);
      await this.#writeChoices(state.config, features);
      this.#activation = activation;
      if (state.phase === 'running' && activation !== undefined) await this.#goOn(state, activation);
      await this.#refresh(false);
    } catch (error) {
      throw this.#explain('it cannot go on here', error);
    }
  }

  /** Lets the back end go on where another one stood. */
  async #goOn(state: VhostUserState, activation: Activation): Promise<void> {
    const frontend = this.#frontend;
    const features = (activation.features | PROTOCOL_FEATURES) & frontend.capabilities.features;
    const vrings = this.#rings.place(activation);
    const snapshot = snapshotOf(state, features, vrings);
    this.#rings.note(snapshot.rings);
    await this.#whileAlive(
      () => frontend.migration.restore(snapshot, this.#ram.regions, vrings),
      () => frontend.takeBack(0),
    );
    this.#isRunning = true;
  }

  /** Writes what the driver wrote to the configuration space of the device that this one takes the place of. */
  async #writeChoices(config: Uint8Array, features: bigint): Promise<void> {
    for (const [offset, byte] of config.entries()) {
      if (byte !== this.#config[offset]) await this.writeConfig(offset, Uint8Array.of(byte), features);
    }
  }

  async startDirtyLog(): Promise<void> {
    checkLogged(this.#profile, this.#frontend);
    this.#checkMovable();
    try {
      await this.#whileAlive(() => this.#frontend.dirtyLog.start());
    } catch (error) {
      throw this.#explain('its dirty log cannot be had', error);
    }
  }

  takeDirty(): readonly DirtyRange[] {
    return this.#frontend.dirtyLog.take();
  }

  async stopDirtyLog(): Promise<void> {
    const { dirtyLog } = this.#frontend;
    try {
      if (await this.#frontend.waitUntilConnected(this.#awayMs)) await dirtyLog.stop();
    } catch (error) {
      this.#log(`its dirty log was not ended in order: ${(error as Error).message}`);
    } finally {
      // One that is away does not get it when it is back.
      dirtyLog.close();
    }
  }

  #checkMovable(): void {
    checkMovable(this.#profile, this.#frontend, this.#activation?.features ?? this.features);
  }

  async addMemory(region: SharedRegion): Promise<void> {
    // Before the hand-over nobody has any; afterwards a lost back end has none.
    if (!this.#isRunning || this.#lost !== undefined) return;
    try {
      await this.#whileAlive(() => this.#frontend.addMemory(region));
    } catch (error) {
      throw this.#explain('memory cannot be added', error);
    }
  }

  async removeMemory(region: SharedRegion): Promise<void> {
    try {
      await this.#frontend.removeMemory(region);
    } catch (error) {
      this.#log(`memory was not taken back in order: ${(error as Error).message}`);
    }
  }

  async announce(): Promise<void> {
    const station = this.#profile.stationOf?.(this.#config, this.#activation?.features ?? 0n);
    if (station === undefined || !this.#isRunning) return;
    try {
      if (await this.#frontend.waitUntilConnected(this.#awayMs)) await this.#frontend.announce(station);
    } catch (error) {
      this.#log(`the network was not told where it is: ${(error as Error).message}`);
    }
  }

  /** What is told of a step that failed; of our mistakes the mistake itself. */
  #explain(what: string, error: unknown): unknown {
    if (error instanceof VmError || !isPeersFault(error)) return error;
    return new VmError(`${this.name}: ${what}: ${error.message}`, { cause: error });
  }

  /** Reads the configuration space again. A change that the driver did not make is `toldOf`. */
  async #refresh(toldOf: boolean): Promise<void> {
    try {
      const config = await this.#profile.readConfig(this.#frontend);
      if (Buffer.from(config).equals(this.#config)) return;
      this.#config = config;
    } catch (error) {
      if (!this.#closed) this.#log(`configuration cannot be read again: ${(error as Error).message}`);
      return;
    }
    if (!toldOf) return;
    this.#configChanges += 1;
    this.#listener?.configChanged();
  }

  #resumed(): void {
    this.#reconnects += 1;
    this.#log('the back end is back');
    // What the dead one used and did not tell would be waited for.
    if (!this.#isSuspended) this.#activation?.signalInterrupt();
    void this.#refresh(true);
  }

  #fail(error: Error): void {
    if (this.#needsReset) return;
    this.#needsReset = true;
    this.#listener?.needsReset(error);
  }

  counters(): Record<string, number> {
    return {
      disconnects: this.#disconnects,
      reconnects: this.#reconnects,
      config_changes: this.#configChanges,
    };
  }

  close(): void {
    this.#closed = true;
    this.#listener = undefined;
    this.#activation = undefined;
    this.#isRunning = false;
    this.#frontend.close();
    this.#rings.close();
  }
}
