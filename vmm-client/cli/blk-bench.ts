/** `ringside blk bench`: options, run and report. */

import { VIRTIO_BLK_SECTOR_BYTES } from '../../protocol/virtio/blk.ts';
import type { AccessPattern } from './bench-choices.ts';
import { BenchLoad, type LoadResult } from './bench-load.ts';
import { type CliContext, checkQueueSize, type DiskOptions, rangeOf, withDisk } from './context.ts';
import type { Histogram } from './histogram.ts';
import { Progress } from './progress.ts';
import { formatCount, formatSize, UsageError } from './quantity.ts';

export interface BenchOptions extends DiskOptions {
  readonly rw: AccessPattern;
  readonly bs: number;
  readonly qd: number;
  readonly time: number;
  readonly ramp: number;
  readonly offset: number;
  readonly size?: number;
  readonly poll: number;
  readonly json?: boolean;
}

/** A third of the largest possible shared memory: rings and slots need room as well. */
const MAX_DATA_BYTES = 768 * 1024 * 1024;

export async function benchDisk(context: CliContext, socket: string, options: BenchOptions): Promise<void> {
  if (options.bs === 0 || options.bs % VIRTIO_BLK_SECTOR_BYTES !== 0) {
    throw new UsageError(`--bs ${options.bs} is not a multiple of ${VIRTIO_BLK_SECTOR_BYTES} bytes`);
  }
  checkQueueSize(options);
  const dataBytes = options.qd * options.queues * options.bs;
  if (options.qd > options.queueSize) {
    throw new UsageError(`--qd ${options.qd} needs a --queue-size of as many entries, it is ${options.queueSize}`);
  }
  if (dataBytes > MAX_DATA_BYTES) {
    throw new UsageError(
      `${formatSize(dataBytes)} would be in flight (--qd x --queues x --bs), ${formatSize(MAX_DATA_BYTES)} are possible`,
    );
  }
  await withDisk(context, socket, options, dataBytes + 4096, async (driver) => {
    const { blockSize } = driver.config;
    if (options.bs % blockSize !== 0) {
      throw new UsageError(`--bs ${options.bs} is not a multiple of the block size of ${blockSize} bytes`);
    }
    if (options.bs > driver.maxRequestBytes) {
      throw new UsageError(`--bs ${options.bs}: the device takes up to ${driver.maxRequestBytes} bytes a request`);
    }
    if (driver.isReadOnly && options.rw !== 'read' && options.rw !== 'randread') {
      throw new UsageError(`--rw ${options.rw} is not possible: the disk is read-only`);
    }
    const range = rangeOf(driver, options.offset, options.size, blockSize);
    if (range.length < options.bs) throw new UsageError('the range is smaller than one request');

    const load = new BenchLoad(driver, {
      pattern: options.rw,
      blockBytes: options.bs,
      depth: options.qd,
      range,
      rampMs: options.ramp,
      durationMs: options.time,
      pollMs: options.poll / 1000,
      timeoutMs: Math.max(options.timeout, 1000),
      seed: 1,
    });
    const progress = new Progress(context.stderr, options.rw, options.time, 'time');
    let result: LoadResult;
    try {
      result = await load.run(context.interrupted, (elapsed) => progress.update(elapsed));
    } finally {
      progress.clear();
    }
    const report =
      options.json === true
        ? JSON.stringify(reportToJson(socket, options, range.length, result), undefined, 2)
        : renderReport(options, range.length, result);
    context.stdout.write(`${report}\n`);
  });
}

const PERCENTILES = [50, 90, 99, 99.9] as const;

/** Microseconds with as many digits as mean something. */
function us(nanoseconds: number): string {
  const value = nanoseconds / 1000;
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

/** The summary for people. */
export function renderReport(options: BenchOptions, rangeBytes: number, result: LoadResult): string {
  const { elapsedMs } = result;
  const queues = `${options.queues} ${options.queues === 1 ? 'queue' : 'queues'} x ${options.qd} in flight`;
  const lines = [
    `${options.rw}: ${formatSize(options.bs)} blocks over ${formatSize(rangeBytes)}, ${queues}, ${(elapsedMs / 1000).toFixed(2)} s`,
  ];
  for (const [name, histogram] of directions(result)) {
    const { iops, mibPerSecond } = rates(histogram, options.bs, elapsedMs);
    const percentiles = PERCENTILES.map((p) => `p${p} ${us(histogram.percentile(p))}`).join(', ');
    lines.push(
      `  ${name.padEnd(5)} ${formatCount(iops)} IOPS, ${mibPerSecond.toFixed(1)} MiB/s, ${formatCount(histogram.count)} requests`,
      `        latency us: min ${us(histogram.min)}, mean ${us(histogram.mean)}, ${percentiles}, max ${us(histogram.max)}`,
    );
  }
  lines.push(`  ${formatCount(result.kicks)} kicks sent, ${formatCount(result.wakeups)} times asleep`);
  return lines.join('\n');
}

function directions(result: LoadResult): [string, Histogram][] {
  const both: [string, Histogram][] = [
    ['read', result.read],
    ['write', result.write],
  ];
  return both.filter(([, histogram]) => histogram.count > 0);
}

function rates(histogram: Histogram, blockBytes: number, elapsedMs: number): { iops: number; mibPerSecond: number } {
  const iops = elapsedMs > 0 ? (histogram.count / elapsedMs) * 1000 : 0;
  return { iops, mibPerSecond: (iops * blockBytes) / 1024 ** 2 };
}

/** The same for programs; units are in the names. */
export function reportToJson(
  socket: string,
  options: BenchOptions,
  rangeBytes: number,
  result: LoadResult,
): Record<string, unknown> {
  const measured = directions(result).map(([name, histogram]) => {
    const latencyUs = Object.fromEntries(PERCENTILES.map((p) => [`p${p}`, histogram.percentile(p) / 1000]));
    return [
      name,
      {
        requests: histogram.count,
        ...rates(histogram, options.bs, result.elapsedMs),
        latencyUs: { min: histogram.min / 1000, mean: histogram.mean / 1000, ...latencyUs, max: histogram.max / 1000 },
      },
    ];
  });
  return {
    socket,
    rw: options.rw,
    blockBytes: options.bs,
    queues: options.queues,
    queueDepth: options.qd,
    packed: options.packed === true,
    inOrder: options.inOrder === true,
    rangeBytes,
    seconds: result.elapsedMs / 1000,
    kicks: result.kicks,
    ...Object.fromEntries(measured),
  };
}
