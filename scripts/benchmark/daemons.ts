/** The back ends under test as child processes: their command lines, when they listen, what they occupy, how they stop. */
import type { ChildProcess } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Children, CommandError, collectOutput } from './children.ts';

export type DaemonKind = 'ringside' | 'ringside-null' | 'qemu-storage-daemon';

export interface DaemonOptions {
  kind: DaemonKind;
  image: string;
  direct: boolean;
  /** The core it is pinned to; undefined: the scheduler's choice. */
  cpu: number | undefined;
  /** Further options of our daemon. */
  extra: readonly string[];
}

export interface Daemon {
  pid: number;
  socket: string;
  /** From exec to a listening socket. */
  startMs: number;
  stop(): Promise<void>;
}

const START_TIMEOUT_MS = 10_000;
const STOP_TIMEOUT_MS = 5_000;
export const OUR_DAEMON = path.join('dist', 'backends', 'blk', 'main.js');

export function commandLine(options: DaemonOptions, socket: string): string[] {
  if (options.kind === 'qemu-storage-daemon') {
    const direct = options.direct ? ',cache.direct=on' : '';
    return [
      'qemu-storage-daemon',
      '--blockdev',
      `driver=file,node-name=file0,filename=${options.image},aio=io_uring,discard=unmap${direct}`,
      '--export',
      `type=vhost-user-blk,id=export0,node-name=file0,addr.type=unix,addr.path=${socket},writable=on`,
    ];
  }
  const command = [process.execPath, OUR_DAEMON, `--socket-path=${socket}`, `--blk-file=${options.image}`];
  if (options.kind === 'ringside-null') command.push('--engine=null');
  if (options.direct) command.push('--direct');
  return [...command, ...options.extra];
}

export function isOurDaemonBuilt(): boolean {
  return existsSync(OUR_DAEMON);
}

/** Flags column of /proc/net/unix, __SO_ACCEPTCON: looking there, unlike connecting, does not wake the daemon. */
function isListening(socket: string): boolean {
  return readFileSync('/proc/net/unix', 'utf8')
    .split('\n')
    .some((line) => line.endsWith(` ${socket}`) && line.split(/\s+/)[3] === '00010000');
}

let socketCount = 0;

/**
 * Starts a daemon and waits until it listens.
 * @throws COMMAND_FAILED - it ended, or does not listen within 10 s
 */
export async function startDaemon(children: Children, options: DaemonOptions): Promise<Daemon> {
  const socket = path.join(children.socketFolder, `${socketCount++}.sock`);
  const line = commandLine(options, socket);
  if (options.cpu !== undefined) line.unshift('taskset', '-c', String(options.cpu));
  const [command = '', ...args] = line;
  const begin = performance.now();
  const child = children.start(command, args);
  const output = collectOutput(child);
  let failure: string | undefined;
  child.once('error', (error) => {
    failure = error.message;
  });
  while (!isListening(socket)) {
    await sleep(1);
    if (failure === undefined && child.exitCode === null && child.signalCode === null) {
      if (performance.now() - begin < START_TIMEOUT_MS) continue;
      failure = `does not listen after ${START_TIMEOUT_MS} ms`;
      child.kill('SIGKILL');
    }
    throw new CommandError(`${options.kind}: ${failure ?? 'ended at once'}\n${output.stderr}${output.stdout}`);
  }
  const startMs = performance.now() - begin;
  if (child.pid === undefined) throw new CommandError(`${options.kind}: no process`);
  return { pid: child.pid, socket, startMs, stop: () => stopChild(child) };
}

async function stopChild(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const closed = new Promise<void>((resolve) => child.once('close', () => resolve()));
  child.kill('SIGTERM');
  const timer = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS);
  await closed;
  clearTimeout(timer);
}

/** Resident memory in bytes, shared pages included. */
export function residentBytes(pid: number): number {
  const match = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
  if (match === null) throw new CommandError(`/proc/${pid}/status has no VmRSS`);
  return Number(match[1]) * 1024;
}
