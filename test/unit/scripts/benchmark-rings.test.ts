import { describe, expect, it } from 'vitest';
import { drawChart } from '../../../scripts/benchmark/chart.ts';
import { cellOf, rowOf } from '../../../scripts/benchmark/results.ts';
import { commandsOf, type LoadSettings } from '../../../scripts/benchmark/rings/load.ts';
import { COLOURS, chartSections, renderRings } from '../../../scripts/benchmark/rings/report.ts';
import { baselineOf, type Contestant, WORKLOADS } from '../../../scripts/benchmark/rings/workloads.ts';

const SETTINGS: LoadSettings = {
  image: '/x/image',
  readLoop: '/x/read-loop',
  seconds: 1,
  warmupSeconds: 0.5,
  daemonOptions: ['--poll'],
};

function workload(name: string) {
  const found = WORKLOADS.find((candidate) => candidate.name === name);
  if (found === undefined) throw new Error(`no workload ${name}`);
  return found;
}

function cell(contestant: Contestant, values: number[]) {
  const cores = { clientCores: 0.125, backendCores: 1.875 };
  return cellOf(
    contestant,
    [],
    values.map((value) => ({ value, foreignCpu: 0, ...cores })),
  );
}

describe('the rings part of the benchmark', () => {
  it('shares the requests in flight out to the queues evenly', () => {
    for (const { depth } of WORKLOADS.filter(({ kind }) => kind === 'threads')) expect(depth % 4).toBe(0);
  });

  it('tells what was run', () => {
    expect(commandsOf(workload('packed-null-qd32'), 'packed', SETTINGS)).toEqual([
      'taskset -c 1 node dist/backends/blk/main.js --socket-path=SOCKET --blk-file=IMAGE --engine=null --threads=1 --poll',
      'taskset -c 0 node dist/scripts/benchmark/rings/ring-load.js SOCKET --backend-pid=PID --block-bytes=4096 --depth=32 ' +
        '--queues=1 --poll-us=200 --seconds=1 --warmup=0.5 --packed',
    ]);
    expect(commandsOf(workload('threads-64k'), '4 queues, 2 threads', SETTINGS)).toEqual([
      'node dist/backends/blk/main.js --socket-path=SOCKET --blk-file=IMAGE --threads=2 --poll',
      'node dist/scripts/benchmark/rings/ring-load.js SOCKET --backend-pid=PID --block-bytes=65536 --depth=256 ' +
        '--queues=4 --poll-us=0 --seconds=1 --warmup=0.5',
    ]);
    expect(commandsOf(workload('threads-64k'), '2 loops', SETTINGS)).toEqual(['read-loop IMAGE 65536 256 2 500 1000']);
    const [daemon, client] = commandsOf(workload('log-read'), 'IOMMU', SETTINGS);
    expect(daemon).toContain(' --iommu');
    expect(client).toContain(' --iommu');
    expect(commandsOf(workload('log-read'), 'dirty log', SETTINGS)[1]).toContain(' --dirty-log');
  });

  it('compares like with like', () => {
    expect(baselineOf(workload('packed-null-qd1'), 'packed')).toBe('split');
    expect(baselineOf(workload('log-null'), 'IOMMU')).toBe('split');
    expect(baselineOf(workload('threads-256k'), '4 queues, 2 threads')).toBe('1 queue, 1 thread');
    expect(baselineOf(workload('threads-256k'), '2 loops')).toBe('1 loop');
  });

  it.each([
    { name: 'packed-null-qd1', cells: [cell('packed', [100]), cell('split', [100])], met: [true] },
    { name: 'packed-null-qd128', cells: [cell('packed', [99]), cell('split', [100])], met: [false] },
    { name: 'packed-read-qd32', cells: [cell('packed', [1]), cell('split', [100])], met: [] },
    { name: 'threads-64k', cells: [cell('2 queues, 2 threads', [160]), cell('1 queue, 1 thread', [100])], met: [true] },
    {
      name: 'threads-64k',
      cells: [cell('2 queues, 2 threads', [159]), cell('1 queue, 1 thread', [100])],
      met: [false],
    },
    { name: 'log-null', cells: [cell('dirty log', [90]), cell('split', [100]), cell('IOMMU', [1])], met: [true] },
    { name: 'log-read', cells: [cell('dirty log', [89]), cell('split', [100])], met: [false] },
  ])('judges $name: $met', ({ name, cells, met }) => {
    expect(rowOf(workload(name), cells).verdicts.map((verdict) => verdict.met)).toEqual(met);
  });

  it('sets what threads gain beside what the cores give', () => {
    const cells = [
      cell('2 queues, 2 threads', [170, 180, 160]),
      cell('1 queue, 1 thread', [100, 100, 100]),
      cell('2 loops', [190, 190, 190]),
      cell('1 loop', [100, 100, 100]),
    ];
    const rows = [rowOf(workload('threads-64k'), cells), rowOf(workload('packed-null-qd1'), [cell('split', [1])])];
    const machine = { date: '', cpu: '', cores: 2, memoryGigabytes: 1, kernel: '', versions: {} };
    const results = { machine, rounds: 3, seconds: 1, warmupSeconds: 1, rows, footprints: [] };
    const rings = { ...results, fileSystem: 'ext4', imageBytes: 2 ** 20 };
    const text = renderRings(rings, 'chart.svg');
    expect(text).toContain('two loops in C read 1.90x (1.90 - 1.90) of one loop');
    expect(text).toContain('two threads of the back end 1.70x (1.60 - 1.80) of one');
    expect(text).toContain('1.70x (1.60 - 1.80) 1 queue, 1 thread |');
    expect(text).toContain('| 0.13 | 1.88 |');
    expect(text).not.toContain('Dirty log and IOMMU');
    expect(chartSections(rings).map((section) => section.rows.length)).toEqual([1, 1]);
  });

  it('draws a legend of as many lines as it takes', () => {
    const legendHeights = (rows: ReturnType<typeof rowOf>[]) => {
      const svg = drawChart([{ title: '', rows }], COLOURS);
      return [...svg.matchAll(/y="(\d+)" width="12"/g)].map((match) => Number(match[1]));
    };
    const rowWith = (name: string) =>
      rowOf(
        workload(name),
        workload(name).contestants.map((who) => cell(who, [1])),
      );
    expect(legendHeights([rowWith('packed-null-qd1')])).toEqual([18, 18]);
    expect(legendHeights([rowWith('packed-null-qd1'), rowWith('threads-64k'), rowWith('log-null')])).toEqual([
      18, 18, 18, 18, 18, 18, 18, 38, 38, 38,
    ]);
  });
});
