/** One timed run of each kind: a guest that moves, one whose writes are noted, one that goes to files and back. */
import { randomBytes } from 'node:crypto';
import { rmSync, statSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { createServer } from 'node:net';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Children, CommandError } from '../children.ts';
import { watchForeignCpu } from '../foreign.ts';
import type { Run } from '../results.ts';
import { longestSilence, rateOf, type Work } from './guest.ts';
import { listenBetween } from './late-answers.ts';
import { type GuestOptions, MEGA, type Moved, type Pair, type Place } from './moves.ts';
import { OurMonitor, withOurPair } from './ours.ts';
import { Qemu, withQemuPair } from './qemu.ts';
import {
  type Load,
  type LogWorkload,
  MOVERS,
  type Monitor,
  type Mover,
  type MoveWorkload,
  type SnapshotWorkload,
} from './workloads.ts';

export interface TaskSettings {
  kernel: string;
  image: string;
  /** For what takes room: files of data, snapshots. */
  folder: string;
  /** A guest is watched for so long before it moves, and in each half of a comparison. */
  seconds: number;
}

export interface MoveRun extends Run, Moved {
  /** What the guest wrote before, in pages a second. */
  pagesPerSecond: number;
  /** The longest time in which nothing was heard of the guest: before, and while it moved. */
  silenceBeforeMs: number;
  silenceMs: number;
}

/** What a guest did a second, with the log on and without. */
export interface LogRun extends Run {
  logged: number;
  unlogged: number;
}

export interface SnapshotRun extends Run {
  saveMs: number;
  restoreMs: number;
  /** On the disk. */
  megabytes: number;
}

const MIB = 2 ** 20;
/** What is looked at after the end of a migration: the guest has to be heard of again. */
const AFTERWARDS_MS = 500;
/** Rounds that a migration has at most, and how many of them are measured at most. */
const MEASURED_ROUNDS = 30;
const SHORTEST_ROUND_MS = 100;
const SECOND_ROUND_TIMEOUT_MS = 30_000;
const SAVE_TIMEOUT_MS = 60_000;

export function guestOptions(load: Load, settings: TaskSettings): GuestOptions {
  const { kernel, image, folder } = settings;
  return { kernel, load, image, data: load.dataMib === 0 ? undefined : path.join(folder, `data-${load.dataMib}`) };
}

/** Writes what a load has in memory: random, because zeros are not sent. */
export async function writeData(load: Load, settings: TaskSettings): Promise<void> {
  const { data } = guestOptions(load, settings);
  if (data === undefined) return;
  const file = await open(data, 'w');
  try {
    for (let mib = 0; mib < load.dataMib; mib++) await file.write(randomBytes(MIB));
  } finally {
    await file.close();
  }
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === 'string') throw new CommandError('127.0.0.1 has no free port');
  return address.port;
}

/** A guest that is watched, moves, and is watched again. */
async function watchMove(pair: Pair, place: Place, workload: MoveWorkload, settings: TaskSettings) {
  const [from, to] = await pair.source.workFor(settings.seconds);
  const begin = performance.now();
  const moved = await pair.move(place, workload.downtimeMs, workload.giveUpMs);
  const end = performance.now() + AFTERWARDS_MS;
  await (moved.isMoved ? pair.destination : pair.source).work();
  await sleep(Math.max(0, end - performance.now()));
  const signs = [...pair.source.times, ...pair.destination.times].toSorted((a, b) => a - b);
  return {
    ...moved,
    value: moved.totalMs,
    pagesPerSecond: rateOf(from, to, 'pages'),
    silenceBeforeMs: longestSilence(signs, begin - settings.seconds * 1000, begin),
    silenceMs: longestSilence(signs, begin, end),
  };
}

export async function runMove(
  children: Children,
  workload: MoveWorkload,
  mover: Mover,
  settings: TaskSettings,
): Promise<MoveRun> {
  const { monitor, transport, isLocal = false } = MOVERS[mover];
  const url = transport === 'unix' ? `unix:${children.newSocketPath()}` : `tcp:127.0.0.1:${await freePort()}`;
  const options = guestOptions(workload.load, settings);
  const foreignCpu = watchForeignCpu();
  const use = (pair: Pair) => watchMove(pair, { url, isLocal }, workload, settings);
  const run = monitor === 'ringside' ? withOurPair(children, options, use) : withQemuPair(children, options, url, use);
  return { ...(await run), foreignCpu: foreignCpu() };
}

/** Runs `use` while a migration of the first monitor's guest goes through memory again and again. */
async function whileLogged<T>(
  children: Children,
  [source, destination]: readonly [OurMonitor, OurMonitor],
  roundMs: number,
  use: () => Promise<T>,
): Promise<T> {
  const [near, far] = [children.newSocketPath(), children.newSocketPath()];
  const { done } = await destination.receive(`unix:${far}`);
  const end = await listenBetween(near, far, roundMs);
  try {
    // Nothing that is left to send can be sent within half a millisecond: it goes on.
    const order = { destination_url: `unix:${near}`, downtime_ms: 1, auto_converge: false };
    const sent = source.put('vm.send-migration', order);
    const deadline = performance.now() + SECOND_ROUND_TIMEOUT_MS;
    while (((await source.progress())?.round ?? 0) < 2) {
      if (performance.now() > deadline) throw new CommandError('the migration has no second round');
      await sleep(5);
    }
    const result = await use();
    if ((await source.progress())?.phase !== 'memory') {
      throw new CommandError(`the migration ended while it was watched: ${(await sent).text}`);
    }
    await source.order('vm.cancel-migration');
    await Promise.all([sent, done]);
    return result;
  } finally {
    end();
  }
}

export async function runLogged(children: Children, workload: LogWorkload, settings: TaskSettings): Promise<LogRun> {
  const { seconds } = settings;
  const roundMs = Math.max(SHORTEST_ROUND_MS, Math.ceil((seconds * 1000) / MEASURED_ROUNDS));
  const foreignCpu = watchForeignCpu();
  const rate = ([from, to]: readonly [Work, Work]) => rateOf(from, to, workload.counts);
  const options = guestOptions(workload.load, settings);
  const { logged, unlogged } = await withOurPair(children, options, async ({ source }, monitors) => {
    const before = rate(await source.workFor(seconds / 2));
    const logged = await whileLogged(children, monitors, roundMs, async () => rate(await source.workFor(seconds)));
    const after = rate(await source.workFor(seconds / 2));
    return { logged, unlogged: (before + after) / 2 };
  });
  return { value: logged / unlogged, logged, unlogged, foreignCpu: foreignCpu() };
}

/** How long something takes, in milliseconds. */
async function time(action: () => Promise<unknown>): Promise<number> {
  const begin = performance.now();
  await action();
  return performance.now() - begin;
}

function megabytesOf(files: readonly string[]): number {
  return files.reduce((sum, file) => sum + statSync(file).blocks * 512, 0) / MEGA;
}

async function snapshotOurs(children: Children, options: GuestOptions, folder: string) {
  const monitors = [await OurMonitor.start(children), await OurMonitor.start(children)] as const;
  const [first, second] = monitors;
  const url = `file://${folder}`;
  try {
    await first.boot(options);
    await first.order('vm.pause');
    const saveMs = await time(() => first.order('vm.snapshot', { destination_url: url }));
    const megabytes = megabytesOf(
      ['memory-ranges', 'state.json', 'config.json'].map((name) => path.join(folder, name)),
    );
    await first.stop();
    const restoreMs = await time(() => second.order('vm.restore', { source_url: url, resume: true }));
    await second.signs.work();
    return { saveMs, restoreMs, megabytes };
  } finally {
    await Promise.all(monitors.map((monitor) => monitor.stop()));
  }
}

async function snapshotQemu(children: Children, options: GuestOptions, folder: string) {
  const file = path.join(folder, 'qemu');
  const monitors: Qemu[] = [];
  try {
    const first = await Qemu.start(children, options);
    monitors.push(first);
    await first.signs.work();
    await first.command('stop');
    const { totalMs: saveMs, isMoved } = await first.migrate(`file:${file}`, SAVE_TIMEOUT_MS, SAVE_TIMEOUT_MS);
    if (!isMoved) throw new CommandError(`QEMU does not write ${file} within ${SAVE_TIMEOUT_MS} ms`);
    const second = await Qemu.start(children, options, ['-incoming', 'defer']);
    monitors.push(second);
    const restoreMs = await time(async () => {
      await second.command('migrate-incoming', { uri: `file:${file}` });
      await second.ended();
      await second.command('cont');
    });
    await second.signs.work();
    return { saveMs, restoreMs, megabytes: megabytesOf([file]) };
  } finally {
    await Promise.all(monitors.map((monitor) => monitor.stop()));
  }
}

export async function runSnapshot(
  children: Children,
  workload: SnapshotWorkload,
  monitor: Monitor,
  settings: TaskSettings,
): Promise<SnapshotRun> {
  const options = guestOptions(workload.load, settings);
  const folder = children.makeFolder(settings.folder);
  const foreignCpu = watchForeignCpu();
  try {
    const run =
      monitor === 'ringside'
        ? await snapshotOurs(children, options, folder)
        : await snapshotQemu(children, options, folder);
    return { ...run, value: run.saveMs, foreignCpu: foreignCpu() };
  } finally {
    rmSync(folder, { recursive: true });
  }
}
