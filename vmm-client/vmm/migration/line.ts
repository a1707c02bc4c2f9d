/**
 * A connection of a migration before its first frame. It is read by the byte, and on a Unix socket with the descriptors
 * that come along, which the streams of Node.js would drop; then it becomes a stream.
 */

import { Socket } from 'node:net';
import type { OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import { type Watch, watchReadable } from '../../../protocol/sys/readiness.ts';
import type { UnixStream } from '../../../protocol/sys/unix-socket.ts';
import { VmError } from '../errors.ts';

/** What came, and is the caller's. */
export interface Said {
  readonly bytes: Buffer;
  readonly fds: readonly OwnedFd[];
}

export interface Line {
  /** The next `length` bytes. One call at a time. @throws Error - the connection ended or was destroyed */
  receive(length: number): Promise<Said>;
  /** A few bytes; descriptors stay the caller's. @throws Error - the connection broke, or carries no descriptors */
  send(bytes: Buffer, fds: readonly number[]): void;
  /** The rest of the connection, which is the caller's. */
  toSocket(): Socket;
  /** Closes the connection, and what came that nobody has. Whoever waits hears `error`. Idempotent. */
  destroy(error: Error): void;
}

const MAX_FDS = 64;
const ENDED = 'the peer closed the connection before it had said what it is';

export class UnixLine implements Line {
  readonly #stream: UnixStream;
  #fds: OwnedFd[] = [];
  #failure: Error | undefined;
  #watch: Watch | undefined;
  #reject: (error: Error) => void = () => undefined;

  /** Takes the connection over. */
  constructor(stream: UnixStream) {
    this.#stream = stream;
  }

  async receive(length: number): Promise<Said> {
    if (this.#failure !== undefined) throw this.#failure;
    const bytes = Buffer.alloc(length);
    let done = 0;
    try {
      await new Promise<void>((resolve, reject) => {
        this.#reject = reject;
        this.#watch = watchReadable(this.#stream.fd, () => {
          try {
            const received = this.#stream.receive(bytes, done, length - done);
            if (received === undefined) return;
            this.#fds.push(...received.fds);
            done += received.length;
            if (this.#fds.length > MAX_FDS) reject(new VmError(`the peer sends more than ${MAX_FDS} descriptors`));
            else if (received.length === 0) reject(new VmError(ENDED));
            else if (done === length) resolve();
          } catch (error) {
            reject(error);
          }
        });
      });
    } catch (error) {
      this.destroy(error as Error);
      throw error;
    } finally {
      this.#watch?.close();
    }
    const fds = this.#fds;
    this.#fds = [];
    return { bytes, fds };
  }

  send(bytes: Buffer, fds: readonly number[]): void {
    if (this.#stream.send(bytes, fds) !== bytes.length) throw new VmError('the peer does not take what it is told');
  }

  toSocket(): Socket {
    return new Socket({ fd: this.#stream.detach().take(), readable: true, writable: true });
  }

  destroy(error: Error): void {
    this.#failure ??= error;
    this.#watch?.close();
    this.#stream.close();
    for (const fd of this.#fds.splice(0)) fd.close();
    this.#reject(error);
  }
}

export class TcpLine implements Line {
  readonly #socket: Socket;
  #failure: Error | undefined;
  #wake: () => void = () => undefined;
  readonly #onError = (error: Error): void => this.#fail(error);
  readonly #onClose = (): void => this.#fail(new VmError(ENDED));
  readonly #onReadable = (): void => this.#wake();

  /** Takes over a socket that nobody reads from. */
  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('error', this.#onError);
    socket.on('close', this.#onClose);
    socket.on('end', this.#onClose);
    socket.on('readable', this.#onReadable);
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    this.#wake();
  }

  async receive(length: number): Promise<Said> {
    for (;;) {
      const bytes: Buffer | null = this.#socket.read(length);
      if (bytes !== null && bytes.length === length) return { bytes, fds: [] };
      if (this.#failure !== undefined) throw this.#failure;
      // At its end a stream gives less than was asked for.
      if (bytes !== null) throw new VmError(ENDED);
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  send(bytes: Buffer, fds: readonly number[]): void {
    if (fds.length > 0) throw new Error('descriptors for a connection that carries none');
    this.#socket.write(bytes);
  }

  toSocket(): Socket {
    this.#socket.off('error', this.#onError);
    this.#socket.off('close', this.#onClose);
    this.#socket.off('end', this.#onClose);
    this.#socket.off('readable', this.#onReadable);
    return this.#socket;
  }

  destroy(error: Error): void {
    this.#fail(error);
    this.#socket.destroy();
  }
}
