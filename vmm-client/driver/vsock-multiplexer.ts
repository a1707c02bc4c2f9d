/**
 * The connections of one socket device over its two queues: packets in are given to their connections, what waits for
 * room is sent when there is some. While the device takes nothing, answers are kept, at most MAX_STRAYS to connections
 * that are not there; then nothing more is received. Polled by the driver. Source: VIRTIO 1.3, 5.10.6 Device Operation.
 */

import {
  VIRTIO_VSOCK_OP_REQUEST,
  VIRTIO_VSOCK_OP_RST,
  VIRTIO_VSOCK_TYPE_SEQPACKET,
  VIRTIO_VSOCK_TYPE_STREAM,
} from '../../protocol/virtio/vsock.ts';
import type { SharedMemory } from '../frontend/shared-memory.ts';
import { NOTHING_USED, RING_FAULT } from './virtqueue.ts';
import { VsockConnection, type VsockHandler, type VsockLink } from './vsock-connection.ts';
import { VsockError } from './vsock-error.ts';
import type { VsockEnds } from './vsock-header.ts';
import type { VsockReceiveQueue } from './vsock-receive-queue.ts';
import { VsockTable } from './vsock-table.ts';
import type { VsockTransmitQueue } from './vsock-transmit-queue.ts';

const MAX_STRAYS = 256;
/** How long the other side may leave a sender without credit before it is asked. */
const CREDIT_REQUEST_MS = 50;

export interface VsockLimits {
  /** Bytes that a connection keeps of what nobody has read. */
  readonly bufferBytes: number;
  readonly connectTimeoutMs: number;
  readonly closeTimeoutMs: number;
}

/** Who listens at a port: returns who uses the new connection, or undefined to refuse it. */
export type VsockAcceptor = (connection: VsockConnection) => VsockHandler | undefined;

interface Listening {
  readonly type: number;
  readonly accept: VsockAcceptor;
}

/** For the time between a connection's making and the acceptor's answer. */
const NOBODY: VsockHandler = { onClose: () => undefined };

export class VsockMultiplexer implements VsockLink {
  readonly transmit: VsockTransmitQueue;
  readonly bytes: Uint8Array;
  readonly connectTimeoutMs: number;
  readonly closeTimeoutMs: number;
  /** The CID of this side. */
  cid: number;
  /** Called when somebody comes to wait for a slot while nobody polls: `arm` is to be called again. */
  onBlocked: () => void = () => undefined;
  /** Packets that were dropped because they are for somebody else, for statistics. */
  misdirected = 0;
  readonly #receive: VsockReceiveQueue;
  readonly #bufferBytes: number;
  readonly #table: VsockTable<VsockConnection>;
  readonly #listening = new Map<number, Listening>();
  #awaitControl: VsockConnection[] = [];
  #awaitData: VsockConnection[] = [];
  readonly #awaitCredit = new Set<VsockConnection>();
  readonly #strays: VsockEnds[] = [];
  #creditTimer: NodeJS.Timeout | undefined;
  #isPolling = false;
  #fault = '';

  constructor(
    memory: SharedMemory,
    receive: VsockReceiveQueue,
    transmit: VsockTransmitQueue,
    cid: number,
    limits: VsockLimits,
  ) {
    this.bytes = memory.bytes;
    this.#receive = receive;
    this.transmit = transmit;
    this.cid = cid;
    this.#bufferBytes = limits.bufferBytes;
    this.connectTimeoutMs = limits.connectTimeoutMs;
    this.closeTimeoutMs = limits.closeTimeoutMs;
    this.#table = new VsockTable(Math.floor(Math.random() * 0x7fff_ffff));
  }

  /** What the device did wrong when `poll` said RING_FAULT. */
  get fault(): string {
    return this.#fault;
  }

  /** Connections that are not closed. */
  get connectionCount(): number {
    return this.#table.size;
  }

  /** Asks for a connection. */
  connect(remoteCid: number, remotePort: number, type: number, handler: VsockHandler): VsockConnection {
    const localPort = this.#table.allocatePort((port) => this.#listening.has(port));
    const ends = { localCid: this.cid, localPort, remoteCid, remotePort, type };
    const connection = new VsockConnection(this, ends, this.#bufferBytes, handler);
    this.#table.add(connection);
    connection.start();
    return connection;
  }

  /** @throws VsockError - EADDRINUSE */
  listen(port: number, type: number, accept: VsockAcceptor): void {
    if (this.#listening.has(port)) throw new VsockError('EADDRINUSE', `port ${port} is listened at already`);
    this.#listening.set(port, { type, accept });
  }

  /** Connections that were accepted stay. */
  endListening(port: number): void {
    this.#listening.delete(port);
  }

  /**
   * Takes up to `budget` packets and sends what waited. Returns how much was done, 0 for nothing at all, or RING_FAULT.
   * What is called meanwhile sees its packets go to the device when this ends.
   */
  poll(budget: number): number {
    this.#isPolling = true;
    try {
      return this.#pass(budget);
    } finally {
      this.#isPolling = false;
      this.#receive.queue.flush();
      this.transmit.queue.flush();
    }
  }

  /** Asks for signals of both queues. Returns false when there is something to do already. */
  arm(): boolean {
    const isQuiet = this.#isHeldUp || this.#receive.queue.arm();
    if (this.#isAwaitingSlots) return this.transmit.queue.arm() && isQuiet;
    this.transmit.queue.disarm();
    return isQuiet;
  }

  disarm(): void {
    this.#receive.queue.disarm();
    this.transmit.queue.disarm();
  }

  /** Ends all connections, without a word to the other side. Who listens goes on. */
  abandon(error: Error): void {
    clearTimeout(this.#creditTimer);
    this.#creditTimer = undefined;
    this.#awaitControl = [];
    this.#awaitData = [];
    this.#awaitCredit.clear();
    this.#strays.length = 0;
    for (const connection of this.#table.entries()) connection.abandon(error);
  }

  // What connections ask for.

  awaitControlSlot(connection: VsockConnection): void {
    this.#awaitControl.push(connection);
    if (!this.#isPolling) this.onBlocked();
  }

  awaitSlot(connection: VsockConnection): void {
    this.#awaitData.push(connection);
    if (!this.#isPolling) this.onBlocked();
  }

  awaitCredit(connection: VsockConnection): void {
    this.#awaitCredit.add(connection);
    this.#creditTimer ??= setTimeout(() => this.#askForCredit(), CREDIT_REQUEST_MS);
  }

  endAwaitCredit(connection: VsockConnection): void {
    this.#awaitCredit.delete(connection);
  }

  flush(): void {
    if (!this.#isPolling) this.transmit.queue.flush();
  }

  forget(connection: VsockConnection): void {
    this.#table.remove(connection);
  }

  #askForCredit(): void {
    this.#creditTimer = undefined;
    for (const connection of this.#awaitCredit) connection.askForCredit();
    if (this.#awaitCredit.size > 0) this.#creditTimer = setTimeout(() => this.#askForCredit(), CREDIT_REQUEST_MS);
  }

  get #isAwaitingSlots(): boolean {
    return this.#awaitControl.length + this.#awaitData.length + this.#strays.length > 0;
  }

  /** Whether nothing may be received because answers wait. */
  get #isHeldUp(): boolean {
    return this.#strays.length >= MAX_STRAYS;
  }

  #pass(budget: number): number {
    let work = this.transmit.reap();
    if (work === RING_FAULT) return this.#fail(this.transmit.fault, this.transmit.queue.index);
    if (this.#isAwaitingSlots) this.#sendWaiting();
    const receive = this.#receive;
    for (let count = 0; count < budget && !this.#isHeldUp; count++) {
      const length = receive.receive();
      if (length === NOTHING_USED) break;
      if (length === RING_FAULT) return this.#fail(receive.fault, receive.queue.index);
      this.#dispatch();
      receive.release();
      work += 1;
    }
    return work;
  }

  #fail(fault: string, queue: number): number {
    this.#fault = `queue ${queue}: ${fault}`;
    return RING_FAULT;
  }

  /** Gives free slots to who waits for them, in the order in which they came. */
  #sendWaiting(): void {
    while (this.#strays.length > 0 && this.transmit.pushControl(this.#strays[0]!, VIRTIO_VSOCK_OP_RST, 0, 0, 0)) {
      this.#strays.shift();
    }
    while (this.#awaitControl.length > 0 && this.transmit.hasControlSlot) {
      if (!this.#awaitControl[0]!.sendControl()) break;
      this.#awaitControl.shift();
    }
    if (this.#awaitData.length === 0) return;
    // Who is called may come to wait again, behind those whose turn has not come.
    const waiting = this.#awaitData;
    this.#awaitData = [];
    let served = 0;
    while (served < waiting.length && this.transmit.peekData() !== -1) waiting[served++]!.onRoom();
    if (served < waiting.length) this.#awaitData = waiting.slice(served).concat(this.#awaitData);
  }

  #dispatch(): void {
    const { header } = this.#receive;
    if (header.hasReservedCid || header.dstCid !== this.cid) {
      this.misdirected += 1;
      return;
    }
    const connection = this.#table.find(header.dstPort, header.srcCid, header.srcPort);
    if (connection !== undefined && connection.type === header.type) {
      connection.receive(header, this.#receive.payloadOffset);
    } else if (header.op === VIRTIO_VSOCK_OP_REQUEST && connection === undefined) {
      this.#accept();
    } else if (header.op !== VIRTIO_VSOCK_OP_RST) {
      this.#refuse();
    }
  }

  #accept(): void {
    const { header } = this.#receive;
    const listening = this.#listening.get(header.dstPort);
    if (listening === undefined || listening.type !== header.type) {
      this.#refuse();
      return;
    }
    const connection = new VsockConnection(this, this.#ends(header.type), this.#bufferBytes, NOBODY, header);
    const handler = listening.accept(connection);
    if (handler === undefined) {
      this.#refuse();
      return;
    }
    // Reset by its acceptor.
    if (connection.state === 'closed') return;
    connection.handler = handler;
    this.#table.add(connection);
    connection.start();
    handler.onOpen?.(connection);
  }

  /** The ends of the packet in hand, seen from here. */
  #ends(type: number): VsockEnds {
    const { dstPort, srcCid, srcPort } = this.#receive.header;
    return { localCid: this.cid, localPort: dstPort, remoteCid: srcCid, remotePort: srcPort, type };
  }

  /** Answers the packet in hand with RST. */
  #refuse(): void {
    const { type } = this.#receive.header;
    const isKnown = type === VIRTIO_VSOCK_TYPE_STREAM || type === VIRTIO_VSOCK_TYPE_SEQPACKET;
    const ends = this.#ends(isKnown ? type : VIRTIO_VSOCK_TYPE_STREAM);
    const isFirst = this.#strays.length === 0;
    if (!isFirst || !this.transmit.pushControl(ends, VIRTIO_VSOCK_OP_RST, 0, 0, 0)) this.#strays.push(ends);
  }
}
