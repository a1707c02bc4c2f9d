/** The receive FIFO of a 16550, filled from what the host has ready, which is kept outside of it. */

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

  clear(): void {
    this.#length = 0;
  }
}
