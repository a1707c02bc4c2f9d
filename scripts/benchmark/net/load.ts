/** One timed run of one contestant, in a network namespace of its own. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Children, Finished } from '../children.ts';
import type { Daemon } from '../daemons.ts';
import { watchForeignCpu } from '../foreign.ts';
import { buildProgram } from '../programs.ts';
import type { Run } from '../results.ts';
import { BACK_END_CPU, type BackEnd, backEndLine, FRONT_END_CPU, startBackEnd } from './backends.ts';
import { type Counters, INTERFACE, inNamespace, type Namespace } from './namespace.ts';
import { clientLine, guestLine, isTcp, startGuest, transfer } from './tcp.ts';
import { type ForwardMode, FrontEnd, type Period, testpmdFrontEndLine } from './testpmd.ts';
import type { Contestant, NetWorkload } from './workloads.ts';

export interface Programs {
  tapLoad: string;
  packetLoad: string;
  tapGuest: string;
}

export interface LoadSettings {
  programs: Programs;
  seconds: number;
  /** For back ends; the loops in C need none but get half a second. */
  warmupSeconds: number;
  pings: number;
  /** Options for our daemon. */
  daemonOptions: readonly string[];
}

const LOOP_WARMUP_SECONDS = 0.5;
const PING_INTERVAL_US = 1000;
const FRONT_END_CORES = { main: BACK_END_CPU, polling: FRONT_END_CPU };

/** @throws COMMAND_FAILED - gcc failed */
export async function buildPrograms(children: Children): Promise<Programs> {
  const headers = ['net/frames.h', 'net/tap.h', 'net/vhost-guest.h', 'latency-histogram.h'];
  return {
    tapLoad: await buildProgram(children, 'net/tap-load.c', headers),
    packetLoad: await buildProgram(children, 'net/packet-load.c', headers),
    tapGuest: await buildProgram(children, 'net/tap-guest.c', headers),
  };
}

type Loop = 'write' | 'uring' | 'read' | 'echo';

const LOOPS: Partial<Record<Contestant, Loop>> = {
  'write loop': 'write',
  'io_uring loop': 'uring',
  'read loop': 'read',
  'echo loop': 'echo',
};

function loopLine(program: string, loop: Loop, frameBytes: number): string[] {
  const isWriter = loop === 'write' || loop === 'uring';
  return [program, loop, INTERFACE, ...(isWriter ? sizeArguments(frameBytes) : [])];
}

/** Frames above the MTU are to be segmented. */
function sizeArguments(frameBytes: number): string[] {
  return [String(frameBytes), frameBytes > 1514 ? 'gso' : 'udp'];
}

/** Runs `use` with a back end that listens in the namespace. */
export async function withBackEnd<T>(
  children: Children,
  namespace: Namespace,
  backEnd: BackEnd,
  options: { cpu: number | undefined; extra: readonly string[] },
  use: (daemon: Daemon) => Promise<T>,
): Promise<T> {
  const daemon = await startBackEnd(children, namespace, backEnd, options);
  try {
    return await use(daemon);
  } finally {
    await daemon.stop();
  }
}

function perSecond(before: Counters, after: Counters, what: Exclude<keyof Counters, 'atMs'>): number {
  return ((after[what] - before[what]) * 1000) / (after.atMs - before.atMs);
}

/** Frames that the kernel got from the TAP's other side, or gave to it: the same meter for a loop and for a back end. */
async function countAtTap(
  namespace: Namespace,
  workload: NetWorkload,
  options: { seconds: number; warmupSeconds: number },
): Promise<Run> {
  const [packets, bytes] =
    workload.kind === 'transmit' ? (['received', 'receivedBytes'] as const) : (['sent', 'sentBytes'] as const);
  await namespace.waitUntil('traffic on the TAP', () => namespace.counters()[packets] > 1000);
  await sleep(options.warmupSeconds * 1000);
  const foreign = watchForeignCpu();
  const before = namespace.counters();
  await sleep(options.seconds * 1000);
  const after = namespace.counters();
  const foreignCpu = foreign();
  const bytesPerSecond = perSecond(before, after, bytes);
  return {
    value: workload.unit === 'bits' ? bytesPerSecond * 8 : perSecond(before, after, packets),
    bytesPerSecond,
    foreignCpu,
  };
}

/** Frames that a device without a TAP took, by testpmd's count, second by second. */
async function countAtTestpmd(frontEnd: FrontEnd, settings: LoadSettings): Promise<Run> {
  const measured = Math.ceil(settings.seconds);
  // The period in which it begins is a part of one.
  const warmup = Math.ceil(settings.warmupSeconds) + 1;
  const running = (periods: readonly Period[]) => periods.slice(periods.findIndex((period) => period.packets > 0));
  await frontEnd.periods((periods) => running(periods).length >= warmup);
  const foreign = watchForeignCpu();
  const all = await frontEnd.periods((periods) => running(periods).length >= warmup + measured);
  const foreignCpu = foreign();
  const taken = running(all).slice(warmup, warmup + measured);
  const mean = (of: (period: Period) => number) => taken.reduce((sum, period) => sum + of(period), 0) / taken.length;
  return { value: mean((period) => period.packets), bytesPerSecond: mean((period) => period.bits) / 8, foreignCpu };
}

/** Starts packet-load; with a socket it is the guest of the back end there, too. */
function startGenerator(
  namespace: Namespace,
  workload: NetWorkload,
  settings: LoadSettings,
  socket?: string,
): Finished {
  return namespace.start(generatorLine(settings.programs.packetLoad, workload, socket), { cpu: FRONT_END_CPU }).output;
}

function generatorLine(program: string, workload: NetWorkload, socket?: string): string[] {
  return [program, 'send', INTERFACE, ...sizeArguments(workload.frameBytes), ...(socket === undefined ? [] : [socket])];
}

interface Report {
  ns: number;
  frames: number;
  bytes: number;
}

/** Complete lines of packet-load's reports. */
export function parseReports(output: string): Report[] {
  const lines = output.slice(0, output.lastIndexOf('\n') + 1).split('\n');
  return lines.filter((line) => line !== '').map((line) => JSON.parse(line));
}

/** Frames that came to packet-load's guest. */
async function countAtGuest(
  namespace: Namespace,
  workload: NetWorkload,
  output: Finished,
  settings: LoadSettings,
): Promise<Run> {
  const last = () => parseReports(output.stdout).at(-1) ?? { ns: 0, frames: 0, bytes: 0 };
  await namespace.waitUntil('frames in the guest', () => last().frames > 0);
  await sleep(settings.warmupSeconds * 1000);
  const foreign = watchForeignCpu();
  const before = last();
  await sleep(settings.seconds * 1000);
  const after = last();
  const rate = (what: 'frames' | 'bytes') => ((after[what] - before[what]) * 1e9) / (after.ns - before.ns);
  return {
    value: workload.unit === 'bits' ? rate('bytes') * 8 : rate('frames'),
    bytesPerSecond: rate('bytes'),
    foreignCpu: foreign(),
  };
}

/** The core of the one that sends pings is that of the one who answers: a wake-up across cores costs 80 us on a virtual machine. */
async function ping(namespace: Namespace, { programs, pings }: LoadSettings): Promise<Run> {
  const foreign = watchForeignCpu();
  const line = [programs.packetLoad, 'ping', INTERFACE, String(pings), String(PING_INTERVAL_US)];
  const { stdout } = await namespace.run(line, BACK_END_CPU);
  const { latencyNs }: { latencyNs: { p50: number; p99: number } } = JSON.parse(stdout);
  const [p50Us, p99Us] = [latencyNs.p50 / 1000, latencyNs.p99 / 1000];
  return { value: p50Us, p50Us, p99Us, foreignCpu: foreign() };
}

async function runLoop(namespace: Namespace, workload: NetWorkload, loop: Loop, settings: LoadSettings): Promise<Run> {
  namespace.start(loopLine(settings.programs.tapLoad, loop, workload.frameBytes), { cpu: BACK_END_CPU });
  await namespace.waitUntil('the TAP of the loop', () => namespace.hasInterface());
  if (loop === 'echo') return ping(namespace, settings);
  // Up when the program has set it so.
  await sleep(100);
  if (loop === 'read') startGenerator(namespace, workload, settings);
  return countAtTap(namespace, workload, { seconds: settings.seconds, warmupSeconds: LOOP_WARMUP_SECONDS });
}

const MODES: Partial<Record<NetWorkload['kind'], ForwardMode>> = { transmit: 'txonly', ping: 'icmpecho' };

function testpmdLine(workload: NetWorkload, mode: ForwardMode, socket: string): string[] {
  return testpmdFrontEndLine(socket, mode, workload.frameBytes, FRONT_END_CORES);
}

async function runBackEnd(
  children: Children,
  namespace: Namespace,
  workload: NetWorkload,
  backEnd: BackEnd,
  socket: string,
  settings: LoadSettings,
): Promise<Run> {
  if (isTcp(workload)) {
    return inNamespace(children, async (guest) => {
      await startGuest(guest, guestLine(settings.programs.tapGuest, socket), backEnd);
      return transfer(namespace, guest, workload.kind, settings.seconds);
    });
  }
  const mode = MODES[workload.kind];
  if (mode === undefined) {
    const output = startGenerator(namespace, workload, settings, socket);
    return countAtGuest(namespace, workload, output, settings);
  }
  const frontEnd = new FrontEnd(namespace, testpmdLine(workload, mode, socket));
  if (backEnd === 'ringside-null') return countAtTestpmd(frontEnd, settings);
  if (mode === 'txonly') return countAtTap(namespace, workload, settings);
  await frontEnd.waitUntilStarted();
  return ping(namespace, settings);
}

export function runOnce(
  children: Children,
  workload: NetWorkload,
  contestant: Contestant,
  settings: LoadSettings,
): Promise<Run> {
  return inNamespace(children, (namespace) => {
    const loop = LOOPS[contestant];
    if (loop !== undefined) return runLoop(namespace, workload, loop, settings);
    const backEnd = contestant as BackEnd;
    const options = { cpu: BACK_END_CPU, extra: settings.daemonOptions };
    return withBackEnd(children, namespace, backEnd, options, ({ socket }) =>
      runBackEnd(children, namespace, workload, backEnd, socket, settings),
    );
  });
}

/** What is run for a contestant, for the report. */
export function commandsOf(workload: NetWorkload, contestant: Contestant, settings: LoadSettings): string[] {
  const loop = LOOPS[contestant];
  if (loop !== undefined) return [loopLine('tap-load', loop, workload.frameBytes).join(' ')];
  const backEnd = backEndLine(contestant as BackEnd, 'SOCKET', settings.daemonOptions);
  return [backEnd, ...frontEndLines(workload, settings)].map((line) => line.join(' '));
}

function frontEndLines(workload: NetWorkload, { seconds }: LoadSettings): string[][] {
  if (isTcp(workload)) return [guestLine('tap-guest', 'SOCKET'), clientLine(workload.kind, seconds)];
  const mode = MODES[workload.kind];
  return [
    mode === undefined ? generatorLine('packet-load', workload, 'SOCKET') : testpmdLine(workload, mode, 'SOCKET'),
  ];
}
