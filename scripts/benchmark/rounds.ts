/**
 * Runs the workloads: in each round every contestant once, one after the other, on a freshly started back end, so that slow drift
 * of the machine hits all of them alike. A run that others disturbed is repeated.
 */
import type { Children } from './children.ts';
import { commandLine, type Daemon, type DaemonKind, isOurDaemonBuilt, residentBytes, startDaemon } from './daemons.ts';
import { blkioArguments, fioArguments, measureIdleCpu, type RunResult, runBlkio, runFio } from './load.ts';
import { waitForQuiet } from './quiet.ts';
import { cellOf, comparedValue, type Footprint, formatSpread, formatValue, type Row, rowOf } from './results.ts';
import { spreadOf } from './statistics.ts';
import { type Contestant, WORKLOADS, type Workload } from './workloads.ts';

export interface Settings {
  rounds: number;
  seconds: number;
  warmupSeconds: number;
  idleSeconds: number;
  starts: number;
  image: string;
  clientProgram: string;
  clientCpu: number;
  backendCpu: number;
  poll: boolean;
  /** How long a run is put off while others keep the machine busy. */
  quietTimeoutMs: number;
  /** Options for our daemon beyond those that the workload asks for. */
  daemonOptions: readonly string[];
  log(line: string): void;
}

/** A run during which others took more than this share of a core is repeated, at most twice; the quietest of them counts. */
const TOLERATED_FOREIGN_CPU = 0.08;
const REPEATS = 2;

const NAMES_WIDTH = 22;

export function isAvailable(contestant: Contestant): boolean {
  return !contestant.startsWith('ringside') || isOurDaemonBuilt();
}

function daemonOptions(contestant: DaemonKind, direct: boolean, settings: Settings) {
  return { kind: contestant, image: settings.image, direct, cpu: settings.backendCpu, extra: settings.daemonOptions };
}

async function withDaemon<T>(
  children: Children,
  options: Parameters<typeof startDaemon>[1],
  use: (daemon: Daemon) => Promise<T>,
): Promise<T> {
  const daemon = await startDaemon(children, options);
  try {
    return await use(daemon);
  } finally {
    await daemon.stop();
  }
}

async function runOnce(
  children: Children,
  workload: Workload,
  contestant: Contestant,
  settings: Settings,
): Promise<RunResult> {
  // Dirty pages of an earlier run would be written back during this one, and by O_DIRECT reads.
  await children.run('sync', [settings.image]);
  await waitForQuiet(settings.quietTimeoutMs);
  const { seconds, warmupSeconds, poll } = settings;
  if (contestant === 'fio') {
    const options = { seconds, warmupSeconds, poll, cpu: settings.backendCpu };
    return runFio(children, fioArguments(workload, settings.image, options));
  }
  const args = blkioArguments(workload, { seconds, warmupSeconds, poll, cpu: settings.clientCpu });
  return withDaemon(children, daemonOptions(contestant, workload.direct, settings), (daemon) =>
    runBlkio(children, settings.clientProgram, daemon, args),
  );
}

async function runQuietly(
  children: Children,
  workload: Workload,
  contestant: Contestant,
  settings: Settings,
): Promise<RunResult> {
  let best = await runOnce(children, workload, contestant, settings);
  for (let repeat = 0; repeat < REPEATS && best.foreignCpu > TOLERATED_FOREIGN_CPU; repeat++) {
    settings.log(`    disturbed: others took ${(best.foreignCpu * 100).toFixed(0)} % of a core, once more`);
    const again = await runOnce(children, workload, contestant, settings);
    if (again.foreignCpu < best.foreignCpu) best = again;
  }
  return best;
}

function commandOf(workload: Workload, contestant: Contestant, settings: Settings): string {
  const { seconds, warmupSeconds, poll } = settings;
  const options = { seconds, warmupSeconds, poll, cpu: settings.backendCpu };
  if (contestant === 'fio') return ['fio', ...fioArguments(workload, 'IMAGE', options)].join(' ');
  const daemon = commandLine({ ...daemonOptions(contestant, workload.direct, settings), image: 'IMAGE' }, 'SOCKET');
  if (daemon[0] === process.execPath) daemon[0] = 'node';
  return daemon.join(' ');
}

/** Measures one workload for everyone who takes part in it. */
export async function measureWorkload(children: Children, workload: Workload, settings: Settings): Promise<Row> {
  const contestants = workload.contestants.filter(isAvailable);
  const runs = new Map<Contestant, RunResult[]>(contestants.map((contestant) => [contestant, []]));
  settings.log(`\n${workload.title} [${workload.name}]`);
  for (let round = 1; round <= settings.rounds; round++) {
    const shown: string[] = [];
    for (const contestant of contestants) {
      const run = await runQuietly(children, workload, contestant, settings);
      runs.get(contestant)?.push(run);
      shown.push(`${contestant} ${formatValue(comparedValue(run, workload.unit), workload.unit)}`);
    }
    settings.log(`  round ${round}/${settings.rounds}  ${shown.join('   ')}`);
  }
  const cells = contestants.map((contestant) =>
    cellOf(contestant, commandOf(workload, contestant, settings), runs.get(contestant) ?? [], workload.unit),
  );
  const row = rowOf(workload, cells);
  for (const cell of cells) {
    const latency =
      cell.p50Us === undefined ? '' : `   p50 ${cell.p50Us.toFixed(0)} us, p99 ${cell.p99Us?.toFixed(0)} us`;
    settings.log(`  ${cell.contestant.padEnd(NAMES_WIDTH)} ${formatSpread(cell.spread, workload.unit)}${latency}`);
  }
  if (row.ratio) {
    const { median, min, max } = row.ratio;
    settings.log(`  ${'ratio'.padEnd(NAMES_WIDTH)} ${median.toFixed(2)}x (${min.toFixed(2)} - ${max.toFixed(2)})`);
  }
  return row;
}

/** V8 collects garbage once more some seconds after a load ended. */
const SETTLE_SECONDS = 10;

/** Start time, memory and idle CPU time of one daemon. */
export async function measureFootprint(
  children: Children,
  contestant: 'ringside' | 'qemu-storage-daemon',
  settings: Settings,
): Promise<Footprint> {
  const pinned = daemonOptions(contestant, false, settings);
  const starts: number[] = [];
  for (let start = 0; start < settings.starts; start++) {
    // Not pinned: a start uses more than one thread, and nothing else runs.
    starts.push(await withDaemon(children, { ...pinned, cpu: undefined }, async (daemon) => daemon.startMs));
  }
  const megabytes = (bytes: number) => bytes / 2 ** 20;
  const load = WORKLOADS.find((workload) => workload.name === 'read-qd32');
  if (load === undefined) throw new RangeError('no workload read-qd32');
  const attached = await withDaemon(children, pinned, async (daemon) => {
    const idle = measureIdleCpu(children, settings.clientProgram, daemon, 1, 1);
    await new Promise((resolve) => setTimeout(resolve, 1500));
    const rssMegabytes = megabytes(residentBytes(daemon.pid));
    await idle;
    const args = blkioArguments(load, { seconds: 2, warmupSeconds: 0, cpu: settings.clientCpu, poll: settings.poll });
    await runBlkio(children, settings.clientProgram, daemon, args);
    const idleCpuPercent = await measureIdleCpu(
      children,
      settings.clientProgram,
      daemon,
      settings.idleSeconds,
      SETTLE_SECONDS,
    );
    return { rssMegabytes, idleCpuPercent, rssAfterLoadMegabytes: megabytes(residentBytes(daemon.pid)) };
  });
  const footprint = { contestant, ...attached, idleSeconds: settings.idleSeconds, startMs: spreadOf(starts) };
  settings.log(
    `  ${contestant.padEnd(NAMES_WIDTH)} idle ${footprint.idleCpuPercent.toFixed(2)} % CPU, RSS ${footprint.rssMegabytes.toFixed(0)} MB ` +
      `(after load ${footprint.rssAfterLoadMegabytes.toFixed(0)} MB), listening after ${footprint.startMs.median.toFixed(0)} ms`,
  );
  return footprint;
}
