/** What threads share of the TAP and of a driver: both sides of the same memory. */

import { describe, expect, it } from 'vitest';
import { NetDriverState, NetTapState } from '../../../../backends/net/state.ts';

describe('the state of a TAP', () => {
  it('says nothing at first', () => {
    const tap = new NetTapState(3);

    expect([tap.link, tap.isOpen, tap.stale, tap.fds]).toEqual([false, false, 0, []]);
    expect([0, 1, 2].map((pair) => tap.isAttached(pair))).toEqual([false, false, false]);
  });

  it('is the same for everyone who has its memory', () => {
    const ours = new NetTapState(3);
    const theirs = new NetTapState(3, ours.shared);

    ours.link = true;
    ours.isOpen = true;
    ours.fds = [0, 17, 18];
    ours.setAttached(2, true);
    ours.noteStale();

    expect([theirs.link, theirs.isOpen, theirs.stale, theirs.fds]).toEqual([true, true, 1, [0, 17, 18]]);
    expect([0, 1, 2].map((pair) => theirs.isAttached(pair))).toEqual([false, false, true]);
    ours.fds = [];
    ours.setAttached(2, false);
    expect([theirs.fds, theirs.isAttached(2)]).toEqual([[], false]);
  });
});

describe('the state of a driver', () => {
  it('is the same for everyone who has its memory', () => {
    const ours = new NetDriverState();
    const theirs = new NetDriverState(ours.shared);

    ours.id = 7;
    ours.features = (1n << 63n) | (1n << 32n) | 3n;
    ours.activePairs = 127;

    expect([theirs.id, theirs.features, theirs.activePairs]).toEqual([7, (1n << 63n) | (1n << 32n) | 3n, 127]);
    expect([0, 1, 2, 31, 32, 62, 63].filter((bit) => theirs.hasNegotiated(bit))).toEqual([0, 1, 32, 63]);
  });

  it('has a format that changes as a whole: who holds it sees no change', () => {
    const ours = new NetDriverState();
    const theirs = new NetDriverState(ours.shared);
    ours.format = { headerBytes: 12, mergeable: true, maxBytes: 1534 };

    const before = theirs.format;
    expect(before).toEqual({ headerBytes: 12, mergeable: true, maxBytes: 1534 });
    expect(theirs.format).toBe(before);
    ours.format = { headerBytes: 10, mergeable: false, maxBytes: 65562 };

    expect(theirs.format).toEqual({ headerBytes: 10, mergeable: false, maxBytes: 65562 });
    expect(before.maxBytes).toBe(1534);
  });
});
