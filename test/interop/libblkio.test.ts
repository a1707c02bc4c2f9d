import { join } from 'node:path';
import { beforeAll, expect, it } from 'vitest';
import { BlkBackend, backendKind } from '../support/backend-process.ts';
import { type BlkioSettings, blkioPattern, blkioPeers, runBlkio } from '../support/blkio/client.ts';
import { cleanupAfterAll } from '../support/cleanup.ts';
import { allocatedMiB, createImage, sha256Of, sha256OfFile } from '../support/image.ts';
import { describeWithPeers } from '../support/peers.ts';

const MiB = 1 << 20;
const SIZE = 16 * MiB;

describeWithPeers(blkioPeers, 'libblkio', () => {
  const cleanup = cleanupAfterAll();
  let disk: BlkBackend;
  let idleFds: number;

  beforeAll(async () => {
    disk = await BlkBackend.start(cleanup, {
      image: createImage(join(cleanup.directory(), 'disk'), SIZE),
      numQueues: 4,
    });
    idleFds = disk.fdCount();
  });

  const run = (settings: BlkioSettings, ...operations: string[]): Promise<string> =>
    runBlkio(cleanup, disk.socket, settings, operations);

  it('learns the capacity and the number of queues', async () => {
    const lines = (await run({}, 'info')).split('\n');
    expect(lines).toContain(`capacity=${SIZE}`);
    expect(lines).toContain('max-queues=4');
    expect(lines).toContain('request-alignment=512');
  });

  it.each([
    { queues: 1, depth: 1, block: 4096, poll: false },
    { queues: 1, depth: 128, block: 4096, poll: false },
    { queues: 1, depth: 32, block: 512, poll: false },
    { queues: 2, depth: 32, block: 65536, poll: false },
    { queues: 4, depth: 64, block: 4096, poll: false },
    { queues: 1, depth: 4, block: MiB, poll: false },
    { queues: 4, depth: 16, block: 4096, poll: true },
    { queues: 1, depth: 1, block: 4096, poll: true },
  ])('writes and reads back: queues $queues, depth $depth, $block bytes a request, polling $poll', async (settings) => {
    // One request at a time is slow and of 512 bytes many: a part of the disk is enough.
    const length = settings.depth === 1 || settings.block === 512 ? 2 * MiB : SIZE;
    const seed = settings.queues * 1000 + settings.depth;
    await run(settings, `fill:0:${length}:${seed}`, 'flush', `check:0:${length}:${seed}`);
    expect(sha256OfFile(disk.image, 0, length)).toBe(sha256Of(blkioPattern(0, length, seed)));
  });

  it('reaches buffers in as many memory regions as it offers', async () => {
    const offered = Number(/^max-mem-regions=(\d+)$/m.exec(await run({}, 'info'))?.[1]);
    if (backendKind === 'ringside') expect(offered).toBe(509);
    // libblkio keeps the rings in a region of its own.
    const settings = { queues: 4, depth: Math.ceil((offered - 1) / 4), regions: offered - 1 };
    await run(settings, `fill:0:${SIZE}:11`, 'flush', `check:0:${SIZE}:11`);
    expect(sha256OfFile(disk.image)).toBe(sha256Of(blkioPattern(0, SIZE, 11)));
  });

  it('reaches buffers anywhere in a guest of 96 GiB', async () => {
    await run({ depth: 64, memoryGiB: 96 }, `fill:0:${SIZE}:12`, 'flush', `check:0:${SIZE}:12`);
    expect(sha256OfFile(disk.image)).toBe(sha256Of(blkioPattern(0, SIZE, 12)));
  });

  it('discards and zeroes, and leaves the rest of the disk alone', async () => {
    const operations = [`discard:0:${MiB}`, `write-zeroes:${2 * MiB}:${MiB}`, `write-zeroes-keep:${4 * MiB}:${MiB}`];
    await run({ depth: 32, block: 65536 }, `fill:0:${SIZE}:7`, 'flush');
    const before = allocatedMiB(disk.image);
    await run(
      { depth: 32, block: 65536 },
      ...operations,
      `zeroes:${2 * MiB}:${MiB}`,
      `zeroes:${4 * MiB}:${MiB}`,
      `check:${MiB}:${MiB}:7`,
      `check:${5 * MiB}:${SIZE - 5 * MiB}:7`,
    );
    expect(before - allocatedMiB(disk.image)).toBe(2);
    const expected = blkioPattern(0, SIZE, 7);
    for (const start of [0, 2 * MiB, 4 * MiB]) expected.fill(0, start, start + MiB);
    expect(sha256OfFile(disk.image)).toBe(sha256Of(expected));
  });

  it('comes and goes without leaving descriptors behind', async () => {
    for (let round = 0; round < 10; round++) await run({ queues: 4 }, `check:${8 * MiB}:65536:7`);
    await expect.poll(() => disk.fdCount(), { timeout: 20_000 }).toBe(idleFds);
    expect(disk.running).toBe(true);
  });
});
