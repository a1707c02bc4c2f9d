/**
 * One end of a vhost-user connection: framing, ancillary descriptors, bounded output. It knows messages by number and
 * size only; what they mean is the session's (back end) or the front end's business. The same class serves both ends and
 * the back-end request channel. Source: vhost-user, Message Specification, Communication.
 */

import type { OwnedFd } from '../sys/owned-fd.ts';
import { type Watch, watchReadable, watchWritable } from '../sys/readiness.ts';
import type { UnixStream } from '../sys/unix-socket.ts';
import { ProtocolError } from './errors.ts';
import { FLAG_NEED_REPLY, FLAG_REPLY, HEADER_BYTES, type MessageType, VERSION, VERSION_MASK } from './messages.ts';
import { MAX_PAYLOAD_BYTES } from './payloads.ts';

/** Unsent bytes after which a peer that does not read is given up. */
const MAX_UNSENT_BYTES = 256 * 1024;

/** A message as it came in. Whoever gets it owns its descriptors. */
export interface IncomingMessage {
  readonly id: number;
  readonly isReply: boolean;
  readonly needsReply: boolean;
  readonly payload: Uint8Array;
  readonly fds: OwnedFd[];
}

interface Unsent {
  bytes: Uint8Array;
  fds: number[];
  release: OwnedFd[];
}

/** Closes descriptors that nobody wants. */
export function closeAll(fds: readonly OwnedFd[]): void {
  for (const fd of fds) fd.close();
}

export class Endpoint {
  readonly #stream: UnixStream;
  readonly #header = new Uint8Array(HEADER_BYTES);
  readonly #headerView = new DataView(this.#header.buffer);
  #payload: Uint8Array | undefined;
  #received = 0;
  #fds: OwnedFd[] = [];
  #unsent: Unsent[] = [];
  #unsentBytes = 0;
  #readable: Watch | undefined;
  #writable: Watch | undefined;
  #waiting: { resolve: (m: IncomingMessage | undefined) => void; reject: (e: unknown) => void } | undefined;
  #closed = false;

  /** Takes over the stream. */
  constructor(stream: UnixStream) {
    this.#stream = stream;
  }

  get isClosed(): boolean {
    return this.#closed;
  }

  /**
   * The next whole message, or undefined when the peer closed between messages or this end was closed. One call at a
   * time; the socket is read only while a call waits, so a slow receiver slows the sender down.
   * @throws ProtocolError - version, size, flags or descriptors are wrong, or the peer closed inside a message
   * @throws SysError - the connection broke
   */
  next(): Promise<IncomingMessage | undefined> {
    return new Promise((resolve, reject) => {
      this.#waiting = { resolve, reject };
      if (this.#closed) {
        this.#settle(() => undefined);
        return;
      }
      if (this.#readable === undefined) this.#readable = watchReadable(this.#stream.fd, () => this.#onReadable());
      else this.#readable.resume();
    });
  }

  #settle(produce: () => IncomingMessage | undefined): void {
    const waiting = this.#waiting;
    if (waiting === undefined) return;
    this.#waiting = undefined;
    this.#readable?.pause();
    try {
      waiting.resolve(produce());
    } catch (error) {
      waiting.reject(error);
    }
  }

  #onReadable(): void {
    let result: IncomingMessage | 'end' | 'partial';
    try {
      result = this.#read();
    } catch (error) {
      this.#settle(() => {
        throw error;
      });
      return;
    }
    if (result === 'end') this.#settle(() => undefined);
    else if (result !== 'partial') this.#settle(() => result);
  }

  /** Reads as far as the socket gives: header first, then exactly its payload, never into the next message. */
  #read(): IncomingMessage | 'end' | 'partial' {
    for (;;) {
      const inHeader = this.#payload === undefined;
      const target = this.#payload ?? this.#header;
      if (!inHeader && this.#received === target.length) return this.#finish(target);
      const part = this.#stream.receive(target, this.#received, target.length - this.#received);
      if (part === undefined) return 'partial';
      if (part.fds.length > 0) this.#adopt(part.fds, inHeader && this.#received === 0);
      if (part.length === 0) {
        if (inHeader && this.#received === 0) return 'end';
        throw new ProtocolError(
          `connection closed ${this.#received} bytes into a message ${inHeader ? 'header' : 'payload'}`,
        );
      }
      this.#received += part.length;
      if (inHeader && this.#received === HEADER_BYTES) this.#startPayload();
    }
  }

  #adopt(fds: OwnedFd[], first: boolean): void {
    this.#fds.push(...fds);
    if (!first) throw new ProtocolError(`${fds.length} file descriptors arrived after the first byte of a message`);
  }

  #startPayload(): void {
    const id = this.#headerView.getUint32(0, true);
    const flags = this.#headerView.getUint32(4, true);
    const size = this.#headerView.getUint32(8, true);
    if ((flags & VERSION_MASK) !== VERSION) {
      throw new ProtocolError(`message ${id}: version ${flags & VERSION_MASK} in the flags, ${VERSION} expected`);
    }
    if ((flags & ~(VERSION_MASK | FLAG_REPLY | FLAG_NEED_REPLY)) !== 0) {
      throw new ProtocolError(`message ${id}: reserved flags 0x${flags.toString(16)}`);
    }
    if (size > MAX_PAYLOAD_BYTES) {
      throw new ProtocolError(`message ${id}: payload of ${size} bytes, at most ${MAX_PAYLOAD_BYTES} are possible`);
    }
    this.#payload = new Uint8Array(size);
    this.#received = 0;
  }

  #finish(payload: Uint8Array): IncomingMessage {
    const flags = this.#headerView.getUint32(4, true);
    const fds = this.#fds;
    this.#fds = [];
    this.#payload = undefined;
    this.#received = 0;
    return {
      id: this.#headerView.getUint32(0, true),
      isReply: (flags & FLAG_REPLY) !== 0,
      needsReply: (flags & FLAG_NEED_REPLY) !== 0,
      payload,
      fds,
    };
  }

  /** Sends a request. Descriptors stay the caller's, who may close them at once. @throws ProtocolError, SysError */
  sendRequest<Q>(
    type: MessageType<Q>,
    value: Q,
    options: { fds?: readonly OwnedFd[]; needReply?: boolean } = {},
  ): void {
    const flags = VERSION | (options.needReply === true ? FLAG_NEED_REPLY : 0);
    this.#send(type.id, flags, type.request.encode(value), options.fds ?? []);
  }

  /** Sends a reply with an encoded payload. Descriptors stay the caller's. @throws ProtocolError, SysError */
  sendReply(id: number, payload: Uint8Array, fds: readonly OwnedFd[] = []): void {
    this.#send(id, VERSION | FLAG_REPLY, payload, fds);
  }

  #send(id: number, flags: number, payload: Uint8Array, fds: readonly OwnedFd[]): void {
    if (this.#closed) return;
    const bytes = new Uint8Array(HEADER_BYTES + payload.length);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, id, true);
    view.setUint32(4, flags, true);
    view.setUint32(8, payload.length, true);
    bytes.set(payload, HEADER_BYTES);
    const numbers = fds.map((fd) => fd.fd);
    const sent = this.#unsent.length === 0 ? this.#stream.send(bytes, numbers) : 0;
    if (sent === bytes.length) return;
    // Kept descriptors are duplicates: the caller closes its own as soon as this call returns.
    const release = sent === 0 ? fds.map((fd) => fd.duplicate()) : [];
    this.#unsent.push({ bytes: bytes.subarray(sent), fds: release.map((fd) => fd.fd), release });
    this.#unsentBytes += bytes.length - sent;
    if (this.#unsentBytes > MAX_UNSENT_BYTES) {
      throw new ProtocolError(`the peer does not read: ${this.#unsentBytes} bytes are waiting for it`);
    }
    this.#writable ??= watchWritable(this.#stream.fd, () => this.#onWritable());
  }

  #onWritable(): void {
    try {
      for (let first = this.#unsent[0]; first !== undefined; first = this.#unsent[0]) {
        const sent = this.#stream.send(first.bytes, first.fds);
        if (sent === 0) return;
        closeAll(first.release);
        this.#unsentBytes -= sent;
        if (sent < first.bytes.length) {
          this.#unsent[0] = { bytes: first.bytes.subarray(sent), fds: [], release: [] };
          return;
        }
        this.#unsent.shift();
      }
      this.#writable?.close();
      this.#writable = undefined;
    } catch (error) {
      this.#settle(() => {
        throw error;
      });
      this.close();
    }
  }

  /** Closes the connection and every descriptor that was not handed out. A waiting `next` gets undefined. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#settle(() => undefined);
    this.#readable?.close();
    this.#writable?.close();
    closeAll(this.#fds);
    for (const unsent of this.#unsent) closeAll(unsent.release);
    this.#fds = [];
    this.#unsent = [];
    this.#stream.close();
  }
}
