/**
 * The order of the chains that a device has, where IN_ORDER was negotiated: they come back in it, and one used entry may
 * stand for a batch, of which it names the last chain. Chains are named by a number below the size of the queue.
 * Source: VIRTIO 1.3, 2.7.9 and 2.8.8 In-order use of descriptors.
 */
export class InOrderChains {
  /** Bytes that the device wrote to the chain that `next` returned. */
  length = 0;
  readonly #chains: Uint16Array;
  readonly #writable: Uint32Array;
  #first = 0;
  #count = 0;
  /** Last chain of the batch that is being taken; -1: none is. */
  #last = -1;
  #lastLength = 0;

  constructor(size: number) {
    this.#chains = new Uint16Array(size);
    this.#writable = new Uint32Array(size);
  }

  /** Chains that are out. */
  get count(): number {
    return this.#count;
  }

  /** The chain that is out since `index` others: 0 is the oldest. */
  at(index: number): number {
    const { length } = this.#chains;
    const position = this.#first + index;
    return this.#chains[position < length ? position : position - length]!;
  }

  /** A chain with so many bytes of writable buffers was made available after all others. */
  push(chain: number, writableBytes: number): void {
    const { length } = this.#chains;
    let position = this.#first + this.#count;
    if (position >= length) position -= length;
    this.#chains[position] = chain;
    this.#writable[position] = writableBytes;
    this.#count += 1;
  }

  /** Whether `next` has something: a used entry stands for more chains than were taken. */
  get isOpen(): boolean {
    return this.#last !== -1;
  }

  /** Begins a batch. `last` is out. */
  open(last: number, length: number): void {
    this.#last = last;
    this.#lastLength = length;
  }

  /** Takes the next chain of the batch. Those before the last are taken for written as a whole. */
  next(): number {
    const chain = this.#chains[this.#first]!;
    this.length = this.#writable[this.#first]!;
    if (chain === this.#last) {
      this.length = this.#lastLength;
      this.#last = -1;
    }
    this.#first = this.#first + 1 === this.#chains.length ? 0 : this.#first + 1;
    this.#count -= 1;
    return chain;
  }
}
