import { afterAll, beforeEach, describe, expect, it } from 'vitest';
import { GuestMemory } from '../../../../protocol/memory/guest-memory.ts';
import { Iotlb } from '../../../../protocol/memory/iotlb.ts';
import { DescriptorChain } from '../../../../protocol/virtqueue/chain.ts';
import {
  FAULT_CHAIN_TOO_LONG,
  FAULT_INDIRECT_UNMAPPED,
  FAULT_NEXT_OUT_OF_RANGE,
  FAULT_TRANSLATION_MISSING,
  FAULT_UNMAPPED,
  NO_FAULT,
} from '../../../../protocol/virtqueue/faults.ts';
import { GuestRam } from '../../../support/frontend/guest-ram.ts';
import { INDIRECT, NEXT, type RawDescriptor, WRITE } from '../../../support/frontend/raw-virtqueue.ts';

const SIZE = 8;
const PAGE = 4096;
const READ_ONLY = 1;
const READ_WRITE = 3;
/** Far from guest and user addresses. */
const IOVA = 0x10_0000_0000;

const ram = new GuestRam(0x10_0000);
const memory = new GuestMemory();
memory.add({ guestAddress: ram.guest(0), userAddress: ram.user(0), size: ram.length, mmapOffset: 0 }, ram.fd);
let iotlb: Iotlb;
let chain: DescriptorChain;

beforeEach(() => {
  iotlb = new Iotlb(memory);
  chain = new DescriptorChain(memory, SIZE, iotlb);
});

afterAll(() => {
  memory.clear();
  ram.close();
});

/** Pages of I/O virtual addresses, by number from IOVA on, at page offsets in the memory. */
const mapPages = (pages: Record<number, number>, permission = READ_WRITE): void => {
  for (const [page, offset] of Object.entries(pages)) {
    iotlb.update(BigInt(IOVA + PAGE * Number(page)), BigInt(PAGE), BigInt(ram.user(PAGE * offset)), permission);
  }
};

const write = (
  view: DataView,
  at: number,
  { address, length, flags }: RawDescriptor,
  tail: 'flags' | 'next',
  next: number,
) => {
  view.setBigUint64(at, BigInt(address), true);
  view.setUint32(at + 8, length, true);
  view.setUint16(at + (tail === 'flags' ? 12 : 14), flags ?? 0, true);
  view.setUint16(at + (tail === 'flags' ? 14 : 12), next, true);
};

/** Both layouts walk the same buffers. */
const LAYOUTS = [
  [
    'split',
    (buffers: readonly RawDescriptor[]): void => {
      const ring = new DataView(new ArrayBuffer(16 * SIZE));
      buffers.forEach((buffer, i) => {
        const flags = (buffer.flags ?? 0) | (i + 1 < buffers.length ? NEXT : 0);
        write(ring, 16 * i, { ...buffer, flags }, 'flags', i + 1);
      });
      chain.walk(0, ring, SIZE, true);
    },
    (table: number, buffers: readonly RawDescriptor[]): void => {
      buffers.forEach((buffer, i) => {
        const flags = (buffer.flags ?? 0) | (i + 1 < buffers.length ? NEXT : 0);
        write(ram.view, table + 16 * i, { ...buffer, flags }, 'flags', i + 1);
      });
    },
  ],
  [
    'packed',
    (buffers: readonly RawDescriptor[]): void => {
      const slots = new DataView(chain.copies.buffer);
      buffers.forEach((buffer, i) => {
        write(slots, 16 * i, buffer, 'next', 0);
      });
      chain.walkCopies(5, buffers.length, true);
    },
    (table: number, buffers: readonly RawDescriptor[]): void => {
      buffers.forEach((buffer, i) => {
        write(ram.view, table + 16 * i, buffer, 'next', 0);
      });
    },
  ],
] as const;

const segments = (): number[][] =>
  Array.from({ length: chain.segments }, (_, i) => [chain.guest[i] as number, chain.length[i] as number]);

const missing = (): [number, boolean][] =>
  Array.from({ length: chain.missing.count }, (_, i) => [
    (chain.missing.iova(i) - IOVA) / PAGE,
    chain.missing.writable(i),
  ]);

describe.each(LAYOUTS)('a chain of I/O virtual addresses (%s)', (_, walk, writeTable) => {
  it('comes out in guest addresses, cut where its translations are', () => {
    mapPages({ 0: 5, 1: 9, 2: 10 });

    walk([
      { address: IOVA + 8, length: 16 },
      { address: IOVA + PAGE - 100, length: 300, flags: WRITE },
      { address: IOVA + 2 * PAGE - 4, length: 8, flags: WRITE },
    ]);

    expect([chain.fault, chain.readableSegments, chain.missing.count]).toEqual([NO_FAULT, 1, 0]);
    expect(segments()).toEqual([
      [ram.guest(5 * PAGE + 8), 16],
      [ram.guest(6 * PAGE - 100), 100],
      [ram.guest(9 * PAGE), 200],
      // Pages that continue each other are one piece.
      [ram.guest(10 * PAGE - 4), 8],
    ]);
    expect(chain.lastWritable).toBe(ram.guest(10 * PAGE + 3));
    expect(chain.address[3]).toBe((chain.guest[3] as number) + (memory.regions[0]?.hostDelta ?? 0));
  });

  it('says all pages that are missing, each once for each access', () => {
    mapPages({ 0: 5, 3: 6 });

    walk([
      { address: IOVA + PAGE + 8, length: 16 },
      { address: IOVA + PAGE + 64, length: 16 },
      { address: IOVA + 3 * PAGE - 1, length: 2 * PAGE, flags: WRITE },
      { address: IOVA + PAGE + 80, length: 1, flags: WRITE },
    ]);

    expect([chain.fault, chain.lastWritable]).toEqual([FAULT_TRANSLATION_MISSING, -1]);
    expect(missing()).toEqual([
      [1, false],
      [2, true],
      [4, true],
      [1, true],
    ]);
  });

  it('forgets what was missing when it is walked again', () => {
    const buffers = [{ address: IOVA, length: 16, flags: WRITE }];
    walk(buffers);
    expect(chain.fault).toBe(FAULT_TRANSLATION_MISSING);

    mapPages({ 0: 5 });
    walk(buffers);

    expect([chain.fault, chain.missing.count, chain.lastWritable]).toEqual([NO_FAULT, 0, ram.guest(5 * PAGE + 15)]);
  });

  it('may not be written where the translation forbids it', () => {
    mapPages({ 0: 5 }, READ_ONLY);
    walk([{ address: IOVA, length: 16, flags: WRITE }]);
    expect(missing()).toEqual([[0, true]]);

    iotlb.deny(IOVA, true);
    walk([
      { address: IOVA, length: 16 },
      { address: IOVA, length: 16, flags: WRITE },
    ]);

    expect([chain.fault, chain.segments, chain.lastWritable]).toEqual([FAULT_UNMAPPED, 1, -1]);
  });

  it('asks for nothing of a buffer of which a part is denied', () => {
    iotlb.deny(IOVA + PAGE, true);
    walk([{ address: IOVA, length: 3 * PAGE, flags: WRITE }]);

    expect([chain.fault, chain.missing.count]).toEqual([FAULT_UNMAPPED, 0]);
  });

  it.each([-1, 2 ** 53, 2 ** 64 - 4096])('has no address %i', (address) => {
    walk([{ address: BigInt.asUintN(64, BigInt(address)), length: 16, flags: WRITE }]);

    expect([chain.fault, chain.missing.count]).toEqual([FAULT_UNMAPPED, 0]);
  });

  const TABLE = 7 * PAGE - 32;
  const buffers = [
    { address: IOVA + 8 * PAGE, length: 16 },
    { address: IOVA + 8 * PAGE + 16, length: 16, flags: WRITE },
    { address: IOVA + 8 * PAGE + 32, length: 16, flags: WRITE },
  ];

  it('may be in an indirect table, in one piece', () => {
    mapPages({ 0: 6, 1: 7, 8: 20 });
    writeTable(TABLE, buffers);

    walk([{ address: IOVA + PAGE - 32, length: 48, flags: INDIRECT }]);

    expect([chain.fault, chain.readableBytes, chain.writableBytes]).toEqual([NO_FAULT, 16, 32]);
    expect(chain.lastWritable).toBe(ram.guest(20 * PAGE + 47));
  });

  it('may be in an indirect table that is scattered', () => {
    mapPages({ 0: 6, 1: 30, 8: 20 });
    writeTable(TABLE, buffers);
    ram.bytes.copyWithin(30 * PAGE, 7 * PAGE, 7 * PAGE + 16);
    ram.bytes.fill(0xff, 7 * PAGE, 7 * PAGE + 16);

    walk([{ address: IOVA + PAGE - 32, length: 48, flags: INDIRECT }]);

    expect([chain.fault, chain.readableBytes, chain.writableBytes]).toEqual([NO_FAULT, 16, 32]);
  });

  it('waits for an indirect table', () => {
    mapPages({ 0: 6 });

    walk([{ address: IOVA + PAGE - 32, length: 48, flags: INDIRECT }]);

    expect(chain.fault).toBe(FAULT_TRANSLATION_MISSING);
    expect(missing()).toEqual([[1, false]]);
  });

  it('has a fault where its indirect table is denied', () => {
    mapPages({ 0: 6 });
    iotlb.deny(IOVA + PAGE, false);

    walk([{ address: IOVA + PAGE - 32, length: 48, flags: INDIRECT }]);

    expect(chain.fault).toBe(FAULT_INDIRECT_UNMAPPED);
  });
});

describe('a chain that is wrong in itself', () => {
  it('goes back although translations are missing', () => {
    const ring = new DataView(new ArrayBuffer(16 * SIZE));
    write(ring, 0, { address: IOVA, length: 16, flags: NEXT }, 'flags', SIZE);

    chain.walk(0, ring, SIZE, true);

    expect(chain.fault).toBe(FAULT_NEXT_OUT_OF_RANGE);
  });

  it('has a table of any length, of which only so much is looked at', () => {
    const ring = new DataView(new ArrayBuffer(16 * SIZE));
    write(ring, 0, { address: IOVA, length: 0xffff_fff0, flags: INDIRECT }, 'flags', 0);
    chain.walk(0, ring, SIZE, true);
    // 1024 descriptors of 16 bytes.
    expect(missing().map(([page]) => page)).toEqual([0, 1, 2, 3]);

    const slots = new DataView(chain.copies.buffer);
    write(slots, 0, { address: IOVA, length: 0xffff_fff0, flags: INDIRECT }, 'next', 0);
    chain.walkCopies(0, 1, true);
    expect([chain.fault, chain.missing.count]).toEqual([FAULT_CHAIN_TOO_LONG, 0]);
  });
});
