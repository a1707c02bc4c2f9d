import { describe, expect, it } from 'vitest';
import { queueSizeFor } from '../../../scripts/benchmark/blk/load.ts';
import {
  WORKLOADS as BLK_WORKLOADS,
  type Contestant as BlkContestant,
} from '../../../scripts/benchmark/blk/workloads.ts';
import { parseReports } from '../../../scripts/benchmark/net/load.ts';
import { parseIperf } from '../../../scripts/benchmark/net/tcp.ts';
import { parsePeriods } from '../../../scripts/benchmark/net/testpmd.ts';
import {
  WORKLOADS as NET_WORKLOADS,
  type Contestant as NetContestant,
} from '../../../scripts/benchmark/net/workloads.ts';
import { findSections, joinSections } from '../../../scripts/benchmark/report.ts';
import {
  type Cell,
  cellOf,
  describeMet,
  describeTarget,
  formatCompared,
  formatValue,
  rowOf,
  type Workload,
} from '../../../scripts/benchmark/results.ts';
import { formatCount, pairwiseDifference, pairwiseRatio, spreadOf } from '../../../scripts/benchmark/statistics.ts';

function workload(name: string): Workload {
  const found = [...BLK_WORKLOADS, ...NET_WORKLOADS].find((candidate) => candidate.name === name);
  if (found === undefined) throw new Error(`no workload ${name}`);
  return found;
}

function cell(contestant: BlkContestant | NetContestant, values: number[]): Cell {
  return cellOf(
    contestant,
    [],
    values.map((value) => ({ value, foreignCpu: 0 })),
  );
}

/** What became of each target. */
function met(name: string, cells: Cell[]): (boolean | undefined)[] {
  return rowOf(workload(name), cells).verdicts.map((verdict) => verdict.met);
}

describe('statistics of a benchmark', () => {
  it.each([
    { values: [3, 1, 2], spread: { median: 2, min: 1, max: 3 } },
    { values: [4, 1, 3, 2], spread: { median: 2.5, min: 1, max: 4 } },
    { values: [7], spread: { median: 7, min: 7, max: 7 } },
  ])('takes median and extremes of $values', ({ values, spread }) => {
    expect(spreadOf(values)).toEqual(spread);
  });

  it('refuses a median of nothing', () => {
    expect(() => spreadOf([])).toThrow(RangeError);
  });

  it('compares round with round, so that a slow round for both does not count', () => {
    expect(pairwiseRatio([30, 3, 60], [10, 1, 10])).toEqual({ median: 3, min: 3, max: 6 });
    expect(pairwiseDifference([30, 40, 99], [20, 25, 90])).toEqual({ median: 10, min: 9, max: 15 });
  });

  it('has no ratio where one side did not run', () => {
    expect(pairwiseRatio([1, 2], [])).toBeUndefined();
  });

  it.each([
    [0, '0'],
    [999, '999'],
    [1000, '1.0k'],
    [99_949, '99.9k'],
    [99_950, '100k'],
    [999_499, '999k'],
    [999_500, '1.00M'],
  ])('shows %d as %s', (value, text) => {
    expect(formatCount(value)).toBe(text);
  });

  it.each([
    [9_949_000_000, 'bits', '9.95 Gbit/s'],
    [9_950_000_000, 'bits', '9.9 Gbit/s'],
    [17.25, 'us', '17.3 us'],
    [4_000_000, 'packets', '4.00M'],
  ] as const)('shows %d %s as %s', (value, unit, text) => {
    expect(formatValue(value, unit)).toBe(text);
  });
});

describe('targets of a benchmark', () => {
  it('is met at the ratio itself, and missed below', () => {
    const peer = cell('qemu-storage-daemon', [100]);
    expect(met('read-qd1', [cell('ringside', [300]), peer])).toEqual([true]);
    expect(met('read-qd1', [cell('ringside', [299]), peer])).toEqual([false]);
  });

  it('wants CPU time per I/O below that of the peer', () => {
    const peer = cell('qemu-storage-daemon', [5]);
    expect(met('cpu-20k', [cell('ringside', [4.9]), peer])).toEqual([true]);
    expect(met('cpu-20k', [cell('ringside', [5]), peer])).toEqual([false]);
  });

  it('compares O_DIRECT with fio, not with the other daemon', () => {
    const cells = [cell('ringside', [95]), cell('qemu-storage-daemon', [50]), cell('fio', [100])];
    expect(rowOf(workload('direct-qd32'), cells).verdicts).toMatchObject([{ met: true, compared: { median: 0.95 } }]);
  });

  it('decides nothing when the peer did not run', () => {
    expect(met('read-qd1', [cell('ringside', [300])]).map(describeMet)).toEqual(['not measured']);
  });

  it('takes the null devices by their own values', () => {
    expect(met('null-qd32', [cell('ringside-null', [900_000])])).toEqual([true]);
    expect(met('null-qd32', [cell('ringside-null', [899_999])])).toEqual([false]);
    expect(met('null64', [cell('ringside-null', [4_000_000])])).toEqual([true]);
    expect(met('null64', [cell('ringside-null', [3_999_999])])).toEqual([false]);
  });

  it('takes the better of the two write loops as the limit, and the other back end by itself', () => {
    const others = [cell('dpdk', [86]), cell('write loop', [90]), cell('io_uring loop', [100])];
    const row = rowOf(workload('tx64'), [cell('ringside', [85]), ...others]);
    expect(row.verdicts.map(({ to, met }) => [to?.contestant, met])).toEqual([
      ['io_uring loop', true],
      ['dpdk', false],
    ]);
  });

  it('compares TCP with the best round of a peer that stands still in others', () => {
    const passt = cell('passt', [0.1e9, 10e9, 0.1e9]);
    expect(met('tcp-tx', [cell('ringside', [19e9, 19e9, 19e9]), passt])).toEqual([false]);
    expect(met('tcp-tx', [cell('ringside', [20e9, 20e9, 20e9]), passt])).toEqual([true]);
  });

  it('decides nothing when that peer stands still in all rounds', () => {
    const row = rowOf(workload('tcp-tx'), [cell('ringside', [10e9]), cell('passt', [0.1e9])]);
    expect(row.verdicts).toMatchObject([{ met: undefined, compared: undefined }]);
  });

  it('allows a ping so many microseconds more than the bare loop', () => {
    const row = rowOf(workload('ping'), [cell('ringside', [50, 40]), cell('echo loop', [20, 10])]);
    expect(row.verdicts.map((verdict) => [verdict.met, formatCompared(verdict)])).toEqual([
      [true, '+30.0 us (30.0 - 30.0)'],
    ]);
    expect(describeTarget(workload('ping').targets[0]!, 'us')).toBe('<= 30 us more than echo loop');
  });

  it('gives the client a ring that holds its whole depth, three descriptors a request', () => {
    expect(BLK_WORKLOADS.filter(({ depth }) => queueSizeFor(depth) < depth * 3)).toEqual([]);
    expect([queueSizeFor(85), queueSizeFor(86), queueSizeFor(128)]).toEqual([256, 512, 512]);
  });
});

describe('what the load generators print', () => {
  it("reads testpmd's seconds", () => {
    const second = (pps: number) =>
      `  Throughput (since last show)\n  Rx-pps:            7          Rx-bps:         3584\n  Tx-pps: ${pps}          Tx-bps:    ${pps * 512}\n`;
    expect(parsePeriods(second(0) + second(1_111_158))).toEqual([
      { packets: 0, bits: 0 },
      { packets: 1_111_158, bits: 568_912_896 },
    ]);
  });

  it('leaves a line alone that is not complete', () => {
    const line = '{"ns":100,"frames":2,"bytes":128}\n';
    expect(parseReports(`${line}{"ns":200,"fra`)).toEqual([{ ns: 100, frames: 2, bytes: 128 }]);
    expect(parseReports('{"ns":200')).toEqual([]);
  });

  it("takes the receiver's value from iperf3, and its error", () => {
    const sum = (value: number) => ({ bits_per_second: value });
    expect(parseIperf(JSON.stringify({ end: { sum_sent: sum(2), sum_received: sum(1) } }))).toBe(1);
    expect(() => parseIperf('{"end":{},"error":"unable to connect"}')).toThrow('unable to connect');
  });
});

describe('the report', () => {
  it('keeps the section of a part that was not measured', () => {
    const before = joinSections({ blk: '## Block device\n\nold', net: '## Network device\n\nold' });
    const after = joinSections({ ...findSections(before), net: '## Network device\n\nnew' });
    expect(findSections(after)).toEqual({ blk: '## Block device\n\nold', net: '## Network device\n\nnew' });
  });

  it('finds no section in another text', () => {
    expect(findSections('# Benchmarks\n')).toEqual({});
  });
});
