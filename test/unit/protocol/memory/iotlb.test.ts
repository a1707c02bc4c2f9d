import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { GuestMemory } from '../../../../protocol/memory/guest-memory.ts';
import {
  IOTLB_DENIED,
  IOTLB_HIT,
  IOTLB_MISS,
  Iotlb,
  MAX_IOTLB_DENIED,
  MAX_IOTLB_ENTRIES,
  MAX_MISSING_PAGES,
  MissingPages,
} from '../../../../protocol/memory/iotlb.ts';
import type { OwnedFd } from '../../../../protocol/sys/owned-fd.ts';
import { createMemfd } from '../../../support/frontend/descriptors.ts';

const PAGE = 4096;
const MiB = 2 ** 20;
const READ = 1;
const WRITE = 2;
const READ_WRITE = 3;
/** User address of the first of two regions that follow each other there, but not in guest addresses. */
const USER = 0x7f00_0000_0000;

let memory: GuestMemory;
let iotlb: Iotlb;
const files: OwnedFd[] = [];

const addRegion = (guestAddress: number, userAddress: number): void => {
  const fd = createMemfd(MiB);
  files.push(fd);
  memory.add({ guestAddress, size: MiB, userAddress, mmapOffset: 0 }, fd);
};

const update = (iova: number, size: number, user: number, permission = READ_WRITE): void =>
  iotlb.update(BigInt(iova), BigInt(size), BigInt(user), permission);

/** The guest address and length that a lookup finds, or what else it says. */
const translate = (iova: number, writable = true): [guest: number, length: number] | number => {
  const result = iotlb.lookup(iova, writable);
  return result === IOTLB_HIT ? [iotlb.guest, iotlb.length] : result;
};

const missed = (missing: MissingPages): [iova: number, writable: boolean][] =>
  Array.from({ length: missing.count }, (_, i) => [missing.iova(i), missing.writable(i)]);

beforeEach(() => {
  memory = new GuestMemory();
  addRegion(0, USER);
  addRegion(4 * MiB, USER + MiB);
  iotlb = new Iotlb(memory);
});

afterEach(() => {
  memory.clear();
  for (const fd of files.splice(0)) fd.close();
});

describe('a translation', () => {
  it('gives guest address and length up to its end, and nothing on either side', () => {
    update(0x10_0000, 2 * PAGE, USER + 0x3000);

    expect(translate(0x10_0000)).toEqual([0x3000, 2 * PAGE]);
    expect(translate(0x10_1fff)).toEqual([0x4fff, 1]);
    expect(translate(0x0f_ffff)).toBe(IOTLB_MISS);
    expect(translate(0x10_2000)).toBe(IOTLB_MISS);
  });

  it('over two regions ends where each ends', () => {
    update(0, 2 * MiB, USER);

    expect(translate(MiB - 1)).toEqual([MiB - 1, 1]);
    expect(translate(MiB)).toEqual([4 * MiB, MiB]);
    expect(translate(MiB - PAGE)).toEqual([MiB - PAGE, PAGE]);
  });

  it('permits what it says only', () => {
    update(0, PAGE, USER, READ);
    update(0x10_0000, PAGE, USER, WRITE);

    expect(translate(0, false)).toEqual([0, PAGE]);
    expect(translate(0, true)).toBe(IOTLB_MISS);
    expect(translate(0x10_0000, true)).toEqual([0, PAGE]);
    expect(translate(0x10_0000, false)).toBe(IOTLB_MISS);
  });

  it('to where no region is, is denied', () => {
    update(0, 2 * PAGE, USER - PAGE);

    expect(translate(0)).toBe(IOTLB_DENIED);
    expect(translate(PAGE)).toEqual([0, PAGE]);
  });

  it('is replaced by a later one, in the part that they share', () => {
    update(0, 4 * PAGE, USER);
    update(PAGE, PAGE, USER + 0x8000, READ);

    expect(translate(0)).toEqual([0, PAGE]);
    expect(translate(PAGE, false)).toEqual([0x8000, PAGE]);
    expect(translate(PAGE, true)).toBe(IOTLB_MISS);
    expect(translate(2 * PAGE)).toEqual([2 * PAGE, 2 * PAGE]);
  });

  it.each([
    ['behind', [0, 1, 2]],
    ['before', [2, 1, 0]],
    ['between', [0, 2, 1]],
  ])('that continues others, come %s them, becomes one with them', (_, order) => {
    for (const page of order) update(page * PAGE, PAGE, USER + page * PAGE);

    expect(iotlb.entries).toBe(1);
    expect(translate(0)).toEqual([0, 3 * PAGE]);
  });

  it('that continues another with other rights, or elsewhere, stays apart', () => {
    update(0, PAGE, USER);
    update(PAGE, PAGE, USER + PAGE, READ);
    update(2 * PAGE, PAGE, USER + 5 * PAGE, READ);

    expect(iotlb.entries).toBe(3);
    expect(translate(0)).toEqual([0, PAGE]);
  });

  it('of 0 bytes is refused', () => {
    expect(() => update(0, 0, USER)).toThrow(/0 bytes/);
  });
});

describe('a range that is invalidated', () => {
  it.each<[string, number, number, ([number, number] | number)[]]>([
    ['the whole of it', 0, 4, [IOTLB_MISS, IOTLB_MISS, IOTLB_MISS, IOTLB_MISS]],
    ['its beginning', 0, 1, [IOTLB_MISS, [PAGE, 3 * PAGE], [2 * PAGE, 2 * PAGE], [3 * PAGE, PAGE]]],
    ['its end', 3, 1, [[0, 3 * PAGE], [PAGE, 2 * PAGE], [2 * PAGE, PAGE], IOTLB_MISS]],
    ['its middle', 1, 2, [[0, PAGE], IOTLB_MISS, IOTLB_MISS, [3 * PAGE, PAGE]]],
    ['more than it', 0, 400, [IOTLB_MISS, IOTLB_MISS, IOTLB_MISS, IOTLB_MISS]],
    [
      'what is behind it',
      4,
      4,
      [
        [0, 4 * PAGE],
        [PAGE, 3 * PAGE],
        [2 * PAGE, 2 * PAGE],
        [3 * PAGE, PAGE],
      ],
    ],
  ])('of a translation: %s', (_, first, pages, expected) => {
    update(0, 4 * PAGE, USER);
    translate(PAGE);

    iotlb.invalidate(BigInt(first * PAGE), BigInt(pages * PAGE));

    expect([0, 1, 2, 3].map((page) => translate(page * PAGE))).toEqual(expected);
  });

  it('takes all of many translations, and cuts those at its ends', () => {
    for (let i = 0; i < 8; i += 1) update(i * 4 * PAGE, 2 * PAGE, USER + i * 0x1_0000);

    iotlb.invalidate(BigInt(PAGE), BigInt(24 * PAGE));

    expect(iotlb.entries).toBe(3);
    expect(translate(0)).toEqual([0, PAGE]);
    expect(translate(25 * PAGE)).toEqual([0x6_1000, PAGE]);
    expect(translate(28 * PAGE)).toEqual([0x7_0000, 2 * PAGE]);
  });

  it.each([0n, 2n ** 64n - 1n])('of size %s from 0 on is everything', (size) => {
    update(0, PAGE, USER);
    iotlb.update(2n ** 52n, 4096n, BigInt(USER), READ_WRITE);

    iotlb.invalidate(0n, size);

    expect([iotlb.entries, translate(0), translate(2 ** 52)]).toEqual([0, IOTLB_MISS, IOTLB_MISS]);
  });
});

describe('addresses that numbers do not hold', () => {
  it('are cut off a translation of the whole address space', () => {
    iotlb.update(0n, 2n ** 64n - 1n, BigInt(USER), READ_WRITE);

    expect(translate(0x5000)).toEqual([0x5000, MiB - 0x5000]);
    expect(translate(2 * MiB)).toBe(IOTLB_DENIED);
    expect(translate(2 ** 53 - 1)).toBe(IOTLB_DENIED);
  });

  it('are denied, and what is said about them changes nothing', () => {
    iotlb.update(2n ** 63n, 4096n, BigInt(USER), READ_WRITE);
    iotlb.update(0n, 4096n, 2n ** 64n - 4096n, READ_WRITE);
    iotlb.invalidate(2n ** 63n, 4096n);

    expect(iotlb.entries).toBe(1);
    expect([translate(2 ** 63), translate(2 ** 53), translate(2 ** 64), translate(0)]).toEqual(
      Array(4).fill(IOTLB_DENIED),
    );
  });
});

describe('when guest memory changes', () => {
  it('a translation that was used before leads to what is there now', () => {
    update(0, PAGE, USER + PAGE);
    expect(translate(0)).toEqual([PAGE, PAGE]);

    memory.clear();
    expect(translate(0)).toBe(IOTLB_DENIED);
    addRegion(0x4000_0000, USER);

    expect(translate(0)).toEqual([0x4000_1000, PAGE]);
  });
});

describe('a denial', () => {
  it('holds for its page and access until an update covers it', () => {
    iotlb.deny(0x5123, true);

    expect(translate(0x5fff, true)).toBe(IOTLB_DENIED);
    expect(translate(0x5000, false)).toBe(IOTLB_MISS);
    expect(translate(0x6000, true)).toBe(IOTLB_MISS);
    update(0x5000, PAGE, USER);
    expect(translate(0x5000, true)).toEqual([0, PAGE]);
    iotlb.invalidate(0x5000n, 4096n);
    expect(translate(0x5000, true)).toBe(IOTLB_MISS);
  });

  it('ends with an invalidation that covers it, or when all are forgotten', () => {
    iotlb.deny(0x5000, true);
    iotlb.deny(0x6000, false);
    iotlb.invalidate(0x5000n, 1n);
    expect([translate(0x5000, true), translate(0x6000, false)]).toEqual([IOTLB_MISS, IOTLB_DENIED]);

    iotlb.forgetDenied();

    expect(translate(0x6000, false)).toBe(IOTLB_MISS);
  });

  it('of both accesses is two', () => {
    iotlb.deny(0x5000, true);
    iotlb.deny(0x5000, false);

    expect([translate(0x5000, true), translate(0x5000, false)]).toEqual([IOTLB_DENIED, IOTLB_DENIED]);
  });

  it('is forgotten when there are too many, the oldest first', () => {
    for (let page = 0; page <= MAX_IOTLB_DENIED; page += 1) iotlb.deny(page * PAGE, true);

    expect(translate(0)).toBe(IOTLB_MISS);
    expect(translate(PAGE)).toBe(IOTLB_DENIED);
    expect(translate(MAX_IOTLB_DENIED * PAGE)).toBe(IOTLB_DENIED);
  });
});

describe('more translations than there is room for', () => {
  it('push the oldest out', () => {
    for (let i = 0; i < MAX_IOTLB_ENTRIES + 10; i += 1) update(i * 2 * PAGE, PAGE, USER);

    expect(iotlb.entries).toBe(MAX_IOTLB_ENTRIES);
    expect([0, 9, 10].map((i) => translate(i * 2 * PAGE))).toEqual([IOTLB_MISS, IOTLB_MISS, [0, PAGE]]);
    expect(translate((MAX_IOTLB_ENTRIES + 9) * 2 * PAGE)).toEqual([0, PAGE]);
  });

  it('do so too when holes are cut into one that is full of neighbours', () => {
    const base = 2 ** 40;
    update(base, MiB, USER);
    for (let i = 1; i < MAX_IOTLB_ENTRIES; i += 1) update(i * 2 * PAGE, PAGE, USER);

    update(base + 4 * PAGE, PAGE, USER, READ);
    iotlb.invalidate(BigInt(base + 8 * PAGE), 4096n);

    expect(iotlb.entries).toBeLessThanOrEqual(MAX_IOTLB_ENTRIES);
    expect(translate(base + 4 * PAGE, false)).toEqual([0, PAGE]);
    expect(translate(base + 8 * PAGE)).toBe(IOTLB_MISS);
    expect(translate((MAX_IOTLB_ENTRIES - 1) * 2 * PAGE)).toEqual([0, PAGE]);
  });
});

describe('what to ask for', () => {
  it('is each missing page of a range once', () => {
    update(0x2000, PAGE, USER);
    const missing = new MissingPages();

    expect(iotlb.collectMissing(0x1ff0, 2 * PAGE, true, missing)).toBe(IOTLB_MISS);
    expect(iotlb.collectMissing(0x1000, 1, false, missing)).toBe(IOTLB_MISS);
    expect(iotlb.collectMissing(0x1001, 1, false, missing)).toBe(IOTLB_MISS);

    expect(missed(missing)).toEqual([
      [0x1000, true],
      [0x3000, true],
      [0x1000, false],
    ]);
  });

  it('is nothing when the range is translated, or in part denied', () => {
    update(0x2000, 2 * PAGE, USER);
    iotlb.deny(0x4000, true);
    const missing = new MissingPages();

    expect(iotlb.collectMissing(0x2abc, PAGE, true, missing)).toBe(IOTLB_HIT);
    expect(iotlb.collectMissing(0x2abc, 2 * PAGE, true, missing)).toBe(IOTLB_DENIED);
    expect(iotlb.collectMissing(0x9000, 0, true, missing)).toBe(IOTLB_HIT);

    expect(missing.count).toBe(0);
  });

  it('is a list with an end', () => {
    const missing = new MissingPages();

    expect(iotlb.collectMissing(0, 2 ** 32 - 1, true, missing)).toBe(IOTLB_MISS);
    missing.note(2 ** 40, true);

    expect(missing.count).toBe(MAX_MISSING_PAGES);
    expect(missed(missing).at(-1)).toEqual([(MAX_MISSING_PAGES - 1) * PAGE, true]);
    missing.clear();
    expect(missing.count).toBe(0);
  });
});
