/** The report's section on guests that move. */
import type { ChartSection, Colours } from '../chart.ts';
import { commandBlock, disturbance, machineLines, table, targetTable } from '../report.ts';
import { formatRatio, formatSpread, formatValue, type Row, type Unit } from '../results.ts';
import { formatCount, pairwiseRatio, spreadOf } from '../statistics.ts';
import { TICK_MS } from './guest.ts';
import type { MigrationResults, Moves, Runs } from './measure.ts';
import type { MoveRun, SnapshotRun } from './tasks.ts';
import { type LogWorkload, type Mover, WORKLOADS } from './workloads.ts';

export const COLOURS: Colours = {
  ...({
    'ringside, unix': '#1f6feb',
    'ringside, tcp': '#8bb8f8',
    'ringside, local': '#c5dbfb',
    'qemu, unix': '#e07b39',
  } satisfies Record<Mover, string>),
  ringside: '#1f6feb',
  qemu: '#e07b39',
  'dirty log': '#1f6feb',
  'no log': '#8a8f98',
};

const PAGE_BYTES = 4096;
/** What is counted, by name of the workload. */
const LOGS = new Map(
  WORKLOADS.flatMap((workload) => (workload.kind === 'log' ? [[workload.name, workload.counts]] : [])),
);

export function chartSections({ rows }: MigrationResults): ChartSection[] {
  const ending = (end: string, start: string) =>
    rows.filter(({ workload: { name } }) => name.startsWith(start) && name.endsWith(end));
  const counting = (what: LogWorkload['counts']) => rows.filter(({ workload: { name } }) => LOGS.get(name) === what);
  return [
    { title: 'A whole migration (less is better)', rows: ending('-total', 'idle') },
    { title: 'Memory that is sent (more is better)', rows: ending('-speed', 'idle') },
    { title: 'A whole migration of a guest that writes (less is better)', rows: ending('-total', 'dirty') },
    { title: 'Memory that a guest writes (more is better)', rows: counting('pages') },
    { title: 'Requests of a guest (more is better)', rows: counting('requests') },
    { title: 'To files and back (less is better)', rows: ending('', 'snapshot') },
  ].filter((section) => section.rows.length > 0);
}

function spreadText(values: readonly number[], unit: Unit): string {
  return values.length === 0 ? '' : formatSpread(spreadOf(values), unit);
}

function movesOf({ moves }: MigrationResults, kind: Moves['workload']['kind']): Moves[] {
  return moves.filter(({ workload }) => workload.kind === kind);
}

/** Of the runs that came to an end: the median and the extremes. */
function columnsOf({ runs }: Runs<MoveRun>) {
  const done = runs.filter(({ isMoved }) => isMoved);
  const of = (unit: Unit, pick: (run: MoveRun) => number) => spreadText(done.map(pick), unit);
  const counts = (all: readonly MoveRun[]) => spreadOf(all.map(({ rounds }) => rounds));
  const { min, max } = counts(runs);
  return {
    moved: `${done.length} of ${runs.length}`,
    total: of('ms', ({ totalMs }) => totalMs),
    speed: of('megabytes-per-second', ({ megabytesPerSecond }) => megabytesPerSecond),
    wire: of('megabytes', ({ wireMegabytes }) => wireMegabytes),
    rounds: min === max ? `${min}` : `${min} - ${max}`,
    downtime: of('ms', ({ downtimeMs }) => downtimeMs ?? 0),
    silence: of('ms', ({ silenceMs }) => silenceMs),
    before: spreadText(
      runs.map(({ silenceBeforeMs }) => silenceBeforeMs),
      'ms',
    ),
  };
}

function idleTable(moves: readonly Moves[]): string {
  const lines = moves.flatMap(({ workload, movers }) =>
    movers.map((mover) => {
      const { total, speed, wire, rounds, downtime, silence, before } = columnsOf(mover);
      return [workload.title, mover.contestant, total, speed, wire, rounds, downtime, silence, before];
    }),
  );
  const head = ['guest', 'who', 'total', 'memory', 'sent', 'rounds', 'downtime', 'silent', 'silent before'];
  return table(head, lines);
}

/** Ours to the other one's, round by round. */
function ratioTable(moves: readonly Moves[]): string {
  const lines = moves.flatMap(({ workload, movers }) => {
    const runsOf = (mover: Mover) => movers.find(({ contestant }) => contestant === mover)?.runs ?? [];
    const [ours, theirs] = [runsOf('ringside, unix'), runsOf('qemu, unix')];
    const bothMoved = (round: number) => ours[round]?.isMoved === true && theirs[round]?.isMoved === true;
    const ratio = (pick: (run: MoveRun) => number) => {
      const of = (runs: readonly MoveRun[]) => runs.filter((_, round) => bothMoved(round)).map(pick);
      const found = pairwiseRatio(of(ours), of(theirs));
      return found === undefined ? '' : formatRatio(found);
    };
    if (theirs.length === 0) return [];
    const ratios = [
      ratio(({ totalMs }) => totalMs),
      ratio(({ megabytesPerSecond }) => megabytesPerSecond),
      ratio(({ silenceMs }) => silenceMs),
    ];
    return [[workload.title, ...ratios]];
  });
  return lines.length === 0 ? '' : table(['ringside to QEMU, unix', 'total', 'memory', 'silent'], lines);
}

function writtenText(runs: readonly MoveRun[]): string {
  const { median } = spreadOf(runs.map(({ pagesPerSecond }) => pagesPerSecond));
  return `${formatCount(median)} (${formatValue((median * PAGE_BYTES) / 1e6, 'megabytes-per-second')})`;
}

function dirtyTable(moves: readonly Moves[]): string {
  const lines = moves.flatMap(({ workload, movers }) =>
    movers.map((mover) => {
      const { moved, total, rounds, downtime, silence } = columnsOf(mover);
      const { pagesPerSecond } = workload.load;
      const asked = pagesPerSecond > 1e6 ? 'as many as it can' : formatCount(pagesPerSecond);
      return [asked, mover.contestant, writtenText(mover.runs), moved, rounds, total, downtime, silence];
    }),
  );
  const head = ['pages a second', 'who', 'written', 'moved', 'rounds', 'total', 'downtime', 'silent'];
  return table(head, lines);
}

function logTable(rows: readonly Row[]): string {
  const lines = rows.map(({ workload, cells: [logged, unlogged] }) => {
    const ratio = pairwiseRatio(logged?.values ?? [], unlogged?.values ?? []);
    const text = (values: readonly number[] = []) => spreadText(values, workload.unit);
    return [
      workload.title,
      text(logged?.values),
      text(unlogged?.values),
      ratio === undefined ? '' : formatRatio(ratio),
    ];
  });
  return table(['', 'dirty log', 'no log', 'ratio'], lines);
}

function snapshotTable({ snapshots }: MigrationResults): string {
  const lines = snapshots.flatMap(({ workload, monitors }) =>
    monitors.map(({ contestant, runs }) => {
      const of = (unit: Unit, pick: (run: SnapshotRun) => number) => spreadText(runs.map(pick), unit);
      const { dataMib } = workload.load;
      const speed = (ms: number) => (dataMib * 2 ** 20) / 1e3 / ms;
      return [
        workload.title,
        contestant,
        of('ms', ({ saveMs }) => saveMs),
        of('megabytes-per-second', ({ saveMs }) => speed(saveMs)),
        of('megabytes', ({ megabytes }) => megabytes),
        of('ms', ({ restoreMs }) => restoreMs),
        of('megabytes-per-second', ({ restoreMs }) => speed(restoreMs)),
      ];
    }),
  );
  return table(['guest', 'who', 'save', 'data', 'on the disk', 'restore', 'data'], lines);
}

function methodSection(results: MigrationResults): string {
  const { rounds, seconds, absentPeer } = results;
  const peer = absentPeer === undefined ? '' : `\n\nNo peer here: \`${absentPeer.split('\n')[0]}\`.`;
  return `Two monitors on this host, freshly started for each run, and a guest that goes from one to the other. The peer is QEMU's microvm with
\`-accel kvm\`: the same /dev/kvm, the same guest, the same shared memory (memfd), the same limit of the downtime, no limit of the bandwidth.
The guest is \`test/support/vm/guest/dirty.c\`, which has one processor, never sleeps, and writes a line feed to its serial port every
${TICK_MS} ms. Its data is an initramfs of random bytes: zeros are not sent. Each value is the median of ${rounds} rounds (smallest - largest); in a round
everybody runs once, one after the other. A ratio is the median of those of each round. A run during which other processes took more than
8 % of a core is repeated, at most twice (not at all where there is one round), and the quietest counts; the most disturbed one in this report
had ${disturbance(results)} %. The guest, the source and the destination share the cores of this machine: on two machines they do not.

* **ringside, local** is \`local\` of vm.send-migration: the destination gets the memory itself, and nothing of it is sent.
* **total**: as the source counts, from the request to the end: our \`elapsed_ms\`, QEMU's \`total-time\`. In ours the destination builds its
  machine in this time (its threads, its memory, its devices); QEMU's destination is built when it is started, before.
* **memory**: guest memory a second while it is sent: our \`bytes_per_second\`, of the last round of a MiB or more, and QEMU's \`mbps\`, of the
  whole migration.
* **sent**: what the source's process wrote meanwhile (\`wchar\` of /proc/PID/io); QEMU's \`transferred\`.
* **rounds**: the times that memory was gone through, the last with the guest held; QEMU's \`dirty-sync-count\`, which is also one when all
  is sent with the guest held. QEMU holds the guest as soon as what is left fits into the downtime, in the first round too; we do after whole
  rounds. So QEMU's downtime is nearer to the limit, and ours is shorter where the guest writes little.
* **downtime**: as the source counts. **silent**: the longest time in which nothing was heard of the guest at either serial port, from
  the request to half a second after the end; **silent before**: in the ${seconds} s before the request. That includes the scheduling of this
  machine and of the reader.
* **Guests that write**: one word of each page, page after page, in 128 MiB; as many as it can with two processors; **written** is what it
  did before the migration: with the log on it is slower, because each page that it writes to first faults. A migration is
  given up after 5 s, ours also after 40 rounds. Ours slows a guest down that leaves too much (\`auto_converge\`); QEMU's capability
  of that name is off.
* **Dirty log**: the guest does what it can for ${seconds / 2} s, for ${seconds} s in a migration that does not end, and for ${seconds / 2} s after that was cancelled.
  A process in between keeps each answer of the destination back for 100 ms or more, so that there are up to ten rounds a second:
  each takes the log, sends the pages, and makes the guest fault once for each page that it writes to next. What is lost is
  the cost of all of that. The disk is our \`vhost-user-blk\`, which notes what it writes to guest memory; its image is in the page cache.
* **Files**: on ${results.fileSystem.split(' ')[0]}; the guest is paused. Ours is from vm.snapshot, and from vm.restore with \`resume\`, to the answer, and what is
  saved is on the disk then (fsync). QEMU's is \`migrate file:\`, which leaves it to the page cache, so that **save** cannot be compared, and
  \`migrate-incoming file:\` to the answer to \`cont\`. Both are read from the page cache.${peer}`;
}

function section(head: string, text: string): string[] {
  return text === '' ? [] : [`### ${head}\n\n${text}`];
}

export function renderMigration(results: MigrationResults, chart: string): string {
  const [idle, dirty] = [movesOf(results, 'idle'), movesOf(results, 'dirty')];
  const logs = results.rows.filter((row) => LOGS.has(row.workload.name));
  const limit = dirty[0]?.workload.downtimeMs;
  const parts = [
    ...section(
      'Guests that write nothing',
      idle.length === 0 ? '' : [idleTable(idle), ratioTable(idle)].filter((text) => text !== '').join('\n\n'),
    ),
    ...section(
      'Guests that write',
      dirty.length === 0 ? '' : `The guest may stand still for ${limit} ms.\n\n${dirtyTable(dirty)}`,
    ),
    ...section('What the dirty log costs', logs.length === 0 ? '' : logTable(logs)),
    ...section('To files and back', results.snapshots.length === 0 ? '' : snapshotTable(results)),
  ];
  return `## Migration

${machineLines(results, results.fileSystem)}

${targetTable(results, 'ratio')}

![Bar chart of the tables below](${chart})

${parts.join('\n\n')}

### How migration is measured

${methodSection(results)}

### Commands of migration

${commandBlock(results)}`;
}
