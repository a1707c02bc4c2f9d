/** scripts/bench: our block back end against others, with the same client, on the same file, in the same run. */
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { Command, InvalidArgumentError } from 'commander';
import { drawChart } from './chart.ts';
import { Children, CommandError } from './children.ts';
import { OUR_DAEMON } from './daemons.ts';
import { buildBlkioLoad, writeImage } from './load.ts';
import { describeMachine } from './machine.ts';
import { writeReport } from './report.ts';
import type { Footprint, Results, Row } from './results.ts';
import { isAvailable, measureFootprint, measureWorkload, type Settings } from './rounds.ts';
import { WORKLOADS } from './workloads.ts';

interface Options {
  only: string[];
  rounds: number;
  seconds: number;
  quick: boolean;
  json?: string;
  report: boolean;
  pollClient: boolean;
  dir: string;
  imageMib: number;
  imageWriteBytes: number;
  daemonOption: string[];
}

const FOOTPRINT = 'footprint';
const NAMES = [...WORKLOADS.map((workload) => workload.name), FOOTPRINT];
const REPORT = path.join('docs', 'benchmarks.md');
const CHART = path.join('docs', 'benchmarks.svg');

function positive(text: string): number {
  const value = Number(text);
  if (!(value > 0)) throw new InvalidArgumentError('a number above 0 is needed.');
  return value;
}

function workloadName(text: string, before: string[]): string[] {
  if (!NAMES.includes(text)) throw new InvalidArgumentError(`one of ${NAMES.join(', ')}.`);
  return [...before, text];
}

function parseOptions(): Options {
  const command = new Command('scripts/bench')
    .description('Measures vhost-user-blk against qemu-storage-daemon and against fio on the file itself.')
    .option('--only <name>', `one part, may be repeated: ${NAMES.join(', ')}`, workloadName, [])
    .option('--rounds <number>', 'runs of each back end in each workload', positive, 5)
    .option('--seconds <number>', 'measured time of a run', positive, 3)
    .option('--quick', '2 rounds of 1 second: shows that it works, proves little', false)
    .option('--json <file>', 'write all results to this file')
    .option('--report', `write ${REPORT} and ${CHART}`, false)
    .option('--poll-client', 'the client spins instead of sleeping until something completes', false)
    .option('--dir <folder>', 'where the image is made: on a disk, not in memory', '.cache')
    .option('--image-mib <number>', 'size of the image', positive, 1024)
    .option(
      '--image-write-bytes <number>',
      'the image is written in pieces of this size (decides folio sizes)',
      positive,
      4096,
    )
    .option(
      '--daemon-option <option>',
      'pass an option to our daemon, may be repeated',
      (text, before: string[]) => [...before, text],
      [],
    );
  return command.parse().opts<Options>();
}

async function measure(children: Children, options: Options): Promise<Results> {
  const log = (line: string) => process.stdout.write(`${line}\n`);
  const image = path.join(children.imageFolder, 'image');
  const imageBytes = options.imageMib * 2 ** 20;
  const settings: Settings = {
    rounds: options.quick ? 2 : options.rounds,
    seconds: options.quick ? 1 : options.seconds,
    warmupSeconds: options.quick ? 0.5 : 1,
    idleSeconds: options.quick ? 2 : 5,
    starts: options.quick ? 3 : 7,
    image,
    clientProgram: await buildBlkioLoad(children),
    clientCpu: 0,
    backendCpu: 1,
    poll: options.pollClient,
    quietTimeoutMs: options.quick ? 2000 : 20_000,
    daemonOptions: options.daemonOption,
    log,
  };
  const isWanted = (name: string) => options.only.length === 0 || options.only.includes(name);
  if (!isAvailable('ringside')) log(`${OUR_DAEMON} is not there: only the others are measured`);
  log(`image: ${options.imageMib} MiB in ${children.imageFolder}`);
  await writeImage(children, image, imageBytes, options.imageWriteBytes);

  const rows: Row[] = [];
  for (const workload of WORKLOADS) {
    if (isWanted(workload.name) && workload.contestants.some(isAvailable)) {
      rows.push(await measureWorkload(children, workload, settings));
    }
  }
  const footprints: Footprint[] = [];
  if (isWanted(FOOTPRINT)) {
    log(`\nidle CPU time, memory, start [${FOOTPRINT}]`);
    for (const contestant of ['ringside', 'qemu-storage-daemon'] as const) {
      if (isAvailable(contestant)) footprints.push(await measureFootprint(children, contestant, settings));
    }
  }
  return {
    machine: describeMachine(children.imageFolder),
    rounds: settings.rounds,
    seconds: settings.seconds,
    warmupSeconds: settings.warmupSeconds,
    imageBytes,
    imageWriteBytes: options.imageWriteBytes,
    pollingClient: options.pollClient,
    rows,
    footprints,
  };
}

async function main(): Promise<void> {
  const options = parseOptions();
  const children = new Children(path.resolve(options.dir));
  try {
    const results = await measure(children, options);
    if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(results, null, 2)}\n`);
    if (options.report) {
      writeReport(REPORT, path.basename(CHART), results);
      writeFileSync(CHART, drawChart(results));
      process.stdout.write(`\nwritten: ${REPORT}, ${CHART}\n`);
    }
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    process.stderr.write(`scripts/bench: ${error.message}\n`);
    process.exitCode = 1;
  } finally {
    children.close();
  }
}

await main();
