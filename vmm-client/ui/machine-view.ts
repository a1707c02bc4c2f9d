/** From what a VMM answered to what the page shows of it: loads and rates by differences, and what matters most. Pure. */

import type { DeviceReport, QueueReport } from '../vmm/queues/queue-report.ts';
import type { ExitCounts, InfoAnswer, ProgressAnswer, QueuesAnswer } from './answers.ts';
import type { Action, MachineView, Severity, VcpuView } from './page/model.ts';
import { formatCount, formatDuration } from './page/words.ts';

/** One round of questions to a VMM, as far as it answered. */
export interface Round {
  /** When the answers came, in milliseconds that only grow. */
  readonly atMs: number;
  /** Undefined where the VMM has no machine. */
  readonly info: InfoAnswer | undefined;
  /** These three are undefined where the machine does not run, or the VMM does not know the question. */
  readonly queues: QueuesAnswer | undefined;
  readonly exits: ExitCounts | undefined;
  readonly progress: ProgressAnswer | null;
}

/** Below this a vCPU is not worth a word. */
const BUSY_LOAD = 0.5;
const MAX_REASONS = 4;

function viewVcpus(round: Round, before: Round | undefined): VcpuView[] {
  const indexes = new Set([
    ...Array.from({ length: round.info?.vcpus ?? 0 }, (_, index) => index),
    ...(round.queues?.vcpus.map(({ index }) => index) ?? []),
  ]);
  return [...indexes].map((index) => ({
    index,
    load: loadOf(index, round.queues, before?.queues),
    exits: exitRates(index, round, before),
  }));
}

function loadOf(index: number, now: QueuesAnswer | undefined, before: QueuesAnswer | undefined): number | null {
  const cpuMs = now?.vcpus.find((each) => each.index === index)?.cpuMs;
  const last = before?.vcpus.find((each) => each.index === index)?.cpuMs;
  if (now === undefined || before === undefined || cpuMs === undefined || last === undefined) return null;
  const spanMs = now.atMs - before.atMs;
  // A thread of after a reset has used less than the one before.
  if (spanMs <= 0 || cpuMs < last) return null;
  return Math.min(1, (cpuMs - last) / spanMs);
}

function exitRates(index: number, round: Round, before: Round | undefined): VcpuView['exits'] {
  const counts = round.exits?.get(index);
  const last = before?.exits?.get(index);
  const spanMs = round.atMs - (before?.atMs ?? round.atMs);
  if (counts === undefined || last === undefined || spanMs <= 0) return [];
  return [...counts]
    .map(([reason, count]) => ({ reason, rate: ((count - (last.get(reason) ?? 0)) * 1000) / spanMs }))
    .filter(({ rate }) => rate > 0)
    .sort((a, b) => b.rate - a.rate)
    .slice(0, MAX_REASONS);
}

interface Verdict {
  readonly severity: Severity;
  readonly headline: string;
}

const nameOf = (device: DeviceReport, queue: QueueReport): string => `${device.id} ${queue.name}`;

/** What is wrong about a device; undefined where nothing is. */
function judgeDevice(device: DeviceReport): Verdict | undefined {
  if (device.backend === 'away') return { severity: 'bad', headline: `the back end of ${device.id} is away` };
  if (device.status === 'needs reset') return { severity: 'bad', headline: `${device.id} needs a reset` };
  if (device.status === 'failed') return { severity: 'bad', headline: `the driver has given ${device.id} up` };
  for (const state of ['stuck', 'waiting'] as const) {
    const queue = worst(device.queues.filter((each) => each.state === state));
    if (queue === undefined) continue;
    const requests = queue.in_flight === 1 ? '1 request waits' : `${formatCount(queue.in_flight)} requests wait`;
    const since = formatDuration(queue.waiting_ms);
    if (state === 'stuck')
      return { severity: 'bad', headline: `stuck for ${since}: ${nameOf(device, queue)}, ${requests}` };
    if (queue.waiting_ms > 0)
      return { severity: 'slow', headline: `waiting for ${since}: ${nameOf(device, queue)}, ${requests}` };
  }
  return undefined;
}

function worst(queues: readonly QueueReport[]): QueueReport | undefined {
  return [...queues].sort((a, b) => b.waiting_ms - a.waiting_ms)[0];
}

/** The busiest queue of all. */
function busiest(devices: readonly DeviceReport[]): { device: DeviceReport; queue: QueueReport } | undefined {
  const all = devices.flatMap((device) => device.queues.map((queue) => ({ device, queue })));
  return all.filter(({ queue }) => queue.state === 'busy').sort((a, b) => b.queue.rate - a.queue.rate)[0];
}

const STILL: ReadonlyMap<string, string> = new Map([
  ['Created', 'created, not started'],
  ['Shutdown', 'shut down'],
  ['none', 'no machine was created'],
]);

function judge(state: string, devices: readonly DeviceReport[], vcpus: readonly VcpuView[]): Verdict {
  const still = STILL.get(state);
  if (still !== undefined) return { severity: 'still', headline: still };
  const verdicts = devices.flatMap((device) => judgeDevice(device) ?? []);
  const first = verdicts.find(({ severity }) => severity === 'bad') ?? verdicts[0];
  if (first !== undefined) return first;
  if (state === 'Paused') return { severity: 'still', headline: 'paused' };
  const top = busiest(devices);
  if (top !== undefined) {
    return {
      severity: 'busy',
      headline: `busy: ${nameOf(top.device, top.queue)}, ${formatCount(top.queue.rate)} a second`,
    };
  }
  const load = vcpus.reduce((sum, vcpu) => sum + (vcpu.load ?? 0), 0);
  if (load >= BUSY_LOAD) return { severity: 'busy', headline: 'computes, its queues are idle' };
  return { severity: 'idle', headline: 'idle' };
}

const ACTIONS_IN: ReadonlyMap<string, readonly Action[]> = new Map<string, readonly Action[]>([
  ['Created', ['boot']],
  ['Shutdown', ['boot']],
  ['Running', ['pause', 'power-button', 'reboot', 'shutdown']],
  ['Paused', ['resume', 'power-button', 'reboot', 'shutdown']],
]);

export interface MachineName {
  readonly key: string;
  readonly name: string;
  readonly socket: string;
}

/** A machine after a round; `before` is the round before, for what is a difference. */
export function viewMachine(
  named: MachineName,
  round: Round,
  before: Round | undefined,
  control: boolean,
): MachineView {
  const state = round.info?.state ?? 'none';
  const vcpus = viewVcpus(round, before);
  const devices = round.queues?.devices ?? [];
  const runs = state === 'Running' || state === 'Paused';
  const { progress } = round;
  return {
    ...named,
    state,
    ...judge(state, devices, vcpus),
    memoryBytes: round.info?.memoryBytes ?? 0,
    vcpus,
    devices,
    operation: progress === null ? null : { ...progress, name: progress.operation },
    actions: control ? (ACTIONS_IN.get(state) ?? []) : [],
    hasConsole: runs && round.info?.serialMode !== 'Off',
  };
}

/** A machine that cannot be asked, and why. */
export function viewUnreachable(named: MachineName, why: string): MachineView {
  return {
    ...named,
    state: 'gone',
    severity: 'away',
    headline: `cannot be asked: ${why}`,
    memoryBytes: 0,
    vcpus: [],
    devices: [],
    operation: null,
    actions: [],
    hasConsole: false,
  };
}
