/** The receive FIFO of a 16550, and what the host has ready for it, which waits outside of it. */

/** Bytes. */
export const FIFO_BYTES = 16;

export class SerialFifo {
  readonly #bytes = new Uint8Array(FIFO_BYTES);
  #start = 0;
  #length = 0;

  get length(): number {
    return this.#length;
  }

  /** Appends a byte. False when all `capacity` places are taken: the byte is lost. */
  push(byte: number, capacity: number): boolean {
    if (this.#length >= capacity) return false;
    this.#bytes[(this.#start + this.#length) % FIFO_BYTES] = byte;
    this.#length += 1;
    return true;
  }

  /** The oldest byte; undefined when there is none. */
  shift(): number | undefined {
    if (this.#length === 0) return undefined;
    const byte = this.#bytes[this.#start];
    this.#start = (this.#start + 1) % FIFO_BYTES;
    this.#length -= 1;
    return byte;
  }

  /** A copy of what is in it, the oldest byte first. */
  toBytes(): Uint8Array {
    return Uint8Array.from({ length: this.#length }, (_, at) => this.#bytes[(this.#start + at) % FIFO_BYTES] as number);
  }

  clear(): void {
    this.#length = 0;
  }
}

/** Bytes in the order in which they came, as they came: none is copied. */
export class WaitingBytes {
  #chunks: Uint8Array[] = [];
  /** Of the first chunk. */
  #start = 0;
  #length = 0;

  get length(): number {
    return this.#length;
  }

  push(bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    this.#chunks.push(bytes);
    this.#length += bytes.length;
  }

  /** The oldest byte; undefined when there is none. */
  shift(): number | undefined {
    const chunk = this.#chunks[0];
    if (chunk === undefined) return undefined;
    const byte = chunk[this.#start];
    this.#start += 1;
    this.#length -= 1;
    if (this.#start === chunk.length) {
      this.#chunks.shift();
      this.#start = 0;
    }
    return byte;
  }

  /** A copy of all that is there. */
  toBytes(): Uint8Array {
    return new Uint8Array(Buffer.concat(this.#chunks).subarray(this.#start));
  }

  clear(): void {
    this.#chunks = [];
    this.#start = 0;
    this.#length = 0;
  }
}
