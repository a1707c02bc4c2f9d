/**
 * Joins a serial port with streams. Output: what the guest sends in one turn of the event loop goes out as one chunk, in
 * order; when the stream takes no more, the guest waits at its next byte. Input: as much as the port wants, no more.
 */

import type { Readable, Writable } from 'node:stream';
import type { Serial } from './serial.ts';

/** Bytes that are collected at most before they go to the stream. */
const CHUNK_BYTES = 4096;

export class SerialOutput {
  readonly #stream: Writable;
  #chunk = Buffer.allocUnsafe(CHUNK_BYTES);
  #length = 0;
  #scheduled = false;
  #isFull = false;
  /** Kept when the stream is not full any more; there while somebody waits for that. */
  #drained: Promise<void> | undefined;
  #wake: () => void = () => undefined;
  /** Whether the guest is to wait for the stream. */
  #restrains = true;
  #ended = false;

  /** The stream stays the caller's: it is not ended here, and its errors are not handled here, but end the waiting. */
  constructor(stream: Writable) {
    this.#stream = stream;
    stream.on('drain', this.#onDrain);
    stream.on('error', this.#onEnd);
    stream.on('close', this.#onEnd);
  }

  /** Takes one byte. The promise, if there is one, is kept when the stream can take more. */
  write(byte: number): void | Promise<void> {
    if (this.#ended) return;
    this.#chunk[this.#length] = byte;
    this.#length += 1;
    if (this.#length === CHUNK_BYTES) this.#flush();
    else if (!this.#scheduled) {
      this.#scheduled = true;
      setImmediate(() => {
        this.#scheduled = false;
        this.#flush();
      });
    }
    if (!this.#isFull || !this.#restrains) return undefined;
    this.#drained ??= new Promise((resolve) => {
      this.#wake = resolve;
    });
    return this.#drained;
  }

  /**
   * Lets nobody wait, now and until `restrain`: for a guest that is being held and has to finish what it does. It has at
   * most one access a processor, a page of bytes, to go.
   */
  release(): void {
    this.#restrains = false;
    this.#wakeAll();
  }

  /** Back pressure again, after `release`: whoever writes next waits until the stream can take more. */
  restrain(): void {
    this.#restrains = true;
  }

  /** Hands over what was collected and lets go of the stream; nobody waits any more. Idempotent. */
  close(): void {
    this.#flush();
    this.#onEnd();
    this.#stream.off('drain', this.#onDrain);
    this.#stream.off('error', this.#onEnd);
    this.#stream.off('close', this.#onEnd);
  }

  #flush(): void {
    if (this.#length === 0 || this.#ended) return;
    const chunk = this.#chunk.subarray(0, this.#length);
    this.#chunk = Buffer.allocUnsafe(CHUNK_BYTES);
    this.#length = 0;
    if (!this.#stream.write(chunk)) this.#isFull = true;
  }

  #wakeAll(): void {
    this.#drained = undefined;
    this.#wake();
  }

  readonly #onDrain = (): void => {
    this.#isFull = false;
    this.#wakeAll();
  };

  readonly #onEnd = (): void => {
    this.#ended = true;
    this.#onDrain();
  };
}

/** Feeds what comes from `input` to the port. Its end is no end of anything. Returns what lets go of the stream, paused. */
export function feedSerial(input: Readable, serial: Serial): () => void {
  const take = (bytes: Uint8Array): void => {
    if (!serial.receive(bytes)) input.pause();
  };
  serial.onWanted = () => input.resume();
  input.on('data', take);
  // It may have been paused when it was let go of before.
  input.resume();
  return () => {
    serial.onWanted = () => undefined;
    input.off('data', take);
    input.pause();
  };
}
