/** One run of a contestant: our back end with the client in ring-load.ts, or read-loop on the file itself. */
import path from 'node:path';
import { commandLine, type DaemonOptions, withDaemon } from '../blk/daemons.ts';
import type { Children } from '../children.ts';
import { watchForeignCpu } from '../foreign.ts';
import { buildProgram } from '../programs.ts';
import type { Run } from '../results.ts';
import type { RingLoadOutput } from './ring-load.ts';
import { type Contestant, type LoopSetup, type RingSetup, type RingsWorkload, SETUPS } from './workloads.ts';

export interface LoadSettings {
  image: string;
  /** Path of read-loop. */
  readLoop: string;
  seconds: number;
  warmupSeconds: number;
  daemonOptions: readonly string[];
}

const CLIENT = path.join('dist', 'scripts', 'benchmark', 'rings', 'ring-load.js');
const CLIENT_CPU = 0;
const BACKEND_CPU = 1;

interface LoopOutput {
  ios: number;
  elapsedNs: number;
}

export function buildReadLoop(children: Children): Promise<string> {
  return buildProgram(children, path.join('rings', 'read-loop.c'), [], ['-pthread']);
}

function daemonOptions(workload: RingsWorkload, setup: RingSetup, settings: LoadSettings): DaemonOptions {
  return {
    kind: workload.engine === 'null' ? 'ringside-null' : 'ringside',
    image: settings.image,
    direct: false,
    cpu: workload.isPinned ? BACKEND_CPU : undefined,
    extra: [`--threads=${setup.threads}`, ...(setup.iommu ? ['--iommu'] : []), ...settings.daemonOptions],
  };
}

function clientLine(
  workload: RingsWorkload,
  setup: RingSetup,
  backend: { socket: string; pid: number | string },
  settings: LoadSettings,
): string[] {
  return [
    ...(workload.isPinned ? ['taskset', '-c', String(CLIENT_CPU)] : []),
    process.execPath,
    CLIENT,
    backend.socket,
    `--backend-pid=${backend.pid}`,
    `--block-bytes=${workload.blockBytes}`,
    `--depth=${workload.depth}`,
    `--queues=${setup.queues}`,
    `--poll-us=${workload.clientPollUs}`,
    `--seconds=${settings.seconds}`,
    `--warmup=${settings.warmupSeconds}`,
    ...(setup.packed ? ['--packed'] : []),
    ...(setup.dirtyLog ? ['--dirty-log'] : []),
    ...(setup.iommu ? ['--iommu'] : []),
  ];
}

function loopLine({ blockBytes, depth }: RingsWorkload, { loops }: LoopSetup, settings: LoadSettings): string[] {
  const { readLoop, image, warmupSeconds, seconds } = settings;
  return [readLoop, image, ...[blockBytes, depth, loops, warmupSeconds * 1000, seconds * 1000].map(String)];
}

/** Runs a command while it watches who else runs. */
async function runWatched<T>(children: Children, line: readonly string[]): Promise<{ output: T; foreignCpu: number }> {
  const [command = '', ...args] = line;
  const foreign = watchForeignCpu();
  const { stdout } = await children.run(command, args);
  return { output: JSON.parse(stdout), foreignCpu: foreign() };
}

export async function runOnce(
  children: Children,
  workload: RingsWorkload,
  contestant: Contestant,
  settings: LoadSettings,
): Promise<Run> {
  const setup = SETUPS[contestant];
  if ('loops' in setup) {
    const { output, foreignCpu } = await runWatched<LoopOutput>(children, loopLine(workload, setup, settings));
    const value = (output.ios / output.elapsedNs) * 1e9;
    return { value, bytesPerSecond: value * workload.blockBytes, foreignCpu };
  }
  return withDaemon(children, daemonOptions(workload, setup, settings), async (daemon) => {
    const line = clientLine(workload, setup, daemon, settings);
    const { output, foreignCpu } = await runWatched<RingLoadOutput>(children, line);
    const { iops, ...rest } = output;
    return { value: iops, bytesPerSecond: iops * workload.blockBytes, ...rest, foreignCpu };
  });
}

/** What is run for a contestant, for the report. */
export function commandsOf(workload: RingsWorkload, contestant: Contestant, settings: LoadSettings): string[] {
  const setup = SETUPS[contestant];
  const shown: LoadSettings = { ...settings, image: 'IMAGE', readLoop: 'read-loop' };
  const join = (line: readonly string[]) => line.map((word) => (word === process.execPath ? 'node' : word)).join(' ');
  if ('loops' in setup) return [join(loopLine(workload, setup, shown))];
  const options = daemonOptions(workload, setup, shown);
  const pinned = options.cpu === undefined ? [] : ['taskset', '-c', String(options.cpu)];
  return [
    join([...pinned, ...commandLine(options, 'SOCKET')]),
    join(clientLine(workload, setup, { socket: 'SOCKET', pid: 'PID' }, shown)),
  ];
}
