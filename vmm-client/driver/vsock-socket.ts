/**
 * A connection with promises: what a socket of AF_VSOCK is to a program in the guest. Reads and writes of one side are
 * taken in turn. Source: VIRTIO 1.3, 5.10.6.5 Stream Sockets, 5.10.6.6 Seqpacket Sockets.
 */

import {
  VIRTIO_VSOCK_SEQ_EOM,
  VIRTIO_VSOCK_SEQ_EOR,
  VIRTIO_VSOCK_SHUTDOWN_RCV,
  VIRTIO_VSOCK_SHUTDOWN_SEND,
} from '../../protocol/virtio/vsock.ts';
import type { VsockConnection, VsockHandler } from './vsock-connection.ts';
import { VsockError } from './vsock-error.ts';

export interface VsockMessage {
  readonly bytes: Buffer;
  /** Whether it is the last one of a record (EOR). */
  readonly endOfRecord: boolean;
}

/** One thing to wait for that may have happened already, or fail. */
class Signal {
  #resolve: (() => void) | undefined;

  /** Until the next `fire`. */
  wait(): Promise<void> {
    return new Promise((resolve) => {
      const before = this.#resolve;
      this.#resolve = () => {
        before?.();
        resolve();
      };
    });
  }

  fire(): void {
    const resolve = this.#resolve;
    this.#resolve = undefined;
    resolve?.();
  }
}

export class VsockSocket implements VsockHandler {
  readonly #readable = new Signal();
  readonly #writable = new Signal();
  readonly #closed = new Signal();
  #connection: VsockConnection | undefined;
  #writes: Promise<void> = Promise.resolve();

  /** Of the driver: what a connection is made with, before `attach`. */
  attach(connection: VsockConnection): this {
    this.#connection = connection;
    return this;
  }

  get connection(): VsockConnection {
    if (this.#connection === undefined) throw new Error('a socket without a connection');
    return this.#connection;
  }

  /** Until the other side accepted. @throws VsockError - ECONNREFUSED, ETIMEDOUT: it did not */
  async opened(): Promise<this> {
    while (this.connection.state === 'connecting') await this.#writable.wait();
    const { error } = this.connection;
    if (error !== undefined) throw error;
    return this;
  }

  /**
   * Reads up to the target's length of a stream, as soon as there is a byte. Returns how many; 0 is the end.
   * @throws VsockError - ECONNRESET, ENETRESET: there was no orderly end
   */
  async read(target: Uint8Array): Promise<number> {
    for (;;) {
      const length = this.connection.read(target);
      if (length > 0 || target.length === 0) return length;
      if (this.#isOver()) return 0;
      await this.#readable.wait();
    }
  }

  /** The next message; undefined is the end. @throws VsockError - ECONNRESET, ENETRESET */
  async readMessage(): Promise<VsockMessage | undefined> {
    for (;;) {
      const message = this.connection.readMessage();
      if (message !== undefined) {
        return { bytes: message.bytes, endOfRecord: (message.flags & VIRTIO_VSOCK_SEQ_EOR) !== 0 };
      }
      if (this.#isOver()) return undefined;
      await this.#readable.wait();
    }
  }

  /** Writes all of `bytes` to a stream, after writes before. @throws VsockError - EPIPE, ECONNRESET, ENETRESET */
  write(bytes: Uint8Array): Promise<void> {
    return this.#inTurn(() => this.#writeAll(bytes, 0));
  }

  /**
   * Writes one message.
   * @throws VsockError - EMSGSIZE: the other side's buffer is too small for it; EPIPE, ECONNRESET, ENETRESET
   */
  writeMessage(bytes: Uint8Array, endOfRecord = false): Promise<void> {
    return this.#inTurn(async () => {
      const { connection } = this;
      const { peerBufferBytes } = connection;
      if (bytes.length > peerBufferBytes) {
        const what = `a message of ${bytes.length} bytes: the other side has room for ${peerBufferBytes}`;
        throw new VsockError('EMSGSIZE', `${connection.name}: ${what}`);
      }
      const flags = VIRTIO_VSOCK_SEQ_EOM | (endOfRecord ? VIRTIO_VSOCK_SEQ_EOR : 0);
      if (bytes.length > 0) return this.#writeAll(bytes, flags);
      for (;;) {
        connection.sendInPlace(0, flags);
        if (!connection.isBlocked) return;
        await this.#writable.wait();
      }
    });
  }

  /** Says that nothing more is sent, once what was written is. The other side may go on. */
  async shutdown(): Promise<void> {
    await this.#inTurn(async () => this.connection.shutdown(VIRTIO_VSOCK_SHUTDOWN_SEND));
  }

  /** Says that nothing more is received. */
  shutdownReceive(): void {
    this.connection.shutdown(VIRTIO_VSOCK_SHUTDOWN_RCV);
  }

  /** Ends the connection, once what was written is sent. Resolves when the other side knows. Idempotent. */
  async close(): Promise<void> {
    await this.#writes;
    this.connection.close();
    await this.ended();
  }

  /** Ends the connection at once. */
  reset(): void {
    this.connection.reset();
  }

  /** Until the connection is closed, whatever way. */
  async ended(): Promise<void> {
    while (this.connection.state !== 'closed') await this.#closed.wait();
  }

  // What the connection calls.

  onOpen(): void {
    this.#writable.fire();
  }

  onReadable(): void {
    this.#readable.fire();
  }

  onWritable(): void {
    this.#writable.fire();
  }

  onClose(): void {
    this.#readable.fire();
    this.#writable.fire();
    this.#closed.fire();
  }

  #isOver(): boolean {
    const { error, hasEnded } = this.connection;
    if (error !== undefined) throw error;
    return hasEnded;
  }

  async #writeAll(bytes: Uint8Array, endFlags: number): Promise<void> {
    const { connection } = this;
    for (let done = 0; done < bytes.length; ) {
      done += connection.send(bytes, done, bytes.length, endFlags);
      if (done < bytes.length) await this.#writable.wait();
    }
  }

  #inTurn(work: () => Promise<void>): Promise<void> {
    const done = this.#writes.then(work);
    this.#writes = done.catch(() => undefined);
    return done;
  }
}
