/** The two load generators: blkio-load (libblkio, against a vhost-user socket) and fio (on the file itself, for the limit). */
import { existsSync } from 'node:fs';
import path from 'node:path';
import { type Children, CommandError } from '../children.ts';
import { buildProgram, PROGRAM_FOLDER } from '../programs.ts';
import type { Run } from '../results.ts';
import type { BlkWorkload } from './workloads.ts';

export interface LoadOptions {
  seconds: number;
  warmupSeconds: number;
  cpu: number;
  poll: boolean;
}

interface BlkioOutput {
  ios: number;
  elapsedNs: number;
  iops: number;
  bytesPerSecond: number;
  backendCpuNs: number;
  clientCpuNs: number;
  machineCpuNs: number;
  stolenNs: number;
  latencyNs: { p50: number; p99: number };
}

interface FioOutput {
  jobs: { read: FioDirection; write: FioDirection }[];
}

interface FioDirection {
  total_ios: number;
  iops: number;
  bw_bytes: number;
}

const LIBBLKIO = path.join('.cache', 'peers', 'libblkio', 'usr');

/** libblkio's virtio-blk driver does not use indirect descriptors: a request takes three, and the default ring has 256. */
const DESCRIPTORS_PER_REQUEST = 3;
const DEFAULT_QUEUE_SIZE = 256;

/**
 * Compiles blkio-load where it is older than its source.
 * @returns the path of the program
 * @throws COMMAND_FAILED - libblkio is not unpacked, or gcc failed
 */
export async function buildBlkioLoad(children: Children): Promise<string> {
  if (!existsSync(path.join(LIBBLKIO, 'include', 'blkio.h'))) {
    throw new CommandError(`${LIBBLKIO} is not there; scripts/setup --peers unpacks libblkio`);
  }
  const { stdout } = await children.run('gcc', ['-print-multiarch']);
  const libraries = path.resolve(LIBBLKIO, 'lib', stdout.trim());
  const include = `-I${path.join(LIBBLKIO, 'include')}`;
  // Relative to the program: the folder of the checkout may be moved.
  const rpath = `-Wl,-rpath,$ORIGIN/${path.relative(PROGRAM_FOLDER, libraries)}`;
  return buildProgram(
    children,
    path.join('blk', 'blkio-load.c'),
    ['latency-histogram.h'],
    [include, `-L${libraries}`, '-lblkio', rpath],
  );
}

export function queueSizeFor(depth: number): number {
  let size = DEFAULT_QUEUE_SIZE;
  while (size < depth * DESCRIPTORS_PER_REQUEST) size *= 2;
  return size;
}

export function blkioArguments(workload: BlkWorkload, options: LoadOptions): string[] {
  return [
    `--rw=${workload.readWrite}`,
    `--bs=${workload.blockBytes}`,
    `--qd=${workload.depth}`,
    `--queue-size=${queueSizeFor(workload.depth)}`,
    `--seconds=${options.seconds}`,
    `--warmup=${options.warmupSeconds}`,
    `--cpu=${options.cpu}`,
    ...(workload.rate > 0 ? [`--rate=${workload.rate}`] : []),
    ...(options.poll ? ['--poll'] : []),
  ];
}

export async function runBlkio(
  children: Children,
  program: string,
  backend: { socket: string; pid: number },
  args: readonly string[],
  unit: BlkWorkload['unit'],
): Promise<Run> {
  const { stdout } = await children.run(program, [
    `--socket=${backend.socket}`,
    `--backend-pid=${backend.pid}`,
    ...args,
  ]);
  const result: BlkioOutput = JSON.parse(stdout);
  const foreignNs = result.machineCpuNs - result.backendCpuNs - result.clientCpuNs + result.stolenNs;
  return {
    value: unit === 'iops' ? result.iops : result.backendCpuNs / result.ios / 1000,
    bytesPerSecond: result.bytesPerSecond,
    p50Us: result.latencyNs.p50 / 1000,
    p99Us: result.latencyNs.p99 / 1000,
    foreignCpu: Math.max(0, foreignNs / result.elapsedNs),
  };
}

/** CPU share of a daemon that has a front end attached and nothing to do, measured after it had time to settle. */
export async function measureIdleCpu(
  children: Children,
  program: string,
  backend: { socket: string; pid: number },
  seconds: number,
  settleSeconds: number,
): Promise<number> {
  const args = [
    `--socket=${backend.socket}`,
    `--backend-pid=${backend.pid}`,
    '--idle',
    `--warmup=${settleSeconds}`,
    `--seconds=${seconds}`,
  ];
  const { stdout } = await children.run(program, args);
  const result: BlkioOutput = JSON.parse(stdout);
  return (100 * result.backendCpuNs) / result.elapsedNs;
}

/** The file itself through fio's io_uring engine at its best: registered file and buffers, no bookkeeping of fio's own. */
export function fioArguments(workload: BlkWorkload, image: string, options: LoadOptions): string[] {
  return [
    '--name=limit',
    // One process: a job that fio forks would outlive it when it is killed.
    '--thread',
    `--filename=${image}`,
    `--rw=${workload.readWrite}`,
    `--bs=${workload.blockBytes}`,
    `--iodepth=${workload.depth}`,
    `--direct=${workload.direct ? 1 : 0}`,
    '--ioengine=io_uring',
    '--registerfiles',
    '--fixedbufs',
    '--norandommap',
    '--randrepeat=0',
    '--gtod_reduce=1',
    '--invalidate=0',
    '--overwrite=1',
    '--time_based',
    `--runtime=${options.seconds}`,
    `--ramp_time=${options.warmupSeconds}`,
    `--cpus_allowed=${options.cpu}`,
    '--output-format=json',
  ];
}

export async function runFio(children: Children, args: readonly string[]): Promise<Run> {
  const { stdout } = await children.run('fio', args);
  const output: FioOutput = JSON.parse(stdout.slice(stdout.indexOf('{')));
  const job = output.jobs[0];
  if (job === undefined) throw new CommandError('fio reported no job');
  const direction = job.read.total_ios > 0 ? job.read : job.write;
  return { value: direction.iops, bytesPerSecond: direction.bw_bytes, foreignCpu: 0 };
}

/**
 * Writes the image, really allocated, and leaves it in the page cache. The size of the writes decides the size of the folios that
 * ext4 and xfs of recent kernels keep it in, and that decides the cost of 4 KiB writes (see docs/benchmarks.md).
 */
export async function writeImage(children: Children, image: string, bytes: number, writeBytes: number): Promise<void> {
  const size = [`--size=${bytes}`, `--bs=${writeBytes}`];
  await children.run('fio', [
    '--name=image',
    `--filename=${image}`,
    '--rw=write',
    '--ioengine=psync',
    '--thread',
    ...size,
    '--end_fsync=1',
  ]);
}
