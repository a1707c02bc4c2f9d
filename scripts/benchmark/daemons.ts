/** Back ends under test as child processes: when they listen, what they occupy, how they stop. */
import type { ChildProcess } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Children, CommandError, collectOutput } from './children.ts';

export interface Daemon {
  pid: number;
  socket: string;
  /** From exec to a listening socket. */
  startMs: number;
  stop(): Promise<void>;
}

export interface DaemonStart {
  /** For error messages. */
  name: string;
  /** Command and arguments. */
  line: readonly string[];
  /** Where it will listen. */
  socket: string;
  /** Folder of the network namespace's tables that it listens in; /proc/net is ours. */
  procNet?: string;
}

const START_TIMEOUT_MS = 10_000;
const STOP_TIMEOUT_MS = 5_000;

/** Flags column of /proc/net/unix, __SO_ACCEPTCON: looking there, unlike connecting, does not wake the daemon. */
function isListening(socket: string, procNet: string): boolean {
  return readFileSync(`${procNet}/unix`, 'utf8')
    .split('\n')
    .some((line) => line.endsWith(` ${socket}`) && line.split(/\s+/)[3] === '00010000');
}

/**
 * Starts a daemon and waits until it listens.
 * @throws COMMAND_FAILED - it ended, or does not listen within 10 s
 */
export async function startDaemon(children: Children, start: DaemonStart): Promise<Daemon> {
  const { name, line, socket, procNet = '/proc/net' } = start;
  const [command = '', ...args] = line;
  const begin = performance.now();
  const child = children.start(command, args);
  const output = collectOutput(child);
  let failure: string | undefined;
  child.once('error', (error) => {
    failure = error.message;
  });
  while (!isListening(socket, procNet)) {
    await sleep(1);
    if (failure === undefined && !hasEnded(child)) {
      if (performance.now() - begin < START_TIMEOUT_MS) continue;
      failure = `does not listen after ${START_TIMEOUT_MS} ms`;
      child.kill('SIGKILL');
    }
    throw new CommandError(`${name}: ${failure ?? 'ended at once'}\n${output.stderr}${output.stdout}`);
  }
  const startMs = performance.now() - begin;
  if (child.pid === undefined) throw new CommandError(`${name}: no process`);
  return { pid: child.pid, socket, startMs, stop: () => stopChild(child) };
}

export function hasEnded(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null;
}

/** Asks a child to end by a signal, and kills it when it does not. */
export async function stopChild(child: ChildProcess, signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
  if (hasEnded(child)) return;
  const closed = new Promise<void>((resolve) => child.once('close', () => resolve()));
  child.kill(signal);
  const timer = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS);
  await closed;
  clearTimeout(timer);
}

/** Resident memory in megabytes, shared pages included. */
export function residentMegabytes(pid: number): number {
  const match = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
  if (match === null) throw new CommandError(`/proc/${pid}/status has no VmRSS`);
  return Number(match[1]) / 1024;
}

/** CPU time of all threads of a process, in nanoseconds. */
export function cpuNanoseconds(pid: number): number {
  const threads = readdirSync(`/proc/${pid}/task`);
  const times = threads.map((thread) => readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ')[0]);
  return times.reduce((sum, time) => sum + Number(time), 0);
}
