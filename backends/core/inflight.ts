/**
 * In-flight tracking of one split virtqueue, in memory that outlives the daemon (the front end keeps its descriptor).
 * Every store below is made so that a kill between any two of them leaves a state that `recover` reads rightly; stores of
 * one process reach memory in program order as far as another process can tell after its death. Source: vhost-user,
 * Inflight I/O tracking; layout in protocol/vhost-user/inflight-layout.ts.
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

const VERSION_AT = 8;
const DESC_NUM_AT = 10;
const LAST_BATCH_HEAD_AT = 12;
const USED_IDX_AT = 14;
const TWO_32 = 0x1_0000_0000;

/** What a restarted daemon finds. */
export interface Recovered {
  /** Heads that were fetched and not completed, in the order they were fetched. */
  readonly heads: number[];
  /** The available index to go on from. */
  readonly nextAvail: number;
}

export class InflightQueue {
  readonly #data: DataView;
  readonly #size: number;
  readonly #batch: Uint16Array;
  #batched = 0;
  #counter = 1;

  /** @param buffer this queue's region, at least inflightQueueBytes(size) long */
  constructor(buffer: ArrayBuffer, size: number) {
    this.#data = new DataView(buffer);
    this.#size = size;
    this.#batch = new Uint16Array(size);
  }

  #at(head: number): number {
    return INFLIGHT_HEADER_BYTES + head * INFLIGHT_DESC_BYTES;
  }

  /**
   * Reads the region against the ring's used index, finishes a batch that was published but not committed, and returns
   * what has to be done again. Undefined for a region that was never used: it is initialized.
   */
  recover(usedIdx: number): Recovered | undefined {
    const data = this.#data;
    if (data.getUint16(VERSION_AT, true) !== INFLIGHT_VERSION || data.getUint16(DESC_NUM_AT, true) !== this.#size) {
      for (let head = 0; head < this.#size; head += 1) data.setUint8(this.#at(head), 0);
      data.setUint16(LAST_BATCH_HEAD_AT, 0, true);
      data.setUint16(USED_IDX_AT, usedIdx, true);
      data.setUint16(DESC_NUM_AT, this.#size, true);
      data.setUint16(VERSION_AT, INFLIGHT_VERSION, true);
      return undefined;
    }
    this.#finishBatch(usedIdx);
    const found: { head: number; counter: number }[] = [];
    for (let head = 0; head < this.#size; head += 1) {
      const at = this.#at(head);
      if (data.getUint8(at) === 0) continue;
      const counter = data.getUint32(at + 8, true) + data.getUint32(at + 12, true) * TWO_32;
      found.push({ head, counter });
      if (counter >= this.#counter && counter < Number.MAX_SAFE_INTEGER) this.#counter = counter + 1;
    }
    found.sort((a, b) => a.counter - b.counter);
    return { heads: found.map((entry) => entry.head), nextAvail: (usedIdx + found.length) & 0xffff };
  }

  /** Published but not committed entries are the last ones of the batch list: as many as used_idx lags behind. */
  #finishBatch(usedIdx: number): void {
    const data = this.#data;
    let lag = (usedIdx - data.getUint16(USED_IDX_AT, true)) & 0xffff;
    // A longer lag is a ring that was set up anew after an orderly stop: nothing of this region is in flight then.
    if (lag > this.#size) lag = 0;
    let head = data.getUint16(LAST_BATCH_HEAD_AT, true);
    for (; lag > 0 && head < this.#size; lag -= 1) {
      data.setUint8(this.#at(head), 0);
      head = data.getUint16(this.#at(head) + 6, true);
    }
    data.setUint16(USED_IDX_AT, usedIdx, true);
  }

  /** Notes a head that was taken from the ring. */
  fetch(head: number): void {
    const at = this.#at(head);
    const counter = this.#counter;
    this.#counter = counter + 1;
    this.#data.setUint32(at + 8, counter >>> 0, true);
    this.#data.setUint32(at + 12, Math.floor(counter / TWO_32), true);
    this.#data.setUint8(at, 1);
  }

  /** Notes that a head went back to the ring: the opposite of `fetch`. */
  unfetch(head: number): void {
    this.#data.setUint8(this.#at(head), 0);
  }

  /** Notes a head whose used entry is staged. */
  complete(head: number): void {
    this.#data.setUint16(this.#at(head) + 6, this.#data.getUint16(LAST_BATCH_HEAD_AT, true), true);
    this.#data.setUint16(LAST_BATCH_HEAD_AT, head, true);
    this.#batch[this.#batched] = head;
    this.#batched += 1;
  }

  /** Notes that the staged entries were published and the ring's used index is now `usedIdx`. */
  commit(usedIdx: number): void {
    for (let i = 0; i < this.#batched; i += 1) this.#data.setUint8(this.#at(this.#batch[i] as number), 0);
    this.#batched = 0;
    this.#data.setUint16(USED_IDX_AT, usedIdx, true);
  }
}
