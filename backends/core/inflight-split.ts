/**
 * In-flight tracking of a split virtqueue; layout in protocol/vhost-user/inflight-layout.ts.
 *
 *     fetch:    counter = next; inflight = 1
 *     complete: next = last_batch_head; last_batch_head = head      for each head of a batch
 *               used.idx += n                                        the virtqueue's publish
 *               inflight = 0 for each; used_idx = used.idx           commit
 */

import {
  INFLIGHT_DESC_BYTES,
  INFLIGHT_HEADER_BYTES,
  INFLIGHT_VERSION,
} from '../../protocol/vhost-user/inflight-layout.ts';
import type { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import { SplitQueue } from '../../protocol/virtqueue/split-queue.ts';
import type { Virtqueue } from '../../protocol/virtqueue/virtqueue.ts';
import type { InflightTracker } from './inflight.ts';

// Indices of 16-bit words.
const VERSION = 4;
const DESC_NUM = 5;
const LAST_BATCH_HEAD = 6;
const USED_IDX = 7;
const TWO_32 = 0x1_0000_0000;

/** Of a descriptor's entry, in bytes. */
function entryAt(head: number): number {
  return INFLIGHT_HEADER_BYTES + head * INFLIGHT_DESC_BYTES;
}

export class SplitInflight implements InflightTracker {
  readonly #bytes: Uint8Array;
  readonly #halves: Uint16Array;
  readonly #words: Uint32Array;
  readonly #size: number;
  readonly #batch: Uint16Array;
  #batched = 0;
  #counter = 1;
  /** Set by `recover`. */
  #queue: SplitQueue | undefined;

  /** @param region of this queue, at least inflightQueueBytes(size, false) long */
  constructor(region: ArrayBuffer, size: number) {
    this.#bytes = new Uint8Array(region);
    this.#halves = new Uint16Array(region);
    this.#words = new Uint32Array(region);
    this.#size = size;
    this.#batch = new Uint16Array(size);
  }

  recover(queue: Virtqueue): number[] | undefined {
    if (!(queue instanceof SplitQueue)) throw new TypeError('the in-flight region of a split queue is for one');
    this.#queue = queue;
    const usedIdx = queue.publishedUsed;
    const halves = this.#halves;
    if (halves[VERSION] !== INFLIGHT_VERSION || halves[DESC_NUM] !== this.#size) {
      for (let head = 0; head < this.#size; head += 1) this.#bytes[entryAt(head)] = 0;
      halves[LAST_BATCH_HEAD] = 0;
      halves[USED_IDX] = usedIdx;
      halves[DESC_NUM] = this.#size;
      halves[VERSION] = INFLIGHT_VERSION;
      return undefined;
    }
    this.#finishBatch(usedIdx);
    const found: { head: number; counter: number }[] = [];
    for (let head = 0; head < this.#size; head += 1) {
      const at = entryAt(head);
      if (this.#bytes[at] === 0) continue;
      const counter = (this.#words[at / 4 + 2] as number) + (this.#words[at / 4 + 3] as number) * TWO_32;
      found.push({ head, counter });
      if (counter >= this.#counter && counter < Number.MAX_SAFE_INTEGER) this.#counter = counter + 1;
    }
    found.sort((a, b) => a.counter - b.counter);
    queue.seek(usedIdx + found.length);
    return found.map((entry) => entry.head);
  }

  /** Published but not committed entries are the last ones of the batch list: as many as used_idx lags behind. */
  #finishBatch(usedIdx: number): void {
    const halves = this.#halves;
    let lag = (usedIdx - (halves[USED_IDX] as number)) & 0xffff;
    // A longer lag is a ring that was set up anew after an orderly stop: nothing of this region is in flight then.
    if (lag > this.#size) lag = 0;
    let head = halves[LAST_BATCH_HEAD] as number;
    for (; lag > 0 && head < this.#size; lag -= 1) {
      this.#bytes[entryAt(head)] = 0;
      head = halves[entryAt(head) / 2 + 3] as number;
    }
    halves[USED_IDX] = usedIdx;
  }

  retake(token: number, chain: DescriptorChain): void {
    (this.#queue as SplitQueue).take(token, chain);
  }

  giveBack(queue: Virtqueue, tokens: readonly number[]): void {
    // The last first: those in flight are always the ring's first behind the used index.
    for (let i = tokens.length - 1; i >= 0; i -= 1) this.unfetch(tokens[i] as number);
    queue.seek(queue.base - tokens.length);
  }

  fetch(chain: DescriptorChain): void {
    const at = entryAt(chain.head);
    const counter = this.#counter;
    this.#counter = counter + 1;
    this.#words[at / 4 + 2] = counter;
    this.#words[at / 4 + 3] = Math.floor(counter / TWO_32);
    this.#bytes[at] = 1;
  }

  unfetch(token: number): void {
    this.#bytes[entryAt(token)] = 0;
  }

  complete(token: number): void {
    this.#halves[entryAt(token) / 2 + 3] = this.#halves[LAST_BATCH_HEAD] as number;
    this.#halves[LAST_BATCH_HEAD] = token;
    this.#batch[this.#batched] = token;
    this.#batched += 1;
  }

  commit(): void {
    for (let i = 0; i < this.#batched; i += 1) this.#bytes[entryAt(this.#batch[i] as number)] = 0;
    this.#batched = 0;
    this.#halves[USED_IDX] = (this.#queue as SplitQueue).publishedUsed;
  }

  /** The used index in the ring says where it stands, also after the driver began anew. */
  rest(): void {}
}
