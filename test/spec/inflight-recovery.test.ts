/**
 * vhost-user, Inflight I/O tracking, split virtqueue: a back end may die between any two stores into the region and the
 * ring. Here it dies after the first, the second, ... store of a run, and the next one must find exactly the requests
 * that were taken and not returned, in the order in which they were taken.
 */

import { afterEach, describe, expect, it, vi } from 'vitest';
import { InflightQueue } from '../../backends/core/inflight.ts';

const SIZE = 8;
const BYTES = 16 + 16 * SIZE;

class Killed extends Error {}

/** Lets `stores` stores into DataViews happen and throws at the next one. */
const killAfter = (stores: number): void => {
  let left = stores;
  for (const name of ['setUint8', 'setUint16', 'setUint32', 'setBigUint64'] as const) {
    const original = DataView.prototype[name] as (...args: never[]) => void;
    vi.spyOn(DataView.prototype, name).mockImplementation(function (this: DataView, ...args: unknown[]) {
      if (left === 0) throw new Killed();
      left -= 1;
      original.apply(this, args as never[]);
    });
  }
};

afterEach(() => {
  vi.restoreAllMocks();
});

type Step = ['fetch', number] | ['unfetch', number] | ['complete', number] | ['publish'];

/** What the driver and the disk know, whatever the back end's bookkeeping says. */
class Model {
  readonly buffer = new ArrayBuffer(BYTES);
  usedIdx: number;
  /** Heads whose fetch was begun, in order. */
  fetched: number[] = [];
  /** Heads that are staged for publication. */
  staged: number[] = [];

  constructor(usedIdx: number) {
    this.usedIdx = usedIdx;
  }

  /** Runs the steps as the back end does, and stops where it is killed. Returns whether it was. */
  run(queue: InflightQueue, steps: readonly Step[]): boolean {
    try {
      for (const [what, head] of steps) {
        if (what === 'fetch') {
          this.fetching = head;
          queue.fetch(head);
          this.fetching = undefined;
          this.fetched.push(head);
        } else if (what === 'unfetch') {
          queue.unfetch(head);
          this.fetched = this.fetched.filter((one) => one !== head);
        } else if (what === 'complete') {
          this.staged.push(head);
          queue.complete(head);
        } else {
          // The virtqueue's store of used.idx makes the staged entries the driver's.
          this.usedIdx = (this.usedIdx + this.staged.length) & 0xffff;
          this.fetched = this.fetched.filter((one) => !this.staged.includes(one));
          this.staged = [];
          queue.commit(this.usedIdx);
        }
      }
      return false;
    } catch (error) {
      if (!(error instanceof Killed)) throw error;
      return true;
    }
  }

  /** A head whose fetch was cut short: to be fetched again from the ring, or done again; either is right. */
  fetching: number | undefined;
}

const REQUESTS: Step[] = [
  ['fetch', 0],
  ['fetch', 3],
  ['fetch', 5],
  ['complete', 3],
  ['publish'],
  ['fetch', 3],
  ['fetch', 7],
  ['complete', 5],
  ['complete', 0],
  ['publish'],
  ['fetch', 1],
  ['complete', 1],
  ['complete', 7],
  ['complete', 3],
  ['publish'],
  ['fetch', 0],
  ['complete', 0],
  ['publish'],
];

/** Buffers that are filled in order, of which those that stay empty go back to the ring, last one first. */
const BUFFERS: Step[] = [
  ['fetch', 0],
  ['fetch', 3],
  ['fetch', 5],
  ['fetch', 7],
  ['complete', 0],
  ['complete', 3],
  ['unfetch', 7],
  ['unfetch', 5],
  ['publish'],
  ['fetch', 5],
  ['unfetch', 5],
  ['fetch', 5],
  ['fetch', 7],
  ['fetch', 0],
  ['complete', 5],
  ['unfetch', 0],
  ['complete', 7],
  ['fetch', 0],
  ['complete', 0],
  ['publish'],
];

/** Stores of a whole run. */
const countStores = (steps: readonly Step[]): number => {
  for (let stores = 0; ; stores += 1) {
    const model = new Model(0);
    const queue = new InflightQueue(model.buffer, SIZE);
    queue.recover(0);
    killAfter(stores);
    const killed = model.run(queue, steps);
    vi.restoreAllMocks();
    if (!killed) return stores;
  }
};

describe.each([
  ['requests', 0, REQUESTS],
  ['requests', 0xfffd, REQUESTS],
  ['buffers', 0, BUFFERS],
  ['buffers', 0xfffd, BUFFERS],
])('a back end of %s, with a used index that starts at %i, killed after store', (_, start, steps) => {
  const kills = Array.from({ length: countStores(steps) + 1 }, (_, i) => i);

  it.each(kills)('%i finds what was in flight', (stores) => {
    const model = new Model(start);
    const queue = new InflightQueue(model.buffer, SIZE);
    expect(queue.recover(start)).toBeUndefined();
    killAfter(stores);
    model.run(queue, steps);
    vi.restoreAllMocks();

    const recovered = new InflightQueue(model.buffer, SIZE).recover(model.usedIdx);

    const heads = recovered?.heads ?? [];
    const certain = heads.filter((head) => head !== model.fetching);
    expect(certain).toEqual(model.fetched.filter((head) => head !== model.fetching));
    expect(recovered?.nextAvail).toBe((model.usedIdx + heads.length) & 0xffff);
  });

  it.each(kills)('%i, and killed again while it recovers, finds the same', (stores) => {
    const model = new Model(start);
    const queue = new InflightQueue(model.buffer, SIZE);
    queue.recover(start);
    killAfter(stores);
    model.run(queue, steps);
    vi.restoreAllMocks();
    const expected = new InflightQueue(model.buffer.slice(0), SIZE).recover(model.usedIdx)?.heads;

    for (let again = 0; again < 8; again += 1) {
      killAfter(again);
      try {
        new InflightQueue(model.buffer, SIZE).recover(model.usedIdx);
      } catch (error) {
        if (!(error instanceof Killed)) throw error;
      }
      vi.restoreAllMocks();
    }

    expect(new InflightQueue(model.buffer, SIZE).recover(model.usedIdx)?.heads).toEqual(expected);
  });
});

describe('a region', () => {
  const field = (buffer: ArrayBuffer, at: number): number => new DataView(buffer).getUint16(at, true);

  it('of zeros is set up: version 1 @8, desc_num @10, used_idx @14', () => {
    const buffer = new ArrayBuffer(BYTES);

    expect(new InflightQueue(buffer, SIZE).recover(0x1234)).toBeUndefined();

    expect([field(buffer, 8), field(buffer, 10), field(buffer, 14)]).toEqual([1, SIZE, 0x1234]);
  });

  it('holds each descriptor in 16 bytes from 16 on: inflight @0, next @6, counter @8', () => {
    const buffer = new ArrayBuffer(BYTES);
    const queue = new InflightQueue(buffer, SIZE);
    queue.recover(0);
    queue.fetch(2);
    queue.fetch(4);
    queue.complete(2);
    const bytes = new DataView(buffer);

    expect([bytes.getUint8(16 + 16 * 2), bytes.getUint8(16 + 16 * 4), bytes.getUint8(16)]).toEqual([1, 1, 0]);
    expect(bytes.getBigUint64(16 + 16 * 4 + 8, true)).toBe(bytes.getBigUint64(16 + 16 * 2 + 8, true) + 1n);
    expect(field(buffer, 12)).toBe(2);

    queue.commit(1);

    expect([bytes.getUint8(16 + 16 * 2), field(buffer, 14)]).toEqual([0, 1]);
  });

  it('in which the first request of all was in flight keeps it, though last_batch_head is 0 as well', () => {
    const buffer = new ArrayBuffer(BYTES);
    const queue = new InflightQueue(buffer, SIZE);
    queue.recover(0);
    queue.fetch(0);

    expect(new InflightQueue(buffer, SIZE).recover(0)).toEqual({ heads: [0], nextAvail: 1 });
  });

  it('whose list of a batch points outside of it ends there', () => {
    const buffer = new ArrayBuffer(BYTES);
    const queue = new InflightQueue(buffer, SIZE);
    queue.recover(0);
    queue.fetch(1);
    new DataView(buffer).setUint16(12, 0xffff, true);

    expect(new InflightQueue(buffer, SIZE).recover(1)?.heads).toEqual([1]);
  });
});
