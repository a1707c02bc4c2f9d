/** `ringside blk verify`: writes a seeded pattern over a range, reads it back and compares. */

import { type CliContext, type DiskOptions, describeRate, rangeOf, VerifyError, withDisk } from './context.ts';
import { checkPattern, fillPattern, PATTERN_SECTOR_BYTES } from './pattern.ts';
import { PIPELINE_BYTES, runPipeline } from './pipeline.ts';
import { Progress } from './progress.ts';
import { formatCount, UsageError } from './quantity.ts';

export interface VerifyOptions extends DiskOptions {
  readonly offset: number;
  readonly length?: number;
  readonly seed: number;
  /** Compares only with what an earlier run wrote. */
  readonly readOnlyPass?: boolean;
}

/** @throws VerifyError - the disk holds something else than was written */
export async function verifyDisk(context: CliContext, socket: string, options: VerifyOptions): Promise<void> {
  const { seed } = options;
  await withDisk(context, socket, options, PIPELINE_BYTES, async (driver) => {
    const range = rangeOf(driver, options.offset, options.length, driver.config.blockSize);
    if (options.readOnlyPass !== true) {
      if (driver.isReadOnly) throw new UsageError('the disk is read-only: only --read-only-pass is possible');
      const progress = new Progress(context.stderr, 'write', range.length);
      const started = performance.now();
      let done = 0;
      try {
        await runPipeline(driver, range, context.interrupted, {
          start: async (offset, bytes) => {
            fillPattern(bytes, offset / PATTERN_SECTOR_BYTES, seed);
            await driver.write(offset, bytes);
          },
          take: async (_offset, bytes) => {
            done += bytes.length;
            progress.update(done);
          },
        });
        await driver.flush();
      } finally {
        progress.clear();
      }
      context.stdout.write(`wrote    ${describeRate(done, performance.now() - started)}, seed ${seed}\n`);
    }

    const progress = new Progress(context.stderr, 'compare', range.length);
    const started = performance.now();
    const expected = Buffer.alloc(PIPELINE_BYTES);
    let badSectors = 0;
    let first: string | undefined;
    try {
      await runPipeline(driver, range, context.interrupted, {
        start: (offset, bytes) => driver.read(offset, bytes),
        take: async (offset, bytes) => {
          const bad = checkPattern(bytes, expected, offset / PATTERN_SECTOR_BYTES, seed);
          if (bad !== undefined) {
            badSectors += bad.badSectors;
            first ??= `the first difference is at byte ${offset + bad.offset}, where the disk holds ${bad.holds}`;
          }
          progress.update(offset + bytes.length - range.offset);
        },
      });
    } finally {
      progress.clear();
    }
    const sectors = range.length / PATTERN_SECTOR_BYTES;
    if (first !== undefined) {
      throw new VerifyError(`${formatCount(badSectors)} of ${formatCount(sectors)} sectors differ; ${first}`);
    }
    context.stdout.write(`compared ${describeRate(range.length, performance.now() - started)}, no difference\n`);
  });
}
