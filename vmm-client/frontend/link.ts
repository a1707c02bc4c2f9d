/**
 * The way to a back end, which may die and come back: one connection after the other, each negotiated and brought to the
 * state of the one before. What that state is, and what becomes of the back end's own requests, is the front end's
 * business. Source: vhost-user, Back-end program conventions.
 */

import { setTimeout as delay } from 'node:timers/promises';
import { SysError } from '../../protocol/sys/errors.ts';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { PeerError, ProtocolError } from '../../protocol/vhost-user/errors.ts';
import { VHOST_USER_PROTOCOL_F_BACKEND_REQ } from '../../protocol/vhost-user/features.ts';
import { FRONTEND } from '../../protocol/vhost-user/messages.ts';
import { hasFeature } from '../../protocol/virtio/reserved-features.ts';
import { BackendChannel, type BackendRequests } from './backend-channel.ts';
import { FrontendConnection } from './connection.ts';
import type { IoMappings } from './io-mappings.ts';
import { BackendIotlb } from './iotlb.ts';
import { type Capabilities, negotiate } from './negotiation.ts';

const REDIAL_MS = 100;

export interface LinkOptions {
  /** Where to dial again; undefined: nowhere. */
  readonly path: string | undefined;
  readonly timeoutMs: number;
  readonly reconnectMs: number;
  /** Protocol features to accept. */
  readonly protocolFeatures: bigint;
  /** Mappings that the back end is told. */
  readonly iommu: IoMappings | undefined;
}

/** Whom a link belongs to. */
export interface LinkOwner {
  /** What the back end asks for, but mappings. */
  readonly requests: Omit<BackendRequests, 'iotlbMissed'>;
  /** Brings a back end that came back to the state it had. @throws PeerError - it cannot have it */
  replay(connection: FrontendConnection, capabilities: Capabilities): Promise<void>;
  disconnected(link: Link, error: Error): void;
  reconnected(link: Link): void;
  lost(link: Link, error: Error): void;
  /** The back end refused what nobody waits for. */
  refused(error: Error): void;
}

export class Link {
  readonly #options: LinkOptions;
  readonly #owner: LinkOwner;
  readonly #iotlb: BackendIotlb | undefined;
  #connection: FrontendConnection;
  #channel: BackendChannel | undefined;
  #capabilities: Capabilities | undefined;
  #state: 'connected' | 'reconnecting' | 'lost' | 'closed' = 'connected';
  /** Kept as long as the back end is away; requests wait for it. */
  #ready: Promise<void> = Promise.resolve();

  private constructor(stream: UnixStream, options: LinkOptions, owner: LinkOwner) {
    this.#options = options;
    this.#owner = owner;
    this.#connection = this.#adopt(stream);
    const { iommu } = options;
    if (iommu === undefined) return;
    this.#iotlb = new BackendIotlb(
      iommu,
      () => this.#connection,
      (error) => owner.refused(error),
      (cause) => this.hangUp(cause),
    );
  }

  /**
   * Negotiates on a connected stream, which it takes over.
   * @throws PeerError, ProtocolError - the back end refused, went away, did not answer in time, or talks nonsense
   */
  static async open(stream: UnixStream, options: LinkOptions, owner: LinkOwner): Promise<Link> {
    const link = new Link(stream, options, owner);
    try {
      link.#capabilities = await link.#openSession(link.#connection);
      return link;
    } catch (error) {
      link.close();
      throw error;
    }
  }

  get capabilities(): Capabilities {
    if (this.#capabilities === undefined) throw new Error('capabilities are not known before the negotiation');
    return this.#capabilities;
  }

  get state(): 'connected' | 'reconnecting' | 'lost' | 'closed' {
    return this.#state;
  }

  /** The present connection, which may have ended. */
  get connection(): FrontendConnection {
    return this.#connection;
  }

  /** The connection, when the back end is there. @throws PeerError - it was waited for in vain */
  async connected(): Promise<FrontendConnection> {
    await this.#ready;
    return this.#connection;
  }

  /** Sends commands, and resolves when the back end has handled them. @throws PeerError - refused, or it is away for good */
  async command(send: (connection: FrontendConnection) => Promise<void>): Promise<void> {
    const connection = await this.connected();
    await send(connection);
    // Without acknowledgements any request with an answer shows that those before it were handled.
    if (!connection.replyAck) await connection.call(FRONTEND.GET_FEATURES, undefined);
  }

  /** Waits for a back end that is away, for at most `waitMs` milliseconds. Returns whether it is there. */
  async waitUntilConnected(waitMs: number): Promise<boolean> {
    if (this.#state === 'reconnecting') {
      const enough = new AbortController();
      const ready = this.#ready.catch(() => undefined);
      await Promise.race([ready, delay(waitMs, undefined, { signal: enough.signal }).catch(() => undefined)]);
      enough.abort();
    }
    return this.#state === 'connected';
  }

  /** Ends a connection, as if the back end had died: it gave `cause` for that. */
  hangUp(cause: Error): void {
    this.#connection.close();
    this.#onLost(cause);
  }

  /** Ends the link for good. Idempotent. */
  close(): void {
    if (this.#state === 'closed') return;
    this.#state = 'closed';
    this.#iotlb?.close();
    this.#connection.close();
    this.#channel?.close();
  }

  #adopt(stream: UnixStream): FrontendConnection {
    return new FrontendConnection(stream, this.#options.timeoutMs, (error) => this.#onLost(error));
  }

  async #openSession(connection: FrontendConnection): Promise<Capabilities> {
    const capabilities = await negotiate(connection, this.#options.protocolFeatures);
    if (hasFeature(capabilities.protocolFeatures, VHOST_USER_PROTOCOL_F_BACKEND_REQ)) {
      const { channel, peer } = BackendChannel.open({
        ...this.#owner.requests,
        iotlbMissed: (iova, permission) => this.#iotlb?.miss(iova, permission) ?? false,
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
    const { path, reconnectMs } = this.#options;
    if (reconnectMs === 0 || path === undefined) {
      this.#state = 'lost';
      this.#owner.lost(this, error);
      return;
    }
    this.#state = 'reconnecting';
    this.#ready = this.#reconnect(path, reconnectMs, error);
    this.#ready.catch(() => undefined);
    this.#owner.disconnected(this, error);
  }

  /** Dials until the back end has everything again. @throws PeerError - not before the deadline, or it differs */
  async #reconnect(path: string, reconnectMs: number, cause: Error): Promise<void> {
    const deadline = performance.now() + reconnectMs;
    let last = cause;
    try {
      while (performance.now() < deadline) {
        await delay(REDIAL_MS);
        if (this.#state !== 'reconnecting') throw new PeerError('closed while the back end was away');
        const failure = await this.#dial(path);
        if (failure === undefined && !this.#connection.isClosed) {
          this.#state = 'connected';
          this.#owner.reconnected(this);
          return;
        }
        last = failure ?? last;
      }
      throw new PeerError(`the back end did not come back within ${reconnectMs} ms: ${last.message}`);
    } catch (error) {
      if (this.#state === 'reconnecting') {
        this.#state = 'lost';
        this.#owner.lost(this, error as Error);
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
      await this.#reopen(connection);
      return undefined;
    } catch (error) {
      const worthRetrying = error instanceof SysError || connection?.isClosed === true;
      connection?.close();
      if (worthRetrying && !(error instanceof ProtocolError)) return error as Error;
      throw error;
    }
  }

  async #reopen(connection: FrontendConnection): Promise<void> {
    const before = this.capabilities;
    const now = await this.#openSession(connection);
    const missing = before.protocolFeatures & ~now.protocolFeatures;
    if (missing !== 0n) throw missingFeatures('protocol features', missing);
    this.#capabilities = now;
    await this.#owner.replay(connection, now);
    if (!connection.replyAck) await connection.call(FRONTEND.GET_FEATURES, undefined);
  }
}

/** A back end does not have what the one before it had. */
export function missingFeatures(what: string, missing: bigint): PeerError {
  return new PeerError(`the back end came back without ${what} it had before (mask 0x${missing.toString(16)})`);
}
