/** The report's section on the block device. */
import type { ChartSection, Colours } from '../chart.ts';
import { commandBlock, disturbance, footprintTable, machineLines, table } from '../report.ts';
import { describeMet, describeTarget, formatCompared, formatSpread, type Row } from '../results.ts';
import type { BlkResults } from './measure.ts';
import { type Contestant, FOOTPRINT_TARGETS } from './workloads.ts';

export const COLOURS: Colours = {
  ringside: '#1f6feb',
  'ringside-null': '#8bb8f8',
  'qemu-storage-daemon': '#e07b39',
  fio: '#8a8f98',
} satisfies Record<Contestant, string>;

export function chartSections({ rows }: BlkResults): ChartSection[] {
  const isThroughput = (row: Row) => row.workload.unit === 'iops';
  const isNull = (row: Row) => row.workload.contestants[0] === 'ringside-null';
  return [
    { title: 'I/Os per second (more is better)', rows: rows.filter((row) => isThroughput(row) && !isNull(row)) },
    { title: 'I/Os per second without a disk: rings alone (a scale of its own)', rows: rows.filter(isNull) },
    { title: 'CPU time of the back end per I/O (less is better)', rows: rows.filter((row) => !isThroughput(row)) },
  ];
}

function cellText(row: Row, contestants: readonly string[]): string {
  const cell = row.cells.find((candidate) => contestants.includes(candidate.contestant));
  return cell ? formatSpread(cell.spread, row.workload.unit) : '';
}

/** Each block workload has one target. */
function verdictTexts(row: Row): string[] {
  const [verdict] = row.verdicts;
  if (verdict === undefined) return ['', '', ''];
  return [formatCompared(verdict), describeTarget(verdict.target, row.workload.unit), describeMet(verdict.met)];
}

function workTable(results: BlkResults): string {
  return table(
    ['work', 'ringside', 'qemu-storage-daemon', 'fio on the file', 'ratio', 'target', ''],
    results.rows.map((row) => [
      row.workload.title,
      cellText(row, ['ringside', 'ringside-null']),
      cellText(row, ['qemu-storage-daemon']),
      cellText(row, ['fio']),
      ...verdictTexts(row),
    ]),
  );
}

function latencyTable(results: BlkResults): string {
  const rows = results.rows.flatMap((row) =>
    row.cells
      .filter((cell) => cell.p50Us !== undefined && cell.p99Us !== undefined)
      .map((cell) => [
        row.workload.title,
        cell.contestant,
        `${cell.p50Us?.toFixed(0)} us`,
        `${cell.p99Us?.toFixed(0)} us`,
        `${((cell.bytesPerSecond ?? 0) / 1e9).toFixed(2)} GB/s`,
      ]),
  );
  return table(['work', 'back end', 'p50', 'p99', 'throughput'], rows);
}

function methodSection(results: BlkResults): string {
  const { rounds, seconds, warmupSeconds, imageBytes, imageWriteBytes, pollingClient } = results;
  const client = pollingClient
    ? 'spins until something completes'
    : "sleeps on libblkio's eventfd when nothing is complete";
  return `One client for all back ends, \`scripts/benchmark/blk/blkio-load.c\`: libblkio's virtio-blk-vhost-user driver, one thread, one
queue, pinned to core 0; it ${client}. The back end is pinned to core 1,
and so is fio, which reads and writes the file itself with io_uring (registered file and buffers): the limit.

Each value is the median of ${rounds} rounds (smallest - largest). In a round every back end runs once, one after the other, freshly
started, for ${seconds} s after ${warmupSeconds} s of warm-up. A ratio is the median of the ratios of each round. A run during which other processes took
more than 8 % of a core is repeated, at most twice, and the quietest counts; the most disturbed one in this report had ${disturbance(results)} %
(kernel threads that write back dirty pages count as others).

The image is a file of ${imageBytes / 2 ** 20} MiB, written in full in pieces of ${imageWriteBytes} bytes and in the page cache when a run begins. The size of
these pieces matters: kernels with large folios on ext4 keep what was written or read ahead in large pieces in large folios, in
which each 4 KiB write walks all blocks of the folio (20 - 50 us instead of 1.3, whoever writes) and large reads are faster. 4 KiB
is what guest I/O leaves behind; \`--image-write-bytes 1048576\` shows the other case.

libblkio uses three descriptors for a request: the ring has 256 entries, 512 at QD 128. CPU time per I/O is that of the
back end's process, all threads and io_uring workers included, from its CPU clock at both ends of the measured time; the load is the same
for both, in bursts at fixed times.`;
}

export function renderBlk(results: BlkResults, chart: string): string {
  return `## Block device

${machineLines(results, results.fileSystem)}

${workTable(results)}

![Bar chart of the table above](${chart})

${results.footprints.length > 0 ? footprintTable(results.footprints, FOOTPRINT_TARGETS) : ''}

### Latency and throughput

${latencyTable(results)}

### How it is measured

${methodSection(results)}

### Commands

Back ends (each after \`taskset -c 1\`) and fio:

${commandBlock(results)}`;
}
