/** What data paths share of a disk and of a driver. Two objects over the same memory stand for two threads. */

import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { BlkDiskState, BlkDriverState } from '../../../../backends/blk/state.ts';

describe('the capacity', () => {
  it.each([0, 512, 2 ** 32 - 512, 2 ** 32, 2 ** 32 + 512, 2 ** 53 - 512])(
    'of %i bytes is the same elsewhere',
    (bytes) => {
      const state = new BlkDiskState();
      const elsewhere = new BlkDiskState(state.shared);

      state.capacityBytes = bytes;

      expect(elsewhere.capacityBytes).toBe(bytes);
    },
  );
});

describe('who is alone with the disk', () => {
  let a: BlkDiskState;
  let b: BlkDiskState;
  beforeEach(() => {
    a = new BlkDiskState();
    b = new BlkDiskState(a.shared);
  });

  it('nobody at first, and requests of all are counted', () => {
    expect([a.tryBegin(0), b.tryBegin(1), b.tryBegin(1)]).toEqual([true, true, true]);
    expect(a.inFlight).toBe(3);
    a.end();
    b.end();
    b.end();
    expect(b.inFlight).toBe(0);
  });

  it('is who was first, as often as it asks', () => {
    expect([a.tryTake(0), b.tryTake(1), a.tryTake(0), b.tryTake(1)]).toEqual([true, false, true, false]);
    a.shareAgain();
    expect([b.tryTake(1), a.tryTake(0)]).toEqual([true, false]);
  });

  it('keeps others from beginning, which then count for nothing', () => {
    b.tryBegin(1);
    a.tryTake(0);

    expect([b.tryBegin(1), b.tryBegin(1), a.inFlight]).toEqual([false, false, 1]);
    b.end();
    expect(a.inFlight).toBe(0);
    a.shareAgain();
    expect([b.tryBegin(1), a.inFlight]).toEqual([true, 1]);
  });

  it('is told when the last of the others ends, who then are told when they may go on', async () => {
    const told = (state: BlkDiskState, seen: number) => new Promise<void>((done) => state.whenChanged(seen, done));
    b.tryBegin(1);
    b.tryBegin(1);
    const before = a.changes;
    a.tryTake(0);
    b.end();
    expect([a.inFlight, a.changes]).toEqual([1, before]);
    const alone = told(a, before);
    b.end();
    await alone;
    expect(a.inFlight).toBe(0);

    const after = b.changes;
    b.tryBegin(1);
    const seen = b.changes;
    expect(b.tryBegin(1)).toBe(false);
    const shared = told(b, seen);
    a.shareAgain();
    await shared;
    expect(b.tryBegin(1)).toBe(true);
    // What changed already is told too, though not before this is over.
    let isTold = false;
    const late = told(b, after).then(() => {
      isTold = true;
    });
    expect(isTold).toBe(false);
    await late;
  });

  it('is not told of those who come in vain', () => {
    a.tryTake(0);
    const before = a.changes;
    expect(b.tryBegin(1)).toBe(false);
    expect(a.changes).toBe(before);
  });

  it('costs those nothing who have it for themselves', () => {
    const before = a.changes;
    for (let i = 0; i < 10; i += 1) {
      a.tryBegin(0);
      a.end();
    }
    expect(a.changes).toBe(before);
  });
});

describe('two that come at once', () => {
  afterEach(() => vi.restoreAllMocks());

  /** Does `what`, and `between` before its atomic operation number `step`. Returns undefined when it has fewer. */
  const interleave = <T>(step: number, what: () => T, between: () => void): T | undefined => {
    let left = step;
    let hasRun = false;
    for (const name of ['add', 'sub', 'load', 'store', 'compareExchange'] as const) {
      const original = Atomics[name] as (...args: unknown[]) => unknown;
      vi.spyOn(Atomics, name).mockImplementation(((...args: unknown[]) => {
        if (left === 0 && !hasRun) {
          hasRun = true;
          between();
        }
        left -= 1;
        return original.apply(Atomics, args);
      }) as never);
    }
    const result = what();
    vi.restoreAllMocks();
    return hasRun ? result : undefined;
  };

  const takeAlone = (state: BlkDiskState): boolean => state.tryTake(0) && state.inFlight === 0;

  it('never are inside together, one of them alone, wherever the other comes between', () => {
    let tried = 0;
    for (let step = 0; step < 10; step += 1) {
      const state = new BlkDiskState();
      let isAlone = false;
      const hasBegun = interleave(
        step,
        () => state.tryBegin(1),
        () => {
          isAlone = takeAlone(state);
        },
      );
      if (hasBegun === undefined) continue;
      tried += 1;
      expect(isAlone && hasBegun).toBe(false);
    }
    for (let step = 0; step < 10; step += 1) {
      const state = new BlkDiskState();
      let hasBegun = false;
      const isAlone = interleave(
        step,
        () => takeAlone(state),
        () => {
          hasBegun = state.tryBegin(1);
        },
      );
      if (isAlone === undefined) continue;
      tried += 1;
      expect(isAlone && hasBegun).toBe(false);
    }
    expect(tried).toBeGreaterThanOrEqual(4);
  });
});

describe('what a driver negotiated', () => {
  it('is known elsewhere, each for itself', () => {
    const state = new BlkDriverState();
    const elsewhere = new BlkDriverState(state.shared);
    const seen = (): boolean[] => [elsewhere.discard, elsewhere.writeZeroes, elsewhere.writethrough];

    expect(seen()).toEqual([false, false, false]);
    state.writeZeroes = true;
    expect(seen()).toEqual([false, true, false]);
    state.discard = true;
    state.writethrough = true;
    expect(seen()).toEqual([true, true, true]);
    state.writeZeroes = false;
    expect(seen()).toEqual([true, false, true]);
  });
});
