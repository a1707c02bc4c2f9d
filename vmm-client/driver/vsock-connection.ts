/**
 * One connection of the socket device, seen from the guest: states, credit in both directions, half-close. Talks to its
 * user by a handler and never waits; `VsockSocket` is the same with promises. Counters of bytes are 32 bits wide and wrap
 * around. Nothing is allocated per packet where the handler takes data at once. Source: VIRTIO 1.3, 5.10.6.3 Buffer Space
 * Management, 5.10.6.5 Stream Sockets, 5.10.6.6 Seqpacket Sockets.
 *
 *     connecting --RESPONSE--> open --close--> closing --RST--> closed        RST from anywhere: closed
 */

import {
  VIRTIO_VSOCK_OP_CREDIT_REQUEST,
  VIRTIO_VSOCK_OP_CREDIT_UPDATE,
  VIRTIO_VSOCK_OP_REQUEST,
  VIRTIO_VSOCK_OP_RESPONSE,
  VIRTIO_VSOCK_OP_RST,
  VIRTIO_VSOCK_OP_RW,
  VIRTIO_VSOCK_OP_SHUTDOWN,
  VIRTIO_VSOCK_SEQ_EOM,
  VIRTIO_VSOCK_SHUTDOWN_RCV,
  VIRTIO_VSOCK_SHUTDOWN_SEND,
  VIRTIO_VSOCK_TYPE_SEQPACKET,
} from '../../protocol/virtio/vsock.ts';
import { VsockCredit } from './vsock-credit.ts';
import { VsockError } from './vsock-error.ts';
import type { VsockEnds, VsockHeader } from './vsock-header.ts';
import { VsockReceiveBuffer } from './vsock-receive-buffer.ts';
import type { VsockTransmitQueue } from './vsock-transmit-queue.ts';

const SHUTDOWN_BOTH = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND;
/** In this order: what waits for a slot is said before what ends it. */
const CONTROL_ORDER = [
  VIRTIO_VSOCK_OP_REQUEST,
  VIRTIO_VSOCK_OP_RESPONSE,
  VIRTIO_VSOCK_OP_CREDIT_REQUEST,
  VIRTIO_VSOCK_OP_CREDIT_UPDATE,
  VIRTIO_VSOCK_OP_SHUTDOWN,
  VIRTIO_VSOCK_OP_RST,
] as const;

/** Who uses a connection. Called while packets are taken: what is called from here may send, but not wait. */
export interface VsockHandler {
  /** The other side accepted. */
  onOpen?(connection: VsockConnection): void;
  /** Takes data at once, from shared memory that is used again afterwards. Without it data is kept for `read`. */
  onData?(connection: VsockConnection, bytes: Uint8Array, start: number, end: number, flags: number): void;
  /** There is something to read, or `hasEnded`. */
  onReadable?(connection: VsockConnection): void;
  /** `send` took less than it was given, and would take more now; or it would throw. */
  onWritable?(connection: VsockConnection): void;
  /** Nothing will come or go any more; what has come can be read still. Without an error both sides had ended it. */
  onClose(connection: VsockConnection, error: Error | undefined): void;
}

/** What a connection needs of the driver it belongs to. */
export interface VsockLink {
  readonly transmit: VsockTransmitQueue;
  /** The shared memory. */
  readonly bytes: Uint8Array;
  /** How long the other side may take to answer a REQUEST, and to end what was closed, in milliseconds. */
  readonly connectTimeoutMs: number;
  readonly closeTimeoutMs: number;
  /** Calls `sendControl` as soon as there is a slot. */
  awaitControlSlot(connection: VsockConnection): void;
  /** Calls `onRoom` when there is a slot for data. */
  awaitSlot(connection: VsockConnection): void;
  /** Asks the other side for credit if it does not give any by itself. */
  awaitCredit(connection: VsockConnection): void;
  endAwaitCredit(connection: VsockConnection): void;
  /** Gives the device what was staged, if nobody else is about to. */
  flush(): void;
  /** The other side's packets are not this connection's any more. */
  forget(connection: VsockConnection): void;
}

export type VsockState = 'connecting' | 'open' | 'closing' | 'closed';

export class VsockConnection implements VsockEnds {
  readonly localCid: number;
  readonly localPort: number;
  readonly remoteCid: number;
  readonly remotePort: number;
  readonly type: number;
  handler: VsockHandler;
  readonly #link: VsockLink;
  readonly #received: VsockReceiveBuffer;
  readonly #credit: VsockCredit;
  #state: VsockState;
  #error: Error | undefined;
  #timer: NodeJS.Timeout | undefined;
  /** Bit n: the packet of operation n is to be sent. */
  #pending = 0;
  #awaitsControlSlot = false;
  #awaitsSlot = false;
  #awaitsCredit = false;
  #localShutdown = 0;
  #remoteShutdown = 0;

  /** `header` is the REQUEST that began it; without one it is this side that asks. */
  constructor(link: VsockLink, ends: VsockEnds, bufferBytes: number, handler: VsockHandler, header?: VsockHeader) {
    this.#link = link;
    this.localCid = ends.localCid;
    this.localPort = ends.localPort;
    this.remoteCid = ends.remoteCid;
    this.remotePort = ends.remotePort;
    this.type = ends.type;
    this.handler = handler;
    this.#received = new VsockReceiveBuffer(bufferBytes);
    this.#credit = new VsockCredit(bufferBytes);
    this.#state = header === undefined ? 'connecting' : 'open';
    if (header !== undefined) this.#credit.update({ bufAlloc: header.bufAlloc, fwdCnt: 0 });
  }

  /** Says the first word: REQUEST or RESPONSE. */
  start(): void {
    if (this.#state === 'connecting') {
      const { connectTimeoutMs } = this.#link;
      const tooLate = () =>
        this.#reset(new VsockError('ETIMEDOUT', `${this.name}: no answer in ${connectTimeoutMs} ms`));
      this.#timer = setTimeout(tooLate, connectTimeoutMs);
      this.#say(VIRTIO_VSOCK_OP_REQUEST);
    } else {
      this.#say(VIRTIO_VSOCK_OP_RESPONSE);
    }
  }

  get state(): VsockState {
    return this.#state;
  }

  /** Why it is closed, if that was not as it should be. */
  get error(): Error | undefined {
    return this.#error;
  }

  /** For messages: `port 1024 to 2:5000`. */
  get name(): string {
    return `port ${this.localPort} to ${this.remoteCid}:${this.remotePort}`;
  }

  /** Bytes that can be read now. */
  get readableBytes(): number {
    return this.#received.length;
  }

  /** Whether nothing can come beyond what can be read now. */
  get hasEnded(): boolean {
    return this.#state === 'closed' || (this.#remoteShutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) !== 0;
  }

  /** Whether `send` may be called. */
  get canSend(): boolean {
    const isShut =
      (this.#localShutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) | (this.#remoteShutdown & VIRTIO_VSOCK_SHUTDOWN_RCV);
    return this.#state === 'open' && isShut === 0;
  }

  /** Bytes that the other side's buffer has altogether: no message may be longer. */
  get peerBufferBytes(): number {
    return this.#credit.peerBufAlloc;
  }

  /** Moves up to the target's length of bytes of a stream out. Returns how many. */
  read(target: Uint8Array): number {
    const length = this.#received.take(target);
    this.#consume(length);
    return length;
  }

  /** Takes the next message; undefined while none is complete. `flags` are SEQ_EOM and SEQ_EOR. */
  readMessage(): { bytes: Buffer; flags: number } | undefined {
    const message = this.#received.takeMessage();
    if (message !== undefined) this.#consume(message.bytes.length);
    return message;
  }

  /**
   * Sends as much as there is room for. Returns how many bytes; when it is less, `onWritable` follows. `endFlags` go with
   * the packet that has the last byte: SEQ_EOM, for the end of a message.
   * @throws VsockError - EPIPE: nothing can be sent any more
   */
  send(source: Uint8Array, start: number, end: number, endFlags = 0): number {
    const { transmit, bytes } = this.#link;
    let at = start;
    while (at < end) {
      const length = this.#room(end - at);
      if (length === 0) break;
      bytes.set(source.subarray(at, at + length), transmit.payloadOffset(transmit.peekData()));
      at += length;
      this.#push(length, at === end ? endFlags : 0);
    }
    this.#link.flush();
    return at - start;
  }

  /**
   * Sends one packet of at most `length` bytes with whatever its slot has in it. Returns how many bytes; 0: `onWritable`
   * follows. `length` 0 is an empty message: returns 0 also when it was sent, and `isBlocked` tells.
   * @throws VsockError - EPIPE
   */
  sendInPlace(length: number, flags = 0): number {
    const taken = this.#room(length);
    if (!this.isBlocked) {
      this.#push(taken, flags);
      this.#link.flush();
    }
    return taken;
  }

  /** Whether what was sent last was not taken as a whole. */
  get isBlocked(): boolean {
    return this.#awaitsSlot || this.#awaitsCredit;
  }

  /** Says that this side sends, or receives, no more. */
  shutdown(flags: number): void {
    if (this.#state !== 'open' || (this.#localShutdown & flags) === flags) return;
    this.#localShutdown |= flags;
    this.#say(VIRTIO_VSOCK_OP_SHUTDOWN);
  }

  /** Ends it in order: the other side answers with RST, or gets one in the end. Idempotent. */
  close(): void {
    if (this.#state === 'closing' || this.#state === 'closed') return;
    if (this.#state === 'connecting' || this.#remoteShutdown === SHUTDOWN_BOTH) {
      this.#reset(undefined);
      return;
    }
    this.shutdown(SHUTDOWN_BOTH);
    this.#state = 'closing';
    this.#timer = setTimeout(() => this.#reset(undefined), this.#link.closeTimeoutMs);
  }

  /** Ends it at once. */
  reset(): void {
    this.#reset(undefined);
  }

  /** The device that it went through is not what it was: there is nobody to tell. */
  abandon(error: Error): void {
    this.#end(error);
  }

  /** Takes a packet of the other side. `start` is where its payload begins in the shared memory. */
  receive(header: VsockHeader, start: number): void {
    if (this.#state === 'closed') return;
    // Whoever resets a connection that it does not know has no counters for it.
    if (header.op === VIRTIO_VSOCK_OP_RST) {
      this.#onReset();
      return;
    }
    if (!this.#credit.update(header)) {
      this.#breakOff(`fwd_cnt ${header.fwdCnt} says that more was read than sent`);
      return;
    }
    switch (header.op) {
      case VIRTIO_VSOCK_OP_RW:
        this.#onData(header, start);
        break;
      case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
        break;
      case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
        this.#say(VIRTIO_VSOCK_OP_CREDIT_UPDATE);
        break;
      case VIRTIO_VSOCK_OP_RESPONSE:
        this.#onResponse();
        break;
      case VIRTIO_VSOCK_OP_SHUTDOWN:
        this.#onShutdown(header.flags);
        break;
      default:
        this.#breakOff(`operation ${header.op} in a connection`);
        return;
    }
    if (this.#awaitsCredit && this.#credit.available > 0) {
      this.#awaitsCredit = false;
      this.#link.endAwaitCredit(this);
      if (!this.#awaitsSlot) this.handler.onWritable?.(this);
    }
  }

  /** There is a slot: who sends can go on. */
  onRoom(): void {
    this.#awaitsSlot = false;
    if (this.#state === 'open') this.handler.onWritable?.(this);
  }

  /** No credit came for a while. */
  askForCredit(): void {
    if (this.#awaitsCredit) this.#say(VIRTIO_VSOCK_OP_CREDIT_REQUEST);
  }

  /** Stages what is to be said. Returns false when there was no slot for all of it. */
  sendControl(): boolean {
    this.#awaitsControlSlot = false;
    for (const op of CONTROL_ORDER) {
      if ((this.#pending & (1 << op)) === 0) continue;
      const flags = op === VIRTIO_VSOCK_OP_SHUTDOWN ? this.#localShutdown : 0;
      const { bufAlloc, fwdCnt } = this.#credit;
      if (!this.#link.transmit.pushControl(this, op, flags, bufAlloc, fwdCnt)) {
        this.#awaitsControlSlot = true;
        return false;
      }
      this.#pending &= ~(1 << op);
      this.#credit.noteTold();
    }
    return true;
  }

  #say(op: number): void {
    this.#pending |= 1 << op;
    if (this.#awaitsControlSlot) return;
    if (!this.sendControl()) this.#link.awaitControlSlot(this);
    this.#link.flush();
  }

  /** How many of `wanted` bytes one packet can have now; 0: none, and `onWritable` follows, unless 0 were wanted. */
  #room(wanted: number): number {
    if (!this.canSend) {
      throw this.#error ?? new VsockError('EPIPE', `${this.name}: the connection does not take any more data`);
    }
    const { transmit } = this.#link;
    // A RESPONSE that waits for a slot comes first.
    if (transmit.peekData() === -1 || this.#awaitsControlSlot) {
      if (!this.#awaitsSlot) this.#link.awaitSlot(this);
      this.#awaitsSlot = true;
      return 0;
    }
    const credit = this.#credit.available;
    if (credit === 0 && wanted > 0) {
      if (!this.#awaitsCredit) this.#link.awaitCredit(this);
      this.#awaitsCredit = true;
      return 0;
    }
    return Math.min(wanted, credit, transmit.payloadBytes);
  }

  #push(length: number, flags: number): void {
    const { bufAlloc, fwdCnt } = this.#credit;
    this.#link.transmit.pushData(this, length, flags, bufAlloc, fwdCnt);
    this.#credit.noteSent(length);
    this.#credit.noteTold();
    this.#pending &= ~(1 << VIRTIO_VSOCK_OP_CREDIT_UPDATE);
  }

  #onData({ length, flags }: VsockHeader, start: number): void {
    if (this.#state === 'connecting') {
      this.#breakOff('data before the connection was accepted');
      return;
    }
    if (!this.#credit.noteReceived(length)) {
      this.#breakOff(`${length} bytes came without credit for them`);
      return;
    }
    const { handler } = this;
    if (handler.onData !== undefined || this.#state === 'closing') {
      this.#consume(length);
      if (this.#state === 'open') handler.onData?.(this, this.#link.bytes, start, start + length, flags);
      return;
    }
    this.#received.push(this.#link.bytes, start, length);
    if (this.type === VIRTIO_VSOCK_TYPE_SEQPACKET && (flags & VIRTIO_VSOCK_SEQ_EOM) !== 0) {
      if (!this.#received.endMessage(flags)) {
        this.#breakOff('too many messages wait to be read');
        return;
      }
    }
    handler.onReadable?.(this);
  }

  /** Bytes were read, or need not be. */
  #consume(length: number): void {
    this.#credit.noteRead(length);
    if (this.#state === 'closed') return;
    if (this.#credit.isUpdateDue) this.#say(VIRTIO_VSOCK_OP_CREDIT_UPDATE);
    // What the other side ended is over when it has been read.
    if (this.#remoteShutdown === SHUTDOWN_BOTH && this.#received.length === 0) this.#reset(undefined);
  }

  #onResponse(): void {
    if (this.#state !== 'connecting') {
      this.#breakOff('RESPONSE to no request');
      return;
    }
    this.#state = 'open';
    clearTimeout(this.#timer);
    this.handler.onOpen?.(this);
  }

  #onShutdown(flags: number): void {
    if (this.#state === 'connecting') {
      this.#breakOff('SHUTDOWN before the connection was accepted');
      return;
    }
    this.#remoteShutdown |= flags & SHUTDOWN_BOTH;
    if (this.#remoteShutdown === SHUTDOWN_BOTH && (this.#received.length === 0 || this.#state === 'closing')) {
      this.#reset(undefined);
      return;
    }
    if ((flags & VIRTIO_VSOCK_SHUTDOWN_SEND) !== 0) this.handler.onReadable?.(this);
    if ((flags & VIRTIO_VSOCK_SHUTDOWN_RCV) !== 0 && this.#state === 'open') this.handler.onWritable?.(this);
  }

  #onReset(): void {
    if (this.#state === 'connecting') {
      this.#end(new VsockError('ECONNREFUSED', `nobody accepts connections at ${this.remoteCid}:${this.remotePort}`));
    } else if (this.#state === 'closing' || (this.#remoteShutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) !== 0) {
      this.#end(undefined);
    } else {
      this.#end(new VsockError('ECONNRESET', `${this.name}: the other side reset the connection`));
    }
  }

  #breakOff(what: string): void {
    this.#reset(new VsockError('EPROTO', `${this.name}: ${what}`));
  }

  #reset(error: Error | undefined): void {
    if (this.#state === 'closed') return;
    this.#pending = 0;
    this.#say(VIRTIO_VSOCK_OP_RST);
    this.#end(error);
  }

  #end(error: Error | undefined): void {
    if (this.#state === 'closed') return;
    this.#state = 'closed';
    this.#error = error;
    clearTimeout(this.#timer);
    if (this.#awaitsCredit) this.#link.endAwaitCredit(this);
    this.#awaitsCredit = false;
    this.#link.forget(this);
    this.handler.onClose(this, error);
  }
}
