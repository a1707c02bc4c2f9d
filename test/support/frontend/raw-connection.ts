/**
 * A vhost-user connection without manners: sends any bytes in any pieces with any descriptors, and takes what comes
 * back apart. Every wait has a deadline.
 */

import type { OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import { type Watch, watchReadable } from '../../../protocol/sys/readiness.ts';
import { UnixStream } from '../../../protocol/sys/unix-socket.ts';
import { FLAGS, message, readU64 } from './wire.ts';

export const DEADLINE_MS = 10_000;

export interface RawMessage {
  readonly id: number;
  readonly flags: number;
  readonly payload: Uint8Array;
  /** Closed by whoever waited for the message. */
  readonly fds: OwnedFd[];
}

export class RawConnection {
  readonly #stream: UnixStream;
  readonly #watch: Watch;
  readonly #messages: RawMessage[] = [];
  #header = new Uint8Array(12);
  #payload: Uint8Array | undefined;
  #have = 0;
  #fds: OwnedFd[] = [];
  #ended = false;
  #open = true;
  #wake: (() => void) | undefined;

  constructor(stream: UnixStream) {
    this.#stream = stream;
    this.#watch = watchReadable(stream.fd, () => this.#read());
  }

  static connect(path: string): RawConnection {
    return new RawConnection(UnixStream.connect(path));
  }

  /** Whether the peer has closed the connection. */
  get ended(): boolean {
    return this.#ended;
  }

  /** Sends bytes as they are; descriptors ride on the first of them. @throws SysError - EPIPE: the peer is gone */
  async sendBytes(bytes: Uint8Array, fds: readonly OwnedFd[] = []): Promise<void> {
    const end = performance.now() + DEADLINE_MS;
    let numbers = fds.map((fd) => fd.fd);
    for (let at = 0; at < bytes.length; ) {
      const sent = this.#stream.send(bytes.subarray(at), numbers);
      if (sent > 0) numbers = [];
      at += sent;
      if (at < bytes.length) await new Promise((resolve) => setImmediate(resolve));
      if (performance.now() > end) throw new Error(`the peer took ${at} of ${bytes.length} bytes`);
    }
  }

  /** Sends one request. */
  send(id: number, payload?: Uint8Array, fds: readonly OwnedFd[] = [], flags: number = FLAGS.VERSION): Promise<void> {
    return this.sendBytes(message(id, payload, { flags }), fds);
  }

  /** The next message of the peer, or undefined when it closed the connection. @throws Error - deadline */
  async receive(deadlineMs = DEADLINE_MS): Promise<RawMessage | undefined> {
    const end = performance.now() + deadlineMs;
    for (;;) {
      const next = this.#messages.shift();
      if (next !== undefined) return next;
      if (this.#ended) return undefined;
      const left = end - performance.now();
      if (left <= 0) throw new Error(`no message and no end of the connection within ${deadlineMs} ms`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.#wake = undefined;
    }
  }

  /** Sends a request and waits for its reply. @throws Error - the peer closed, or answered something else */
  async call(id: number, payload?: Uint8Array, fds: readonly OwnedFd[] = [], flags = 1): Promise<RawMessage> {
    await this.send(id, payload, fds, flags);
    const reply = await this.receive();
    if (reply === undefined) throw new Error(`the peer closed the connection after request ${id}`);
    if (reply.id !== id || reply.flags !== (FLAGS.VERSION | FLAGS.REPLY)) {
      throw new Error(`request ${id} answered by message ${reply.id} with flags ${reply.flags}`);
    }
    return reply;
  }

  /** The u64 that answers a request. */
  async ask(id: number, payload?: Uint8Array): Promise<bigint> {
    return readU64((await this.call(id, payload)).payload);
  }

  /** The acknowledgement (0 for success) of a request sent with need_reply. */
  async acknowledge(id: number, payload?: Uint8Array, fds: readonly OwnedFd[] = []): Promise<bigint> {
    return readU64((await this.call(id, payload, fds, FLAGS.VERSION | FLAGS.NEED_REPLY)).payload);
  }

  /** Waits until the peer closes; messages that come first are dropped. @throws Error - deadline */
  async waitForEnd(deadlineMs = DEADLINE_MS): Promise<void> {
    for (let next = await this.receive(deadlineMs); next !== undefined; next = await this.receive(deadlineMs)) {
      for (const fd of next.fds) fd.close();
    }
  }

  /** Leaves what the peer sends in the socket, until its buffer is full. */
  stopReading(): void {
    this.#watch.pause();
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#ended = true;
    this.#watch.close();
    this.#stream.close();
    for (const fd of this.#fds) fd.close();
    for (const { fds } of this.#messages) for (const fd of fds) fd.close();
    this.#wake?.();
  }

  #read(): void {
    try {
      while (this.#open && this.#readSome());
    } catch {
      // ECONNRESET: the peer closed with our bytes unread.
      this.#end();
    }
    this.#wake?.();
  }

  #readSome(): boolean {
    const target = this.#payload ?? this.#header;
    if (this.#have < target.length) {
      const part = this.#stream.receive(target, this.#have, target.length - this.#have);
      if (part === undefined) return false;
      this.#fds.push(...part.fds);
      if (part.length === 0) {
        this.#end();
        return false;
      }
      this.#have += part.length;
    }
    if (this.#have < target.length) return true;
    const view = new DataView(this.#header.buffer);
    this.#have = 0;
    if (this.#payload === undefined) {
      this.#payload = new Uint8Array(view.getUint32(8, true));
      return true;
    }
    this.#messages.push({
      id: view.getUint32(0, true),
      flags: view.getUint32(4, true),
      payload: this.#payload,
      fds: this.#fds,
    });
    this.#header = new Uint8Array(12);
    this.#payload = undefined;
    this.#fds = [];
    return true;
  }

  #end(): void {
    this.#ended = true;
    this.#watch.pause();
  }
}
