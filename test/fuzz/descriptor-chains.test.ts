/** Random descriptor tables, walked by the product and by the slow oracle: both must see the same chain. */

import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { DescriptorChain, MAX_INDIRECT_CHAIN } from '../../protocol/virtqueue/chain.ts';
import { LAST_SOFT_FAULT, NO_FAULT } from '../../protocol/virtqueue/faults.ts';
import { joinRanges, type OracleChain, walkSlowly } from '../support/frontend/chain-oracle.ts';
import { createMemfd } from '../support/frontend/descriptors.ts';

const PAGE = 0x1000;
const QUEUE_SIZE = 8;
/** Adjacent pages, a gap, and a region of two pages. */
const REGIONS = [
  [0x1000, PAGE],
  [0x2000, PAGE],
  [0x3000, PAGE],
  [0x8000, 2 * PAGE],
] as const;
/** The ring's own table, and indirect tables: one inside of a region, one across two. */
const RING = 0x8000;
const TABLES = [0x9000, 0x1fd0, 0x3ff0] as const;

const memory = new GuestMemory();
for (const [guestAddress, size] of REGIONS) {
  const fd = createMemfd(size);
  memory.add({ guestAddress, size, userAddress: 0x7000_0000_0000 + guestAddress, mmapOffset: 0 }, fd);
  fd.close();
}
afterAll(() => memory.clear());

const regions = REGIONS.map(([start, size]) => ({ start: BigInt(start), end: BigInt(start + size) }));

const readGuest = (address: bigint): Uint8Array | undefined => {
  const bytes = new Uint8Array(16);
  if (address > BigInt(Number.MAX_SAFE_INTEGER) || !memory.copyOut(Number(address), bytes)) return undefined;
  return bytes;
};

interface Descriptor {
  readonly address: bigint;
  readonly length: number;
  readonly flags: number;
  readonly next: number;
}

const putDescriptor = (table: number, index: number, { address, length, flags, next }: Descriptor): void => {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, address, true);
  view.setUint32(8, length, true);
  view.setUint16(12, flags, true);
  view.setUint16(14, next, true);
  // Past the end of a region the descriptor cannot be written, and the walk cannot read it either.
  memory.copyIn(table + 16 * index, bytes);
};

const nearEdge = fc
  .tuple(
    fc.constantFrom(...REGIONS.flatMap(([start, size]) => [start, start + size])),
    fc.integer({ min: -20, max: 20 }),
  )
  .map(([edge, offset]) => BigInt(edge + offset));

const address = fc.oneof(
  { weight: 6, arbitrary: fc.integer({ min: 0x1000, max: 0x4000 }).map(BigInt) },
  { weight: 3, arbitrary: nearEdge },
  { weight: 1, arbitrary: fc.constantFrom(0n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 16n, 2n ** 64n - 1n) },
);

const length = fc.oneof(
  { weight: 8, arbitrary: fc.integer({ min: 0, max: 600 }) },
  { weight: 2, arbitrary: fc.constantFrom(0, 1, 16, PAGE, 2 * PAGE, 3 * PAGE, 3 * PAGE + 1) },
  { weight: 1, arbitrary: fc.constantFrom(0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0xffff_f000) },
);

/** Mostly chains that go on and end; now and then anything. */
const flags = fc.oneof(
  { weight: 8, arbitrary: fc.constantFrom(0, 1, 1, 1, 2, 3, 3) },
  { weight: 1, arbitrary: fc.integer({ min: 0, max: 0xffff }) },
);

const descriptor = (entries: number) =>
  fc.record({
    address,
    length,
    flags,
    next: fc.oneof(
      { weight: 9, arbitrary: fc.integer({ min: 0, max: entries - 1 }) },
      { weight: 1, arbitrary: fc.constantFrom(entries, entries + 1, 0xffff) },
    ),
  });

/** A descriptor that refers to one of the tables, rightly or not quite. */
const indirectDescriptor = fc.record({
  address: fc.constantFrom(...TABLES).map(BigInt),
  length: fc.oneof(
    { weight: 6, arbitrary: fc.integer({ min: 1, max: 12 }).map((entries) => 16 * entries) },
    { weight: 1, arbitrary: fc.constantFrom(0, 1, 15, 17, 16 * 4096, 0xffff_fff0) },
  ),
  flags: fc.constantFrom(4, 4, 4, 4, 6, 5, 7, 0xfffc),
  next: fc.integer({ min: 0, max: QUEUE_SIZE }),
});

const ringTable = fc.array(
  fc.oneof({ weight: 4, arbitrary: descriptor(QUEUE_SIZE) }, { weight: 1, arbitrary: indirectDescriptor }),
  { minLength: QUEUE_SIZE, maxLength: QUEUE_SIZE },
);
const indirectTable = fc.array(
  fc.oneof({ weight: 15, arbitrary: descriptor(12) }, { weight: 1, arbitrary: indirectDescriptor }),
  { minLength: 12, maxLength: 12 },
);

const view = (): DataView => {
  memory.locate(RING, 16 * QUEUE_SIZE);
  return new DataView(memory.view.buffer, memory.view.byteOffset + memory.offset, 16 * QUEUE_SIZE);
};

const toOracleForm = (chain: DescriptorChain): OracleChain => {
  if (chain.fault > LAST_SOFT_FAULT) return { fault: 'hard', readable: [], writable: [], lastWritable: -1n };
  const ranges = Array.from(
    { length: chain.segments },
    (_, i) => [BigInt(chain.guest[i] ?? -1), BigInt(chain.length[i] ?? 0)] as const,
  );
  return {
    fault: chain.fault === NO_FAULT ? 'none' : 'soft',
    readable: joinRanges(ranges.slice(0, chain.readableSegments)),
    writable: joinRanges(ranges.slice(chain.readableSegments)),
    lastWritable: BigInt(chain.lastWritable),
  };
};

describe('a random descriptor table', () => {
  it('means the same to the product and to the oracle, from every head', () => {
    const chain = new DescriptorChain(memory, QUEUE_SIZE);
    const ring = view();
    const seen = { none: 0, soft: 0, hard: 0 };

    fc.assert(
      fc.property(
        ringTable,
        fc.tuple(indirectTable, indirectTable, indirectTable),
        fc.boolean(),
        (own, tables, indirect) => {
          tables.forEach((table, t) => {
            table.forEach((entry, i) => {
              putDescriptor(TABLES[t] ?? 0, i, entry);
            });
          });
          own.forEach((entry, i) => {
            putDescriptor(RING, i, entry);
          });
          for (let head = 0; head < QUEUE_SIZE; head += 1) {
            const expected = walkSlowly(head, {
              read: readGuest,
              regions,
              table: BigInt(RING),
              queueSize: QUEUE_SIZE,
              indirect,
              indirectLimit: MAX_INDIRECT_CHAIN,
            });

            chain.walk(head, ring, QUEUE_SIZE, indirect);

            const got = toOracleForm(chain);
            seen[expected.fault] += 1;
            expect(got.fault).toBe(expected.fault);
            expect(got.lastWritable).toBe(expected.lastWritable);
            if (expected.fault !== 'none') continue;
            expect(got).toEqual(expected);
            const total = (ranges: OracleChain['readable']): number =>
              ranges.reduce((sum, [, n]) => sum + Number(n), 0);
            expect([chain.readableBytes, chain.writableBytes]).toEqual([
              total(expected.readable),
              total(expected.writable),
            ]);
          }
        },
      ),
      { numRuns: 5000 },
    );

    // A generator that makes only faults would prove little.
    expect(seen.none).toBeGreaterThan(3000);
    expect(seen.soft).toBeGreaterThan(1000);
    expect(seen.hard).toBeGreaterThan(3000);
  });
});
