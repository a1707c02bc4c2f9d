/**
 * Listens in on a serial port: keeps the last bytes that the guest sent, whatever became of them, for readers that come
 * at any time. A reader gets what is kept and then what comes. It never holds the guest up: one that reads so slowly
 * that it would miss bytes is cut off, and what is kept for all of them together is one ring of KEPT_BYTES.
 */

import { Readable } from 'node:stream';
import { VmStateError } from '../errors.ts';
import type { Serial } from './serial.ts';

export const KEPT_BYTES = 64 * 1024;
/** Handed to a stream at once. */
const CHUNK_BYTES = 16 * 1024;
/** Readers at one time. */
export const MAX_READERS = 32;

/** A reader fell so far behind that bytes it had not read were overwritten. */
export class SlowReaderError extends Error {
  override readonly name = 'SlowReaderError';
  readonly code = 'SLOW_READER';
}

export class SerialTap {
  readonly #ring = Buffer.alloc(KEPT_BYTES);
  /** Bytes so far: the place of the next one, counted from the first. */
  #end = 0;
  #scheduled = false;
  #closed = false;
  readonly #readers = new Set<TapReader>();

  /** Takes one byte that the guest sent. */
  push(byte: number): void {
    this.#ring[this.#end % KEPT_BYTES] = byte;
    this.#end += 1;
    if (this.#scheduled || this.#readers.size === 0) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      for (const reader of this.#readers) reader.advance();
    });
  }

  /** The place of the first byte that is kept. */
  get start(): number {
    return Math.max(0, this.#end - KEPT_BYTES);
  }

  get end(): number {
    return this.#end;
  }

  /** A copy of what is kept from a place on, at most CHUNK_BYTES. */
  copy(from: number): Buffer {
    const at = from % KEPT_BYTES;
    const length = Math.min(this.#end - from, CHUNK_BYTES, KEPT_BYTES - at);
    return Buffer.from(this.#ring.subarray(at, at + length));
  }

  /**
   * A stream of what is kept and what comes, which ends with the machine. Destroying it ends it earlier.
   * @throws VmStateError - MAX_READERS read already
   */
  read(): TapReader {
    if (this.#readers.size >= MAX_READERS) {
      throw new VmStateError('VM_STATE', `${MAX_READERS} readers read the serial port already`);
    }
    const reader: TapReader = new TapReader(this, () => this.#readers.delete(reader));
    if (this.#closed) reader.finish();
    else this.#readers.add(reader);
    return reader;
  }

  /** Lets all readers have the rest, and end. Idempotent. */
  close(): void {
    this.#closed = true;
    for (const reader of this.#readers) reader.finish();
  }
}

export class TapReader extends Readable {
  readonly #tap: SerialTap;
  readonly #onEnd: () => void;
  #place: number;
  #wanted = false;
  #isLast = false;

  constructor(tap: SerialTap, onEnd: () => void) {
    super({ highWaterMark: CHUNK_BYTES });
    this.#tap = tap;
    this.#onEnd = onEnd;
    this.#place = tap.start;
  }

  override _read(): void {
    this.#wanted = true;
    this.advance();
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    this.#onEnd();
    callback(error);
  }

  /** Hands over what there is, as far as somebody wants it. */
  advance(): void {
    if (this.destroyed) return;
    if (this.#place < this.#tap.start) {
      this.destroy(new SlowReaderError(`a reader of the serial port is more than ${KEPT_BYTES} bytes behind`));
      return;
    }
    while (this.#wanted && this.#place < this.#tap.end) {
      const chunk = this.#tap.copy(this.#place);
      this.#place += chunk.length;
      this.#wanted = this.push(chunk);
    }
    if (this.#isLast && this.#place === this.#tap.end) {
      this.#isLast = false;
      this.push(null);
    }
  }

  /** Nothing comes any more. */
  finish(): void {
    this.#isLast = true;
    this.advance();
  }
}

/**
 * Gives text to the guest as if it were typed, in UTF-8.
 * @throws VmStateError - the guest does not read what came before
 */
export function typeAt(serial: Serial, text: string): void {
  if (serial.holdsBack) {
    throw new VmStateError('VM_STATE', 'the guest does not read its serial port: what came before still waits');
  }
  serial.receive(Buffer.from(text));
}
