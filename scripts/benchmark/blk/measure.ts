/** The block part of the benchmark: our block back end against others, with the same client, on the same file, in the same run. */
import path from 'node:path';
import type { Children } from '../children.ts';
import { residentMegabytes } from '../daemons.ts';
import { commandVersion, describeMachine, libblkioVersion, mountOf } from '../machine.ts';
import { type Footprint, formatFootprint, type PartResults, type Row, type Run } from '../results.ts';
import { type Contest, measureWorkload, type RoundSettings } from '../rounds.ts';
import { spreadOf } from '../statistics.ts';
import { commandLine, type DaemonKind, isOurDaemonBuilt, OUR_DAEMON, withDaemon } from './daemons.ts';
import { blkioArguments, buildBlkioLoad, fioArguments, measureIdleCpu, runBlkio, runFio, writeImage } from './load.ts';
import { type BlkWorkload, type Contestant, FOOTPRINT, WORKLOADS } from './workloads.ts';

export interface BlkOptions {
  rounds: number;
  seconds: number;
  quick: boolean;
  pollClient: boolean;
  dir: string;
  imageMib: number;
  imageWriteBytes: number;
  daemonOption: readonly string[];
}

export interface BlkResults extends PartResults {
  fileSystem: string;
  imageBytes: number;
  imageWriteBytes: number;
  pollingClient: boolean;
}

interface Settings extends RoundSettings {
  seconds: number;
  warmupSeconds: number;
  idleSeconds: number;
  starts: number;
  image: string;
  clientProgram: string;
  poll: boolean;
  /** Options for our daemon beyond those that the workload asks for. */
  daemonOptions: readonly string[];
}

const CLIENT_CPU = 0;
const BACKEND_CPU = 1;

function isAvailable(contestant: Contestant): boolean {
  return !contestant.startsWith('ringside') || isOurDaemonBuilt();
}

function daemonOptions(contestant: DaemonKind, direct: boolean, settings: Settings) {
  return { kind: contestant, image: settings.image, direct, cpu: BACKEND_CPU, extra: settings.daemonOptions };
}

function loadOptions({ seconds, warmupSeconds, poll }: Settings, cpu: number) {
  return { seconds, warmupSeconds, poll, cpu };
}

async function runOnce(
  children: Children,
  workload: BlkWorkload,
  contestant: Contestant,
  settings: Settings,
): Promise<Run> {
  if (contestant === 'fio') {
    return runFio(children, fioArguments(workload, settings.image, loadOptions(settings, BACKEND_CPU)));
  }
  const args = blkioArguments(workload, loadOptions(settings, CLIENT_CPU));
  return withDaemon(children, daemonOptions(contestant, workload.direct, settings), (daemon) =>
    runBlkio(children, settings.clientProgram, daemon, args, workload.unit),
  );
}

function commandOf(workload: BlkWorkload, contestant: Contestant, settings: Settings): string {
  if (contestant === 'fio') {
    return ['fio', ...fioArguments(workload, 'IMAGE', loadOptions(settings, BACKEND_CPU))].join(' ');
  }
  const daemon = commandLine({ ...daemonOptions(contestant, workload.direct, settings), image: 'IMAGE' }, 'SOCKET');
  if (daemon[0] === process.execPath) daemon[0] = 'node';
  return daemon.join(' ');
}

function contestOf(children: Children, workload: BlkWorkload, settings: Settings): Contest<Contestant> {
  return {
    contestants: workload.contestants.filter(isAvailable),
    // Dirty pages of an earlier run would be written back during this one, and by O_DIRECT reads.
    prepare: async () => {
      await children.run('sync', [settings.image]);
    },
    run: (contestant) => runOnce(children, workload, contestant, settings),
    commands: (contestant) => [commandOf(workload, contestant, settings)],
  };
}

/** V8 collects garbage once more some seconds after a load ended. */
const SETTLE_SECONDS = 10;

/** Start time, memory and idle CPU time of one daemon. */
async function measureFootprint(
  children: Children,
  contestant: 'ringside' | 'qemu-storage-daemon',
  settings: Settings,
): Promise<Footprint> {
  const { clientProgram, idleSeconds } = settings;
  const pinned = daemonOptions(contestant, false, settings);
  const starts: number[] = [];
  for (let start = 0; start < settings.starts; start++) {
    // Not pinned: a start uses more than one thread, and nothing else runs.
    starts.push(await withDaemon(children, { ...pinned, cpu: undefined }, async (daemon) => daemon.startMs));
  }
  const load = WORKLOADS.find((workload) => workload.name === 'read-qd32');
  if (load === undefined) throw new RangeError('no workload read-qd32');
  const attached = await withDaemon(children, pinned, async (daemon) => {
    const idle = measureIdleCpu(children, clientProgram, daemon, 1, 1);
    await new Promise((resolve) => setTimeout(resolve, 1500));
    const rssMegabytes = residentMegabytes(daemon.pid);
    await idle;
    const args = blkioArguments(load, { seconds: 2, warmupSeconds: 0, cpu: CLIENT_CPU, poll: settings.poll });
    await runBlkio(children, clientProgram, daemon, args, load.unit);
    const idleCpuPercent = await measureIdleCpu(children, clientProgram, daemon, idleSeconds, SETTLE_SECONDS);
    return { rssMegabytes, idleCpuPercent, rssAfterLoadMegabytes: residentMegabytes(daemon.pid) };
  });
  return { contestant, ...attached, idleSeconds, startMs: spreadOf(starts) };
}

/** Measures the workloads whose names are wanted. */
export async function measureBlk(
  children: Children,
  options: BlkOptions,
  isWanted: (name: string) => boolean,
  log: (line: string) => void,
): Promise<BlkResults> {
  const imageFolder = children.makeFolder(path.resolve(options.dir));
  const imageBytes = options.imageMib * 2 ** 20;
  const settings: Settings = {
    rounds: options.rounds,
    seconds: options.seconds,
    warmupSeconds: options.quick ? 0.5 : 1,
    idleSeconds: options.quick ? 2 : 5,
    starts: options.quick ? 3 : 7,
    image: path.join(imageFolder, 'image'),
    clientProgram: await buildBlkioLoad(children),
    poll: options.pollClient,
    quietTimeoutMs: options.quick ? 2000 : 20_000,
    daemonOptions: options.daemonOption,
    log,
  };
  if (!isAvailable('ringside')) log(`${OUR_DAEMON} is not there: only the others are measured`);
  log(`image: ${options.imageMib} MiB in ${imageFolder}`);
  await writeImage(children, settings.image, imageBytes, options.imageWriteBytes);

  const rows: Row[] = [];
  for (const workload of WORKLOADS) {
    const contest = contestOf(children, workload, settings);
    if (isWanted(workload.name) && contest.contestants.length > 0) {
      rows.push(await measureWorkload(workload, contest, settings));
    }
  }
  const footprints: Footprint[] = [];
  if (isWanted(FOOTPRINT)) {
    log(`\nidle CPU time, memory, start [${FOOTPRINT}]`);
    for (const contestant of ['ringside', 'qemu-storage-daemon'] as const) {
      if (!isAvailable(contestant)) continue;
      const footprint = await measureFootprint(children, contestant, settings);
      log(formatFootprint(footprint));
      footprints.push(footprint);
    }
  }
  return {
    machine: describeMachine({
      libblkio: libblkioVersion(),
      'qemu-storage-daemon': commandVersion('qemu-storage-daemon', ['--version'], /^qemu-storage-daemon version /),
      fio: commandVersion('fio', ['--version'], /^fio-/),
    }),
    fileSystem: mountOf(imageFolder),
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
