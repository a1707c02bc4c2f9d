/**
 * What data paths need to know of the TAP and of one driver, in memory that all threads share: the main thread writes it,
 * data paths read it for each lot of packets.
 */

import { hasFeature } from '../../protocol/virtio/reserved-features.ts';
import type { ReceiveFormat } from './receive.ts';

const LINK = 0;
const OPEN = 1;
const STALE = 2;
const PAIRS = 3;
// Words of a pair.
/** The descriptor plus 1; 0 when there is none. */
const FD = 0;
const ATTACHED = 1;
const PAIR_WORDS = 2;

/** The TAP, for all front ends. */
export class NetTapState {
  readonly shared: SharedArrayBuffer;
  readonly #words: Int32Array;
  readonly #pairs: number;

  /** @param shared that of another thread's; a new one when there is none */
  constructor(pairs: number, shared = new SharedArrayBuffer(4 * (PAIRS + PAIR_WORDS * pairs))) {
    this.shared = shared;
    this.#words = new Int32Array(shared);
    this.#pairs = pairs;
  }

  /** Packets can pass. */
  get link(): boolean {
    return this.#words[LINK] !== 0;
  }

  set link(link: boolean) {
    Atomics.store(this.#words, LINK, Number(link));
  }

  /** There is a TAP, and it is set up. */
  get isOpen(): boolean {
    return this.#words[OPEN] !== 0;
  }

  set isOpen(isOpen: boolean) {
    Atomics.store(this.#words, OPEN, Number(isOpen));
  }

  /** Changes when packets that were read before must not be delivered any more. */
  get stale(): number {
    return this.#words[STALE] as number;
  }

  noteStale(): void {
    Atomics.add(this.#words, STALE, 1);
  }

  /** Descriptors of the TAP's queues, one a pair; none while there is no TAP. Not owned. */
  get fds(): number[] {
    const fds = Array.from({ length: this.#pairs }, (_, pair) => (this.#words[this.#at(pair, FD)] as number) - 1);
    return fds.filter((fd) => fd >= 0);
  }

  set fds(fds: readonly number[]) {
    for (let pair = 0; pair < this.#pairs; pair += 1) {
      Atomics.store(this.#words, this.#at(pair, FD), 1 + (fds[pair] ?? -1));
    }
  }

  #at(pair: number, word: number): number {
    return PAIRS + PAIR_WORDS * pair + word;
  }

  /** The TAP puts packets into the queue of this pair. */
  isAttached(pair: number): boolean {
    return this.#words[this.#at(pair, ATTACHED)] !== 0;
  }

  setAttached(pair: number, attached: boolean): void {
    Atomics.store(this.#words, this.#at(pair, ATTACHED), Number(attached));
  }
}

const ID = 0;
const FEATURES_LOW = 1;
const FEATURES_HIGH = 2;
const ACTIVE_PAIRS = 3;
const FORMATS = 4;
const HEADER_BYTES = 5;
const MERGEABLE = 6;
const MAX_BYTES = 7;
const DRIVER_WORDS = 8;

/** One driver. */
export class NetDriverState {
  readonly shared: SharedArrayBuffer;
  readonly #words: Uint32Array;
  #format: ReceiveFormat | undefined;
  #formats = 0;

  /** @param shared that of another thread's; a new one when there is none */
  constructor(shared = new SharedArrayBuffer(4 * DRIVER_WORDS)) {
    this.shared = shared;
    this.#words = new Uint32Array(shared);
  }

  /** What the driver is called between threads. */
  get id(): number {
    return this.#words[ID] as number;
  }

  set id(id: number) {
    Atomics.store(this.#words, ID, id);
  }

  /** Virtio feature bits that the driver accepted. They change only while none of its rings is started. */
  get features(): bigint {
    return (BigInt(this.#words[FEATURES_HIGH] as number) << 32n) | BigInt(this.#words[FEATURES_LOW] as number);
  }

  set features(features: bigint) {
    Atomics.store(this.#words, FEATURES_LOW, Number(BigInt.asUintN(32, features)));
    Atomics.store(this.#words, FEATURES_HIGH, Number(BigInt.asUintN(32, features >> 32n)));
  }

  hasNegotiated(feature: number): boolean {
    return hasFeature(this.features, feature);
  }

  /** Pairs that the driver uses. */
  get activePairs(): number {
    return this.#words[ACTIVE_PAIRS] as number;
  }

  set activePairs(count: number) {
    Atomics.store(this.#words, ACTIVE_PAIRS, count);
  }

  /** How packets are received. The object stays the same until the next change, also for those who hold it. */
  get format(): ReceiveFormat {
    const formats = this.#words[FORMATS] as number;
    if (this.#format !== undefined && formats === this.#formats) return this.#format;
    this.#formats = formats;
    // Of a driver whose rings are started only the largest packet changes: no mixture is seen.
    this.#format = {
      headerBytes: this.#words[HEADER_BYTES] as number,
      mergeable: this.#words[MERGEABLE] !== 0,
      maxBytes: this.#words[MAX_BYTES] as number,
    };
    return this.#format;
  }

  set format({ headerBytes, mergeable, maxBytes }: ReceiveFormat) {
    Atomics.store(this.#words, HEADER_BYTES, headerBytes);
    Atomics.store(this.#words, MERGEABLE, Number(mergeable));
    Atomics.store(this.#words, MAX_BYTES, maxBytes);
    Atomics.add(this.#words, FORMATS, 1);
  }
}
