/** The rings part of the benchmark: our back end against itself, with other rings, more threads, or more to note of each request. */
import path from 'node:path';
import { writeImage } from '../blk/load.ts';
import type { Children } from '../children.ts';
import { describeMachine, mountOf } from '../machine.ts';
import type { PartResults, Row } from '../results.ts';
import { measureWorkload, type RoundSettings } from '../rounds.ts';
import { buildReadLoop, commandsOf, type LoadSettings, runOnce } from './load.ts';
import { type Contestant, WORKLOADS } from './workloads.ts';

export interface RingsOptions {
  rounds: number;
  seconds: number;
  quick: boolean;
  dir: string;
  imageMib: number;
  imageWriteBytes: number;
  daemonOption: readonly string[];
}

export interface RingsResults extends PartResults {
  fileSystem: string;
  imageBytes: number;
}

/** Measures the workloads whose names are wanted. */
export async function measureRings(
  children: Children,
  options: RingsOptions,
  isWanted: (name: string) => boolean,
  log: (line: string) => void,
): Promise<RingsResults> {
  const imageFolder = children.makeFolder(path.resolve(options.dir));
  const imageBytes = options.imageMib * 2 ** 20;
  const settings: LoadSettings & RoundSettings = {
    image: path.join(imageFolder, 'image'),
    readLoop: await buildReadLoop(children),
    rounds: options.rounds,
    seconds: options.seconds,
    warmupSeconds: 0.5,
    daemonOptions: options.daemonOption,
    quietTimeoutMs: options.quick ? 2000 : 20_000,
    ...(options.quick && { repeats: 0 }),
    log,
  };
  log(`image: ${options.imageMib} MiB in ${imageFolder}`);
  await writeImage(children, settings.image, imageBytes, options.imageWriteBytes);

  const rows: Row[] = [];
  for (const workload of WORKLOADS) {
    if (!isWanted(workload.name)) continue;
    const contest = {
      contestants: workload.contestants,
      run: (contestant: Contestant) => runOnce(children, workload, contestant, settings),
      commands: (contestant: Contestant) => commandsOf(workload, contestant, settings),
    };
    rows.push(await measureWorkload(workload, contest, settings));
  }
  return {
    machine: describeMachine({}),
    fileSystem: mountOf(imageFolder),
    rounds: settings.rounds,
    seconds: settings.seconds,
    warmupSeconds: settings.warmupSeconds,
    imageBytes,
    rows,
    footprints: [],
  };
}
