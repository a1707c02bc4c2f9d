/**
 * Runs a workload: in each round every contestant once, one after the other, freshly started, so that slow drift of the machine
 * hits all of them alike. A run that others disturbed is repeated.
 */
import { waitForQuiet } from './quiet.ts';
import {
  cellOf,
  formatCompared,
  formatSpread,
  formatValue,
  NAMES_WIDTH,
  type Row,
  type Run,
  rowOf,
  type Workload,
} from './results.ts';

export interface RoundSettings {
  rounds: number;
  /** How long a run is put off while others keep the machine busy. */
  quietTimeoutMs: number;
  /** How often a run that others disturbed is repeated at most; 2 when nothing is said. */
  repeats?: number;
  log(line: string): void;
}

/** Who runs, and what a run is. */
export interface Runners<C extends string, R extends Run> {
  contestants: readonly C[];
  /** Before the quiet moment that a run waits for. */
  prepare?(): Promise<void>;
  run(contestant: C): Promise<R>;
}

/** How the contestants of one workload are run. */
export interface Contest<C extends string> extends Runners<C, Run> {
  /** For the report. */
  commands(contestant: C): readonly string[];
}

/** A run during which others took more than this share of a core is repeated; the quietest of them counts. */
const TOLERATED_FOREIGN_CPU = 0.08;
const DEFAULT_REPEATS = 2;

async function runQuietly<C extends string, R extends Run>(
  runners: Runners<C, R>,
  contestant: C,
  settings: RoundSettings,
): Promise<R> {
  const once = async () => {
    await runners.prepare?.();
    await waitForQuiet(settings.quietTimeoutMs);
    return runners.run(contestant);
  };
  const repeats = settings.repeats ?? DEFAULT_REPEATS;
  let best = await once();
  for (let repeat = 0; repeat < repeats && best.foreignCpu > TOLERATED_FOREIGN_CPU; repeat++) {
    settings.log(`    disturbed: others took ${(best.foreignCpu * 100).toFixed(0)} % of a core, once more`);
    const again = await once();
    if (again.foreignCpu < best.foreignCpu) best = again;
  }
  return best;
}

/** All rounds: the runs of each contestant. `show` says in a few words what came of one. */
export async function runRounds<C extends string, R extends Run>(
  { name, title }: Pick<Workload, 'name' | 'title'>,
  runners: Runners<C, R>,
  settings: RoundSettings,
  show: (run: R) => string,
): Promise<Map<C, R[]>> {
  const { contestants } = runners;
  const runs = new Map<C, R[]>(contestants.map((contestant) => [contestant, []]));
  settings.log(`\n${title} [${name}]`);
  for (let round = 1; round <= settings.rounds; round++) {
    const shown: string[] = [];
    for (const contestant of contestants) {
      const run = await runQuietly(runners, contestant, settings);
      runs.get(contestant)?.push(run);
      shown.push(`${contestant} ${show(run)}`);
    }
    settings.log(`  round ${round}/${settings.rounds}  ${shown.join('   ')}`);
  }
  return runs;
}

/** Measures one workload for everyone who takes part in it. */
export async function measureWorkload<C extends string>(
  workload: Workload,
  contest: Contest<C>,
  settings: RoundSettings,
): Promise<Row> {
  const { contestants } = contest;
  const runs = await runRounds(workload, contest, settings, ({ value }) => formatValue(value, workload.unit));
  const cells = contestants.map((contestant) =>
    cellOf(contestant, contest.commands(contestant), runs.get(contestant) ?? []),
  );
  const row = rowOf(workload, cells);
  logRow(row, settings);
  return row;
}

function logRow(row: Row, settings: RoundSettings): void {
  for (const cell of row.cells) {
    const latency =
      cell.p50Us === undefined ? '' : `   p50 ${cell.p50Us.toFixed(0)} us, p99 ${cell.p99Us?.toFixed(0)} us`;
    settings.log(`  ${cell.contestant.padEnd(NAMES_WIDTH)} ${formatSpread(cell.spread, row.workload.unit)}${latency}`);
  }
  for (const verdict of row.verdicts) {
    if (verdict.compared === undefined) continue;
    settings.log(`  ${`to ${verdict.to?.contestant}`.padEnd(NAMES_WIDTH)} ${formatCompared(verdict)}`);
  }
}
