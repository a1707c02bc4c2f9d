/**
 * The part of the benchmark on guests that move: between two of our monitors, against QEMU, to files and back, and what the
 * dirty log costs them.
 */
import path from 'node:path';
import { writeImage } from '../blk/load.ts';
import { type Children, CommandError } from '../children.ts';
import { commandVersion, describeMachine, mountOf } from '../machine.ts';
import { cellOf, formatValue, type PartResults, type Row, rowOf } from '../results.ts';
import { type RoundSettings, runRounds } from '../rounds.ts';
import { formatCount } from '../statistics.ts';
import { buildGuest } from '../vm/guest.ts';
import { whyAbsent } from '../vm/monitors.ts';
import { commandsOf } from './commands.ts';
import { qemuProgram, writesFiles } from './qemu.ts';
import {
  type LogRun,
  type MoveRun,
  runLogged,
  runMove,
  runSnapshot,
  type SnapshotRun,
  type TaskSettings,
  writeData,
} from './tasks.ts';
import {
  type LogWorkload,
  type MigrationWorkload,
  MOVERS,
  type Monitor,
  type Mover,
  type MoveWorkload,
  type SnapshotWorkload,
  WORKLOADS,
} from './workloads.ts';

export interface MigrationOptions {
  rounds: number;
  seconds: number;
  quick: boolean;
  dir: string;
  imageWriteBytes: number;
}

/** All runs of one who took part. */
export interface Runs<R> {
  contestant: string;
  runs: R[];
}

export interface Moves {
  workload: MoveWorkload;
  movers: Runs<MoveRun>[];
}

export interface Snapshots {
  workload: SnapshotWorkload;
  monitors: Runs<SnapshotRun>[];
}

export interface MigrationResults extends PartResults {
  fileSystem: string;
  moves: Moves[];
  snapshots: Snapshots[];
  /** Why the peer could not take part. */
  absentPeer: string | undefined;
}

const IMAGE_BYTES = 64 * 2 ** 20;

type Settings = TaskSettings & RoundSettings;

function showMove({ isMoved, totalMs, downtimeMs = 0, silenceMs, rounds, megabytesPerSecond }: MoveRun): string {
  const what = isMoved ? `${totalMs.toFixed(0)} ms, still for ${downtimeMs} ms` : `given up`;
  return `${what} (silent for ${silenceMs.toFixed(0)} ms, ${rounds} rounds, ${megabytesPerSecond.toFixed(0)} MB/s)`;
}

function listRuns<C extends string, R>(runs: ReadonlyMap<C, R[]>): Runs<R>[] {
  return [...runs].map(([contestant, of]) => ({ contestant, runs: of }));
}

/** What targets and the chart are about: the numbers of runs, each as a row. */
export function rowsOfMoves({ workload, movers }: Moves): Row[] {
  const { name, title, kind, downtimeMs } = workload;
  const done = movers
    .map(({ contestant, runs }) => ({ contestant, runs: runs.filter(({ isMoved }) => isMoved) }))
    .filter(({ runs }) => runs.length > 0);
  const row = (what: string, unit: Row['workload']['unit'], pick: (run: MoveRun) => number, isLimited = false): Row =>
    rowOf(
      {
        name: `${name}-${what}`,
        title: `${title}: ${what}`,
        unit,
        contestants: workload.movers,
        targets: isLimited ? [{ kind: 'at-most', value: downtimeMs }] : [],
      },
      done.map(({ contestant, runs }) =>
        cellOf(
          contestant,
          commandsOf(workload, MOVERS[contestant as Mover].monitor),
          runs.map((run) => ({ value: pick(run), foreignCpu: run.foreignCpu })),
        ),
      ),
    );
  const times = [
    row('total', 'ms', ({ totalMs }) => totalMs),
    row('downtime', 'ms', (run) => run.downtimeMs ?? 0, true),
  ];
  if (kind === 'dirty') return times;
  return [...times, row('speed', 'megabytes-per-second', ({ megabytesPerSecond }) => megabytesPerSecond)];
}

function rowOfLog(workload: LogWorkload, runs: readonly LogRun[]): Row {
  const { name, title } = workload;
  const cell = (contestant: string, pick: (run: LogRun) => number) =>
    cellOf(
      contestant,
      commandsOf(workload, 'ringside'),
      runs.map((run) => ({ value: pick(run), foreignCpu: run.foreignCpu })),
    );
  const contestants = ['dirty log', 'no log'];
  const cells = [cell('dirty log', ({ logged }) => logged), cell('no log', ({ unlogged }) => unlogged)];
  return rowOf({ name, title, unit: 'iops', contestants, targets: [] }, cells);
}

function rowsOfSnapshots({ workload: { name, title, ...rest }, monitors }: Snapshots): Row[] {
  const workload = { name, title, ...rest };
  return (['save', 'restore'] as const).map((what) => {
    const cells = monitors.map(({ contestant, runs }) =>
      cellOf(
        contestant,
        commandsOf(workload, contestant as Monitor),
        runs.map((run) => ({ value: what === 'save' ? run.saveMs : run.restoreMs, foreignCpu: run.foreignCpu })),
      ),
    );
    const contestants = monitors.map(({ contestant }) => contestant);
    return rowOf({ name: `${name}-${what}`, title: `${title}: ${what}`, unit: 'ms', contestants, targets: [] }, cells);
  });
}

class Measurement {
  readonly moves: Moves[] = [];
  readonly snapshots: Snapshots[] = [];
  readonly rows: Row[] = [];
  private readonly children: Children;
  private readonly settings: Settings;
  private readonly hasPeer: boolean;

  constructor(children: Children, settings: Settings, hasPeer: boolean) {
    this.children = children;
    this.settings = settings;
    this.hasPeer = hasPeer;
  }

  async measure(workload: MigrationWorkload): Promise<void> {
    await writeData(workload.load, this.settings);
    switch (workload.kind) {
      case 'idle':
      case 'dirty':
        return this.measureMoves(workload);
      case 'log':
        return this.measureLog(workload);
      case 'snapshot':
        return this.measureSnapshots(workload);
    }
  }

  private async measureMoves(workload: MoveWorkload): Promise<void> {
    const contestants = workload.movers.filter((mover) => this.hasPeer || MOVERS[mover].monitor === 'ringside');
    const run = (mover: Mover) => runMove(this.children, workload, mover, this.settings);
    const runs = await runRounds(workload, { contestants, run }, this.settings, showMove);
    const moves = { workload, movers: listRuns(runs) };
    this.moves.push(moves);
    this.rows.push(...rowsOfMoves(moves));
  }

  private async measureLog(workload: LogWorkload): Promise<void> {
    const run = () => runLogged(this.children, workload, this.settings);
    const show = ({ logged, unlogged, value }: LogRun) =>
      `${formatCount(logged)} with the log, ${formatCount(unlogged)} without: ${value.toFixed(2)}x`;
    const runs = await runRounds(workload, { contestants: ['ringside'], run }, this.settings, show);
    this.rows.push(rowOfLog(workload, runs.get('ringside') ?? []));
  }

  private async measureSnapshots(workload: SnapshotWorkload): Promise<void> {
    const contestants: Monitor[] = this.hasPeer && writesFiles() ? ['ringside', 'qemu'] : ['ringside'];
    const run = (monitor: Monitor) => runSnapshot(this.children, workload, monitor, this.settings);
    const show = ({ saveMs, restoreMs, megabytes }: SnapshotRun) =>
      `${saveMs.toFixed(0)} ms, back in ${restoreMs.toFixed(0)} ms (${formatValue(megabytes, 'megabytes')})`;
    const runs = await runRounds(workload, { contestants, run }, this.settings, show);
    const snapshots = { workload, monitors: listRuns(runs) };
    this.snapshots.push(snapshots);
    this.rows.push(...rowsOfSnapshots(snapshots));
  }
}

/** Measures the workloads whose names are wanted. */
export async function measureMigration(
  children: Children,
  options: MigrationOptions,
  isWanted: (name: string) => boolean,
  log: (line: string) => void,
): Promise<MigrationResults> {
  const folder = children.makeFolder(path.resolve(options.dir));
  // One round proves little anyway: it does not wait for a quiet moment.
  const isHurried = options.quick || options.rounds === 1;
  const settings: Settings = {
    kernel: await buildGuest(children),
    image: path.join(folder, 'image'),
    folder,
    rounds: options.rounds,
    seconds: options.seconds,
    quietTimeoutMs: isHurried ? 2000 : 20_000,
    ...(isHurried && { repeats: 0 }),
    log,
  };
  const why = await whyAbsent(children, 'ringside', settings.kernel);
  if (why !== undefined) throw new CommandError(`the migration part cannot run: ${why}`);
  const absentPeer = await whyAbsent(children, 'qemu', settings.kernel);
  if (absentPeer !== undefined) log(`qemu is not measured: ${absentPeer}`);
  await writeImage(children, settings.image, IMAGE_BYTES, options.imageWriteBytes);

  const measurement = new Measurement(children, settings, absentPeer === undefined);
  for (const workload of WORKLOADS) if (isWanted(workload.name)) await measurement.measure(workload);
  const [program = '', ...args] = qemuProgram();
  const { rows, moves, snapshots } = measurement;
  return {
    machine: describeMachine({ QEMU: commandVersion(program, [...args, '--version'], /^QEMU emulator version /) }),
    fileSystem: mountOf(folder),
    rounds: settings.rounds,
    seconds: settings.seconds,
    warmupSeconds: 0,
    ...{ rows, moves, snapshots, absentPeer },
    footprints: [],
  };
}
