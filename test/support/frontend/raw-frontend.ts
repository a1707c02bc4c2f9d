/**
 * A front end in single steps: connect, negotiate, share memory, hand rings over, stop them. Each step can be left out,
 * repeated or done wrongly by sending on `connection` instead.
 */

import type { OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import { GuestRam } from './guest-ram.ts';
import { RawConnection } from './raw-connection.ts';
import { RawPackedRing } from './raw-packed-ring.ts';
import { RawRing } from './raw-ring.ts';
import type { RawVirtqueue } from './raw-virtqueue.ts';
import {
  bits,
  FEATURE,
  hasBit,
  memoryTable,
  PROTOCOL,
  REQUEST,
  u64,
  vringAddress,
  vringFd,
  vringState,
} from './wire.ts';

export interface FrontendOptions {
  /** Rings to lay out; default 1. */
  readonly queues?: number;
  /** Entries of each; default 128. */
  readonly queueSize?: number;
  /** Bytes of guest memory; default 2 MiB. */
  readonly ramBytes?: number;
  /** Bytes of the memory region in front of those that are used; default 0. */
  readonly leadBytes?: number;
  /**
   * Feature bits to accept when offered, besides VERSION_1 and PROTOCOL_FEATURES. With RING_PACKED the rings are packed,
   * and it must be offered; so must IN_ORDER.
   */
  readonly features?: readonly number[];
  /** Protocol feature bits to accept when offered, besides REPLY_ACK, CONFIG and MQ. */
  readonly protocolFeatures?: readonly number[];
  /** Where each ring continues; by default at its beginning. */
  readonly base?: number;
}

export class RawFrontend {
  readonly connection: RawConnection;
  readonly ram: GuestRam;
  readonly queues: RawVirtqueue[] = [];
  readonly #options: FrontendOptions;
  #closed = false;
  /** What the back end offers, after `negotiate`. */
  offered = 0n;
  offeredProtocol = 0n;
  /** What was accepted. */
  features = 0n;
  protocolFeatures = 0n;
  /** First byte of the memory that no ring uses, page-aligned: for requests. */
  readonly dataStart: number;

  /** With `previous`, memory and rings are the ones of a front end whose connection ended. */
  constructor(connection: RawConnection, options: FrontendOptions = {}, previous?: RawFrontend) {
    this.connection = connection;
    this.#options = options;
    if (previous !== undefined) {
      this.ram = previous.ram;
      this.queues.push(...previous.queues);
      this.dataStart = previous.dataStart;
      return;
    }
    this.ram = new GuestRam(options.ramBytes ?? 0x20_0000, undefined, undefined, options.leadBytes);
    let at = 0x1000;
    const Ring = options.features?.includes(FEATURE.RING_PACKED) === true ? RawPackedRing : RawRing;
    for (let i = 0; i < (options.queues ?? 1); i += 1) {
      const ring = new Ring(this.ram, i, options.queueSize ?? 128, at);
      this.queues.push(ring);
      at = ring.end;
    }
    this.dataStart = at;
  }

  /** Connects and does nothing else. */
  static connect(socket: string, options: FrontendOptions = {}): RawFrontend {
    return new RawFrontend(RawConnection.connect(socket), options);
  }

  /** A new connection with the memory and rings of this front end, for a back end that came back. */
  reconnect(socket: string): RawFrontend {
    this.connection.close();
    return new RawFrontend(RawConnection.connect(socket), this.#options, this);
  }

  /** Connects and brings every ring up. */
  static async start(socket: string, options: FrontendOptions = {}): Promise<RawFrontend> {
    const frontend = RawFrontend.connect(socket, options);
    try {
      await frontend.negotiate();
      await frontend.shareMemory();
      for (const ring of frontend.queues) await frontend.startRing(ring);
      return frontend;
    } catch (error) {
      frontend.close();
      throw error;
    }
  }

  /** A ring of either layout. */
  queue(i = 0): RawVirtqueue {
    const ring = this.queues[i];
    if (ring === undefined) throw new Error(`no ring ${i}`);
    return ring;
  }

  /** All rings. @throws Error - they are packed */
  get rings(): RawRing[] {
    return this.queues.map((_, i) => this.ring(i));
  }

  /** @throws Error - the ring is packed */
  ring(i = 0): RawRing {
    const ring = this.queue(i);
    if (!(ring instanceof RawRing)) throw new Error(`ring ${i} is packed`);
    return ring;
  }

  /** @throws Error - the ring is split */
  packedRing(i = 0): RawPackedRing {
    const ring = this.queue(i);
    if (!(ring instanceof RawPackedRing)) throw new Error(`ring ${i} is split`);
    return ring;
  }

  async negotiate(): Promise<void> {
    const { connection } = this;
    this.offered = await connection.ask(REQUEST.GET_FEATURES);
    this.offeredProtocol = await connection.ask(REQUEST.GET_PROTOCOL_FEATURES);
    const protocol = [PROTOCOL.REPLY_ACK, PROTOCOL.CONFIG, PROTOCOL.MQ, ...(this.#options.protocolFeatures ?? [])];
    this.protocolFeatures = bits(...protocol) & this.offeredProtocol;
    await connection.send(REQUEST.SET_PROTOCOL_FEATURES, u64(this.protocolFeatures));
    await this.require(REQUEST.SET_OWNER);
    const features = [FEATURE.VERSION_1, FEATURE.PROTOCOL_FEATURES, ...(this.#options.features ?? [])];
    this.features = bits(...features) & this.offered;
    for (const bit of [FEATURE.RING_PACKED, FEATURE.IN_ORDER]) {
      if (features.includes(bit) && !hasBit(this.offered, bit)) throw new Error(`feature ${bit} is not offered`);
    }
    const eventIdx = hasBit(this.features, FEATURE.EVENT_IDX);
    for (const ring of this.queues) ring.suppression = eventIdx ? 'event' : 'none';
    await this.require(REQUEST.SET_FEATURES, u64(this.features));
  }

  async shareMemory(): Promise<void> {
    await this.require(REQUEST.SET_MEM_TABLE, memoryTable([this.ram.region()]), [this.ram.fd]);
  }

  /** SET_VRING_NUM, BASE, ADDR, CALL, ERR, KICK, ENABLE. */
  async startRing(ring: RawVirtqueue, base = this.#options.base ?? ring.initialBase): Promise<void> {
    await this.configureRing(ring, base);
    await this.require(REQUEST.SET_VRING_KICK, vringFd(ring.index), [ring.kick]);
    if (hasBit(this.features, FEATURE.PROTOCOL_FEATURES)) {
      await this.require(REQUEST.SET_VRING_ENABLE, vringState(ring.index, 1));
    }
  }

  /** Everything of startRing up to, not including, what starts the ring. */
  async configureRing(ring: RawVirtqueue, base = ring.initialBase): Promise<void> {
    await this.require(REQUEST.SET_VRING_NUM, vringState(ring.index, ring.size));
    await this.require(REQUEST.SET_VRING_BASE, vringState(ring.index, base));
    await this.require(REQUEST.SET_VRING_ADDR, vringAddress(ring.index, ring.addresses()));
    await this.require(REQUEST.SET_VRING_CALL, vringFd(ring.index), [ring.call]);
    await this.require(REQUEST.SET_VRING_ERR, vringFd(ring.index), [ring.err]);
  }

  /** Stops a ring. Returns where it would have gone on. */
  async stopRing(ring: RawVirtqueue): Promise<number> {
    const { payload } = await this.connection.call(REQUEST.GET_VRING_BASE, vringState(ring.index, 0));
    return new DataView(payload.buffer, payload.byteOffset, 8).getUint32(4, true);
  }

  /** Sends a request that must succeed: acknowledged when that was negotiated. @throws Error - it was refused */
  async require(id: number, payload?: Uint8Array, fds: readonly OwnedFd[] = []): Promise<void> {
    if (!hasBit(this.protocolFeatures, PROTOCOL.REPLY_ACK)) {
      await this.connection.send(id, payload, fds);
      return;
    }
    const answer = await this.connection.acknowledge(id, payload, fds);
    if (answer !== 0n) throw new Error(`request ${id} was refused with ${answer}`);
  }

  /** Whether a request with need_reply is refused: by a non-zero answer, or by closing the connection. */
  async isRefused(id: number, payload?: Uint8Array, fds: readonly OwnedFd[] = []): Promise<'nack' | 'closed' | 'ok'> {
    await this.connection.send(id, payload, fds, 1 | 8);
    const reply = await this.connection.receive();
    if (reply === undefined) return 'closed';
    for (const fd of reply.fds) fd.close();
    return new DataView(reply.payload.buffer, reply.payload.byteOffset).getBigUint64(0, true) === 0n ? 'ok' : 'nack';
  }

  /** Drops the connection and the memory. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.connection.close();
    for (const ring of this.queues) ring.close();
    this.ram.close();
  }
}
