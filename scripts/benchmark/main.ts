/** scripts/bench: our back ends against others, and against what the machine can do at best, in the same run. */
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { Argument, Command, InvalidArgumentError } from 'commander';
import { type BlkResults, measureBlk } from './blk/measure.ts';
import { COLOURS as BLK_COLOURS, chartSections as blkChartSections, renderBlk } from './blk/report.ts';
import { WORKLOADS as BLK_WORKLOADS, FOOTPRINT } from './blk/workloads.ts';
import { drawChart } from './chart.ts';
import { Children, CommandError } from './children.ts';
import { type MigrationResults, measureMigration } from './migration/measure.ts';
import {
  COLOURS as MIGRATION_COLOURS,
  chartSections as migrationChartSections,
  renderMigration,
} from './migration/report.ts';
import { WORKLOADS as MIGRATION_WORKLOADS } from './migration/workloads.ts';
import { measureNet, type NetResults } from './net/measure.ts';
import { COLOURS as NET_COLOURS, chartSections as netChartSections, renderNet } from './net/report.ts';
import { WORKLOADS as NET_WORKLOADS } from './net/workloads.ts';
import { PART_NAMES, type PartName, type Sections, writeReport } from './report.ts';
import { measureRings, type RingsResults } from './rings/measure.ts';
import { COLOURS as RINGS_COLOURS, renderRings, chartSections as ringsChartSections } from './rings/report.ts';
import { WORKLOADS as RINGS_WORKLOADS } from './rings/workloads.ts';
import { measureVm, type VmResults } from './vm/measure.ts';
import { renderVm, COLOURS as VM_COLOURS, chartSections as vmChartSections } from './vm/report.ts';
import { EXITS, WORKLOADS as VM_WORKLOADS } from './vm/workloads.ts';
import { measureVsock, type VsockResults } from './vsock/measure.ts';
import { renderVsock, COLOURS as VSOCK_COLOURS, chartSections as vsockChartSections } from './vsock/report.ts';
import { WORKLOADS as VSOCK_WORKLOADS } from './vsock/workloads.ts';

interface Options {
  only: string[];
  rounds?: number;
  seconds?: number;
  quick: boolean;
  json?: string;
  report: boolean;
  pollClient: boolean;
  dir: string;
  imageMib: number;
  imageWriteBytes: number;
  daemonOption: string[];
}

interface Results {
  blk?: BlkResults;
  rings?: RingsResults;
  net?: NetResults;
  vsock?: VsockResults;
  vm?: VmResults;
  migration?: MigrationResults;
}

const NAMES: Record<PartName, readonly string[]> = {
  blk: [...BLK_WORKLOADS.map((workload) => workload.name), FOOTPRINT],
  rings: RINGS_WORKLOADS.map((workload) => workload.name),
  net: [...NET_WORKLOADS.map((workload) => workload.name), FOOTPRINT],
  vsock: [...VSOCK_WORKLOADS.map((workload) => workload.name), FOOTPRINT],
  vm: [...VM_WORKLOADS.map((workload) => workload.name), EXITS],
  migration: MIGRATION_WORKLOADS.map((workload) => workload.name),
};
const DEFAULTS: Record<PartName, { rounds: number; seconds: number }> = {
  blk: { rounds: 5, seconds: 3 },
  rings: { rounds: 5, seconds: 2 },
  net: { rounds: 3, seconds: 2 },
  vsock: { rounds: 5, seconds: 2 },
  vm: { rounds: 5, seconds: 2 },
  migration: { rounds: 5, seconds: 2 },
};
const QUICK = { rounds: 2, seconds: 1 };
const REPORT = path.join('docs', 'benchmarks.md');
const CHARTS: Record<PartName, string> = {
  blk: path.join('docs', 'benchmarks.svg'),
  rings: path.join('docs', 'benchmarks-rings.svg'),
  net: path.join('docs', 'benchmarks-net.svg'),
  vsock: path.join('docs', 'benchmarks-vsock.svg'),
  vm: path.join('docs', 'benchmarks-vm.svg'),
  migration: path.join('docs', 'benchmarks-migration.svg'),
};

function positive(text: string): number {
  const value = Number(text);
  if (!(value > 0)) throw new InvalidArgumentError('a number above 0 is needed.');
  return value;
}

function parseOptions(): { parts: readonly PartName[]; options: Options } {
  const collect = (text: string, before: string[]) => [...before, text];
  const command = new Command('scripts/bench')
    .description(
      'Measures vhost-user-blk against qemu-storage-daemon and fio and against itself with other rings, vhost-user-net against DPDK, passt and bare loops on a TAP, vhost-user-vsock against socat, and ringside vm and its migrations against QEMU.',
    )
    .addArgument(new Argument('[part]', 'what to measure; everything by default').choices(PART_NAMES))
    .option('--only <name>', 'one workload, may be repeated (the names are below)', collect, [])
    .option('--rounds <number>', 'runs of each participant in each workload (net: 3, the others: 5)', positive)
    .option('--seconds <number>', 'measured time of a run (blk: 3, the others: 2)', positive)
    .option('--quick', '2 rounds of 1 second: shows that it works, proves little', false)
    .option('--json <file>', 'write all results to this file')
    .option('--report', `write ${REPORT} and charts; of a part that was not measured, the old ones stay`, false)
    .option('--daemon-option <option>', 'pass an option to our daemon, may be repeated', collect, [])
    .option('--poll-client', 'blk: the client spins instead of sleeping until something completes', false)
    .option('--dir <folder>', 'blk, rings, vm, migration: where files are made: on a disk, not in memory', '.cache')
    .option('--image-mib <number>', 'blk, rings: size of the image', positive, 1024)
    .option(
      '--image-write-bytes <number>',
      'blk, rings: the image is written in pieces of this size (decides folio sizes)',
      positive,
      4096,
    )
    .addHelpText('after', PART_NAMES.map((part) => `\nWorkloads of ${part}: ${NAMES[part].join(', ')}`).join(''));
  command.parse();
  const options = command.opts<Options>();
  const named = PART_NAMES.filter((part) => command.args.length === 0 || command.args[0] === part);
  for (const name of options.only) {
    if (!named.some((part) => NAMES[part].includes(name))) {
      command.error(`error: no workload ${name} in ${named.join(' and ')} (see --help)`);
    }
  }
  const isWanted = (part: PartName) => options.only.length === 0 || NAMES[part].some((n) => options.only.includes(n));
  return { parts: named.filter(isWanted), options };
}

async function measure(children: Children, parts: readonly PartName[], options: Options): Promise<Results> {
  const log = (line: string) => process.stdout.write(`${line}\n`);
  const isWanted = (name: string) => options.only.length === 0 || options.only.includes(name);
  const settingsOf = (part: PartName) => {
    const { rounds, seconds } = options.quick ? QUICK : DEFAULTS[part];
    return { ...options, rounds: options.rounds ?? rounds, seconds: options.seconds ?? seconds };
  };
  const results: Results = {};
  if (parts.includes('blk')) results.blk = await measureBlk(children, settingsOf('blk'), isWanted, log);
  if (parts.includes('rings')) results.rings = await measureRings(children, settingsOf('rings'), isWanted, log);
  if (parts.includes('net')) results.net = await measureNet(children, settingsOf('net'), isWanted, log);
  if (parts.includes('vsock')) results.vsock = await measureVsock(children, settingsOf('vsock'), isWanted, log);
  if (parts.includes('vm')) results.vm = await measureVm(children, settingsOf('vm'), isWanted, log);
  if (parts.includes('migration')) {
    results.migration = await measureMigration(children, settingsOf('migration'), isWanted, log);
  }
  return results;
}

function writeResults({ blk, rings, net, vsock, vm, migration }: Results): string[] {
  const sections: Sections = {};
  const charts: string[] = [];
  const chartName = (part: PartName) => path.basename(CHARTS[part]);
  const writeChart = (part: PartName, chart: string) => {
    writeFileSync(CHARTS[part], chart);
    charts.push(CHARTS[part]);
  };
  if (blk) {
    sections.blk = renderBlk(blk, chartName('blk'));
    writeChart('blk', drawChart(blkChartSections(blk), BLK_COLOURS));
  }
  if (rings) {
    sections.rings = renderRings(rings, chartName('rings'));
    writeChart('rings', drawChart(ringsChartSections(rings), RINGS_COLOURS));
  }
  if (net) {
    sections.net = renderNet(net, chartName('net'));
    writeChart('net', drawChart(netChartSections(net), NET_COLOURS));
  }
  if (vsock) {
    sections.vsock = renderVsock(vsock, chartName('vsock'));
    writeChart('vsock', drawChart(vsockChartSections(vsock), VSOCK_COLOURS));
  }
  if (vm) {
    sections.vm = renderVm(vm, chartName('vm'));
    writeChart('vm', drawChart(vmChartSections(vm), VM_COLOURS));
  }
  if (migration) {
    sections.migration = renderMigration(migration, chartName('migration'));
    writeChart('migration', drawChart(migrationChartSections(migration), MIGRATION_COLOURS));
  }
  writeReport(REPORT, sections);
  return [REPORT, ...charts];
}

async function main(): Promise<void> {
  const { parts, options } = parseOptions();
  const children = new Children();
  try {
    const results = await measure(children, parts, options);
    if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(results, null, 2)}\n`);
    if (options.report) process.stdout.write(`\nwritten: ${writeResults(results).join(', ')}\n`);
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    process.stderr.write(`scripts/bench: ${error.message}\n`);
    process.exitCode = 1;
  } finally {
    children.close();
  }
}

await main();
