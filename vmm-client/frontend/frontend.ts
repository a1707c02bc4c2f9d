/**
 * A vhost-user front end: hands guest memory and virtqueues to a back end at the other end of a Unix socket, and keeps
 * what it handed over, so that a back end that died and came back is brought to the same state: negotiation, memory,
 * the in-flight region, rings. Requests that were in flight then complete as if nothing had been.
 * Source: vhost-user, Starting and stopping rings, Inflight I/O tracking, Back-end program conventions.
 */

import { EventEmitter } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { SysError } from '../../protocol/sys/errors.ts';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { closeAll } from '../../protocol/vhost-user/endpoint.ts';
import { PeerError, ProtocolError } from '../../protocol/vhost-user/errors.ts';
import {
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
} from '../../protocol/vhost-user/features.ts';
import { FRONTEND } from '../../protocol/vhost-user/messages.ts';
import { hasFeature } from '../../protocol/virtio/reserved-features.ts';
import { BackendChannel } from './backend-channel.ts';
import { FrontendConnection } from './connection.ts';
import { dial } from './dial.ts';
import { type InflightRegion, requestInflight, type SharedRegion, sendInflight, sendMemory } from './hand-over.ts';
import { type Capabilities, negotiate, USABLE_PROTOCOL_FEATURES } from './negotiation.ts';
import { startVring, stopVring, type Vring } from './vring.ts';

const REDIAL_MS = 100;

export interface FrontendOptions {
  /** How long the back end may take for one answer, in milliseconds. Default 10,000. */
  readonly timeoutMs?: number;
  /** How long to wait for somebody to listen at the socket, in milliseconds. Default 0: not at all. */
  readonly waitMs?: number;
  /** How long to dial again after the back end went away, in milliseconds. Default 0: not at all. */
  readonly reconnectMs?: number;
  /** Protocol features to accept where offered. Default: all that this class can use. */
  readonly protocolFeatures?: bigint;
}

/**
 * `configChange`: the configuration space is to be read again. `disconnect`: the back end went away, dialing begins.
 * `reconnect`: it is back and has all that was handed over. `lost`: it went away for good; nothing will work any more.
 * `channelFault`: the back end broke the protocol on its request channel.
 */
export interface FrontendEvents {
  configChange: [];
  disconnect: [Error];
  reconnect: [];
  lost: [Error];
  channelFault: [Error];
}

export class VhostUserFrontend extends EventEmitter<FrontendEvents> {
  readonly #path: string | undefined;
  readonly #timeoutMs: number;
  readonly #reconnectMs: number;
  readonly #wantedProtocolFeatures: bigint;
  #connection: FrontendConnection;
  #channel: BackendChannel | undefined;
  #capabilities: Capabilities | undefined;
  #state: 'connected' | 'reconnecting' | 'lost' | 'closed' = 'connected';
  /** Kept as long as the back end is away; requests wait for it. */
  #ready: Promise<void> = Promise.resolve();

  // What was handed over, for a back end that comes back.
  #features: bigint | undefined;
  #memory: SharedRegion[] = [];
  readonly #vrings = new Map<number, Vring>();
  /** Rings that the back end may have started, though it refused some of what it was told of them. */
  readonly #touched = new Set<number>();
  #inflight: InflightRegion | undefined;

  private constructor(stream: UnixStream, path: string | undefined, options: FrontendOptions) {
    super();
    this.#path = path;
    this.#timeoutMs = options.timeoutMs ?? 10_000;
    this.#reconnectMs = options.reconnectMs ?? 0;
    this.#wantedProtocolFeatures = options.protocolFeatures ?? USABLE_PROTOCOL_FEATURES;
    this.#connection = this.#adopt(stream);
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
    const frontend = new VhostUserFrontend(stream, path, options);
    try {
      frontend.#capabilities = await frontend.#openSession(frontend.#connection);
      return frontend;
    } catch (error) {
      frontend.close();
      throw error;
    }
  }

  /** What the back end offers. */
  get capabilities(): Capabilities {
    if (this.#capabilities === undefined) throw new Error('capabilities are not known before the negotiation');
    return this.#capabilities;
  }

  /** The features that `acceptFeatures` settled on; 0 before. */
  get features(): bigint {
    return this.#features ?? 0n;
  }

  hasProtocolFeature(bit: number): boolean {
    return hasFeature(this.capabilities.protocolFeatures, bit);
  }

  get isConnected(): boolean {
    return this.#state === 'connected';
  }

  /** Whether the back end is away and dialed again. */
  get isReconnecting(): boolean {
    return this.#state === 'reconnecting';
  }

  /** Accepts those of the `wanted` features that are offered (SET_FEATURES). Returns them. */
  async acceptFeatures(wanted: bigint): Promise<bigint> {
    const accepted = wanted & this.capabilities.features;
    await this.#command((connection) => connection.command(FRONTEND.SET_FEATURES, accepted));
    this.#features = accepted;
    return accepted;
  }

  /** Replaces the memory of the guest. The regions stay the caller's, and open until they are removed here. */
  async setMemory(regions: readonly SharedRegion[]): Promise<void> {
    this.#checkSlots(regions.length);
    await this.#command((connection) => sendMemory(connection, regions));
    this.#memory = [...regions];
  }

  /** Adds a region while rings may be running; with a new table where the back end has no ADD_MEM_REG. */
  async addMemory(added: SharedRegion): Promise<void> {
    const all = [...this.#memory, added];
    if (!this.hasProtocolFeature(VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS)) return this.setMemory(all);
    this.#checkSlots(all.length);
    await this.#command((connection) => connection.command(FRONTEND.ADD_MEM_REG, added.region, [added.memfd]));
    this.#memory = all;
  }

  /** Takes a region back. The caller proves that no ring and no request in flight is in it. */
  async removeMemory(removed: SharedRegion): Promise<void> {
    const rest = this.#memory.filter((memory) => memory !== removed);
    if (!this.hasProtocolFeature(VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS)) return this.setMemory(rest);
    await this.#command((connection) => connection.command(FRONTEND.REM_MEM_REG, removed.region));
    this.#memory = rest;
  }

  #checkSlots(count: number): void {
    const { maxMemorySlots } = this.capabilities;
    if (count > maxMemorySlots) {
      throw new PeerError(`${count} memory regions are needed, the back end has ${maxMemorySlots} slots`);
    }
  }

  /** Hands a ring over, starts and enables it. Its descriptors and its memory stay the caller's. */
  async startVring(vring: Vring, base = 0): Promise<void> {
    this.#touched.add(vring.index);
    await this.#command((connection) => startVring(connection, vring, base, this.features));
    this.#vrings.set(vring.index, vring);
  }

  /** Stops a ring (GET_VRING_BASE) once nothing of it is in flight. Returns the base to go on from. */
  async stopVring(index: number): Promise<number> {
    await this.#ready;
    // Not to be handed over again, whatever becomes of the request.
    this.#vrings.delete(index);
    this.#touched.delete(index);
    return stopVring(this.#connection, index);
  }

  /** Enables or disables a started ring. */
  async enableVring(index: number, enabled: boolean): Promise<void> {
    await this.#command((c) => c.command(FRONTEND.SET_VRING_ENABLE, { index, num: enabled ? 1 : 0 }));
  }

  /**
   * Asks the back end for a region in which it keeps track of what is in flight, and gives it back to it. From then on
   * this object keeps the region over the back end's death. Call it before rings are started. Returns false where the
   * back end has no in-flight tracking.
   */
  async trackInflight(numQueues: number, queueSize: number): Promise<boolean> {
    if (!this.hasProtocolFeature(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD)) return false;
    await this.#command(async (connection) => {
      const region = await requestInflight(connection, numQueues, queueSize);
      this.#inflight?.fd.close();
      this.#inflight = region;
      await sendInflight(connection, region);
    });
    return true;
  }

  /** Reads `length` bytes of the configuration space. @throws PeerError - the back end refuses that range */
  async readConfig(offset: number, length: number): Promise<Uint8Array> {
    await this.#ready;
    const connection = this.#connection;
    const request = { offset, size: length, flags: 0, data: new Uint8Array(length) };
    const { payload, fds } = await connection.callRaw(FRONTEND.GET_CONFIG, request);
    closeAll(fds);
    const reply = payload.length === 0 ? undefined : connection.decodeReply(FRONTEND.GET_CONFIG, payload);
    if (reply === undefined || reply.size !== length) {
      throw new PeerError(`the back end refuses to read ${length} bytes of configuration at ${offset}`);
    }
    return reply.data;
  }

  /** Writes to the configuration space as a driver does. */
  async writeConfig(offset: number, data: Uint8Array): Promise<void> {
    await this.#command((c) => c.command(FRONTEND.SET_CONFIG, { offset, size: data.length, flags: 0, data }));
  }

  /** Resets the device: rings are stopped and disabled, memory and negotiation stay. */
  async resetDevice(): Promise<void> {
    if (!this.hasProtocolFeature(VHOST_USER_PROTOCOL_F_RESET_DEVICE)) {
      throw new PeerError('the back end does not offer RESET_DEVICE');
    }
    await this.#command((connection) => connection.command(FRONTEND.RESET_DEVICE, undefined));
    this.#vrings.clear();
  }

  /**
   * Waits for a back end that is away, for at most `waitMs` milliseconds. Returns whether it is there and has all that
   * was handed over.
   */
  async waitUntilConnected(waitMs: number): Promise<boolean> {
    if (this.#state === 'reconnecting') {
      const enough = new AbortController();
      const ready = this.#ready.catch(() => undefined);
      await Promise.race([ready, delay(waitMs, undefined, { signal: enough.signal }).catch(() => undefined)]);
      enough.abort();
    }
    return this.#state === 'connected';
  }

  /**
   * Takes everything back that was handed over, as at a reset of the device: features, memory, rings and the in-flight
   * region. Resolves when nothing of the rings is in flight any more. Where the back end is away, its connection ended and
   * the rings with it; what the kernel still does for a process that died is over when another one has its place, so that
   * is waited for, at most `waitMs` milliseconds.
   */
  async takeBack(waitMs: number): Promise<void> {
    const rings = [...this.#touched];
    const features = this.features;
    const connection = this.#connection;
    this.#forget();
    if (this.#state === 'connected') {
      try {
        await Promise.all(rings.map((index) => stopVring(connection, index, features)));
        if (this.hasProtocolFeature(VHOST_USER_PROTOCOL_F_RESET_DEVICE)) {
          await connection.command(FRONTEND.RESET_DEVICE, undefined);
        }
      } catch (error) {
        // The end of the connection stops what did not stop otherwise.
        connection.close();
        this.#onLost(error as Error);
      }
    } else if (this.#state === 'reconnecting') {
      // What the new connection has of the rings already, it has no longer; the next one gets nothing.
      connection.close();
    }
    await this.waitUntilConnected(waitMs);
  }

  #forget(): void {
    this.#features = undefined;
    this.#memory = [];
    this.#vrings.clear();
    this.#touched.clear();
    this.#inflight?.fd.close();
    this.#inflight = undefined;
  }

  /** Ends the connection. Memory and ring descriptors stay the caller's. Idempotent. */
  close(): void {
    if (this.#state === 'closed') return;
    this.#state = 'closed';
    this.#connection.close();
    this.#channel?.close();
    this.#forget();
  }

  async #command(send: (connection: FrontendConnection) => Promise<void>): Promise<void> {
    await this.#ready;
    const connection = this.#connection;
    await send(connection);
    // Without acknowledgements any request with an answer shows that those before it were handled.
    if (!connection.replyAck) await connection.call(FRONTEND.GET_FEATURES, undefined);
  }

  #adopt(stream: UnixStream): FrontendConnection {
    return new FrontendConnection(stream, this.#timeoutMs, (error) => this.#onLost(error));
  }

  async #openSession(connection: FrontendConnection): Promise<Capabilities> {
    const capabilities = await negotiate(connection, this.#wantedProtocolFeatures);
    if (hasFeature(capabilities.protocolFeatures, VHOST_USER_PROTOCOL_F_BACKEND_REQ)) {
      const { channel, peer } = BackendChannel.open({
        onConfigChange: () => this.emit('configChange'),
        onFault: (error) => this.emit('channelFault', error),
      });
      this.#channel?.close();
      this.#channel = channel;
      try {
        await connection.command(FRONTEND.SET_BACKEND_REQ_FD, undefined, [peer]);
      } finally {
        peer.close();
      }
    }
    return capabilities;
  }

  #onLost(error: Error): void {
    // Still negotiating for the first time, or dialing again: whoever waits for the answer is told.
    if (this.#capabilities === undefined || this.#state !== 'connected') return;
    if (this.#reconnectMs === 0 || this.#path === undefined) {
      this.#state = 'lost';
      this.emit('lost', error);
      return;
    }
    this.#state = 'reconnecting';
    this.#ready = this.#reconnect(this.#path, error);
    this.#ready.catch(() => undefined);
    this.emit('disconnect', error);
  }

  /** Dials until the back end has everything again. @throws PeerError - not before the deadline, or it differs */
  async #reconnect(path: string, cause: Error): Promise<void> {
    const deadline = performance.now() + this.#reconnectMs;
    let last = cause;
    try {
      while (performance.now() < deadline) {
        await delay(REDIAL_MS);
        if (this.#state !== 'reconnecting') throw new PeerError('closed while the back end was away');
        const failure = await this.#dial(path);
        if (failure === undefined && !this.#connection.isClosed) {
          this.#state = 'connected';
          this.emit('reconnect');
          return;
        }
        last = failure ?? last;
      }
      throw new PeerError(`the back end did not come back within ${this.#reconnectMs} ms: ${last.message}`);
    } catch (error) {
      if (this.#state === 'reconnecting') {
        this.#state = 'lost';
        this.emit('lost', error as Error);
      }
      throw error;
    }
  }

  /** One attempt. Returns why it failed where another may succeed. @throws PeerError, ProtocolError - none will */
  async #dial(path: string): Promise<Error | undefined> {
    let connection: FrontendConnection | undefined;
    try {
      connection = this.#adopt(UnixStream.connect(path));
      this.#connection = connection;
      await this.#replay(connection);
      return undefined;
    } catch (error) {
      const worthRetrying = error instanceof SysError || connection?.isClosed === true;
      connection?.close();
      if (worthRetrying && !(error instanceof ProtocolError)) return error as Error;
      throw error;
    }
  }

  async #replay(connection: FrontendConnection): Promise<void> {
    const before = this.capabilities;
    const now = await this.#openSession(connection);
    const missing = (before.protocolFeatures & ~now.protocolFeatures) | (this.features & ~now.features);
    if (missing !== 0n) {
      throw new PeerError(`the back end came back without features it had before (mask 0x${missing.toString(16)})`);
    }
    this.#capabilities = now;
    if (this.#features !== undefined) await connection.command(FRONTEND.SET_FEATURES, this.#features);
    if (this.#memory.length > 0) await sendMemory(connection, this.#memory);
    if (this.#inflight !== undefined) {
      await sendInflight(connection, this.#inflight);
    }
    for (const vring of this.#vrings.values()) {
      const base = vring.resume(this.#inflight !== undefined);
      await startVring(connection, vring, base, this.features);
    }
    if (!connection.replyAck) await connection.call(FRONTEND.GET_FEATURES, undefined);
  }
}
