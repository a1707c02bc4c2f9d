/**
 * A disk behind an IOMMU: its ring and its buffers are I/O virtual addresses that the daemon asks for, page by page where
 * they are mapped so. What is not mapped is not reached; what is unmapped is not touched any more.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { VhostUserFrontend } from '../../vmm-client/frontend/frontend.ts';
import { type IoMapping, IoMappings } from '../../vmm-client/frontend/io-mappings.ts';
import { SharedMemory } from '../../vmm-client/frontend/shared-memory.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { randomImage } from '../support/image.ts';
import { DiskRig, PAGE, READ, WRITE } from './disk-rig.ts';

const MiB = 1 << 20;
const DISK_BYTES = 4 * MiB;
const MEMORY_BYTES = 8 * MiB;
const GUEST_ADDRESS = 0x1_0000_0000;
const IOVA = 0x7f_0000_0000;
const READ_ONLY = 1;
const READ_WRITE = 3;
const IOERR = 1;
const cleanup = cleanupAfterEach();

/** Counts what is asked for and told: with `find` every miss, and what listeners hear. */
class CountedMappings extends IoMappings {
  misses = 0;

  override find(iova: number): IoMapping | undefined {
    this.misses += 1;
    return super.find(iova);
  }
}

interface Options {
  readonly packed?: boolean;
  /** Maps every page by itself; otherwise all of memory is one mapping. */
  readonly byPage?: boolean;
  readonly extra?: readonly string[];
}

const open = async ({ packed = false, byPage = false, extra = [] }: Options = {}) => {
  const image = randomImage(join(cleanup.directory(), 'disk.img'), DISK_BYTES);
  const daemon = await BlkBackend.start(cleanup, { image, extra: ['--iommu', ...extra] });
  const iommu = new CountedMappings();
  const frontend = await VhostUserFrontend.connect(daemon.socket, { iommu, reconnectMs: 20_000 });
  cleanup.add(() => frontend.close());
  const memory = new SharedMemory(MEMORY_BYTES, GUEST_ADDRESS, IOVA);
  cleanup.add(() => memory.close());
  const map = (at: number, length: number, permission = READ_WRITE): Promise<void> =>
    iommu.map({ iova: IOVA + at, size: length, userAddress: memory.userAddress + at, permission });
  const rig = await DiskRig.open(frontend, memory, packed);
  // The ring is mapped here, not by the front end.
  const data = memory.allocate(2 * MiB, MiB);
  if (byPage) for (let at = 0; at < MEMORY_BYTES; at += PAGE) await map(at, PAGE);
  else await map(0, MEMORY_BYTES);
  await frontend.setMemory([{ region: memory.region, memfd: memory.memfd }]);
  await frontend.trackInflight(1, rig.queue.size);
  await rig.start();
  return { daemon, image, iommu, frontend, memory, rig, data, map, disk: readFileSync(image) };
};

type Bench = Awaited<ReturnType<typeof open>>;

/** Reads a piece of the disk to `at` and compares. */
const expectRead = async ({ rig, memory, disk }: Bench, offset: number, at: number, length: number): Promise<void> => {
  memory.bytes.fill(0xee, at, at + length);
  expect(await rig.run(READ, offset, at, length)).toBe(0);
  expect(memory.slice(at, length).equals(disk.subarray(offset, offset + length))).toBe(true);
};

describe.each([
  ['one mapping', { byPage: false }],
  ['a mapping for each page', { byPage: true }],
  ['a packed ring, a mapping for each page', { byPage: true, packed: true }],
  ['a mapping for each page, served by a thread', { byPage: true, extra: ['--threads=1'] }],
])('a disk behind an IOMMU with %s', (_, options) => {
  it('reads and writes through what it asks for, and asks once', async () => {
    const bench = await open(options);
    const { rig, data, memory, iommu, image } = bench;
    for (let round = 0; round < 8; round += 1) await expectRead(bench, round * 65_536, data + round * 512, 65_536);
    const asked = iommu.misses;
    expect(asked).toBeGreaterThan(0);
    for (let round = 0; round < 8; round += 1) await expectRead(bench, round * 65_536, data + round * 512, 65_536);
    expect(iommu.misses).toBe(asked);
    memory.bytes.fill(0x5a, data, data + 8192);
    expect(await rig.run(WRITE, 1 * MiB, data, 8192)).toBe(0);
    expect(
      readFileSync(image)
        .subarray(MiB, MiB + 8192)
        .every((byte) => byte === 0x5a),
    ).toBe(true);
  });

  it('is denied what is not mapped, and only that', async () => {
    const bench = await open(options);
    const { rig, data, memory } = bench;
    await expectRead(bench, 0, data, PAGE);
    // Beyond all memory, and out of it over its end.
    expect(await rig.run(READ, 0, MEMORY_BYTES + PAGE, PAGE)).toBe(IOERR);
    const before = memory.bytes.slice(MEMORY_BYTES - PAGE);
    expect(await rig.run(READ, 0, MEMORY_BYTES - PAGE, 2 * PAGE)).toBe(IOERR);
    expect(Buffer.compare(memory.bytes.subarray(MEMORY_BYTES - PAGE), before)).toBe(0);
    await expectRead(bench, 8192, data, PAGE);
  });
});

describe('mappings that change while requests run', () => {
  it('are not used any more when the unmapping was answered', async () => {
    const bench = await open({ byPage: true });
    const { rig, data, memory, iommu, map, disk } = bench;
    for (let round = 0; round < 200; round += 1) {
      const at = data + (round % 16) * PAGE;
      const offset = (round % 64) * PAGE;
      const tokens = Array.from({ length: 8 }, (_, i) =>
        rig.stage(READ, offset, data + ((round + i) % 16) * PAGE, PAGE),
      );
      rig.queue.flush();
      await iommu.unmap(IOVA + at, PAGE);
      // From here on the page is ours: nothing of the device may come in.
      memory.bytes.fill(0xcc, at, at + PAGE);
      await rig.finishAsync();
      expect(memory.slice(at, PAGE).every((byte) => byte === 0xcc)).toBe(true);
      // The one request to that page was done before, or it failed; the others do not suffer.
      const statuses = tokens.map((token) => rig.statuses.get(token));
      expect(statuses.slice(1)).toEqual(Array(7).fill(0));
      expect([0, IOERR]).toContain(statuses[0]);
      await map(at, PAGE);
    }
    for (let i = 0; i < 16; i += 1) await expectRead(bench, i * PAGE, data + i * PAGE, PAGE);
    expect(disk.length).toBe(DISK_BYTES);
  });

  it('are asked for again after they were made again elsewhere', async () => {
    const bench = await open({ byPage: true });
    const { rig, data, memory, iommu, disk } = bench;
    const [here, there] = [data, data + MiB];
    await iommu.unmap(IOVA + there, PAGE);
    for (let round = 0; round < 50; round += 1) {
      // One I/O address, in turns for one page of memory and for another.
      const [target, other] = round % 2 === 0 ? [there, here] : [here, there];
      await iommu.unmap(IOVA + here, PAGE);
      await iommu.map({
        iova: IOVA + here,
        size: PAGE,
        userAddress: memory.userAddress + target,
        permission: READ_WRITE,
      });
      memory.bytes.fill(0, here, here + PAGE);
      memory.bytes.fill(0, there, there + PAGE);
      expect(await rig.run(READ, round * PAGE, here, PAGE)).toBe(0);
      expect(memory.slice(target, PAGE).equals(disk.subarray(round * PAGE, (round + 1) * PAGE))).toBe(true);
      expect(memory.slice(other, PAGE).every((byte) => byte === 0)).toBe(true);
    }
  });

  it('may allow reading only', async () => {
    const bench = await open({ byPage: true });
    const { rig, data, memory, iommu, map, image } = bench;
    await iommu.unmap(IOVA + data, PAGE);
    await map(data, PAGE, READ_ONLY);
    memory.bytes.fill(0x77, data, data + PAGE);
    expect(await rig.run(WRITE, 0, data, PAGE)).toBe(0);
    expect(
      readFileSync(image)
        .subarray(0, PAGE)
        .every((byte) => byte === 0x77),
    ).toBe(true);
    expect(await rig.run(READ, MiB, data, PAGE)).toBe(IOERR);
    expect(memory.slice(data, PAGE).every((byte) => byte === 0x77)).toBe(true);
    await iommu.unmap(IOVA + data, PAGE);
    await map(data, PAGE);
    await expectRead(bench, MiB, data, PAGE);
  });

  it('may come after a denial', async () => {
    const bench = await open({ byPage: true });
    const { rig, data, iommu, map } = bench;
    for (let round = 0; round < 20; round += 1) {
      const at = data + round * PAGE;
      await iommu.unmap(IOVA + at, PAGE);
      expect(await rig.run(READ, 0, at, PAGE)).toBe(IOERR);
      await map(at, PAGE);
      await expectRead(bench, 0, at, PAGE);
    }
  });

  it('are asked for by the daemon that comes back', async () => {
    const bench = await open({ byPage: true });
    const { daemon, rig, data, iommu, disk, memory } = bench;
    await expectRead(bench, 0, data, 65_536);
    await daemon.kill9();
    const token = rig.stage(READ, 65_536, data, 65_536);
    const asked = iommu.misses;
    await iommu.unmap(IOVA + MEMORY_BYTES - PAGE, PAGE);
    await daemon.restart();
    await rig.finishAsync();
    expect(rig.statuses.get(token)).toBe(0);
    expect(memory.slice(data, 65_536).equals(disk.subarray(65_536, 131_072))).toBe(true);
    expect(iommu.misses).toBeGreaterThan(asked);
  });
});

it('a dirty log and an IOMMU name guest addresses, whatever the device is told', async () => {
  const bench = await open({ byPage: true });
  const { frontend, data } = bench;
  await expectRead(bench, 0, data, PAGE);
  await frontend.dirtyLog.start();
  await expectRead(bench, 8192, data, 4 * PAGE);
  const ranges = await frontend.dirtyLog.stop();
  const covered = (guestAddress: number) =>
    ranges.some((range) => guestAddress >= range.guestAddress && guestAddress < range.guestAddress + range.length);
  for (let i = 0; i < 4; i += 1) expect(covered(GUEST_ADDRESS + data + i * PAGE)).toBe(true);
  const used = GUEST_ADDRESS + bench.rig.offsetOf(bench.rig.queue.vring.usedRing);
  expect(covered(used)).toBe(true);
  expect(ranges.every(({ guestAddress }) => guestAddress < GUEST_ADDRESS + MEMORY_BYTES)).toBe(true);
});

it('an IOMMU is not to be had unless the daemon offers it', async () => {
  const image = randomImage(join(cleanup.directory(), 'disk.img'), DISK_BYTES);
  const daemon = await BlkBackend.start(cleanup, { image });
  const frontend = await VhostUserFrontend.connect(daemon.socket, { iommu: new IoMappings() });
  cleanup.add(() => frontend.close());
  await expect(frontend.acceptFeatures(1n << 32n)).rejects.toThrow('does not offer ACCESS_PLATFORM');
});
