/** One connection: its address, its state, its credit, its socket, and what waits to be told to the guest. */

import { EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, type EpollTarget } from '../../protocol/sys/epoll.ts';
import {
  VIRTIO_VSOCK_OP_CREDIT_REQUEST,
  VIRTIO_VSOCK_OP_CREDIT_UPDATE,
  VIRTIO_VSOCK_OP_REQUEST,
  VIRTIO_VSOCK_OP_RESPONSE,
  VIRTIO_VSOCK_OP_SHUTDOWN,
  VIRTIO_VSOCK_SHUTDOWN_RCV,
  VIRTIO_VSOCK_SHUTDOWN_SEND,
} from '../../protocol/virtio/vsock.ts';
import { CONNECTING, ConnectionState, REQUESTED } from './connection-state.ts';
import { Credit } from './credit.ts';
import type { Timed } from './deadlines.ts';
import type { HostSocket } from './host-socket.ts';
import { FIRST_READ_BYTES } from './limits.ts';
import type { PacketHeader } from './packet.ts';
import type { SeqpacketMessage } from './seqpacket-message.ts';

/** Who asked the guest for a connection. */
export interface Opener {
  /** The guest accepted. False when the one who asked is gone. */
  established(connection: Connection): boolean;
}

/** What a connection tells of itself. */
export interface ConnectionOwner {
  onSocketEvents(connection: Connection): void;
  onDeadline(connection: Connection): void;
}

/** The address of a connection as the guest's packets say it. */
export interface Address {
  readonly type: number;
  readonly guestPort: number;
  /** The other side: the host, or another guest. */
  readonly peerCid: number;
  readonly peerPort: number;
}

/** Operations in the order in which they go out when several are pending. */
const ORDER = [
  VIRTIO_VSOCK_OP_REQUEST,
  VIRTIO_VSOCK_OP_RESPONSE,
  VIRTIO_VSOCK_OP_CREDIT_UPDATE,
  VIRTIO_VSOCK_OP_CREDIT_REQUEST,
  VIRTIO_VSOCK_OP_SHUTDOWN,
];

export class Connection implements Address, EpollTarget, Timed {
  readonly type: number;
  readonly guestPort: number;
  readonly peerCid: number;
  readonly peerPort: number;
  readonly state: ConnectionState;
  readonly credit: Credit;
  socket: HostSocket | undefined;
  /** Its socket's place in the set of watched descriptors. */
  place = -1;
  /** Of a connection that we asked the guest for, until it answers. */
  opener: Opener | undefined;
  /** Operations that are to be sent: bit 1 << op. */
  pending = 0;
  /** The REQUEST was put into a buffer of the guest. */
  isKnown = false;
  /** Bytes to read at once. */
  readBytes = FIRST_READ_BYTES;
  /** The guest was asked for credit and did not give any. */
  askedForCredit = false;
  /** A message of the host that goes to the guest in several packets. */
  message: SeqpacketMessage | undefined;
  deadline = 0;
  /** In the list of those that have something for the guest, and its neighbours there. */
  isReady = false;
  previousReady: Connection | undefined;
  nextReady: Connection | undefined;
  /** The next with the same hash. */
  nextInBucket: Connection | undefined;
  readonly #owner: ConnectionOwner;

  /** @param state CONNECTING or REQUESTED */
  constructor(address: Address, state: number, bufAlloc: number, owner: ConnectionOwner) {
    this.type = address.type;
    this.guestPort = address.guestPort;
    this.peerCid = address.peerCid;
    this.peerPort = address.peerPort;
    this.state = new ConnectionState(state);
    this.credit = new Credit(bufAlloc);
    this.#owner = owner;
    if (state === REQUESTED) this.pend(VIRTIO_VSOCK_OP_REQUEST);
    else this.isKnown = true;
  }

  pend(op: number): void {
    this.pending |= 1 << op;
  }

  /** Takes the next pending operation and writes its packet. There is one. */
  takePending(header: PacketHeader): void {
    let i = 0;
    while ((this.pending & (1 << (ORDER[i] as number))) === 0) i += 1;
    const op = ORDER[i] as number;
    this.pending &= ~(1 << op);
    if (op === VIRTIO_VSOCK_OP_REQUEST) this.isKnown = true;
    this.fill(header, op, op === VIRTIO_VSOCK_OP_SHUTDOWN ? this.state.ourShutdown : 0, 0);
  }

  /** Fills a header in, but for the guest's CID; it tells the guest of its credit. */
  fill(header: PacketHeader, op: number, flags: number, length: number): void {
    header.srcCid = this.peerCid;
    header.srcPort = this.peerPort;
    header.dstPort = this.guestPort;
    header.len = length;
    header.type = this.type;
    header.op = op;
    header.flags = flags;
    header.bufAlloc = this.credit.bufAlloc;
    header.fwdCnt = this.credit.forwarded;
    this.credit.tell();
    this.pending &= ~(1 << VIRTIO_VSOCK_OP_CREDIT_UPDATE);
  }

  /** The host's program may have sent something that may go to the guest, if it has credit. */
  get hasData(): boolean {
    return this.state.maySend && (this.message !== undefined || this.socket?.readable === true);
  }

  /** There is something for the guest. */
  get wantsBuffers(): boolean {
    return this.pending !== 0 || (this.hasData && this.credit.room > 0);
  }

  /** The guest asked for it, and waits for an answer. */
  get isWaiting(): boolean {
    return this.state.state === CONNECTING;
  }

  /** The host's program hears of what the guest ended. */
  halfClose(): void {
    const { socket } = this;
    if (socket === undefined) return;
    if ((this.state.guestShutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) !== 0) socket.endSending();
    if ((this.state.guestShutdown & VIRTIO_VSOCK_SHUTDOWN_RCV) === 0) return;
    socket.endReceiving();
    this.message?.close();
    this.message = undefined;
  }

  /** It is over for the guest. */
  end(): void {
    this.state.close();
    this.pending = 0;
    this.message?.close();
    this.message = undefined;
  }

  onEvents(events: number): void {
    const { socket } = this;
    if (socket === undefined) return;
    if ((events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) !== 0) socket.readable = true;
    if ((events & (EPOLLRDHUP | EPOLLHUP)) !== 0) socket.ended = true;
    if ((events & EPOLLHUP) !== 0) socket.gone = true;
    if ((events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) !== 0) socket.writable = true;
    this.#owner.onSocketEvents(this);
  }

  onDeadline(): void {
    this.#owner.onDeadline(this);
  }
}
