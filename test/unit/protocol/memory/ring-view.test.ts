import { readFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { GuestMemory } from '../../../../protocol/memory/guest-memory.ts';
import { Iotlb } from '../../../../protocol/memory/iotlb.ts';
import { MemoryError } from '../../../../protocol/memory/memory-error.ts';
import { RingPlace, TranslationMissing } from '../../../../protocol/memory/ring-view.ts';
import { faultGuardAvailable } from '../../../../protocol/sys/fault-guard.ts';
import { countMappings } from '../../../../protocol/sys/mapping.ts';
import { createSealedMemfd, type OwnedFd } from '../../../../protocol/sys/owned-fd.ts';
import { createMemfd, truncate } from '../../../support/frontend/descriptors.ts';

const PAGE = 4096;
const PAGES = 16;
const USER = 0x7f00_0000_0000;
const SECOND = 0x10_0000;
const SECOND_USER = 0x7e00_0000_0000;
const IOVA = 0xffff_0000;
const READ = 1;
const READ_WRITE = 3;

let memory: GuestMemory;
let iotlb: Iotlb;
let files: OwnedFd[];
const places: RingPlace[] = [];

const placeRings = (translations?: Iotlb): RingPlace => {
  const place = new RingPlace(memory, translations);
  places.push(place);
  return place;
};

/** Translates IOVA pages, one behind the other, to these pages of the first region. */
const translatePages = (pages: readonly number[], permission = READ_WRITE): void =>
  pages.forEach((page, i) => {
    iotlb.update(BigInt(IOVA + i * PAGE), BigInt(PAGE), BigInt(USER + page * PAGE), permission);
  });

const guestByte = (address: number): number => {
  const byte = new Uint8Array(1);
  expect(memory.copyOut(address, byte)).toBe(true);
  return byte[0] as number;
};

/** Number of every page of the first region, in its first byte. */
const numberPages = (): void => {
  for (let page = 0; page < PAGES; page += 1) memory.copyIn(page * PAGE, Uint8Array.of(page));
};

const firstBytes = (view: ArrayBuffer): number[] =>
  Array.from({ length: view.byteLength / PAGE }, (_, i) => new Uint8Array(view)[i * PAGE] as number);

const missingOf = (body: () => unknown): [iova: number, writable: boolean][] => {
  try {
    body();
  } catch (error) {
    if (!(error instanceof TranslationMissing)) throw error;
    return Array.from({ length: error.missing.count }, (_, i) => [error.missing.iova(i), error.missing.writable(i)]);
  }
  throw new Error('nothing is missing');
};

beforeEach(() => {
  files = [createMemfd(PAGES * PAGE), createMemfd(PAGES * PAGE)];
  memory = new GuestMemory();
  memory.add({ guestAddress: 0, size: PAGES * PAGE, userAddress: USER, mmapOffset: 0 }, files[0] as OwnedFd);
  const second = { guestAddress: SECOND, size: PAGES * PAGE, userAddress: SECOND_USER, mmapOffset: 0 };
  memory.add(second, files[1] as OwnedFd);
  iotlb = new Iotlb(memory);
});

afterEach(() => {
  for (const place of places.splice(0)) place.retire();
  memory.clear();
  for (const fd of files) fd.close();
});

describe('a ring at a user address', () => {
  it('is viewed where it is', () => {
    const view = placeRings().view(SECOND_USER + 0x2010, 64, 16, 'descriptor table');

    new Uint8Array(view)[3] = 99;

    expect([view.byteLength, guestByte(SECOND + 0x2013)]).toEqual([64, 99]);
  });

  it.each<[string, number, number, RegExp]>([
    [
      'in no region',
      USER - PAGE,
      64,
      /descriptor table: 64 bytes at user address 0x7efffffff000 are not in one region/,
    ],
    ['that leaves its region', USER + PAGES * PAGE - 32, 64, /not in one region/],
    ['that is not aligned', USER + 8, 64, /not aligned to 16 bytes/],
  ])('%s is refused', (_, address, length, message) => {
    const view = () => placeRings().view(address, length, 16, 'descriptor table');

    expect(view).toThrow(MemoryError);
    expect(view).toThrow(message);
  });
});

describe('a ring at an IOVA', () => {
  it('that is in one piece is viewed where it is', () => {
    const before = countMappings();
    translatePages([4, 5, 6]);

    const view = placeRings(iotlb).view(IOVA + 0x20, 2 * PAGE, 16, 'used ring');
    new Uint8Array(view)[0] = 7;

    expect([guestByte(4 * PAGE + 0x20), countMappings()]).toEqual([7, before]);
  });

  it('that is scattered appears in one piece, and is the guest memory it was', () => {
    numberPages();
    translatePages([9, 3, 4, 11, 0]);
    const view = placeRings(iotlb).view(IOVA, 5 * PAGE, 4, 'used ring');

    expect(firstBytes(view)).toEqual([9, 3, 4, 11, 0]);
    new Uint8Array(view)[3 * PAGE + 5] = 200;
    memory.copyIn(3 * PAGE + 6, Uint8Array.of(201));

    expect(guestByte(11 * PAGE + 5)).toBe(200);
    expect(new Uint8Array(view)[PAGE + 6]).toBe(201);
    new Int32Array(view)[PAGE / 4 + 2] = 5;
    expect(Atomics.add(new Int32Array(view), PAGE / 4 + 2, 1)).toBe(5);
    expect(guestByte(3 * PAGE + 8)).toBe(6);
  });

  it('that begins and ends in the middle of scattered pages is cut there', () => {
    numberPages();
    translatePages([9, 3, 7]);
    const view = placeRings(iotlb).view(IOVA + 0xff0, PAGE + 0x20, 16, 'descriptor table');

    new Uint8Array(view).set([1], 0xf);
    new Uint8Array(view).set([2], PAGE + 0x1f);

    expect(view.byteLength).toBe(PAGE + 0x20);
    expect([new Uint8Array(view)[0x10], guestByte(9 * PAGE + 0xfff), guestByte(7 * PAGE + 0xf)]).toEqual([3, 1, 2]);
  });

  it('that is scattered over two regions appears in one piece', () => {
    iotlb.update(BigInt(IOVA), BigInt(PAGE), BigInt(SECOND_USER + PAGE), READ_WRITE);
    iotlb.update(BigInt(IOVA + PAGE), BigInt(PAGE), BigInt(USER), READ_WRITE);
    memory.copyIn(SECOND + PAGE, Uint8Array.of(31));
    memory.copyIn(0, Uint8Array.of(32));

    expect(firstBytes(placeRings(iotlb).view(IOVA, 2 * PAGE, 4, 'used ring'))).toEqual([31, 32]);
  });

  it('says which translations are missing', () => {
    translatePages([9, 3]);
    const place = placeRings(iotlb);

    expect(missingOf(() => place.view(IOVA + 16, 4 * PAGE, 16, 'used ring'))).toEqual([
      [IOVA + 2 * PAGE, true],
      [IOVA + 3 * PAGE, true],
      [IOVA + 4 * PAGE, true],
    ]);
    expect(missingOf(() => place.view(IOVA + 2 * PAGE, 1, 1, 'available ring', false))).toEqual([
      [IOVA + 2 * PAGE, false],
    ]);
  });

  it('that may only be read is no place for what the device writes', () => {
    translatePages([2, 6], READ);
    const place = placeRings(iotlb);

    expect(firstBytes(place.view(IOVA, 2 * PAGE, 16, 'descriptor table', false))).toEqual([0, 0]);
    expect(missingOf(() => place.view(IOVA, 64, 4, 'used ring'))).toEqual([[IOVA, true]]);
    iotlb.deny(IOVA, true);
    expect(() => place.view(IOVA, 64, 4, 'used ring')).toThrow(/used ring: 64 bytes at IOVA 0xffff0000 are not all/);
  });

  it.each<[string, number, number]>([
    ['is not aligned', IOVA + 8, 64],
    ['is not aligned and scattered', IOVA + 8, 2 * PAGE],
  ])('that %s is refused', (_, iova, length) => {
    translatePages([9, 3, 5]);

    expect(() => placeRings(iotlb).view(iova, length, 16, 'descriptor table')).toThrow(/not aligned to 16 bytes/);
  });

  it('that is scattered in pieces smaller than pages is refused', () => {
    iotlb.update(BigInt(IOVA), 2048n, BigInt(USER), READ_WRITE);
    iotlb.update(BigInt(IOVA + 2048), 2048n, BigInt(USER + PAGE + 2048), READ_WRITE);
    iotlb.update(BigInt(IOVA + PAGE), BigInt(PAGE), BigInt(USER + 5 * PAGE + 16), READ_WRITE);
    const place = placeRings(iotlb);

    expect(() => place.view(IOVA, PAGE, 4, 'used ring')).toThrow(/pieces that are not pages/);
    expect(() => place.view(IOVA + 2048, PAGE, 4, 'used ring')).toThrow(MemoryError);
    expect(place.view(IOVA + PAGE, 64, 4, 'used ring').byteLength).toBe(64);
  });
});

describe('scattered rings that are let go of', () => {
  it('leave guest memory as it is, and no mapping behind', () => {
    translatePages([9, 3]);
    const before = countMappings();
    const place = placeRings(iotlb);
    const bytes = new Uint8Array(place.view(IOVA, 2 * PAGE, 4, 'used ring')).fill(1);
    expect(countMappings()).toBe(before + 1);

    place.retire();
    bytes.fill(2);

    expect([guestByte(9 * PAGE), guestByte(3 * PAGE + 5)]).toEqual([1, 1]);
    place.retire();
  });

  it('outlive the regions that their pages are from', () => {
    translatePages([9, 3]);
    const bytes = new Uint8Array(placeRings(iotlb).view(IOVA, 2 * PAGE, 4, 'used ring')).fill(1);

    memory.clear();

    expect([bytes[0], bytes[PAGE]]).toEqual([1, 1]);
  });

  it.runIf(faultGuardAvailable)('notice that the front end took the pages away', () => {
    translatePages([9, 3]);
    const place = placeRings(iotlb);
    const bytes = new Uint8Array(place.view(IOVA, 2 * PAGE, 4, 'used ring')).fill(1);
    truncate(files[0] as OwnedFd, 0);
    expect(place.faulted).toBe(false);

    expect(bytes[PAGE]).toBe(0);

    expect([place.faulted, memory.faulted]).toEqual([true, false]);
  });
});

const huge = Number(/^HugePages_Free:\s+(\d+)$/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1] ?? 0);
if (huge < 1) process.stderr.write('skipped: scattered rings on huge pages (echo 8 > /proc/sys/vm/nr_hugepages)\n');

describe.skipIf(huge < 1)('on huge pages', () => {
  const HUGE = 2 << 20;

  beforeEach(() => {
    const fd = createSealedMemfd('huge', HUGE, true);
    files.push(fd);
    memory.add({ guestAddress: 2 * HUGE, size: HUGE, userAddress: SECOND_USER + HUGE, mmapOffset: 0 }, fd);
  });

  const translateTo = (...pages: number[]): void =>
    pages.forEach((page, i) => {
      const user = BigInt(SECOND_USER + HUGE + page * PAGE);
      iotlb.update(BigInt(IOVA + i * PAGE), BigInt(PAGE), user, READ_WRITE);
    });

  it('a ring in one piece is viewed where it is', () => {
    translateTo(3, 4);

    new Uint8Array(placeRings(iotlb).view(IOVA, 2 * PAGE, 4, 'used ring'))[PAGE] = 9;

    expect(guestByte(2 * HUGE + 4 * PAGE)).toBe(9);
  });

  it('a scattered ring is refused', () => {
    translateTo(0, 5);
    const before = countMappings();
    const view = () => placeRings(iotlb).view(IOVA, 2 * PAGE, 4, 'used ring');

    expect(view).toThrow(MemoryError);
    expect(view).toThrow(/used ring is scattered in guest memory of huge pages/);
    expect(countMappings()).toBe(before);
  });
});
