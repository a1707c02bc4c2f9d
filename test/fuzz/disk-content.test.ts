/**
 * Random reads, writes, discards and zeroings, cut into odd pieces at odd addresses, up to eight at once, against a
 * buffer that stands for the disk: what is read is what was written last, and in the end the image is the buffer.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { RequestArea, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { type RawDescriptor, WRITE } from '../support/frontend/raw-ring.ts';
import { FEATURE } from '../support/frontend/wire.ts';
import { randomImage } from '../support/image.ts';

const SECTOR = 512;
const SECTORS = 512;
const MAX_SECTORS = 24;
const SLOTS = 8;
const DESCRIPTORS = 16;
const RUNS = 60;

const cleanup = cleanupAfterEach();

interface Operation {
  readonly type: number;
  readonly sector: number;
  readonly sectors: number;
  readonly fill: number;
  /** Where to cut the data, as parts of its length. */
  readonly cuts: readonly number[];
  /** Bytes to shift the data by. */
  readonly shift: number;
}

const operation: fc.Arbitrary<Operation> = fc.record({
  type: fc.constantFrom(TYPE.IN, TYPE.IN, TYPE.OUT, TYPE.OUT, TYPE.OUT, TYPE.WRITE_ZEROES, TYPE.DISCARD, TYPE.FLUSH),
  sector: fc.oneof(
    fc.nat(SECTORS - MAX_SECTORS),
    fc.nat((SECTORS - MAX_SECTORS) / 8).map((n) => 8 * n),
  ),
  sectors: fc.oneof(fc.integer({ min: 1, max: MAX_SECTORS }), fc.constantFrom(8, 16)),
  fill: fc.integer({ min: 1, max: 255 }),
  cuts: fc.oneof(fc.constant([]), fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 8 })),
  shift: fc.constantFrom(0, 0, 0, 1, 4, 511, 512),
});

/** Operations that are in flight together touch disjoint parts of the disk: the order of others is not defined. */
const batches = fc.array(fc.array(operation, { minLength: 1, maxLength: SLOTS }), { minLength: 1, maxLength: 12 });

const isDisjoint = (a: Operation, b: Operation): boolean =>
  a.sector + a.sectors <= b.sector || b.sector + b.sectors <= a.sector;

const keepDisjoint = (batch: readonly Operation[]): Operation[] => {
  const kept: Operation[] = [];
  for (const one of batch) if (kept.every((other) => isDisjoint(one, other))) kept.push(one);
  return kept;
};

const pattern = ({ fill, sector, sectors }: Operation): Buffer => {
  const bytes = Buffer.alloc(sectors * SECTOR, fill);
  for (let i = 0; i < sectors; i += 1) bytes.writeUInt32LE(sector + i, i * SECTOR);
  return bytes;
};

/** The data buffer of an operation, cut into descriptors. */
const dataDescriptors = (area: RequestArea, { cuts, shift }: Operation, length: number, flags: number) => {
  const ends = [...cuts.map((part) => Math.floor(part * length)), length].sort((a, b) => a - b);
  const pieces: RawDescriptor[] = [];
  let at = 0;
  for (const end of ends) {
    pieces.push(area.dataDescriptor(end - at, flags, shift + at));
    at = end;
  }
  return pieces;
};

const prepare = (frontend: RawFrontend, op: Operation, slot: number): RequestArea => {
  const area = new RequestArea(frontend, slot);
  const { bytes } = frontend.ram;
  const length = op.sectors * SECTOR;
  const isRange = op.type === TYPE.WRITE_ZEROES || op.type === TYPE.DISCARD;
  area.putHeader(op.type, isRange || op.type === TYPE.FLUSH ? 0 : op.sector);
  const chain = [area.headerDescriptor()];
  if (op.type === TYPE.OUT) {
    bytes.set(pattern(op), area.data + op.shift);
    chain.push(...dataDescriptors(area, op, length, 0));
  } else if (op.type === TYPE.IN) {
    bytes.fill(0xee, area.data, area.data + op.shift + length);
    chain.push(...dataDescriptors(area, op, length, WRITE));
  } else if (isRange) {
    frontend.ram.view.setBigUint64(area.data, BigInt(op.sector), true);
    frontend.ram.view.setUint32(area.data + 8, op.sectors, true);
    frontend.ram.view.setUint32(area.data + 12, op.type === TYPE.WRITE_ZEROES ? op.fill & 1 : 0, true);
    chain.push(area.dataDescriptor(16));
  }
  chain.push(area.statusDescriptor());
  frontend.ring().setChain(slot * DESCRIPTORS, chain);
  return area;
};

/** Runs one batch and checks every answer; then the disk has changed as the operations say. */
const runBatch = async (frontend: RawFrontend, disk: Buffer, batch: readonly Operation[]): Promise<void> => {
  const areas = batch.map((op, slot) => prepare(frontend, op, slot));
  await frontend.ring().run(...areas.map((_, slot) => slot * DESCRIPTORS));
  batch.forEach((op, slot) => {
    const area = areas[slot];
    expect(area?.statusByte).toBe(STATUS.OK);
    const from = op.sector * SECTOR;
    const to = from + op.sectors * SECTOR;
    if (op.type === TYPE.OUT) pattern(op).copy(disk, from);
    else if (op.type === TYPE.WRITE_ZEROES || op.type === TYPE.DISCARD) disk.fill(0, from, to);
    else if (op.type === TYPE.IN) {
      const at = (area?.data ?? 0) + op.shift;
      const got = frontend.ram.bytes.slice(at, at + to - from);
      if (Buffer.compare(got, disk.subarray(from, to)) !== 0) throw new Error(`wrong data at sector ${op.sector}`);
    }
  });
};

describe.each([
  ['io_uring', ['--engine=io_uring']],
  ['io_uring and O_DIRECT', ['--engine=io_uring', '--direct']],
  ['threads', ['--engine=threads']],
  ['threads and O_DIRECT', ['--engine=threads', '--direct']],
])('the disk behind %s', (_, extra) => {
  it.each([
    ['in writeback mode', [FEATURE.FLUSH]],
    ['in writethrough mode', []],
  ])('holds what random requests make of it, %s', async (_mode, features) => {
    const image = randomImage(join(cleanup.directory(), 'disk.img'), SECTORS * SECTOR);
    const disk = readFileSync(image);
    const backend = await BlkBackend.start(cleanup, { image, extra });
    const frontend = await RawFrontend.start(backend.socket, {
      features: [FEATURE.DISCARD, FEATURE.WRITE_ZEROES, ...features],
    });
    cleanup.add(() => frontend.close());

    const property = fc.asyncProperty(batches, async (list) => {
      for (const batch of list) await runBatch(frontend, disk, keepDisjoint(batch));
      if (Buffer.compare(readFileSync(image), disk) !== 0) throw new Error('the image is not what it should be');
    });

    await fc.assert(property, { numRuns: RUNS });
  });
});
