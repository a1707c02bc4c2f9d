import { describe, expect, it } from 'vitest';
import { InOrder } from '../../../../protocol/virtqueue/in-order.ts';

const take = (order: InOrder, ...tokens: number[]): void => {
  for (const token of tokens) order.take(token);
};

/** Everything that may be pushed: token and length. */
const drain = (order: InOrder): [number, number][] => {
  const got: [number, number][] = [];
  for (let token = order.next(); token >= 0; token = order.next()) got.push([token, order.length]);
  return got;
};

describe('InOrder', () => {
  it('has nothing at the beginning', () => {
    expect(new InOrder(4).next()).toBe(-1);
  });

  it('keeps what is done early until all before it is done', () => {
    const order = new InOrder(4);
    take(order, 3, 0, 2);

    order.finish(2, 20);
    expect(drain(order)).toEqual([]);
    order.finish(3, 30);
    expect(drain(order)).toEqual([[3, 30]]);
    order.finish(0, 0);

    expect(drain(order)).toEqual([
      [0, 0],
      [2, 20],
    ]);
  });

  it('forgets the last one when it goes back to the ring', () => {
    const order = new InOrder(4);
    take(order, 1, 2);
    order.untake(2);
    take(order, 3);
    order.finish(1, 1);
    order.finish(3, 3);

    expect(drain(order)).toEqual([
      [1, 1],
      [3, 3],
    ]);
  });

  it('hands lengths on up to 2^32 - 1', () => {
    const order = new InOrder(1);
    take(order, 0);
    order.finish(0, 0xffff_ffff);

    expect(drain(order)).toEqual([[0, 0xffff_ffff]]);
  });

  it.each([1, 3, 8])('goes round for ever with %i tokens, which come again at once', (size) => {
    const order = new InOrder(size);
    for (let round = 0; round < 5 * size; round += 1) {
      const tokens = Array.from({ length: size }, (_, i) => (i * (size - 1) + round) % size);
      const distinct = [...new Set(tokens)];
      take(order, ...distinct);
      for (const token of [...distinct].reverse()) order.finish(token, round);

      expect(drain(order)).toEqual(distinct.map((token) => [token, round]));
    }
  });

  it('is empty after clear', () => {
    const order = new InOrder(2);
    take(order, 0, 1);
    order.finish(0, 1);
    order.clear();
    take(order, 0);

    expect(order.next()).toBe(-1);
  });
});
