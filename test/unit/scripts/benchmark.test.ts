import { describe, expect, it } from 'vitest';
import { queueSizeFor } from '../../../scripts/benchmark/load.ts';
import { type Cell, describeMet, rowOf } from '../../../scripts/benchmark/results.ts';
import { formatCount, pairwiseRatio, spreadOf } from '../../../scripts/benchmark/statistics.ts';
import { type Contestant, WORKLOADS, type Workload } from '../../../scripts/benchmark/workloads.ts';

function workload(name: string): Workload {
  const found = WORKLOADS.find((candidate) => candidate.name === name);
  if (found === undefined) throw new Error(`no workload ${name}`);
  return found;
}

function cell(contestant: Contestant, values: number[]): Cell {
  const unknown = { p50Us: undefined, p99Us: undefined, bytesPerSecond: 0, foreignCpu: 0 };
  return { contestant, command: '', values, spread: spreadOf(values), ...unknown };
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
});

describe('targets of a benchmark', () => {
  it('is met at the ratio itself, and missed below', () => {
    const peer = cell('qemu-storage-daemon', [100]);
    expect(rowOf(workload('read-qd1'), [cell('ringside', [300]), peer]).met).toBe(true);
    expect(rowOf(workload('read-qd1'), [cell('ringside', [299]), peer]).met).toBe(false);
  });

  it('wants CPU time per I/O below that of the peer', () => {
    const peer = cell('qemu-storage-daemon', [5]);
    expect(rowOf(workload('cpu-20k'), [cell('ringside', [4.9]), peer]).met).toBe(true);
    expect(rowOf(workload('cpu-20k'), [cell('ringside', [5]), peer]).met).toBe(false);
  });

  it('compares O_DIRECT with fio, not with the other daemon', () => {
    const cells = [cell('ringside', [95]), cell('qemu-storage-daemon', [50]), cell('fio', [100])];
    expect(rowOf(workload('direct-qd32'), cells)).toMatchObject({ met: true, ratio: { median: 0.95 } });
  });

  it('decides nothing when the peer did not run', () => {
    const { met } = rowOf(workload('read-qd1'), [cell('ringside', [300])]);
    expect(describeMet(met)).toBe('not measured');
  });

  it('takes the null engine by its own value', () => {
    expect(rowOf(workload('null-qd32'), [cell('ringside-null', [900_000])]).met).toBe(true);
    expect(rowOf(workload('null-qd32'), [cell('ringside-null', [899_999])]).met).toBe(false);
  });

  it('gives the client a ring that holds its whole depth, three descriptors a request', () => {
    expect(WORKLOADS.filter(({ depth }) => queueSizeFor(depth) < depth * 3)).toEqual([]);
    expect([queueSizeFor(85), queueSizeFor(86), queueSizeFor(128)]).toEqual([256, 512, 512]);
  });
});
