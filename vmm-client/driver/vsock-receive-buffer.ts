/**
 * Bytes of one connection that have come and nobody has read: a ring of bytes, and with SEQPACKET where messages end. Its
 * memory is taken when the first byte comes.
 */

/** Messages that wait, at most: empty ones need no credit. */
const MAX_MESSAGES = 4096;

export class VsockReceiveBuffer {
  readonly capacity: number;
  #ring: Buffer | undefined;
  #head = 0;
  #length = 0;
  /** Bytes of the message that is coming, then lengths and flags of those that are complete. */
  #partBytes = 0;
  readonly #messages: { readonly length: number; readonly flags: number }[] = [];

  constructor(capacity: number) {
    this.capacity = capacity;
  }

  /** Bytes that are there. */
  get length(): number {
    return this.#length;
  }

  /** Bytes of the first complete message; undefined while there is none. */
  get messageLength(): number | undefined {
    return this.#messages[0]?.length;
  }

  /** Adds bytes. Returns false, with nothing added, when they do not fit. */
  push(source: Uint8Array, start: number, length: number): boolean {
    if (length > this.capacity - this.#length) return false;
    this.#ring ??= Buffer.allocUnsafeSlow(this.capacity);
    const tail = (this.#head + this.#length) % this.capacity;
    const first = Math.min(length, this.capacity - tail);
    this.#ring.set(source.subarray(start, start + first), tail);
    if (first < length) this.#ring.set(source.subarray(start + first, start + length), 0);
    this.#length += length;
    this.#partBytes += length;
    return true;
  }

  /** What came since the last message is one. Returns false when too many wait. */
  endMessage(flags: number): boolean {
    if (this.#messages.length === MAX_MESSAGES) return false;
    this.#messages.push({ length: this.#partBytes, flags });
    this.#partBytes = 0;
    return true;
  }

  /** Moves up to the target's length of bytes out. Returns how many. */
  take(target: Uint8Array): number {
    const length = Math.min(target.length, this.#length);
    if (length === 0 || this.#ring === undefined) return 0;
    const first = Math.min(length, this.capacity - this.#head);
    target.set(this.#ring.subarray(this.#head, this.#head + first));
    if (first < length) target.set(this.#ring.subarray(0, length - first), first);
    this.#head = (this.#head + length) % this.capacity;
    this.#length -= length;
    return length;
  }

  /** Moves the first complete message out; undefined while there is none. */
  takeMessage(): { bytes: Buffer; flags: number } | undefined {
    const message = this.#messages.shift();
    if (message === undefined) return undefined;
    const bytes = Buffer.allocUnsafe(message.length);
    this.take(bytes);
    return { bytes, flags: message.flags };
  }
}
