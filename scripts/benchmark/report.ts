/** docs/benchmarks.md: the numbers, the targets, and all that is needed to judge and to repeat them. */
import { writeFileSync } from 'node:fs';
import { describeMet, describeTarget, type Footprint, formatSpread, type Results, type Row } from './results.ts';
import { type Contestant, FOOTPRINT_TARGETS } from './workloads.ts';

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`;
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n');
}

function cellText(row: Row, contestants: readonly Contestant[]): string {
  const cell = row.cells.find((candidate) => contestants.includes(candidate.contestant));
  return cell ? formatSpread(cell.spread, row.workload.unit) : '';
}

function ratioText(row: Row): string {
  if (row.ratio === undefined) return '';
  const { median, min, max } = row.ratio;
  return `${median.toFixed(2)}x (${min.toFixed(2)} - ${max.toFixed(2)})`;
}

function workTable(results: Results): string {
  return table(
    ['work', 'ringside', 'qemu-storage-daemon', 'fio on the file', 'ratio', 'target', ''],
    results.rows.map((row) => [
      row.workload.title,
      cellText(row, ['ringside', 'ringside-null']),
      cellText(row, ['qemu-storage-daemon']),
      cellText(row, ['fio']),
      ratioText(row),
      describeTarget(row.workload.target),
      describeMet(row.met),
    ]),
  );
}

function latencyTable(results: Results): string {
  const rows = results.rows.flatMap((row) =>
    row.cells
      .filter((cell) => cell.p50Us !== undefined && cell.p99Us !== undefined)
      .map((cell) => [
        row.workload.title,
        cell.contestant,
        `${cell.p50Us?.toFixed(0)} us`,
        `${cell.p99Us?.toFixed(0)} us`,
        `${(cell.bytesPerSecond / 1e9).toFixed(2)} GB/s`,
      ]),
  );
  return table(['work', 'back end', 'p50', 'p99', 'throughput'], rows);
}

function footprintTable(footprints: readonly Footprint[]): string {
  const { idleCpuPercent, rssMegabytes, startMs } = FOOTPRINT_TARGETS;
  const ours = footprints.find((footprint) => footprint.contestant === 'ringside');
  const theirs = footprints.find((footprint) => footprint.contestant === 'qemu-storage-daemon');
  const line = (what: string, show: (footprint: Footprint) => string, target: string, met: boolean | undefined) => [
    what,
    ours ? show(ours) : '',
    theirs ? show(theirs) : '',
    target,
    describeMet(met),
  ];
  const start = ({ startMs: { median, min, max } }: Footprint) =>
    `${median.toFixed(0)} ms (${min.toFixed(0)} - ${max.toFixed(0)})`;
  return table(
    ['an attached daemon', 'ringside', 'qemu-storage-daemon', 'target', ''],
    [
      line('idle CPU', (f) => `${f.idleCpuPercent.toFixed(2)} %`, '0 %', ours && ours.idleCpuPercent <= idleCpuPercent),
      line(
        'RSS, idle',
        (f) => `${f.rssMegabytes.toFixed(0)} MB`,
        `<= ${rssMegabytes} MB`,
        ours && ours.rssMegabytes <= rssMegabytes,
      ),
      [
        'RSS, idle after load',
        ...[ours, theirs].map((f) => (f ? `${f.rssAfterLoadMegabytes.toFixed(0)} MB` : '')),
        '',
        '',
      ],
      line('exec to listening', start, `<= ${startMs} ms`, ours && ours.startMs.median <= startMs),
    ],
  );
}

function machineSection(results: Results): string {
  const { machine } = results;
  const versions = Object.entries(machine.versions).map(([name, version]) => `${name} ${version}`);
  return [
    `* ${machine.date}; ${machine.cpu}, ${machine.cores} cores, ${machine.memoryGigabytes} GB; Linux ${machine.kernel}; ${machine.fileSystem}`,
    `* ${versions.join('; ')}`,
  ].join('\n');
}

function methodSection(results: Results): string {
  const { rounds, seconds, warmupSeconds, imageBytes, imageWriteBytes, pollingClient } = results;
  const client = pollingClient
    ? 'spins until something completes'
    : "sleeps on libblkio's eventfd when nothing is complete";
  const disturbed = Math.max(0, ...results.rows.flatMap((row) => row.cells.map((cell) => cell.foreignCpu)));
  return `One client for all back ends, \`scripts/benchmark/blkio-load.c\`: libblkio's virtio-blk-vhost-user driver, one thread, one
queue, pinned to core 0; it ${client}. The back end is pinned to core 1,
and so is fio, which reads and writes the file itself with io_uring (registered file and buffers): the limit.

Each value is the median of ${rounds} rounds (smallest - largest). In a round every back end runs once, one after the other, freshly
started, for ${seconds} s after ${warmupSeconds} s of warm-up. A ratio is the median of the ratios of each round. A run during which other processes took
more than 8 % of a core is repeated, at most twice, and the quietest counts; the most disturbed one in this report had ${(disturbed * 100).toFixed(0)} %
(kernel threads that write back dirty pages count as others).

The image is a file of ${imageBytes / 2 ** 20} MiB, written in full in pieces of ${imageWriteBytes} bytes and in the page cache when a run begins. The size of
these pieces matters: kernels with large folios on ext4 keep what was written or read ahead in large pieces in large folios, in
which each 4 KiB write walks all blocks of the folio (20 - 50 us instead of 1.3, whoever writes) and large reads are faster. 4 KiB
is what guest I/O leaves behind; \`--image-write-bytes 1048576\` shows the other case.

libblkio uses three descriptors for a request: the ring has 256 entries, 512 at QD 128. CPU time per I/O is that of the
back end's process, all threads and io_uring workers included, from its CPU clock at both ends of the measured time; the load is the same
for both, in bursts at fixed times.`;
}

function commandSection(results: Results): string {
  const seen = new Set<string>();
  for (const row of results.rows) for (const cell of row.cells) seen.add(cell.command);
  return ['```', ...seen, '```'].join('\n');
}

export function renderReport(results: Results, chart: string): string {
  return `# Benchmarks

Written by \`scripts/bench --report\`; do not edit.

${machineSection(results)}

${workTable(results)}

![Bar chart of the table above](${chart})

${results.footprints.length > 0 ? footprintTable(results.footprints) : ''}

## Latency and throughput

${latencyTable(results)}

## How it is measured

${methodSection(results)}

## Commands

Back ends (each after \`taskset -c 1\`) and fio:

${commandSection(results)}
`;
}

export function writeReport(file: string, chart: string, results: Results): void {
  writeFileSync(file, renderReport(results, chart));
}
