/** The report's section on rings. */
import type { ChartSection, Colours } from '../chart.ts';
import { commandBlock, disturbance, machineLines, table, targetTable } from '../report.ts';
import { type Cell, formatRatio, formatSpread, type Row } from '../results.ts';
import { pairwiseRatio } from '../statistics.ts';
import type { RingsResults } from './measure.ts';
import { baselineOf, type Contestant, type RingsWorkload } from './workloads.ts';

export const COLOURS: Colours = {
  packed: '#1f6feb',
  split: '#8a8f98',
  '2 queues, 2 threads': '#1f6feb',
  '1 queue, 1 thread': '#8a8f98',
  '2 queues, 1 thread': '#8bb8f8',
  '4 queues, 2 threads': '#0b3d91',
  '2 loops': '#2da44e',
  '1 loop': '#94d3a2',
  'dirty log': '#e07b39',
  IOMMU: '#a371f7',
} satisfies Record<Contestant, string>;

const HEADS: Record<RingsWorkload['kind'], string> = {
  layout: 'Packed and split rings',
  threads: 'Queues on threads',
  cost: 'Dirty log and IOMMU',
};

function workloadOf(row: Row): RingsWorkload {
  return row.workload as RingsWorkload;
}

/** Blocks of different sizes have scales of their own. */
export function chartSections({ rows }: RingsResults): ChartSection[] {
  const ofKind = (kind: RingsWorkload['kind']) => rows.filter((row) => workloadOf(row).kind === kind);
  const title = (kind: RingsWorkload['kind']) => `${HEADS[kind]}: I/Os per second (more is better)`;
  return [
    { title: title('layout'), rows: ofKind('layout') },
    ...ofKind('threads').map((row) => ({ title: title('threads'), rows: [row] })),
    { title: title('cost'), rows: ofKind('cost') },
  ].filter((section) => section.rows.length > 0);
}

function ratioText(row: Row, cell: Cell): string {
  const baseline = baselineOf(workloadOf(row), cell.contestant as Contestant);
  const to = row.cells.find((candidate) => candidate.contestant === baseline);
  const ratio = to === undefined || to === cell ? undefined : pairwiseRatio(cell.values, to.values);
  return ratio === undefined ? '' : `${formatRatio(ratio)} ${baseline}`;
}

function valueTable(rows: readonly Row[]): string {
  const us = (value: number | undefined) => (value === undefined ? '' : `${value.toFixed(0)} us`);
  const cores = (value: number | undefined) => (value === undefined ? '' : value.toFixed(2));
  const lines = rows.flatMap((row) =>
    row.cells.map((cell) => [
      row.workload.title,
      cell.contestant,
      formatSpread(cell.spread, row.workload.unit),
      ratioText(row, cell),
      `${((cell.bytesPerSecond ?? 0) / 1e9).toFixed(2)} GB/s`,
      us(cell.p50Us),
      us(cell.p99Us),
      cores(cell.clientCores),
      cores(cell.backendCores),
    ]),
  );
  const head = [
    'work',
    'who',
    'median (smallest - largest)',
    'ratio',
    'throughput',
    'p50',
    'p99',
    'client',
    'back end',
  ];
  return table(head, lines);
}

function valueSections(results: RingsResults): string {
  const sections = (['layout', 'threads', 'cost'] as const).map((kind) => {
    const rows = results.rows.filter((row) => workloadOf(row).kind === kind);
    return rows.length === 0 ? [] : [`### ${HEADS[kind]}\n\n${valueTable(rows)}`];
  });
  return sections.flat().join('\n\n');
}

/** What the cores give to two loops without rings, for each work that was measured so. */
function ceilingLines({ rows }: RingsResults): string {
  const lines = rows.flatMap((row) => {
    const cellOf = (contestant: Contestant) => row.cells.find((cell) => cell.contestant === contestant);
    const [two, one] = [cellOf('2 loops'), cellOf('1 loop')];
    const [ours, base] = [cellOf('2 queues, 2 threads'), cellOf('1 queue, 1 thread')];
    if (two === undefined || one === undefined || ours === undefined || base === undefined) return [];
    const [machine, gained] = [pairwiseRatio(two.values, one.values), pairwiseRatio(ours.values, base.values)];
    if (machine === undefined || gained === undefined) return [];
    return [
      `* ${row.workload.title}: two loops in C read ${formatRatio(machine)} of one loop; two threads of the back end ` +
        `${formatRatio(gained)} of one, while the client took ${(ours.clientCores ?? 0).toFixed(2)} of a core.`,
    ];
  });
  return lines.length === 0 ? '' : `What the cores give to two threads is the limit:\n\n${lines.join('\n')}`;
}

function methodSection(results: RingsResults): string {
  const { rounds, seconds, warmupSeconds, imageBytes } = results;
  return `Both sides are ours: \`scripts/benchmark/rings/ring-load.ts\`, a process of its own, is our virtio-blk driver with random reads. What is
compared is one setting of both. Each value is the median of ${rounds} rounds (smallest - largest). In a round every participant runs once, one
after the other, freshly started, for ${seconds} s after ${warmupSeconds} s of warm-up. A ratio is the median of those of each round. A run during which other
processes took more than 8 % of a core is repeated, at most twice, and the quietest counts; the most disturbed one in this report had
${disturbance(results)} %. CPU time of client and back end (all its threads) is in units of one core. The image has ${imageBytes / 2 ** 20} MiB and is in the page cache.
Indirect descriptors and event indices are negotiated.

* **Packed and split rings**: one queue; the client on core 0 polls for 200 us before it sleeps, the back end is on core 1.
* **Queues on threads**: nothing is pinned, and the client does not poll, so that it leaves the cores to the back end, whose kernel copies what is
  read. Requests in flight are shared out to the queues. **Loops** are \`scripts/benchmark/rings/read-loop.c\`: threads that call pread on
  the same file, with as much memory; they need no client, so that the limit is a bit above what the back end can reach.
* **Dirty log**: as packed and split, with split rings, while every write of the device is noted (LOG_ALL); the client takes the notes every
  100 ms. **IOMMU**: every address is looked up among translations (ACCESS_PLATFORM); all of memory is one mapping.`;
}

export function renderRings(results: RingsResults, chart: string): string {
  return `## Rings

${machineLines(results, results.fileSystem)}

${targetTable(results, 'ratio')}

${ceilingLines(results)}

![Bar chart of the values below](${chart})

${valueSections(results)}

### How rings are measured

${methodSection(results)}

### Commands of the rings

${commandBlock(results)}`;
}
