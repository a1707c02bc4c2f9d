/**
 * What VMMs answer, looked at before it is used: a socket may be anybody's, or that of another version. What is missing or
 * of another type is left out or taken as 0; nothing here throws.
 */

import type { DeviceReport, QueueReport, QueueState } from '../vmm/queues/queue-report.ts';

type Fields = Readonly<Record<string, unknown>>;

/** Of lists: at least what a machine can have. */
const MAX_DEVICES = 64;
const MAX_QUEUES = 256;
const MAX_VCPUS = 1024;
/** Of counters: devices and vCPUs. */
const MAX_COUNTED = MAX_DEVICES + MAX_VCPUS;
/** Of names. */
const MAX_TEXT = 256;

function fieldsOf(value: unknown): Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Fields) : {};
}

function listOf(value: unknown, most: number): readonly Fields[] {
  return Array.isArray(value) ? value.slice(0, most).map(fieldsOf) : [];
}

function textOf(value: unknown, otherwise = ''): string {
  return typeof value === 'string' ? value.slice(0, MAX_TEXT) : otherwise;
}

function numberOf(value: unknown): number {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0 ? value : 0;
}

function oneOf<T extends string>(values: readonly T[], value: unknown, otherwise: T): T {
  return values.find((each) => each === value) ?? otherwise;
}

export interface InfoAnswer {
  readonly state: string;
  readonly memoryBytes: number;
  readonly vcpus: number;
  readonly serialMode: string;
}

export function readInfo(answer: unknown): InfoAnswer {
  const { state, memory_actual_size, config } = fieldsOf(answer);
  const { cpus, serial } = fieldsOf(config);
  return {
    state: textOf(state, 'unknown'),
    memoryBytes: numberOf(memory_actual_size),
    vcpus: Math.floor(Math.min(numberOf(fieldsOf(cpus).boot_vcpus), MAX_VCPUS)),
    serialMode: textOf(fieldsOf(serial).mode, 'Off'),
  };
}

const QUEUE_STATES: readonly QueueState[] = ['off', 'idle', 'busy', 'waiting', 'stuck', 'empty', 'unknown'];

function readQueue(queue: Fields): QueueReport {
  return {
    index: numberOf(queue.index),
    name: textOf(queue.name, 'queue'),
    role: oneOf(['requests', 'buffers'], queue.role, 'requests'),
    state: oneOf(QUEUE_STATES, queue.state, 'unknown'),
    size: numberOf(queue.size),
    in_flight: numberOf(queue.in_flight),
    mean_in_flight: numberOf(queue.mean_in_flight),
    rate: numberOf(queue.rate),
    latency_us: typeof queue.latency_us === 'number' ? numberOf(queue.latency_us) : null,
    waiting_ms: numberOf(queue.waiting_ms),
    used: numberOf(queue.used),
    exact: queue.exact === true,
    ...(typeof queue.reason === 'string' ? { reason: textOf(queue.reason) } : {}),
  };
}

const STATUSES: readonly DeviceReport['status'][] = ['down', 'driver', 'running', 'needs reset', 'failed'];

function readDevice(device: Fields): DeviceReport {
  const { backend } = device;
  return {
    id: textOf(device.id, 'device'),
    slot: numberOf(device.slot),
    kind: textOf(device.kind, 'device'),
    status: oneOf(STATUSES, device.status, 'down'),
    backend: backend === 'connected' || backend === 'away' ? backend : null,
    queues: listOf(device.queues, MAX_QUEUES).map(readQueue),
  };
}

export interface QueuesAnswer {
  readonly atMs: number;
  readonly devices: readonly DeviceReport[];
  readonly vcpus: readonly { readonly index: number; readonly cpuMs: number }[];
}

export function readQueues(answer: unknown): QueuesAnswer {
  const { at_ms, devices, vcpus } = fieldsOf(answer);
  return {
    atMs: numberOf(at_ms),
    devices: listOf(devices, MAX_DEVICES).map(readDevice),
    vcpus: listOf(vcpus, MAX_VCPUS).map((each) => ({ index: numberOf(each.index), cpuMs: numberOf(each.cpu_ms) })),
  };
}

/** Exits so far, by vCPU and reason. */
export type ExitCounts = ReadonlyMap<number, ReadonlyMap<string, number>>;

export function readExits(answer: unknown): ExitCounts {
  const all = new Map<number, ReadonlyMap<string, number>>();
  for (const [name, counters] of Object.entries(fieldsOf(answer)).slice(0, MAX_COUNTED)) {
    const index = /^vcpu(\d{1,4})$/.exec(name)?.[1];
    if (index === undefined) continue;
    const counts = Object.entries(fieldsOf(counters))
      .filter(([reason]) => reason.startsWith('exits_'))
      .map(([reason, count]) => [textOf(reason.slice('exits_'.length)), numberOf(count)] as const);
    all.set(Number(index), new Map(counts));
  }
  return all;
}

export interface ProgressAnswer {
  readonly operation: string;
  readonly phase: string;
  readonly bytesDone: number;
  readonly bytesTotal: number;
}

const ENDED: ReadonlySet<string> = new Set(['', 'completed', 'failed', 'cancelled']);

/** The operation that is under way; null where none is. */
export function readProgress(answer: unknown): ProgressAnswer | null {
  const { operation, phase, bytes_done, bytes_total } = fieldsOf(answer);
  if (ENDED.has(textOf(phase)) || textOf(operation) === '') return null;
  return {
    operation: textOf(operation),
    phase: textOf(phase),
    bytesDone: numberOf(bytes_done),
    bytesTotal: numberOf(bytes_total),
  };
}
