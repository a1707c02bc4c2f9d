/** One timed run of one monitor, for each kind of task. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { withDaemon } from '../blk/daemons.ts';
import { type Children, CommandError } from '../children.ts';
import { cpuNanoseconds, type Daemon } from '../daemons.ts';
import { watchForeignCpu } from '../foreign.ts';
import type { Run } from '../results.ts';
import { spreadOf } from '../statistics.ts';
import { awaitApi, measureLatency } from './api.ts';
import { type MachineOptions, monitorLine, type RunningMachine, withMachine } from './monitors.ts';
import type { Contestant, VmTask } from './workloads.ts';

export interface TaskSettings {
  kernel: string;
  image: string;
  /** first-byte.c. */
  firstByteProgram: string;
  seconds: number;
  warmupSeconds: number;
  idleSeconds: number;
  settleSeconds: number;
  /** Starts in a run, of which the median counts. */
  starts: number;
  daemonOptions: readonly string[];
}

const MONITOR_CPU = 0;
const DAEMON_CPU = 1;
/** For the first run of a load, which shows how many a second there are. */
const FIRST_COUNT = 2000;
/** Ports and addresses that neither machine has anything at. */
const NOWHERE = { port: 0x500, memory: 0xd8000000 } as const;

/** Counts per second that were seen, by load: the next run takes about as long as it is to. */
const rates = new Map<string, number>();

/** RssAnon and RssFile in megabytes: guest memory is shared and counts as RssShmem. */
export function privateMegabytes(status: string): number {
  const [anonymous, file] = ['RssAnon', 'RssFile'].map((name) => {
    const found = new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(status)?.[1];
    if (found === undefined) throw new CommandError(`no ${name} in /proc/PID/status`);
    return Number(found);
  });
  return ((anonymous ?? 0) + (file ?? 0)) / 1024;
}

/** A guest that has nothing to do: a short job, and its processors are halted. */
function restingGuest(settings: TaskSettings): MachineOptions {
  return { kernel: settings.kernel, parameters: { job: 'serial', end: 'halt' } };
}

function withDisk<T>(
  children: Children,
  settings: TaskSettings,
  cpu: number | undefined,
  use: (daemon: Daemon) => Promise<T>,
): Promise<T> {
  const { image, daemonOptions } = settings;
  return withDaemon(children, { kind: 'ringside', image, direct: false, cpu, extra: daemonOptions }, use);
}

/** Options of the machine that a task starts. `disk` is the socket of a daemon, where the task has one. */
export function machineOptions(task: VmTask, settings: TaskSettings, disk?: string): MachineOptions {
  const resting = restingGuest(settings);
  switch (task.kind) {
    case 'start':
      return { ...resting, disk, diskPath: task.disk === 'path' ? settings.image : undefined };
    case 'memory':
    case 'idle':
      return { ...resting, cpus: task.cpus };
    case 'api':
      return resting;
    case 'exit': {
      const place = task.where === 'port' ? { port: NOWHERE.port } : { address: NOWHERE.memory };
      return { ...resting, parameters: { job: 'exits', n: FIRST_COUNT, ...place } };
    }
    case 'read':
      return {
        ...resting,
        disk,
        parameters: { job: 'bench', qd: task.depth, requests: FIRST_COUNT },
        cpu: MONITOR_CPU,
      };
  }
}

async function timeStart(children: Children, contestant: Contestant, options: MachineOptions, settings: TaskSettings) {
  const times: number[] = [];
  for (let start = 0; start < settings.starts; start++) {
    const { stdout } = await children.run(settings.firstByteProgram, monitorLine(contestant, options));
    const microseconds = /^us=(\d+)$/m.exec(stdout)?.[1];
    if (microseconds === undefined) throw new CommandError(`first-byte prints ${JSON.stringify(stdout)}`);
    times.push(Number(microseconds) / 1000);
  }
  return spreadOf(times).median;
}

/** Runs `use` when the guest of `machine` rests and the API, of ours, has answered. */
async function atRest<T>(
  children: Children,
  contestant: Contestant,
  options: MachineOptions,
  settings: TaskSettings,
  use: (machine: RunningMachine) => Promise<T>,
): Promise<T> {
  const api = children.newSocketPath();
  return withMachine(children, contestant, { ...options, api }, async (machine) => {
    await machine.serial.line('end');
    if (contestant === 'ringside') await awaitApi(api);
    await sleep(settings.settleSeconds * 1000);
    return use(machine);
  });
}

/** A job of the guest that counts to N between two lines. Returns how many a second. */
async function timeCount(
  children: Children,
  contestant: Contestant,
  options: MachineOptions,
  settings: TaskSettings,
): Promise<number> {
  const [job, counter] = options.parameters.job === 'exits' ? ['exits', 'n'] : ['bench', 'requests'];
  const key = JSON.stringify([contestant, options.parameters]);
  const once = (count: number) => {
    const parameters = { ...options.parameters, [counter]: count };
    return withMachine(children, contestant, { ...options, parameters }, async ({ serial }) => {
      const start = await serial.line(`${job}.start`);
      const end = await serial.line(`${job}.end`);
      if (job === 'bench' && (await serial.line('bench.failures')).value !== '0') {
        throw new CommandError('requests of the guest failed');
      }
      return (count * 1000) / (end.at - start.at);
    });
  };
  const rate = rates.get(key) ?? (await once(FIRST_COUNT));
  const found = await once(Math.max(FIRST_COUNT, Math.round(rate * settings.seconds)));
  rates.set(key, found);
  return found;
}

async function measure(children: Children, contestant: Contestant, task: VmTask, settings: TaskSettings) {
  const options = machineOptions(task, settings);
  switch (task.kind) {
    case 'start': {
      const time = (disk?: string) => timeStart(children, contestant, machineOptions(task, settings, disk), settings);
      if (task.disk !== 'socket') return { value: await time() };
      return { value: await withDisk(children, settings, undefined, (daemon) => time(daemon.socket)) };
    }
    case 'memory':
      return atRest(children, contestant, options, settings, async ({ pid }) => ({
        value: privateMegabytes(readFileSync(path.join('/proc', String(pid), 'status'), 'utf8')),
      }));
    case 'idle':
      return atRest(children, contestant, options, settings, async ({ pid }) => {
        const [cpu, begin] = [cpuNanoseconds(pid), performance.now()];
        await sleep(settings.idleSeconds * 1000);
        return { value: (cpuNanoseconds(pid) - cpu) / 1e4 / (performance.now() - begin) };
      });
    case 'api': {
      const api = children.newSocketPath();
      return withMachine(children, contestant, { ...options, api }, async ({ serial }) => {
        await serial.line('end');
        await awaitApi(api);
        const { seconds, warmupSeconds } = settings;
        const { p50Us, p99Us } = await measureLatency(api, task.route, task.keepAlive, seconds, warmupSeconds);
        return { value: p99Us / 1000, p50Us, p99Us };
      });
    }
    case 'exit':
      return { value: 1e6 / (await timeCount(children, contestant, options, settings)) };
    case 'read':
      return withDisk(children, settings, DAEMON_CPU, async ({ socket }) => ({
        value: await timeCount(children, contestant, machineOptions(task, settings, socket), settings),
      }));
  }
}

/** One run, watched for what other processes took meanwhile. */
export async function runTask(
  children: Children,
  contestant: Contestant,
  task: VmTask,
  settings: TaskSettings,
): Promise<Run> {
  const foreignCpu = watchForeignCpu();
  const measured = await measure(children, contestant, task, settings);
  return { ...measured, foreignCpu: foreignCpu() };
}

/** For the report. */
export function commandOf(contestant: Contestant, task: VmTask, settings: TaskSettings): string {
  const disk = task.kind === 'read' || (task.kind === 'start' && task.disk === 'socket') ? 'SOCKET' : undefined;
  const options = machineOptions(task, { ...settings, kernel: 'GUEST', image: 'IMAGE' }, disk);
  const api = task.kind === 'memory' || task.kind === 'idle' || task.kind === 'api' ? { api: 'API' } : {};
  const words = monitorLine(contestant, { ...options, ...api });
  return words.map((word) => (word === process.execPath ? 'node' : word.includes(' ') ? `"${word}"` : word)).join(' ');
}
