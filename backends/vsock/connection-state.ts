/**
 * The life of one connection as the guest and we agree on it, without sockets or buffers. Source: VIRTIO 1.3, 5.10.6.4
 * Receive and Transmit, 5.10.6.5 Stream Sockets.
 *
 *     state        entered by                        the guest may send                 we may send
 *     CONNECTING   REQUEST of the guest              SHUTDOWN, RST, CREDIT_*            RESPONSE, RST
 *     REQUESTED    REQUEST of ours                   RESPONSE, RST                      REQUEST, RST
 *     OPEN         RESPONSE of either                RW, SHUTDOWN, RST, CREDIT_*        RW, SHUTDOWN, RST, CREDIT_*
 *     CLOSING      SHUTDOWN of ours, both directions the same; RW is dropped            RST, CREDIT_*
 *     CLOSED       RST of either                     nothing                            nothing
 *
 * Anything else is answered by RST and ends the connection. In OPEN each side says by SHUTDOWN which of its directions
 * ended; when both of the guest's have, RST is the answer.
 */

import {
  VIRTIO_VSOCK_OP_CREDIT_REQUEST,
  VIRTIO_VSOCK_OP_CREDIT_UPDATE,
  VIRTIO_VSOCK_OP_RESPONSE,
  VIRTIO_VSOCK_OP_RST,
  VIRTIO_VSOCK_OP_RW,
  VIRTIO_VSOCK_OP_SHUTDOWN,
  VIRTIO_VSOCK_SHUTDOWN_RCV,
  VIRTIO_VSOCK_SHUTDOWN_SEND,
} from '../../protocol/virtio/vsock.ts';

// States.
export const CONNECTING = 0;
export const REQUESTED = 1;
export const OPEN = 2;
export const CLOSING = 3;
export const CLOSED = 4;

// What is to be done about a packet.
export const DO_NOTHING = 0;
/** Answer RST and let go of the host's side at once. */
export const DO_RESET = 1;
/** Let go without an answer. */
export const DO_DROP = 2;
/** The guest accepted: tell who asked. */
export const DO_ESTABLISH = 3;
/** Take the data. */
export const DO_DATA = 4;
/** Count the data, nobody wants it. */
export const DO_DISCARD = 5;
/** Answer with how much room there is. */
export const DO_TELL_CREDIT = 6;
/** The guest ended a direction. */
export const DO_HALF_CLOSE = 7;
/** The guest ended both: answer RST; what it sent still goes to the host's side. */
export const DO_FINISH = 8;

const BOTH = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND;

export class ConnectionState {
  state: number;
  /** VIRTIO_VSOCK_SHUTDOWN_ bits that the guest said, and that we did. */
  guestShutdown = 0;
  ourShutdown = 0;

  /** @param state CONNECTING or REQUESTED */
  constructor(state: number) {
    this.state = state;
  }

  /** Data may go to the guest. */
  get maySend(): boolean {
    if (this.state !== OPEN && this.state !== CLOSING) return false;
    return (
      (this.ourShutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) === 0 && (this.guestShutdown & VIRTIO_VSOCK_SHUTDOWN_RCV) === 0
    );
  }

  /** The host's side accepted what the guest asked for; RESPONSE is due. */
  accept(): void {
    this.state = OPEN;
  }

  /** A direction of ours ended: VIRTIO_VSOCK_SHUTDOWN_ bits. Returns whether the guest is to be told. */
  shutdown(flags: number): boolean {
    if (this.state !== OPEN || (this.ourShutdown | flags) === this.ourShutdown) return false;
    this.ourShutdown |= flags;
    if (this.ourShutdown === BOTH) this.state = CLOSING;
    return true;
  }

  close(): void {
    this.state = CLOSED;
  }

  /** A packet of the guest for this connection. Returns what is to be done: a DO_ number. */
  receive(op: number, flags: number): number {
    if (op === VIRTIO_VSOCK_OP_RST) return DO_DROP;
    if (this.state === REQUESTED) return this.#receiveAnswer(op);
    switch (op) {
      case VIRTIO_VSOCK_OP_SHUTDOWN:
        return this.#receiveShutdown(flags);
      case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
        return DO_NOTHING;
      case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
        return this.state === CONNECTING ? DO_NOTHING : DO_TELL_CREDIT;
      case VIRTIO_VSOCK_OP_RW:
        return this.#receiveData();
      default:
        return DO_RESET;
    }
  }

  #receiveAnswer(op: number): number {
    if (op !== VIRTIO_VSOCK_OP_RESPONSE) return DO_RESET;
    this.state = OPEN;
    return DO_ESTABLISH;
  }

  #receiveShutdown(flags: number): number {
    // It gave up before there was an answer.
    if (this.state === CONNECTING) return DO_RESET;
    const before = this.guestShutdown;
    this.guestShutdown |= flags & BOTH;
    if (this.guestShutdown === BOTH) return DO_FINISH;
    return this.guestShutdown === before ? DO_NOTHING : DO_HALF_CLOSE;
  }

  #receiveData(): number {
    if (this.state === CONNECTING || (this.guestShutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) !== 0) return DO_RESET;
    return (this.ourShutdown & VIRTIO_VSOCK_SHUTDOWN_RCV) === 0 ? DO_DATA : DO_DISCARD;
  }
}
