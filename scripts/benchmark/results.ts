/** What a run produces: plain data, written as is by --json and read by the report and the chart. */
import type { RunResult } from './load.ts';
import { formatCount, pairwiseRatio, type Spread, spreadOf } from './statistics.ts';
import type { Contestant, Target, Unit, Workload } from './workloads.ts';

export interface Cell {
  contestant: Contestant;
  /** The command line of the back end (or of fio) in the first round. */
  command: string;
  /** What the workload's unit says, one value a round. */
  values: number[];
  spread: Spread;
  p50Us: number | undefined;
  p99Us: number | undefined;
  bytesPerSecond: number;
  /** The most disturbed round: share of a core that others took. */
  foreignCpu: number;
}

export interface Row {
  workload: Workload;
  cells: Cell[];
  /** Ours to the contestant that the target names, round by round. */
  ratio: Spread | undefined;
  /** undefined: not decided, because one side did not run. */
  met: boolean | undefined;
}

export interface Footprint {
  contestant: Contestant;
  idleCpuPercent: number;
  idleSeconds: number;
  rssMegabytes: number;
  rssAfterLoadMegabytes: number;
  startMs: Spread;
}

export interface Machine {
  date: string;
  cpu: string;
  cores: number;
  memoryGigabytes: number;
  kernel: string;
  fileSystem: string;
  versions: Record<string, string>;
}

export interface Results {
  machine: Machine;
  rounds: number;
  seconds: number;
  warmupSeconds: number;
  imageBytes: number;
  imageWriteBytes: number;
  pollingClient: boolean;
  rows: Row[];
  footprints: Footprint[];
}

export function comparedValue(run: RunResult, unit: Unit): number {
  if (unit === 'iops') return run.iops;
  if (run.backendCpuUsPerIo === undefined) throw new RangeError('the client reported no CPU time');
  return run.backendCpuUsPerIo;
}

export function cellOf(contestant: Contestant, command: string, runs: readonly RunResult[], unit: Unit): Cell {
  const values = runs.map((run) => comparedValue(run, unit));
  return {
    contestant,
    command,
    values,
    spread: spreadOf(values),
    p50Us: medianOfKnown(runs.map((run) => run.p50Us)),
    p99Us: medianOfKnown(runs.map((run) => run.p99Us)),
    bytesPerSecond: spreadOf(runs.map((run) => run.bytesPerSecond)).median,
    foreignCpu: Math.max(...runs.map((run) => run.foreignCpu)),
  };
}

function medianOfKnown(values: readonly (number | undefined)[]): number | undefined {
  const known = values.filter((value) => value !== undefined);
  return known.length > 0 ? spreadOf(known).median : undefined;
}

export function rowOf(workload: Workload, cells: Cell[]): Row {
  const target = workload.target;
  const ours = cells.find((cell) => cell.contestant === workload.contestants[0]);
  if (target.kind === 'at-least') {
    return { workload, cells, ratio: undefined, met: ours && ours.spread.median >= target.value };
  }
  const theirs = cells.find((cell) => cell.contestant === target.to);
  const ratio = ours && theirs ? pairwiseRatio(ours.values, theirs.values) : undefined;
  if (ratio === undefined) return { workload, cells, ratio, met: undefined };
  const met = target.kind === 'at-least-ratio' ? ratio.median >= target.ratio : ratio.median < target.ratio;
  return { workload, cells, ratio, met };
}

export function describeTarget(target: Target): string {
  if (target.kind === 'at-least') return `>= ${formatCount(target.value)}`;
  const sign = target.kind === 'at-least-ratio' ? '>=' : '<';
  return `${sign} ${target.ratio}x ${target.to}`;
}

export function describeMet(met: boolean | undefined): string {
  return met === undefined ? 'not measured' : met ? 'met' : '**missed**';
}

export function formatValue(value: number, unit: Unit): string {
  return unit === 'iops' ? formatCount(value) : `${value.toFixed(2)} us`;
}

export function formatSpread(spread: Spread, unit: Unit): string {
  const range = `${formatValue(spread.min, unit)} - ${formatValue(spread.max, unit)}`;
  return `${formatValue(spread.median, unit)} (${range})`;
}
