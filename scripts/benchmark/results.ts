/** What a run produces: plain data, written as is by --json and read by the reports and the charts. */
import { formatCount, pairwiseDifference, pairwiseRatio, type Spread, spreadOf } from './statistics.ts';

/** What is compared. More is better of the first four, less of the others. */
export type Unit =
  | 'iops'
  | 'packets'
  | 'bits'
  | 'megabytes-per-second'
  | 'cpu-us-per-io'
  | 'us'
  | 'ms'
  | 'megabytes'
  | 'percent';

/**
 * `to` names one contestant, or several of which the best counts. With `toBestRound` all rounds are compared with its best one, for a
 * contestant that stands still in some, so that its median would be too easy; a best round below that value decides nothing.
 */
export type Target =
  | {
      kind: 'at-least-ratio' | 'above-ratio' | 'below-ratio';
      to: readonly string[];
      ratio: number;
      toBestRound?: number;
    }
  | { kind: 'at-least'; value: number }
  | { kind: 'at-most'; value: number }
  | { kind: 'at-most-added'; to: readonly string[]; value: number };

/** One line of a report. */
export interface Workload {
  name: string;
  title: string;
  unit: Unit;
  /** The first one is ours: the targets are about it. */
  contestants: readonly string[];
  targets: readonly Target[];
}

/** One timed run of one contestant. */
export interface Run {
  /** In the workload's unit. */
  value: number;
  p50Us?: number | undefined;
  p99Us?: number | undefined;
  bytesPerSecond?: number | undefined;
  /** CPU time of the client and of the back end, in units of one core. */
  clientCores?: number | undefined;
  backendCores?: number | undefined;
  /** Share of one core that processes outside of the benchmark, or the hypervisor, took during the run. */
  foreignCpu: number;
}

export interface Cell {
  contestant: string;
  /** Command lines of what was run, the same in each round. */
  commands: readonly string[];
  /** One value a round. */
  values: number[];
  spread: Spread;
  p50Us: number | undefined;
  p99Us: number | undefined;
  bytesPerSecond: number | undefined;
  clientCores: number | undefined;
  backendCores: number | undefined;
  /** The most disturbed round. */
  foreignCpu: number;
}

export interface Verdict {
  target: Target;
  /** Whom ours was compared with: the best of those that the target names. */
  to: Cell | undefined;
  /** Ratio or difference, round by round. */
  compared: Spread | undefined;
  /** undefined: not decided, because one side did not run. */
  met: boolean | undefined;
}

export interface Row {
  workload: Workload;
  cells: Cell[];
  verdicts: Verdict[];
}

export interface Footprint {
  contestant: string;
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
  versions: Record<string, string>;
}

/** What every part of the benchmark has to tell. */
export interface PartResults {
  machine: Machine;
  rounds: number;
  seconds: number;
  warmupSeconds: number;
  rows: Row[];
  footprints: Footprint[];
}

function medianOfKnown(values: readonly (number | undefined)[]): number | undefined {
  const known = values.filter((value) => value !== undefined);
  return known.length > 0 ? spreadOf(known).median : undefined;
}

export function cellOf(contestant: string, commands: readonly string[], runs: readonly Run[]): Cell {
  const values = runs.map((run) => run.value);
  return {
    contestant,
    commands,
    values,
    spread: spreadOf(values),
    p50Us: medianOfKnown(runs.map((run) => run.p50Us)),
    p99Us: medianOfKnown(runs.map((run) => run.p99Us)),
    bytesPerSecond: medianOfKnown(runs.map((run) => run.bytesPerSecond)),
    clientCores: medianOfKnown(runs.map((run) => run.clientCores)),
    backendCores: medianOfKnown(runs.map((run) => run.backendCores)),
    foreignCpu: Math.max(...runs.map((run) => run.foreignCpu)),
  };
}

export function isMoreBetter(unit: Unit): boolean {
  return unit === 'iops' || unit === 'packets' || unit === 'bits' || unit === 'megabytes-per-second';
}

function bestOf(cells: readonly Cell[], unit: Unit): Cell | undefined {
  const sign = isMoreBetter(unit) ? -1 : 1;
  return cells.toSorted((a, b) => sign * (a.spread.median - b.spread.median))[0];
}

function judge(workload: Workload, ours: Cell | undefined, cells: readonly Cell[], target: Target): Verdict {
  if (target.kind === 'at-least') {
    return { target, to: undefined, compared: undefined, met: ours && ours.spread.median >= target.value };
  }
  if (target.kind === 'at-most') {
    return { target, to: undefined, compared: undefined, met: ours && ours.spread.median <= target.value };
  }
  const to = bestOf(
    cells.filter((cell) => target.to.includes(cell.contestant)),
    workload.unit,
  );
  if (ours === undefined || to === undefined) return { target, to, compared: undefined, met: undefined };
  if (target.kind !== 'at-most-added' && target.toBestRound !== undefined && to.spread.max < target.toBestRound) {
    return { target, to, compared: undefined, met: undefined };
  }
  const compared =
    target.kind === 'at-most-added'
      ? pairwiseDifference(ours.values, to.values)
      : pairwiseRatio(ours.values, target.toBestRound ? ours.values.map(() => to.spread.max) : to.values);
  return { target, to, compared, met: compared && isMet(target, compared.median) };
}

function isMet(target: Exclude<Target, { kind: 'at-least' | 'at-most' }>, median: number): boolean {
  switch (target.kind) {
    case 'at-least-ratio':
      return median >= target.ratio;
    case 'above-ratio':
      return median > target.ratio;
    case 'below-ratio':
      return median < target.ratio;
    case 'at-most-added':
      return median <= target.value;
  }
}

export function rowOf(workload: Workload, cells: Cell[]): Row {
  const ours = cells.find((cell) => cell.contestant === workload.contestants[0]);
  return { workload, cells, verdicts: workload.targets.map((target) => judge(workload, ours, cells, target)) };
}

export function describeTarget(target: Target, unit: Unit): string {
  switch (target.kind) {
    case 'at-least':
      return `>= ${formatValue(target.value, unit)}`;
    case 'at-most':
      return `<= ${formatValue(target.value, unit)}`;
    case 'at-most-added':
      return `<= ${target.value} us more than ${describeNames(target.to)}`;
    case 'at-least-ratio':
      return `>= ${target.ratio}x ${target.toBestRound ? 'the best round of ' : ''}${describeNames(target.to)}`;
    case 'above-ratio':
      return `> ${target.ratio}x ${describeNames(target.to)}`;
    case 'below-ratio':
      return `< ${target.ratio}x ${describeNames(target.to)}`;
  }
}

function describeNames(names: readonly string[]): string {
  return names.length > 1 ? `the better of ${names.join(', ')}` : (names[0] ?? '');
}

export function describeMet(met: boolean | undefined): string {
  return met === undefined ? 'not measured' : met ? 'met' : '**missed**';
}

export function formatValue(value: number, unit: Unit): string {
  switch (unit) {
    case 'iops':
    case 'packets':
      return formatCount(value);
    case 'bits':
      return `${(value / 1e9).toFixed(value < 9.95e9 ? 2 : 1)} Gbit/s`;
    case 'cpu-us-per-io':
      return `${value.toFixed(2)} us`;
    case 'us':
      return `${value.toFixed(1)} us`;
    case 'ms':
      return `${value.toFixed(value < 9.995 ? 2 : 0)} ms`;
    case 'megabytes':
      return `${value.toFixed(0)} MB`;
    case 'megabytes-per-second':
      return `${value.toFixed(0)} MB/s`;
    case 'percent':
      return `${value.toFixed(2)} %`;
  }
}

export function formatSpread(spread: Spread, unit: Unit): string {
  const range = `${formatValue(spread.min, unit)} - ${formatValue(spread.max, unit)}`;
  return `${formatValue(spread.median, unit)} (${range})`;
}

/** `1.25x (1.10 - 1.31)`, or `+12.3 us (11.0 - 13.9)` for a difference. */
export function formatCompared({ target, compared }: Verdict): string {
  if (compared === undefined) return '';
  const { median, min, max } = compared;
  if (target.kind === 'at-most-added') {
    return `${median < 0 ? '' : '+'}${median.toFixed(1)} us (${min.toFixed(1)} - ${max.toFixed(1)})`;
  }
  return formatRatio(compared);
}

/** `1.25x (1.10 - 1.31)`. */
export function formatRatio({ median, min, max }: Spread): string {
  return `${median.toFixed(2)}x (${min.toFixed(2)} - ${max.toFixed(2)})`;
}

/** Width of the column of names in what is shown while it measures. */
export const NAMES_WIDTH = 22;

export function formatFootprint(footprint: Footprint): string {
  const { contestant, idleCpuPercent, rssMegabytes, rssAfterLoadMegabytes, startMs } = footprint;
  return (
    `  ${contestant.padEnd(NAMES_WIDTH)} idle ${idleCpuPercent.toFixed(2)} % CPU, RSS ${rssMegabytes.toFixed(0)} MB ` +
    `(after load ${rssAfterLoadMegabytes.toFixed(0)} MB), listening after ${startMs.median.toFixed(0)} ms`
  );
}
