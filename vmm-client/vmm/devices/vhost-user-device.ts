/**
 * A virtio device whose queues are served by a vhost-user back end. It hands the queues over when the driver is ready and
 * takes them back at a reset; in between the data path does not come by here. When the back end dies and comes back, the
 * front end hands everything over again and the queues go on where the used rings end.
 * Source: vhost-user, Starting and stopping rings, Inflight I/O tracking.
 */

import type { GuestMemory } from '../../../protocol/memory/guest-memory.ts';
import { Notifier } from '../../../protocol/sys/notifier.ts';
import { createEventFd, type OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import { type Watch, watchReadable } from '../../../protocol/sys/readiness.ts';
import { PeerError } from '../../../protocol/vhost-user/errors.ts';
import { VHOST_USER_PROTOCOL_F_CONFIG } from '../../../protocol/vhost-user/features.ts';
import { featureMask, VHOST_USER_F_PROTOCOL_FEATURES } from '../../../protocol/virtio/reserved-features.ts';
import { availRingBytes, descriptorTableBytes, usedRingBytes } from '../../../protocol/virtio/split-ring.ts';
import type { VhostUserFrontend } from '../../frontend/frontend.ts';
import type { SharedRegion } from '../../frontend/hand-over.ts';
import type { Vring } from '../../frontend/vring.ts';
import { type DeviceProfile, offeredFeatures } from './profile.ts';
import type { Activation, ReadyQueue, VirtioDevice, VirtioDeviceListener } from './virtio-device.ts';

/** What a device needs of the guest's RAM. User addresses of `regions` are the ones that `hostAddress` gives. */
export interface DeviceMemory {
  readonly memory: GuestMemory;
  readonly regions: readonly SharedRegion[];
  /** The address in this process of `length` bytes at a guest address; undefined where they are not in one region. */
  hostAddress(guestAddress: number, length: number): number | undefined;
}

export interface VhostUserDeviceOptions {
  readonly ram: DeviceMemory;
  /** Gets one line without its end for each thing that goes wrong or right again. */
  readonly log: (line: string) => void;
  /** How long a vCPU that activates or resets waits for a back end that is away, in milliseconds. Default 10,000. */
  readonly awayMs?: number;
}

const DEFAULT_AWAY_MS = 10_000;
const USED_INDEX = 2;

export class VhostUserDevice implements VirtioDevice {
  readonly #profile: DeviceProfile;
  readonly #frontend: VhostUserFrontend;
  readonly #ram: DeviceMemory;
  readonly #log: (line: string) => void;
  readonly #awayMs: number;
  readonly features: bigint;
  #config: Uint8Array;
  #listener: VirtioDeviceListener | undefined;
  /** Set between the start of an activation and the end of the next reset. */
  #activation: Activation | undefined;
  #errors: { readonly fd: OwnedFd; readonly watch: Watch } | undefined;
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
    this.features = offeredFeatures(profile.features);
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

  listen(listener: VirtioDeviceListener): void {
    this.#listener = listener;
  }

  async activate(activation: Activation): Promise<void> {
    this.#activation = activation;
    const { features } = activation;
    const queues = activation.queues.filter(({ index }) => this.#profile.isServed(index));
    const vrings = queues.map((queue) => this.#place(queue, this.#profile.ringOf(queue.index, features), activation));
    const deadline = performance.now() + this.#awayMs;
    for (;;) {
      const waitMs = Math.max(0, deadline - performance.now());
      if (!(await this.#frontend.waitUntilConnected(waitMs))) throw this.#lost ?? new PeerError('the back end is away');
      try {
        await this.#handOver(features, vrings);
        return;
      } catch (error) {
        // A back end that died meanwhile may come back; one that refused would do so again.
        const died = this.#frontend.isReconnecting;
        await this.#frontend.takeBack(0);
        if (!died || performance.now() >= deadline) throw error;
      }
    }
  }

  async #handOver(features: bigint, vrings: readonly Vring[]): Promise<void> {
    const frontend = this.#frontend;
    await frontend.acceptFeatures(features | featureMask(VHOST_USER_F_PROTOCOL_FEATURES));
    await frontend.setMemory(this.#ram.regions);
    if (vrings.length === 0) return;
    const numQueues = Math.max(...vrings.map(({ index }) => index)) + 1;
    await frontend.trackInflight(numQueues, Math.max(...vrings.map(({ size }) => size)));
    this.#watchErrors();
    const error = this.#errors?.fd;
    for (const vring of vrings) await frontend.startVring({ ...vring, error });
  }

  /** @throws RangeError - the ring is not in RAM */
  #place(queue: ReadyQueue, ring: number, { interrupt }: Activation): Vring {
    const { index, size, kick } = queue;
    const place = (what: string, address: number, length: number): number => {
      const host = this.#ram.hostAddress(address, length);
      if (host !== undefined) return host;
      throw new RangeError(`queue ${index}: ${what} (${length} bytes at 0x${address.toString(16)}) is not in RAM`);
    };
    return {
      index: ring,
      size,
      descriptorTable: place('descriptor table', queue.descriptorTable, descriptorTableBytes(size)),
      availRing: place('available ring', queue.availRing, availRingBytes(size)),
      usedRing: place('used ring', queue.usedRing, usedRingBytes(size)),
      kick,
      call: interrupt,
      error: undefined,
      // Where the back end keeps no in-flight region, what it had taken and not used is taken again, as with QEMU.
      resume: () => this.#usedIndex(queue),
      notify: () => queue.notify(),
    };
  }

  #usedIndex({ usedRing }: ReadyQueue): number {
    const { memory } = this.#ram;
    if (!memory.locate(usedRing + USED_INDEX, 2)) throw new Error('a started ring is not in RAM');
    return memory.view.getUint16(memory.offset, true);
  }

  #watchErrors(): void {
    if (this.#errors !== undefined) return;
    const fd = createEventFd();
    const notifier = new Notifier(fd);
    const watch = watchReadable(fd.fd, () => {
      notifier.drain();
      this.#fail(new PeerError('the back end found a broken virtqueue'));
    });
    this.#errors = { fd, watch };
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
    this.#closeErrors();
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
    this.#activation?.signalInterrupt();
    void this.#refresh(true);
  }

  #fail(error: Error): void {
    if (this.#needsReset) return;
    this.#needsReset = true;
    this.#listener?.needsReset(error);
  }

  #closeErrors(): void {
    this.#errors?.watch.close();
    this.#errors?.fd.close();
    this.#errors = undefined;
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
    this.#frontend.close();
    this.#closeErrors();
  }
}
