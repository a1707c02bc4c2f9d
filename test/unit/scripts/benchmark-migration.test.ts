import { describe, expect, it } from 'vitest';
import { drawChart } from '../../../scripts/benchmark/chart.ts';
import { commandsOf } from '../../../scripts/benchmark/migration/commands.ts';
import {
  longestSilence,
  orders,
  parseWork,
  rateOf,
  TICKS_PER_SECOND,
} from '../../../scripts/benchmark/migration/guest.ts';
import type { MigrationResults } from '../../../scripts/benchmark/migration/measure.ts';
import { rowsOfMoves } from '../../../scripts/benchmark/migration/measure.ts';
import { COLOURS, chartSections, renderMigration } from '../../../scripts/benchmark/migration/report.ts';
import type { MoveRun } from '../../../scripts/benchmark/migration/tasks.ts';
import {
  type MigrationWorkload,
  type MoveWorkload,
  WORKLOADS,
} from '../../../scripts/benchmark/migration/workloads.ts';

function workload(name: string): MigrationWorkload {
  const found = WORKLOADS.find((candidate) => candidate.name === name);
  if (found === undefined) throw new Error(`no workload ${name}`);
  return found;
}

function run(totalMs: number, more: Partial<MoveRun> = {}): MoveRun {
  return {
    ...{ value: totalMs, totalMs, foreignCpu: 0.01, isMoved: true, downtimeMs: 20, rounds: 2, megabytesPerSecond: 800 },
    ...{ wireMegabytes: 201, pagesPerSecond: 1000, silenceBeforeMs: 3, silenceMs: 25, ...more },
  };
}

const IDLE = {
  workload: workload('idle-256m') as MoveWorkload,
  movers: [
    { contestant: 'ringside, unix', runs: [run(400), run(900, { isMoved: false }), run(600)] },
    { contestant: 'qemu, unix', runs: [run(200), run(300), run(200)] },
  ],
};
const DIRTY = {
  workload: workload('dirty-most') as MoveWorkload,
  movers: [
    { contestant: 'ringside, unix', runs: [run(5000, { isMoved: false, pagesPerSecond: 500_000, rounds: 40 })] },
  ],
};

const RESULTS: MigrationResults = {
  machine: { date: '2026-01-01', cpu: 'CPU', cores: 2, memoryGigabytes: 8, kernel: '6.1', versions: { ringside: '1' } },
  ...{ rounds: 3, seconds: 1, warmupSeconds: 0, fileSystem: 'ext4 rw', footprints: [], snapshots: [] },
  moves: [IDLE, DIRTY],
  rows: [...rowsOfMoves(IDLE), ...rowsOfMoves(DIRTY)],
  absentPeer: undefined,
};

describe('what a guest shows', () => {
  it('is what it has done by which time of its clock', () => {
    expect(parseWork('dirty=2600000000,512,7\r')).toEqual({ ticks: 2_600_000_000, pages: 512, requests: 7 });
    expect(parseWork('dirty.failures=1')).toBeUndefined();
    const from = { ticks: 0, pages: 0, requests: 10 };
    const to = { ticks: TICKS_PER_SECOND / 2, pages: 300, requests: 60 };
    expect([rateOf(from, to, 'pages'), rateOf(from, to, 'requests')]).toEqual([600, 100]);
  });

  it.each([
    { signs: [10, 12, 14, 30, 31], from: 10, to: 32, silence: 16 },
    { signs: [1, 5, 11, 12], from: 10, to: 20, silence: 8 },
    { signs: [5, 15, 40], from: 10, to: 20, silence: 5 },
    { signs: [], from: 10, to: 20, silence: 10 },
  ])('is silent for $silence ms between $from and $to', ({ signs, from, to, silence }) => {
    expect(longestSilence(signs, from, to)).toBe(silence);
  });

  it('follows orders', () => {
    expect(orders(workload('log-disk').load)).toMatch(/ job=dirty cpus=1 mb=1 rate=0 tick_us=2000 disk=1 qd=16$/);
    expect(orders(workload('dirty-most').load)).toMatch(/ cpus=2 mb=64 rate=1000000000 /);
  });
});

describe('the migration part of the benchmark', () => {
  it('gives both monitors the same guest, memory and limit', () => {
    const [ours, theirs] = (['ringside', 'qemu'] as const).map((monitor) =>
      commandsOf(workload('idle-1g'), monitor).join('\n'),
    );
    expect(ours).toContain('"memory":{"size":1073741824}');
    expect(theirs).toContain('size=1024M,share=on');
    for (const text of [ours, theirs]) {
      expect(text).toContain('DATA-768');
      expect(text).toMatch(/job=dirty cpus=1 mb=1 rate=0/);
      expect(text).toMatch(/downtime[-_](ms|limit)"?[:=]300/);
    }
  });

  it('has room for the data in each guest', () => {
    for (const { load } of WORKLOADS) {
      expect(load.dataMib + load.processors * load.rangeMib + 32).toBeLessThanOrEqual(load.memoryMib);
    }
  });

  it('counts only migrations that came to their end', () => {
    const [total, downtime] = RESULTS.rows;
    expect(total?.cells.map((cell) => cell.values)).toEqual([
      [400, 600],
      [200, 300, 200],
    ]);
    expect(downtime?.verdicts).toMatchObject([{ target: { kind: 'at-most', value: 300 }, met: true }]);
  });

  it('reports ratios of rounds in which both moved, and who did not move', () => {
    const text = renderMigration(RESULTS, 'chart.svg');
    expect(text).toContain('| 256 MiB, of which 192 are data | 2.50x (2.00 - 3.00) |');
    expect(text).toContain('| as many as it can | ringside, unix | 500k (2048 MB/s) | 0 of 1 | 40 |');
    expect(text).not.toContain('To files and back');
    expect(drawChart(chartSections(RESULTS), COLOURS)).toContain('A whole migration (less is better)');
  });
});
