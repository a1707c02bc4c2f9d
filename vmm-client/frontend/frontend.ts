/**
 * A vhost-user front end: hands guest memory and virtqueues to a back end at the other end of a Unix socket, and keeps
 * what it handed over, so that a back end that died and came back, or another one, is brought to the same state:
 * negotiation, memory, the in-flight region, rings. Requests that were in flight then complete as if nothing had been.
 * Source: vhost-user, Starting and stopping rings, Inflight I/O tracking, Migration.
 */

import { EventEmitter } from 'node:events';
import type { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { PeerError } from '../../protocol/vhost-user/errors.ts';
import {
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_RARP,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_STATUS,
} from '../../protocol/vhost-user/features.ts';
import { FRONTEND } from '../../protocol/vhost-user/messages.ts';
import { featureMask, hasFeature, VIRTIO_F_ACCESS_PLATFORM } from '../../protocol/virtio/reserved-features.ts';
import { CONFIG_FLAG_WRITE, readConfig, writeConfig } from './config-access.ts';
import { DeviceSetup, type PositionedRing } from './device-setup.ts';
import { dial } from './dial.ts';
import { DirtyLogging } from './dirty-logging.ts';
import { requestInflight, type SharedRegion, sendInflight } from './hand-over.ts';
import { InbandNotifications } from './inband.ts';
import type { IoMappings } from './io-mappings.ts';
import { Link, type LinkOwner, missingFeatures } from './link.ts';
import { MemoryTable } from './memory-table.ts';
import { Migration } from './migration.ts';
import { type Capabilities, DEFAULT_PROTOCOL_FEATURES } from './negotiation.ts';
import { SharedMemory } from './shared-memory.ts';
import { stopVring, type Vring } from './vring.ts';

const ACCESS_PLATFORM = featureMask(VIRTIO_F_ACCESS_PLATFORM);
/** Unlike any guest address of the same memory, so that nobody takes one for the other unnoticed. */
const DEFAULT_IOVA = 0x11_0000_0000;

export interface FrontendOptions {
  /** How long the back end may take for one answer, in milliseconds. Default 10,000. */
  readonly timeoutMs?: number;
  /** How long to wait for somebody to listen at the socket, in milliseconds. Default 0: not at all. */
  readonly waitMs?: number;
  /** How long to dial again after the back end went away, in milliseconds. Default 0: not at all. */
  readonly reconnectMs?: number;
  /** Protocol features to accept where offered. Default: all that this class can use but notifications in band. */
  readonly protocolFeatures?: bigint;
  /** The device is behind this IOMMU: what rings and descriptors say are addresses that it maps. */
  readonly iommu?: IoMappings;
}

/**
 * `configChange`: the configuration space is to be read again. `disconnect`: the back end went away, dialing begins.
 * `reconnect`: it is back and has all that was handed over. `lost`: it went away for good; nothing will work any more.
 * `channelFault`: the back end broke the protocol on its request channel. `refusal`: it refused what nobody waits for, a
 * kick or a mapping. `accessFail`: the IOMMU kept the device from an access.
 */
export interface FrontendEvents {
  configChange: [];
  disconnect: [Error];
  reconnect: [];
  lost: [Error];
  channelFault: [Error];
  refusal: [Error];
  accessFail: [{ iova: bigint; permission: number }];
}

export class VhostUserFrontend extends EventEmitter<FrontendEvents> {
  /** Which pages the device writes. */
  readonly dirtyLog: DirtyLogging;
  /** Stopping the device, and going on with another back end. */
  readonly migration: Migration;
  readonly #options: FrontendOptions;
  readonly #setup: DeviceSetup;
  readonly #memory: MemoryTable;
  #openLink: Link | undefined;
  #isTrying = false;

  private constructor(options: FrontendOptions) {
    super();
    this.#options = options;
    this.#setup = new DeviceSetup(options.iommu, new InbandNotifications((error) => this.emit('refusal', error)));
    this.dirtyLog = new DirtyLogging(this.#setup, () => this.#link);
    this.#memory = new MemoryTable(this.#setup, () => this.#link, this.dirtyLog);
    this.migration = new Migration({
      setup: this.#setup,
      link: () => this.#link,
      openLink: async (path, waitMs) => this.#connect(await dial(path, waitMs), path),
      use: (link, isTried) => this.#use(link, isTried),
    });
  }

  /**
   * Connects to the socket at `path` and negotiates.
   * @throws SysError - nobody listens there, by the end of `waitMs`
   * @throws PeerError, ProtocolError - the back end refused, went away, did not answer in time, or talks nonsense
   */
  static async connect(path: string, options: FrontendOptions = {}): Promise<VhostUserFrontend> {
    return VhostUserFrontend.#open(await dial(path, options.waitMs ?? 0), path, options);
  }

  /** Like `connect`, on a connected stream, which it takes over. Without a path there is no reconnecting. */
  static async fromStream(stream: UnixStream, options: FrontendOptions = {}): Promise<VhostUserFrontend> {
    return VhostUserFrontend.#open(stream, undefined, options);
  }

  static async #open(stream: UnixStream, path: string | undefined, options: FrontendOptions) {
    const frontend = new VhostUserFrontend(options);
    frontend.#openLink = await frontend.#connect(stream, path);
    return frontend;
  }

  #connect(stream: UnixStream, path: string | undefined): Promise<Link> {
    const { timeoutMs = 10_000, reconnectMs = 0, protocolFeatures = DEFAULT_PROTOCOL_FEATURES, iommu } = this.#options;
    const tell = (link: Link, event: () => void) => {
      // Of a link that is being tried, whoever tries it is told.
      if (link === this.#openLink && !this.#isTrying) event();
    };
    const owner: LinkOwner = {
      requests: {
        configChanged: () => this.emit('configChange'),
        accessFailed: (iova, permission) => this.emit('accessFail', { iova, permission }),
        vringCalled: (index) => this.#setup.inband.call(index),
        vringFailed: (index) => this.#setup.inband.fail(index),
        channelFailed: (error) => this.emit('channelFault', error),
      },
      replay: async (connection, { features }) => {
        const missing = this.features & ~features;
        if (missing !== 0n) throw missingFeatures('features', missing);
        await this.#setup.replay(connection);
      },
      disconnected: (link, error) => tell(link, () => this.emit('disconnect', error)),
      reconnected: (link) => tell(link, () => this.emit('reconnect')),
      lost: (link, error) => tell(link, () => this.emit('lost', error)),
      refused: (error) => this.emit('refusal', error),
    };
    return Link.open(stream, { path, timeoutMs, reconnectMs, protocolFeatures, iommu }, owner);
  }

  #use(link: Link, isTried: boolean): void {
    this.#openLink = link;
    this.#isTrying = isTried;
    if (isTried || link.state === 'connected') return;
    this.emit(link.state === 'reconnecting' ? 'disconnect' : 'lost', new PeerError('the back end went away meanwhile'));
  }

  get #link(): Link {
    if (this.#openLink === undefined) throw new Error('a front end before its negotiation');
    return this.#openLink;
  }

  /** What the back end offers. */
  get capabilities(): Capabilities {
    return this.#link.capabilities;
  }

  /** The features that `acceptFeatures` settled on; 0 before. */
  get features(): bigint {
    return this.#setup.features ?? 0n;
  }

  hasProtocolFeature(bit: number): boolean {
    return hasFeature(this.capabilities.protocolFeatures, bit);
  }

  get isConnected(): boolean {
    return this.#link.state === 'connected';
  }

  /** Whether the back end is away and dialed again. */
  get isReconnecting(): boolean {
    return this.#link.state === 'reconnecting';
  }

  /**
   * Accepts those of the `wanted` features that are offered (SET_FEATURES), and ACCESS_PLATFORM for a device behind an
   * IOMMU. Returns them.
   * @throws PeerError - refused; there is an IOMMU, and the back end would not ask it
   */
  async acceptFeatures(wanted: bigint): Promise<bigint> {
    const { features } = this.capabilities;
    const hasIommu = this.#setup.iommu !== undefined;
    if (hasIommu && (features & ACCESS_PLATFORM) === 0n) {
      throw new PeerError('the device is behind an IOMMU, and the back end does not offer ACCESS_PLATFORM');
    }
    const accepted = (wanted & features & ~ACCESS_PLATFORM) | (hasIommu ? ACCESS_PLATFORM : 0n);
    const before = this.#setup.features;
    this.#setup.features = accepted;
    try {
      await this.#link.command((connection) => this.#setup.sendFeatures(connection));
    } catch (error) {
      this.#setup.features = before;
      throw error;
    }
    return accepted;
  }

  /** Memory for a driver in user space: what it puts in descriptors as `guestAddress` is what the device will find. */
  createMemory(length: number): SharedMemory {
    return new SharedMemory(length, undefined, this.#setup.iommu && DEFAULT_IOVA);
  }

  /** Replaces the memory of the guest. The regions stay the caller's, and open until they are removed here. */
  setMemory(regions: readonly SharedRegion[]): Promise<void> {
    return this.#memory.set(regions);
  }

  /** Adds a region while rings may be running; with a new table where the back end has no ADD_MEM_REG. */
  addMemory(added: SharedRegion): Promise<void> {
    return this.#memory.add(added);
  }

  /** Takes a region back. The caller proves that no ring and no request in flight is in it. */
  removeMemory(removed: SharedRegion): Promise<void> {
    return this.#memory.remove(removed);
  }

  /** Hands a ring over, starts and enables it. Its descriptors and its memory stay the caller's. */
  async startVring(vring: Vring, base = 0): Promise<void> {
    await this.startVrings([{ vring, base }]);
  }

  /** The same for all rings of a device: it hears that the driver is ready when it has them all. */
  async startVrings(rings: readonly PositionedRing[]): Promise<void> {
    await this.#link.command((connection) => this.#setup.start(connection, rings));
    for (const { vring } of rings) this.#setup.vrings.set(vring.index, vring);
  }

  /** Stops a ring (GET_VRING_BASE) once nothing of it is in flight. Returns the base to go on from. */
  async stopVring(index: number): Promise<number> {
    return this.#setup.stop(await this.#link.connected(), index);
  }

  /** Enables or disables a started ring. */
  async enableVring(index: number, enabled: boolean): Promise<void> {
    await this.#link.command((c) => c.command(FRONTEND.SET_VRING_ENABLE, { index, num: enabled ? 1 : 0 }));
  }

  /**
   * Asks the back end for a region in which it keeps track of what is in flight, and gives it back to it. From then on
   * this object keeps the region over the back end's death. Call it before rings are started. Returns false where the
   * back end has no in-flight tracking.
   */
  async trackInflight(numQueues: number, queueSize: number): Promise<boolean> {
    if (!this.hasProtocolFeature(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD)) return false;
    await this.#link.command(async (connection) => {
      const region = await requestInflight(connection, numQueues, queueSize);
      this.#setup.setInflight(region);
      await sendInflight(connection, region);
    });
    return true;
  }

  /** Reads `length` bytes of the configuration space. @throws PeerError - the back end refuses that range */
  async readConfig(offset: number, length: number): Promise<Uint8Array> {
    return readConfig(await this.#link.connected(), offset, length);
  }

  /** Writes to the configuration space as a driver does. */
  async writeConfig(offset: number, data: Uint8Array): Promise<void> {
    await this.#link.command((connection) => writeConfig(connection, offset, data, CONFIG_FLAG_WRITE));
  }

  /** Tells the network where an address (6 bytes) is now. Returns false where the back end cannot. */
  async announce(address: Uint8Array): Promise<boolean> {
    if (!this.hasProtocolFeature(VHOST_USER_PROTOCOL_F_RARP)) return false;
    const value = Buffer.from(address).readUIntLE(0, 6);
    await this.#link.command((connection) => connection.command(FRONTEND.SEND_RARP, BigInt(value)));
    return true;
  }

  /** Resets the device: rings are stopped and disabled, memory and negotiation stay. */
  async resetDevice(): Promise<void> {
    const ways = [VHOST_USER_PROTOCOL_F_RESET_DEVICE, VHOST_USER_PROTOCOL_F_STATUS];
    const canReset = ways.some((bit) => this.hasProtocolFeature(bit));
    if (!canReset) throw new PeerError('the back end does not offer RESET_DEVICE');
    await this.#link.command((connection) => this.#setup.reset(connection));
    this.#setup.vrings.clear();
  }

  /** Waits for a back end that is away, at most `waitMs` milliseconds. Returns whether it has all that was handed over. */
  waitUntilConnected(waitMs: number): Promise<boolean> {
    return this.#link.waitUntilConnected(waitMs);
  }

  /**
   * Takes everything back that was handed over, as at a reset of the device: features, memory, rings and the in-flight
   * region. Resolves when nothing of the rings is in flight any more. Where the back end is away, its connection ended and
   * the rings with it; what the kernel still does for a process that died is over when another one has its place, so that
   * is waited for, at most `waitMs` milliseconds. A dirty log goes on.
   */
  async takeBack(waitMs: number): Promise<void> {
    const link = this.#link;
    const { connection } = link;
    const { touched, features, memory } = this.#setup;
    const rings = [...touched];
    this.#forget();
    if (link.state === 'connected') {
      try {
        await Promise.all(rings.map((index) => stopVring(connection, index, features)));
        await this.#setup.reset(connection);
      } catch (error) {
        // The end of the connection stops what did not stop otherwise.
        link.hangUp(error as Error);
      }
    } else if (link.state === 'reconnecting') {
      // What the new connection has of the rings already, it has no longer; the next one gets nothing.
      connection.close();
    }
    await this.#setup.unmap(memory).catch((error: unknown) => link.hangUp(error as Error));
    await link.waitUntilConnected(waitMs);
  }

  #forget(): void {
    this.#setup.forget();
    this.migration.forget();
  }

  /** Ends the connection. Memory and ring descriptors stay the caller's. Idempotent. */
  close(): void {
    this.#openLink?.close();
    void this.#setup.unmap(this.#setup.memory);
    this.#forget();
    this.dirtyLog.close();
  }
}
