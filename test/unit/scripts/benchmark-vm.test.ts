import { describe, expect, it } from 'vitest';
import { type Cell, cellOf, describeTarget, formatValue, rowOf } from '../../../scripts/benchmark/results.ts';
import { percentile } from '../../../scripts/benchmark/statistics.ts';
import { isWhole } from '../../../scripts/benchmark/vm/api.ts';
import { memoryExits } from '../../../scripts/benchmark/vm/exits.ts';
import type { VmResults } from '../../../scripts/benchmark/vm/measure.ts';
import { monitorLine } from '../../../scripts/benchmark/vm/monitors.ts';
import { chartSections, renderVm } from '../../../scripts/benchmark/vm/report.ts';
import { machineOptions, privateMegabytes, type TaskSettings } from '../../../scripts/benchmark/vm/tasks.ts';
import { type Contestant, type VmWorkload, WORKLOADS } from '../../../scripts/benchmark/vm/workloads.ts';

function workload(name: string): VmWorkload {
  const found = WORKLOADS.find((candidate) => candidate.name === name);
  if (found === undefined) throw new Error(`no workload ${name}`);
  return found;
}

function cell(contestant: Contestant, values: number[], more: { p50Us?: number } = {}): Cell {
  return cellOf(
    contestant,
    ['run IMAGE'],
    values.map((value) => ({ value, foreignCpu: 0, ...more })),
  );
}

const SETTINGS: TaskSettings = {
  kernel: 'GUEST',
  image: 'IMAGE',
  firstByteProgram: 'first-byte',
  seconds: 1,
  warmupSeconds: 1,
  idleSeconds: 1,
  settleSeconds: 1,
  starts: 3,
  daemonOptions: [],
};

describe('percentile', () => {
  it.each([
    { values: [5], percent: 99, expected: 5 },
    { values: [4, 1, 3, 2], percent: 50, expected: 2 },
    { values: Array.from({ length: 200 }, (_, i) => i + 1), percent: 99, expected: 198 },
  ])('$percent of $values.length values is $expected', ({ values, percent, expected }) => {
    expect(percentile(values, percent)).toBe(expected);
  });

  it('refuses a percentile of nothing', () => {
    expect(() => percentile([], 99)).toThrow(RangeError);
  });
});

describe('targets of the VMM', () => {
  it.each([
    ['start', [149, 150, 151], true],
    ['start', [149, 151, 152], false],
    ['memory-4', [100, 101, 101], false],
    ['idle', [0, 0.05, 0.4], true],
    ['api-info', [0.4, 5.1, 6], false],
  ] as const)('%s at %j is decided by the median', (name, values, met) => {
    expect(rowOf(workload(name), [cell('ringside', [...values])]).verdicts.map((verdict) => verdict.met)).toEqual([
      met,
    ]);
  });

  it('is not decided without a run of ours', () => {
    expect(rowOf(workload('start'), [cell('qemu', [50])]).verdicts[0]?.met).toBeUndefined();
  });

  it('has units', () => {
    expect(describeTarget({ kind: 'at-most', value: 150 }, 'ms')).toBe('<= 150 ms');
    expect([formatValue(0.25, 'ms'), formatValue(99.6, 'megabytes'), formatValue(0.04, 'percent')]).toEqual([
      '0.25 ms',
      '100 MB',
      '0.04 %',
    ]);
  });
});

describe('what is started', () => {
  it('gives both monitors the same guest, memory and disk', () => {
    const options = machineOptions(workload('read-qd32').task, SETTINGS, 'SOCKET');
    const [ours, theirs] = (['ringside', 'qemu'] as const).map((each) => monitorLine(each, options).join(' '));
    for (const line of [ours, theirs]) expect(line).toMatch(/^taskset -c 0 .*GUEST.*job=bench qd=32/);
    expect(ours).toContain('--memory size=128M --disk socket=SOCKET');
    expect(theirs).toMatch(/size=128M,share=on.*socket,id=d,path=SOCKET/);
  });

  it('lets our monitor start the daemon of a path', () => {
    const options = machineOptions(workload('start-path').task, SETTINGS);
    expect(monitorLine('ringside', options).slice(-2)).toEqual(['--disk', 'path=IMAGE']);
  });

  it.each([
    ['exit-port', 'port=1280'],
    ['exit-memory', 'address=3623878656'],
  ])('%s tells the guest where nothing is', (name, word) => {
    const line = monitorLine('ringside', machineOptions(workload(name).task, SETTINGS));
    expect(line[line.indexOf('--cmdline') + 1]).toContain(word);
  });
});

describe('what is read', () => {
  it('counts the memory of a process without what it shares with its guest', () => {
    const status = 'VmRSS:\t  400000 kB\nRssAnon:\t   51200 kB\nRssFile:\t   40960 kB\nRssShmem:\t  307840 kB\n';
    expect(privateMegabytes(status)).toBe(90);
    expect(() => privateMegabytes('RssAnon:\t 1 kB\n')).toThrow('no RssFile');
  });

  it('adds the exits of all vCPUs for addresses', () => {
    const counters = { vcpu0: { exits_io: 9, exits_mmio: 2 }, vcpu11: { exits_mmio: 3 }, _disk0: { exits_mmio: 100 } };
    expect(memoryExits(counters)).toBe(5);
  });

  it.each([
    ['HTTP/1.1 200 OK\r\nContent-Length: 2\r\n', false],
    ['HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{', false],
    ['HTTP/1.1 200 \r\nServer: x\r\nContent-Length: 2\r\n\r\n{}', true],
  ])('%j is whole: %s', (answer, whole) => {
    expect(isWhole(answer)).toBe(whole);
  });

  it('does not take a failure for an answer', () => {
    expect(() => isWhole('HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n')).toThrow('404');
  });
});

describe('the section on the VMM', () => {
  const results: VmResults = {
    machine: { date: '2026-01-02', cpu: 'CPU', cores: 2, memoryGigabytes: 4, kernel: '6.1', versions: { QEMU: '7.2' } },
    rounds: 2,
    seconds: 1,
    warmupSeconds: 1,
    starts: 5,
    idleSeconds: 5,
    imageBytes: 2 ** 28,
    absent: {},
    footprints: [],
    exits: { kicks: 10_000, memoryExits: 0 },
    rows: [
      rowOf(workload('start'), [cell('ringside', [120, 140]), cell('qemu', [60, 70])]),
      rowOf(workload('start-path'), [cell('ringside', [300])]),
      rowOf(workload('api-ping'), [cell('ringside', [0.4], { p50Us: 90 })]),
    ],
  };

  it('compares with QEMU, round by round', () => {
    const text = renderVm(results, 'chart.svg');
    expect(text).toContain(
      '| 130 ms (120 ms - 140 ms) | 65 ms (60 ms - 70 ms) | 2.00x (2.00 - 2.00) | <= 150 ms | met |',
    );
    expect(text).toContain(
      '| vmm.ping, a connection each | 0.09 ms | 0.40 ms (0.40 ms - 0.40 ms) | <= 5.00 ms | met |',
    );
    expect(text).toContain('0.00 for a kick and 0.00 for an interrupt; the target is 0: met.');
    expect(text).not.toContain('no peer');
  });

  it('says where there is no peer', () => {
    const rows = [rowOf(workload('exit-port'), [cell('ringside', [40])])];
    const text = renderVm({ ...results, rows, exits: undefined, absent: { qemu: 'no KVM\nat all' } }, 'chart.svg');
    expect(text).toContain('| 40.0 us (40.0 us - 40.0 us) | no peer |');
    expect(text).toContain('No peer here: `no KVM`.');
  });

  it('charts rows that share a scale', () => {
    const [start, memory] = chartSections(results);
    expect(start?.rows.map((row) => row.workload.name)).toEqual(['start', 'start-path']);
    expect(memory?.rows).toEqual([]);
  });
});
