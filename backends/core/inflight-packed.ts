/**
 * In-flight tracking of a packed virtqueue; layout in protocol/vhost-user/inflight-layout.ts. Used descriptors overwrite
 * those of other chains, so the region keeps copies: an entry per descriptor, those of a chain linked by `next`, the free
 * ones too. The first entry of a chain is its name here.
 *
 *     fetch:    copies; counter; inflight = 1                          into entries at old_free_head
 *               old_free_head = the next free entry                    and they are taken
 *     complete: the entries go to the front of the list at free_head;
 *               used_idx and wrap counter go on                        for each chain of a batch
 *               the flags of the first used descriptor                 the virtqueue's publish
 *               inflight = 0 for each; old_* = the new values          commit
 *
 * So the old_* fields are what holds until a batch is published, and whether it was can be seen in the ring. The published
 * algorithm knows no fetch between complete and commit: here the list at free_head is the batch, then the list at
 * old_free_head, and both are kept so. Where a wrap counter turns, the four fields of the used positions are changed by one
 * store of 8 bytes: apart, an index could belong to the other wrap counter.
 */

import {
  INFLIGHT_PACKED_DESC_BYTES,
  INFLIGHT_PACKED_HEADER_BYTES,
  INFLIGHT_VERSION,
} from '../../protocol/vhost-user/inflight-layout.ts';
import type { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import { PackedQueue } from '../../protocol/virtqueue/packed-queue.ts';
import { RingError, type Virtqueue } from '../../protocol/virtqueue/virtqueue.ts';
import type { InflightTracker } from './inflight.ts';

// Header, in elements of 2, 4 and 8 bytes.
const FEATURES = 0;
const VERSION = 4;
const DESC_NUM = 5;
const OLD_FREE_HEAD = 7;
const USED_IDX = 8;
const OLD_USED_IDX = 9;
const USED_WRAP_BYTE = 20;
const OLD_USED_WRAP_BYTE = 21;
const FREE_HEADS = 3;
const USED_POSITIONS = 2;

// An entry, in elements of 2 and 4 bytes from its start.
const NEXT = 1;
const LAST = 2;
const NUM = 3;
const COUNTER = 2;
const ID_AND_FLAGS = 4;
const LENGTH = 5;
const ADDRESS = 6;

/** Bit of the features, which the protocol leaves unused: the ring was stopped in order, and its base is what holds. */
const RESTING = 2;

const TWO_32 = 0x1_0000_0000;
const WRAP = 0x8000;

interface Found {
  readonly entry: number;
  readonly counter: number;
}

/** Where an entry starts, in elements of `bytes` bytes. */
function entryAt(entry: number, bytes: number): number {
  return (INFLIGHT_PACKED_HEADER_BYTES + entry * INFLIGHT_PACKED_DESC_BYTES) / bytes;
}

export class PackedInflight implements InflightTracker {
  readonly #bytes: Uint8Array;
  readonly #halves: Uint16Array;
  readonly #words: Uint32Array;
  readonly #doubles: Float64Array;
  readonly #size: number;
  /** By token: the first entry of its chain. */
  readonly #entries: Uint16Array;
  /** First entries of the chains completed since the last commit. */
  readonly #batch: Uint16Array;
  #batched = 0;
  /** The entry of the batch whose `next` leads to the list at old_free_head. */
  #batchEnd = 0;
  #freeHead = 0;
  #oldFreeHead = 0;
  /** Used positions as in a base: slot, and the wrap counter in the top bit. */
  #used = 0;
  #oldUsed = 0;
  #counter = 1;
  /** The four fields of the used positions, as they lie in the region from USED_IDX on. */
  readonly #scratch = new ArrayBuffer(8);
  readonly #scratchHalves = new Uint16Array(this.#scratch);
  readonly #scratchBytes = new Uint8Array(this.#scratch);
  readonly #scratchDouble = new Float64Array(this.#scratch);
  /** Set by `recover`. */
  #queue: PackedQueue | undefined;

  /** @param region of this queue, at least inflightQueueBytes(size, true) long, a multiple of 8 */
  constructor(region: ArrayBuffer, size: number) {
    this.#bytes = new Uint8Array(region);
    this.#halves = new Uint16Array(region);
    this.#words = new Uint32Array(region);
    this.#doubles = new Float64Array(region);
    this.#size = size;
    this.#entries = new Uint16Array(size);
    this.#batch = new Uint16Array(size);
  }

  #half(entry: number, field: number): number {
    return this.#halves[entryAt(entry, 2) + field] as number;
  }

  #setHalf(entry: number, field: number, value: number): void {
    this.#halves[entryAt(entry, 2) + field] = value;
  }

  /** Bytes 6 and 7 stay zero, so the double is a tiny number, never a NaN, whose bits would not be kept. */
  #storePositions(): void {
    const bytes = this.#scratchBytes;
    this.#scratchHalves[0] = this.#used & ~WRAP;
    this.#scratchHalves[1] = this.#oldUsed & ~WRAP;
    bytes[4] = this.#used >>> 15;
    bytes[5] = this.#oldUsed >>> 15;
    this.#doubles[USED_POSITIONS] = this.#scratchDouble[0] as number;
  }

  /** Sets both heads, where no batch is pending. */
  #storeFreeHeads(head: number): void {
    this.#freeHead = head;
    this.#oldFreeHead = head;
    this.#words[FREE_HEADS] = head | (head << 16);
  }

  recover(queue: Virtqueue): number[] | undefined {
    if (!(queue instanceof PackedQueue)) throw new TypeError('the in-flight region of a packed queue is for one');
    this.#queue = queue;
    const isNew = this.#halves[VERSION] !== INFLIGHT_VERSION || this.#halves[DESC_NUM] !== this.#size;
    if (isNew || ((this.#words[FEATURES] as number) & RESTING) !== 0) {
      this.#initialize(queue.base >>> 16);
      return undefined;
    }
    this.#settle(queue);
    const found = this.#findInflight();
    queue.resume(this.#used);
    const tokens = found.map(({ entry }) => {
      const slots = this.#half(entry, NUM);
      const id = (this.#words[entryAt(this.#half(entry, LAST), 4) + ID_AND_FLAGS] as number) & 0xffff;
      const token = queue.recall(id, slots);
      this.#entries[token] = entry;
      return token;
    });
    queue.conceal();
    return tokens;
  }

  /** `version` last: a region that was initialized in part is new. */
  #initialize(used: number): void {
    for (let entry = 0; entry < this.#size; entry += 1) {
      this.#bytes[entryAt(entry, 1)] = 0;
      this.#setHalf(entry, NEXT, entry + 1);
    }
    this.#storeFreeHeads(0);
    this.#used = used;
    this.#oldUsed = used;
    this.#storePositions();
    this.#halves[DESC_NUM] = this.#size;
    this.#halves[VERSION] = INFLIGHT_VERSION;
    this.#words[FEATURES] = (this.#words[FEATURES] as number) & ~RESTING;
  }

  rest(): void {
    this.#words[FEATURES] = (this.#words[FEATURES] as number) | RESTING;
  }

  /** Finishes a batch that was published, and undoes one that was not. */
  #settle(queue: PackedQueue): void {
    const halves = this.#halves;
    const wrap = (byte: number): number => ((this.#bytes[byte] as number) !== 0 ? WRAP : 0);
    this.#used = ((halves[USED_IDX] as number) & ~WRAP) | wrap(USED_WRAP_BYTE);
    this.#oldUsed = ((halves[OLD_USED_IDX] as number) & ~WRAP) | wrap(OLD_USED_WRAP_BYTE);
    if ((this.#used & ~WRAP) >= this.#size || (this.#oldUsed & ~WRAP) >= this.#size) {
      throw new RingError(`in-flight region: used index beyond a ring of ${this.#size} descriptors`);
    }
    const isPending = this.#used !== this.#oldUsed;
    const isPublished = isPending && queue.isUsedAt(this.#oldUsed);
    const heads = this.#words[FREE_HEADS] as number;
    // The positions last: until then a kill leads here again.
    this.#storeFreeHeads(isPublished ? heads & 0xffff : heads >>> 16);
    if (isPublished) this.#oldUsed = this.#used;
    else this.#used = this.#oldUsed;
    this.#storePositions();
  }

  /**
   * The first entries of all chains in flight, in the order in which they were fetched. Every entry belongs to one of them or
   * is free.
   * @throws RingError - not so
   */
  #findInflight(): Found[] {
    const seen = new Uint8Array(this.#size);
    const visit = (entry: number): void => {
      if (entry >= this.#size || seen[entry] !== 0)
        throw new RingError('in-flight region: lists of entries are damaged');
      seen[entry] = 1;
    };
    for (let entry = this.#oldFreeHead; entry < this.#size; entry = this.#half(entry, NEXT)) {
      visit(entry);
      this.#bytes[entryAt(entry, 1)] = 0;
    }
    const found: Found[] = [];
    for (let first = 0; first < this.#size; first += 1) {
      if (seen[first] !== 0 || this.#bytes[entryAt(first, 1)] === 0) continue;
      const at = entryAt(first, 4) + COUNTER;
      const counter = (this.#words[at] as number) + (this.#words[at + 1] as number) * TWO_32;
      found.push({ entry: first, counter });
      if (counter >= this.#counter && counter < Number.MAX_SAFE_INTEGER) this.#counter = counter + 1;
    }
    for (const { entry: first } of found) {
      let last = first;
      visit(first);
      for (let i = 1; i < this.#half(first, NUM); i += 1) {
        last = this.#half(last, NEXT);
        visit(last);
      }
      if (this.#half(first, LAST) !== last)
        throw new RingError('in-flight region: a chain has another end than it says');
    }
    if (seen.includes(0)) throw new RingError('in-flight region: an entry is neither free nor in flight');
    return found.sort((a, b) => a.counter - b.counter);
  }

  retake(token: number, chain: DescriptorChain): void {
    this.#readCopies(token, chain.copies);
    (this.#queue as PackedQueue).retake(token, chain);
  }

  /** The descriptors of a chain, as DescriptorChain.copies has them. */
  #readCopies(token: number, copies: Uint32Array): void {
    const first = this.#entries[token] as number;
    let entry = first;
    for (let i = 0; i < this.#half(first, NUM); i += 1) {
      const at = entryAt(entry, 4);
      copies[4 * i] = this.#words[at + ADDRESS] as number;
      copies[4 * i + 1] = this.#words[at + ADDRESS + 1] as number;
      copies[4 * i + 2] = this.#words[at + LENGTH] as number;
      copies[4 * i + 3] = this.#words[at + ID_AND_FLAGS] as number;
      entry = this.#half(entry, NEXT);
    }
  }

  giveBack(_queue: Virtqueue, tokens: readonly number[]): void {
    const copies = new Uint32Array(4 * this.#size);
    for (let i = tokens.length - 1; i >= 0; i -= 1) {
      const token = tokens[i] as number;
      this.#readCopies(token, copies);
      (this.#queue as PackedQueue).giveBack(token, copies);
      this.unfetch(token);
    }
  }

  fetch(chain: DescriptorChain): void {
    const { copies, slots } = chain;
    const words = this.#words;
    const first = this.#oldFreeHead;
    let entry = first;
    let last = first;
    for (let i = 0; i < slots; i += 1) {
      const at = entryAt(entry, 4);
      words[at + ADDRESS] = copies[4 * i] as number;
      words[at + ADDRESS + 1] = copies[4 * i + 1] as number;
      words[at + LENGTH] = copies[4 * i + 2] as number;
      words[at + ID_AND_FLAGS] = copies[4 * i + 3] as number;
      last = entry;
      entry = this.#half(entry, NEXT);
    }
    const counter = this.#counter;
    this.#counter = counter + 1;
    const at = entryAt(first, 4) + COUNTER;
    words[at] = counter;
    words[at + 1] = Math.floor(counter / TWO_32);
    this.#setHalf(first, NUM, slots);
    this.#setHalf(first, LAST, last);
    this.#bytes[entryAt(first, 1)] = 1;
    this.#entries[chain.head] = first;
    this.#setOldFreeHead(entry);
  }

  /** Until this store an entry is free, whatever it says, and after it the other way round. */
  #setOldFreeHead(head: number): void {
    if (this.#batched === 0) {
      this.#storeFreeHeads(head);
      return;
    }
    this.#setHalf(this.#batchEnd, NEXT, head);
    this.#oldFreeHead = head;
    this.#halves[OLD_FREE_HEAD] = head;
  }

  unfetch(token: number): void {
    const first = this.#entries[token] as number;
    this.#setHalf(this.#half(first, LAST), NEXT, this.#oldFreeHead);
    this.#setOldFreeHead(first);
    this.#bytes[entryAt(first, 1)] = 0;
  }

  complete(token: number): void {
    const first = this.#entries[token] as number;
    const last = this.#half(first, LAST);
    this.#setHalf(last, NEXT, this.#freeHead);
    if (this.#batched === 0) this.#batchEnd = last;
    this.#batch[this.#batched] = first;
    this.#batched += 1;
    this.#freeHead = first;
    this.#words[FREE_HEADS] = first | (this.#oldFreeHead << 16);
    const next = (this.#used & ~WRAP) + this.#half(first, NUM);
    const wrap = this.#used & WRAP;
    if (next < this.#size) {
      this.#used = next | wrap;
      this.#halves[USED_IDX] = next;
    } else {
      this.#used = (next - this.#size) | (wrap ^ WRAP);
      this.#storePositions();
    }
  }

  commit(): void {
    if (this.#batched === 0) return;
    for (let i = 0; i < this.#batched; i += 1) this.#bytes[entryAt(this.#batch[i] as number, 1)] = 0;
    this.#batched = 0;
    this.#storeFreeHeads(this.#freeHead);
    const wrapStays = ((this.#oldUsed ^ this.#used) & WRAP) === 0;
    this.#oldUsed = this.#used;
    if (wrapStays) this.#halves[OLD_USED_IDX] = this.#used & ~WRAP;
    else this.#storePositions();
  }
}
