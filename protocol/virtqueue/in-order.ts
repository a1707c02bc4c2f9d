/**
 * VIRTIO_F_IN_ORDER: chains come back in the order in which they were taken. Those that are done before an older one
 * wait here. Source: VIRTIO 1.3, 2.7.9 and 2.8.8 In-order use of descriptors.
 */

export class InOrder {
  /** Bytes written to the chain that `next` returned. */
  length = 0;
  /** Tokens in flight, oldest first, from index `#first` on, in a circle. */
  readonly #order: Uint16Array;
  /** By token: whether it is done, and the bytes that were written. */
  readonly #done: Uint8Array;
  readonly #lengths: Uint32Array;
  #first = 0;
  #count = 0;

  /** @param size of the queue: so many chains can be in flight */
  constructor(size: number) {
    this.#order = new Uint16Array(size);
    this.#done = new Uint8Array(size);
    this.#lengths = new Uint32Array(size);
  }

  /** A chain was taken. */
  take(token: number): void {
    const { length } = this.#order;
    const at = this.#first + this.#count;
    this.#order[at < length ? at : at - length] = token;
    this.#count += 1;
  }

  /** The chain that was taken last went back to the ring. */
  untake(token: number): void {
    this.#done[token] = 0;
    this.#count -= 1;
  }

  /** A chain is done, with `length` bytes written. */
  finish(token: number, length: number): void {
    this.#done[token] = 1;
    this.#lengths[token] = length;
  }

  /** The next token to push, once each, with its length in `length`; -1 while the oldest chain is not done. */
  next(): number {
    if (this.#count === 0) return -1;
    const token = this.#order[this.#first] as number;
    if (this.#done[token] === 0) return -1;
    this.#done[token] = 0;
    this.length = this.#lengths[token] as number;
    this.#first = this.#first + 1 === this.#order.length ? 0 : this.#first + 1;
    this.#count -= 1;
    return token;
  }

  /** Forgets everything. */
  clear(): void {
    this.#done.fill(0);
    this.#count = 0;
  }
}
