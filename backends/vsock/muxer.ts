/**
 * All connections of one guest: its packets go to the connection they are for, what happens to the host's sockets goes to
 * the guest, and every limit is kept here. Nothing waits for receive buffers but in the outbox, so the transmit queue is
 * served whether the guest takes packets or not.
 */

import type { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import type { Epoll } from '../../protocol/sys/epoll.ts';
import { ECONNRESET, EPIPE } from '../../protocol/sys/errors.ts';
import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import {
  VIRTIO_VSOCK_HDR_BYTES,
  VIRTIO_VSOCK_OP_CREDIT_REQUEST,
  VIRTIO_VSOCK_OP_CREDIT_UPDATE,
  VIRTIO_VSOCK_OP_REQUEST,
  VIRTIO_VSOCK_OP_RESPONSE,
  VIRTIO_VSOCK_OP_RST,
  VIRTIO_VSOCK_OP_SHUTDOWN,
  VIRTIO_VSOCK_SHUTDOWN_RCV,
  VIRTIO_VSOCK_SHUTDOWN_SEND,
} from '../../protocol/virtio/vsock.ts';
import type { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import { isTypeNegotiated } from './config-space.ts';
import { type Address, Connection, type ConnectionOwner, type Opener } from './connection.ts';
import {
  CLOSED,
  CLOSING,
  CONNECTING,
  DO_DATA,
  DO_DISCARD,
  DO_DROP,
  DO_ESTABLISH,
  DO_FINISH,
  DO_HALF_CLOSE,
  DO_RESET,
  DO_TELL_CREDIT,
  REQUESTED,
} from './connection-state.ts';
import { ConnectionTable } from './connection-table.ts';
import type { Counters } from './counters.ts';
import { CREDIT_CHANGED, CREDIT_LIE } from './credit.ts';
import type { Deadlines } from './deadlines.ts';
import { HostSockets, type Watched } from './host-sockets.ts';
import { type Limits, MAX_WAITING_RESETS } from './limits.ts';
import { Outbox } from './outbox.ts';
import type { PacketHeader } from './packet.ts';

const BOTH = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND;

/** Where connections go that a guest asks for. */
export interface Dialer {
  /**
   * Connects for a guest: `muxer.accept` or `muxer.reset` is called for the connection, now or later. Not for one that
   * was dropped meanwhile.
   */
  dial(muxer: Muxer, connection: Connection): void;
}

export class Muxer implements ConnectionOwner {
  readonly guestCid: number;
  readonly limits: Limits;
  readonly outbox: Outbox;
  readonly counters: Counters;
  readonly sockets: HostSockets;
  /** Called when there may be something for the guest. */
  onWork: () => void = () => undefined;
  readonly #deadlines: Deadlines;
  readonly #dialer: Dialer;
  readonly #table = new ConnectionTable();
  readonly #halfOpen = new Set<Connection>();
  #features = 0n;
  #inService = false;

  constructor(
    guestCid: number,
    limits: Limits,
    surroundings: { epoll: Epoll; deadlines: Deadlines; counters: Counters; dialer: Dialer },
  ) {
    this.guestCid = guestCid;
    this.limits = limits;
    this.#deadlines = surroundings.deadlines;
    this.counters = surroundings.counters;
    this.#dialer = surroundings.dialer;
    this.sockets = new HostSockets(surroundings.epoll, surroundings.deadlines, limits);
    // Every connection may need one, besides those that are answers to packets out of the blue.
    this.outbox = new Outbox(limits.maxConnections + 2 * MAX_WAITING_RESETS);
  }

  /** Connections of any state. */
  get size(): number {
    return this.#table.size + this.sockets.lingering;
  }

  /** Connections that are not established. */
  get halfOpen(): number {
    return this.#halfOpen.size;
  }

  get inService(): boolean {
    return this.#inService;
  }

  /** A driver with these features came into service. */
  start(features: bigint): void {
    this.#features = features;
    this.#inService = true;
  }

  /** The driver left service: its connections end. */
  stop(): void {
    this.#inService = false;
    for (const connection of this.#table.all()) this.#leave(connection, true);
    this.outbox.clear();
  }

  /** Ends what lingers too. */
  close(): void {
    this.stop();
    this.sockets.closeLingering();
  }

  /** No more packets may be taken from the guest until it takes some of ours. */
  get isCongested(): boolean {
    return this.outbox.resets >= MAX_WAITING_RESETS;
  }

  /** A packet of the guest; `chain` has at least its header, which was read into `header`. */
  receive(header: PacketHeader, chain: DescriptorChain, memory: GuestMemory): void {
    if (header.srcCid !== this.guestCid) {
      // An answer would go to somebody who did not ask.
      this.counters.spoofed += 1;
      return;
    }
    const connection = this.#table.find(header.srcPort, header.dstCid, header.dstPort);
    if (connection === undefined || connection.type !== header.type) {
      this.#receiveUnknown(header, connection !== undefined);
      return;
    }
    if (header.op !== VIRTIO_VSOCK_OP_RST) {
      const change = connection.credit.update(header.bufAlloc, header.fwdCnt);
      if (change === CREDIT_LIE) {
        this.counters.overruns += 1;
        this.reset(connection);
        return;
      }
      if (change === CREDIT_CHANGED) connection.askedForCredit = false;
    }
    switch (connection.state.receive(header.op, header.flags)) {
      case DO_RESET:
        this.reset(connection);
        return;
      case DO_DROP:
        // Whoever said that nothing more comes has sent everything that is to arrive.
        this.#leave(connection, (connection.state.guestShutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) !== 0);
        return;
      case DO_FINISH:
        this.#leave(connection, true);
        this.#addReset(connection);
        return;
      case DO_ESTABLISH:
        this.#establish(connection);
        break;
      case DO_HALF_CLOSE:
        connection.halfClose();
        break;
      case DO_TELL_CREDIT:
        connection.pend(VIRTIO_VSOCK_OP_CREDIT_UPDATE);
        break;
      case DO_DATA:
        this.#receiveData(connection, header, chain, memory);
        break;
      case DO_DISCARD:
        this.#discardData(connection, header);
        break;
    }
    this.attend(connection);
  }

  #receiveUnknown(header: PacketHeader, isMistyped: boolean): void {
    if (header.op === VIRTIO_VSOCK_OP_RST) return;
    if (header.op === VIRTIO_VSOCK_OP_REQUEST && !isMistyped && this.#hasRoomFor(header.type)) {
      const address = {
        type: header.type,
        guestPort: header.srcPort,
        peerCid: header.dstCid,
        peerPort: header.dstPort,
      };
      const connection = new Connection(address, CONNECTING, this.limits.bufferSize, this);
      connection.credit.update(header.bufAlloc, header.fwdCnt);
      this.#add(connection);
      this.#dialer.dial(this, connection);
      return;
    }
    this.counters.resets += 1;
    this.outbox.addReset(header.dstCid, header.dstPort, header.srcPort, header.type);
  }

  #hasRoomFor(type: number): boolean {
    if (!isTypeNegotiated(this.#features, type)) return false;
    if (this.size < this.limits.maxConnections && this.#halfOpen.size < this.limits.maxHalfOpen) return true;
    this.counters.refused += 1;
    return false;
  }

  #add(connection: Connection): void {
    this.#table.add(connection);
    this.#halfOpen.add(connection);
    this.#deadlines.set(connection, this.limits.connectTimeout);
  }

  /** Whether a connection of this address could be opened now. */
  canOpen(address: Address): boolean {
    return this.#inService && !this.#table.has(address) && this.#hasRoomFor(address.type);
  }

  /**
   * Asks the guest for a connection, after `canOpen`. Takes the socket over.
   * @throws SysError - the socket cannot be watched; it is closed
   */
  open(address: Address, owned: OwnedFd, opener: Opener, watched?: Watched): Connection {
    const connection = new Connection(address, REQUESTED, this.limits.bufferSize, this);
    this.sockets.attach(connection, owned, watched);
    connection.opener = opener;
    this.#add(connection);
    this.attend(connection);
    return connection;
  }

  /** The host's side accepted what the guest asked for, and the connection has its socket. */
  accept(connection: Connection): void {
    connection.state.accept();
    connection.pend(VIRTIO_VSOCK_OP_RESPONSE);
    this.#settle(connection);
    this.attend(connection);
  }

  /** The guest accepted what was asked of it. */
  #establish(connection: Connection): void {
    const { opener } = connection;
    connection.opener = undefined;
    this.#settle(connection);
    if (opener?.established(connection) === false) this.reset(connection);
  }

  #settle(connection: Connection): void {
    this.counters.connections += 1;
    this.#halfOpen.delete(connection);
    this.#deadlines.clear(connection);
  }

  #receiveData(
    connection: Connection,
    { len, flags }: PacketHeader,
    chain: DescriptorChain,
    memory: GuestMemory,
  ): void {
    const { credit } = connection;
    if (len <= chain.readableBytes - VIRTIO_VSOCK_HDR_BYTES && credit.receive(len)) {
      this.#noteTaken(connection, connection.socket?.write(chain, memory, len, flags) ?? len);
      return;
    }
    this.counters.overruns += 1;
    this.reset(connection);
  }

  #discardData(connection: Connection, { len }: PacketHeader): void {
    const { credit } = connection;
    if (credit.receive(len)) credit.forwardAll();
    else this.reset(connection);
  }

  /** What a write to the socket came to: bytes, or -errno. */
  #noteTaken(connection: Connection, taken: number): void {
    const { credit, state, socket } = connection;
    if (taken >= 0) {
      credit.forward(taken);
      if (credit.isStale && state.state !== CLOSED) connection.pend(VIRTIO_VSOCK_OP_CREDIT_UPDATE);
      return;
    }
    if (taken !== -EPIPE && taken !== -ECONNRESET) {
      this.reset(connection);
      return;
    }
    // The host's program reads no more; what it wrote before is still to be read.
    socket?.discard();
    credit.forwardAll();
    this.#shutdown(connection, VIRTIO_VSOCK_SHUTDOWN_RCV);
  }

  /** Tells the guest that directions of ours ended. */
  #shutdown(connection: Connection, flags: number): void {
    const { state } = connection;
    if (!state.shutdown(flags)) return;
    connection.pend(VIRTIO_VSOCK_OP_SHUTDOWN);
    if (state.state === CLOSING) this.#deadlines.set(connection, this.limits.closeTimeout);
  }

  /** The socket was read to its end. */
  noteEnd(connection: Connection): void {
    const { socket } = connection;
    if (socket === undefined) return;
    socket.readable = false;
    this.#shutdown(connection, socket.gone ? BOTH : VIRTIO_VSOCK_SHUTDOWN_SEND);
    this.attend(connection);
  }

  onSocketEvents(connection: Connection): void {
    const { state, socket } = connection;
    if (socket === undefined) return;
    if (state.state === CONNECTING || state.state === REQUESTED) {
      if (socket.gone) this.reset(connection);
      return;
    }
    if (socket.writable && !socket.isDrained) this.#noteTaken(connection, socket.flush());
    if (state.state === CLOSED) {
      this.sockets.closeWhenDrained(connection);
      return;
    }
    if (socket.gone && !state.maySend) this.#shutdown(connection, BOTH);
    this.attend(connection);
  }

  /** Puts a connection in line for receive buffers if it has something for them. */
  attend(connection: Connection): void {
    if (connection.hasData && connection.credit.room === 0 && !connection.askedForCredit) {
      connection.askedForCredit = true;
      connection.pend(VIRTIO_VSOCK_OP_CREDIT_REQUEST);
    }
    if (!connection.wantsBuffers) return;
    this.outbox.add(connection);
    this.onWork();
  }

  onDeadline(connection: Connection): void {
    this.counters.timeouts += 1;
    if (connection.state.state === CLOSED) this.sockets.close(connection);
    else this.reset(connection);
  }

  #addReset({ peerCid, peerPort, guestPort, type, isKnown }: Connection): void {
    // The guest has not heard of it.
    if (!isKnown) return;
    this.counters.resets += 1;
    this.outbox.addReset(peerCid, peerPort, guestPort, type);
    this.onWork();
  }

  /** Ends a connection at once, and tells the guest. */
  reset(connection: Connection): void {
    const { state } = connection.state;
    this.#leave(connection, false);
    // Last: the guest may take it, and use the ports again, before this returns.
    if (state !== CLOSED) this.#addReset(connection);
  }

  /** Forgets a connection; what the guest sent still goes to the host's side if `lingers`. */
  #leave(connection: Connection, lingers: boolean): void {
    const { state } = connection;
    if (state.state === CLOSED) {
      this.sockets.close(connection);
      return;
    }
    const mayLinger = lingers && state.state !== CONNECTING && state.state !== REQUESTED;
    connection.end();
    this.outbox.remove(connection);
    this.#table.remove(connection);
    this.#halfOpen.delete(connection);
    this.#deadlines.clear(connection);
    if (mayLinger) this.sockets.closeWhenDrained(connection);
    else this.sockets.close(connection);
  }
}
