import { Worker } from 'node:worker_threads';
import { afterEach, describe, expect, it } from 'vitest';
import { coveredBytes, DirtyLog } from '../../../../protocol/memory/dirty-log.ts';

const PAGE = 4096;

/** The pages whose bits are set, looked at byte by byte. */
const pagesOf = (bitmap: ArrayBuffer): number[] => {
  const pages: number[] = [];
  new Uint8Array(bitmap).forEach((byte, i) => {
    for (let bit = 0; bit < 8; bit += 1) if ((byte & (1 << bit)) !== 0) pages.push(i * 8 + bit);
  });
  return pages;
};

const marked = (bitmapBytes: number, ...marks: [address: number, length: number][]) => {
  const bitmap = new ArrayBuffer(bitmapBytes);
  const log = new DirtyLog(bitmap);
  for (const [address, length] of marks) log.mark(address, length);
  return { pages: pagesOf(bitmap), ignored: log.ignored };
};

const range = (first: number, count: number): number[] => Array.from({ length: count }, (_, i) => first + i);

describe('mark', () => {
  it.each<[string, number, number, number[]]>([
    ['one byte', 0, 1, [0]],
    ['the last byte of a page', PAGE - 1, 1, [0]],
    ['two bytes over a boundary', PAGE - 1, 2, [0, 1]],
    ['a whole page', 3 * PAGE, PAGE, [3]],
    ['a page and a byte', 3 * PAGE, PAGE + 1, [3, 4]],
    ['the last page of a word', 31 * PAGE, PAGE, [31]],
    ['pages of two words', 30 * PAGE, 4 * PAGE, range(30, 4)],
    ['a whole word', 32 * PAGE, 32 * PAGE, range(32, 32)],
    ['parts of three words', 31 * PAGE + 5, 33 * PAGE, range(31, 34)],
    ['nothing', 5 * PAGE, 0, []],
  ])('of %s sets the bits of the pages it touches', (_, address, length, pages) => {
    expect(marked(16, [address, length])).toEqual({ pages, ignored: 0 });
  });

  it('puts the bit of page 77 where the standard says', () => {
    const bitmap = new ArrayBuffer(16);

    new DirtyLog(bitmap).mark(77 * PAGE, 1);

    expect([...new Uint8Array(bitmap)].map((byte, i) => [i, byte]).filter(([, byte]) => byte !== 0)).toEqual([
      [9, 0x20],
    ]);
  });

  it('leaves other bits as they are', () => {
    const bitmap = new Uint8Array(8).fill(0x81).buffer;

    new DirtyLog(bitmap).mark(PAGE, 1);

    expect([...new Uint8Array(bitmap)]).toEqual([0x83, ...Array(7).fill(0x81)]);
  });

  it('reaches pages above 64 GiB', () => {
    const page = (64 * 2 ** 30) / PAGE + 3;

    expect(marked(4 * 2 ** 20, [page * PAGE + 9, 2 * PAGE])).toEqual({ pages: range(page, 3), ignored: 0 });
  });

  it.each([1, 2, 3, 5, 7])('uses all of a bitmap of %i bytes', (bytes) => {
    const pages = bytes * 8;

    expect(marked(bytes, [(pages - 1) * PAGE, PAGE]).pages).toEqual([pages - 1]);
    expect(marked(bytes, [0, pages * PAGE])).toEqual({ pages: range(0, pages), ignored: 0 });
  });

  it.each<[string, number, number, number, number[]]>([
    ['behind a bitmap of words', 8, 64 * PAGE, PAGE, []],
    ['behind a bitmap of bytes', 5, 40 * PAGE, PAGE, []],
    ['over the end of a bitmap of words', 8, 62 * PAGE, 5 * PAGE, [62, 63]],
    ['over the end of a bitmap of bytes', 5, 31 * PAGE, 100 * PAGE, range(31, 9)],
    ['far away', 8, 2 ** 52, 2 ** 32, []],
    ['in no bitmap', 0, 0, 1, []],
  ])('%s is left out and counted', (_, bytes, address, length, pages) => {
    expect(marked(bytes, [address, length])).toEqual({ pages, ignored: 1 });
  });
});

describe('coveredBytes', () => {
  it('is 32 KiB of memory for each byte', () => {
    expect(coveredBytes(1)).toBe(32_768);
    expect(new DirtyLog(new ArrayBuffer(4096)).coveredBytes).toBe(128 * 2 ** 20);
  });
});

const MARKS = 3_000_000;

/**
 * Takes the marks of even pages away all the time, as a front end does, and sets and clears the one of page 1, as another
 * marking thread and that front end do. Counts how often page 1 is not as it was left.
 */
const OTHER_THREAD = `
const { workerData: { bitmap, control } } = require('node:worker_threads');
const words = new Int32Array(bitmap);
const state = new Int32Array(control);
let wrong = 0;
Atomics.store(state, 0, 1);
Atomics.notify(state, 0);
while (Atomics.load(state, 1) === 0) {
  Atomics.or(words, 0, 2);
  if ((Atomics.and(words, 0, ~0x55) & 2) === 0) wrong += 1;
  if ((Atomics.and(words, 0, ~2) & 2) === 0) wrong += 1;
  if ((Atomics.load(words, 0) & 2) !== 0) wrong += 1;
}
Atomics.store(state, 2, wrong);
Atomics.store(state, 0, 2);
Atomics.notify(state, 0);
`;

describe('while other threads mark and clear', () => {
  let worker: Worker | undefined;
  afterEach(async () => {
    await worker?.terminate();
  });

  it('no mark of theirs is lost, and none comes back', () => {
    const bitmap = new SharedArrayBuffer(16);
    const control = new SharedArrayBuffer(12);
    const state = new Int32Array(control);
    worker = new Worker(OTHER_THREAD, { eval: true, workerData: { bitmap, control } });
    const log = new DirtyLog(bitmap as unknown as ArrayBuffer);
    expect(Atomics.wait(state, 0, 0, 8_000)).not.toBe('timed-out');

    for (let i = 0; i < MARKS; i += 1) log.mark((i & 3) * 2 * PAGE, PAGE);

    Atomics.store(state, 1, 1);
    expect(Atomics.wait(state, 0, 1, 8_000)).not.toBe('timed-out');
    expect(state[2]).toBe(0);
  });
});
