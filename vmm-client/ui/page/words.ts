/** Numbers as people read them, and the order in which things are shown. Pure. */

import type { QueueReport } from '../../vmm/queues/queue-report.ts';
import type { MachineView, Severity } from './model.ts';

/** `7`, `1,234`, `12.3k`, `4.56M`. */
export function formatCount(value: number): string {
  if (value < 10 && !Number.isInteger(value)) return value.toFixed(1);
  if (value < 10_000) return Math.round(value).toLocaleString('en-US');
  const [scaled, unit] = value < 999_500 ? [value / 1000, 'k'] : [value / 1_000_000, 'M'];
  return `${scaled.toFixed(scaled < 10 ? 2 : scaled < 100 ? 1 : 0)}${unit}`;
}

/** From microseconds: `85 us`, `1.25 ms`, `2.1 s`. */
export function formatLatency(us: number): string {
  if (us < 1000) return `${us < 10 ? us.toFixed(1) : Math.round(us)} µs`;
  if (us < 1_000_000) return `${(us / 1000).toFixed(us < 10_000 ? 2 : us < 100_000 ? 1 : 0)} ms`;
  return `${(us / 1_000_000).toFixed(1)} s`;
}

/** From milliseconds: `300 ms`, `4 s`, `2 min`, `3 h`. */
export function formatDuration(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 120_000) return `${Math.floor(ms / 1000)} s`;
  if (ms < 7_200_000) return `${Math.floor(ms / 60_000)} min`;
  return `${Math.floor(ms / 3_600_000)} h`;
}

/** From bytes: `512 MiB`. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit += 1) value /= 1024;
  return `${Number.isInteger(value) ? value : value.toFixed(1)} ${units[unit]}`;
}

/** `stuck for 4 s`, `busy`. */
export function describeQueueState(queue: QueueReport): string {
  const { state, waiting_ms } = queue;
  if (state === 'stuck') return `stuck for ${formatDuration(waiting_ms)}`;
  if (state === 'waiting' && waiting_ms >= 250) return `waiting for ${formatDuration(waiting_ms)}`;
  if (state === 'empty') return 'no buffers';
  return state;
}

const SEVERITIES: readonly Severity[] = ['bad', 'slow', 'away', 'busy', 'idle', 'still'];

const activityOf = (machine: MachineView): number =>
  machine.devices.reduce((sum, { queues }) => sum + queues.reduce((all, { rate }) => all + rate, 0), 0);

/** Powers of four: machines that do about as much keep their places. */
const step = (rate: number): number => Math.floor(Math.log2(rate + 1) / 2);

/** What is wrong first, then by activity, then by name. */
export function compareMachines(a: MachineView, b: MachineView): number {
  return (
    SEVERITIES.indexOf(a.severity) - SEVERITIES.indexOf(b.severity) ||
    step(activityOf(b)) - step(activityOf(a)) ||
    a.name.localeCompare(b.name) ||
    a.key.localeCompare(b.key)
  );
}

const URGENCY: Readonly<Record<QueueReport['state'], number>> = {
  stuck: 0,
  waiting: 1,
  busy: 2,
  empty: 3,
  unknown: 4,
  idle: 5,
  off: 6,
};

/** Queues that wait for an answer right now, as all busy ones do, are no more urgent than busy ones. */
const urgencyOf = ({ state, waiting_ms }: QueueReport): number =>
  state === 'waiting' && waiting_ms < 250 ? URGENCY.busy : URGENCY[state];

/** Stuck and waiting ones first, then by rate in steps, then in their order. */
export function compareQueues(a: QueueReport, b: QueueReport): number {
  return urgencyOf(a) - urgencyOf(b) || step(b.rate) - step(a.rate);
}
