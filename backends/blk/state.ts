/**
 * What data paths need to know of the disk and of one driver, in memory that all threads share: the main thread writes
 * it, data paths read it for each request.
 */

// The capacity is a double @0: a store of 8 aligned bytes, which nobody sees half of. Then 32-bit words:
const DISK_BYTES = 24;
/** Number of the data path that wants to be alone with the disk, plus 1; 0 when none does. */
const ALONE = 2;
/** Requests in flight on all data paths, but the one that runs alone. */
const IN_FLIGHT = 3;
/** How often it came to pass that one who waits for others may go on. */
const CHANGES = 4;

/** The disk, for all front ends. */
export class BlkDiskState {
  readonly shared: SharedArrayBuffer;
  readonly #capacity: Float64Array;
  readonly #words: Int32Array;

  /** @param shared that of another thread's; a new one when there is none */
  constructor(shared = new SharedArrayBuffer(DISK_BYTES)) {
    this.shared = shared;
    this.#capacity = new Float64Array(shared, 0, 1);
    this.#words = new Int32Array(shared);
  }

  /** Whole sectors, in bytes. A request that races with a change is judged by the old one or the new one. */
  get capacityBytes(): number {
    return this.#capacity[0] as number;
  }

  set capacityBytes(bytes: number) {
    this.#capacity[0] = bytes;
  }

  /** Requests in flight on all data paths, but the one that runs alone. */
  get inFlight(): number {
    return Atomics.load(this.#words, IN_FLIGHT);
  }

  /** A data path begins a request. False when another one has the disk to itself: nothing was begun. */
  tryBegin(path: number): boolean {
    // To count first would be a change for whoever waits to be alone, and so for us.
    if (this.#isTaken(path)) return false;
    // Now counted and then looked: whoever wants to be alone looks the other way round.
    Atomics.add(this.#words, IN_FLIGHT, 1);
    if (!this.#isTaken(path)) return true;
    this.end();
    return false;
  }

  #isTaken(path: number): boolean {
    const alone = Atomics.load(this.#words, ALONE);
    return alone !== 0 && alone !== path + 1;
  }

  /** A request ended. */
  end(): void {
    const before = Atomics.sub(this.#words, IN_FLIGHT, 1);
    // Whoever wants to be alone says so first and then looks for others.
    if (before === 1 && Atomics.load(this.#words, ALONE) !== 0) this.#change();
  }

  /** Lets no other data path begin requests until `shareAgain`. False when another one was first. */
  tryTake(path: number): boolean {
    const before = Atomics.compareExchange(this.#words, ALONE, 0, path + 1);
    return before === 0 || before === path + 1;
  }

  shareAgain(): void {
    Atomics.store(this.#words, ALONE, 0);
    this.#change();
  }

  #change(): void {
    Atomics.add(this.#words, CHANGES, 1);
    Atomics.notify(this.#words, CHANGES);
  }

  /** Goes on where `tryBegin`, `tryTake` or `inFlight` may come to something else. To be read before they are asked. */
  get changes(): number {
    return Atomics.load(this.#words, CHANGES);
  }

  /** Calls `then` when `changes` is not `seen` any more: never at once. */
  whenChanged(seen: number, then: () => void): void {
    const wait = Atomics.waitAsync(this.#words, CHANGES, seen);
    if (wait.async) void wait.value.then(then);
    else setImmediate(then);
  }
}

const DISCARD = 1;
const WRITE_ZEROES = 2;
const WRITETHROUGH = 4;

/** One driver. */
export class BlkDriverState {
  readonly shared: SharedArrayBuffer;
  readonly #word: Uint32Array;

  /** @param shared that of another thread's; a new one when there is none */
  constructor(shared = new SharedArrayBuffer(4)) {
    this.shared = shared;
    this.#word = new Uint32Array(shared);
  }

  #has(bit: number): boolean {
    return ((this.#word[0] as number) & bit) !== 0;
  }

  #set(bit: number, value: boolean): void {
    const word = this.#word[0] as number;
    Atomics.store(this.#word, 0, value ? word | bit : word & ~bit);
  }

  /** DISCARD was negotiated. */
  get discard(): boolean {
    return this.#has(DISCARD);
  }

  set discard(value: boolean) {
    this.#set(DISCARD, value);
  }

  /** WRITE_ZEROES was negotiated. */
  get writeZeroes(): boolean {
    return this.#has(WRITE_ZEROES);
  }

  set writeZeroes(value: boolean) {
    this.#set(WRITE_ZEROES, value);
  }

  /** Each completed write must be on stable storage. */
  get writethrough(): boolean {
    return this.#has(WRITETHROUGH);
  }

  set writethrough(value: boolean) {
    this.#set(WRITETHROUGH, value);
  }
}
