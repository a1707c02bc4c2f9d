/** What scripts/bench measures of a network device: one row for each line of the report. */
import type { Target, Workload } from '../results.ts';

/**
 * `ringside-null` is our daemon without a TAP: rings and control flow only. The loops are scripts/benchmark/net/tap-load.c on a TAP
 * of its own: what this machine's TAP gives to one thread.
 */
export type Contestant =
  | 'ringside'
  | 'ringside-null'
  | 'dpdk'
  | 'passt'
  | 'write loop'
  | 'io_uring loop'
  | 'read loop'
  | 'echo loop';

export interface NetWorkload extends Workload {
  /** Seen from the guest. */
  kind: 'transmit' | 'receive' | 'tcp-transmit' | 'tcp-receive' | 'ping';
  /** Of a frame; 0 where the guest decides. */
  frameBytes: number;
  contestants: readonly Contestant[];
}

/** A frame that is segmented later, as long as TCP makes them. */
const LARGE = 65_000;

const WRITE_LOOPS: readonly Contestant[] = ['write loop', 'io_uring loop'];

function ratio(ratio: number, ...to: readonly Contestant[]): Target {
  return { kind: 'at-least-ratio', to, ratio };
}

/** In some runs TCP to passt comes to a standstill (see the report): a best round below 1 Gbit/s proves nothing about it. */
const TWICE_BEST_PASST: Target = { kind: 'at-least-ratio', to: ['passt'], ratio: 2, toBestRound: 1e9 };

export const WORKLOADS: readonly NetWorkload[] = [
  {
    name: 'tx64',
    title: '64-byte frames, guest to TAP',
    unit: 'packets',
    kind: 'transmit',
    frameBytes: 64,
    contestants: ['ringside', 'dpdk', ...WRITE_LOOPS],
    targets: [ratio(0.85, ...WRITE_LOOPS), { kind: 'above-ratio', to: ['dpdk'], ratio: 1 }],
  },
  {
    name: 'null64',
    title: '64-byte frames, guest to nowhere',
    unit: 'packets',
    kind: 'transmit',
    frameBytes: 64,
    contestants: ['ringside-null'],
    targets: [{ kind: 'at-least', value: 4_000_000 }],
  },
  {
    name: 'rx64',
    title: '64-byte frames, TAP to guest',
    unit: 'packets',
    kind: 'receive',
    frameBytes: 64,
    contestants: ['ringside', 'dpdk', 'read loop'],
    targets: [ratio(0.85, 'read loop')],
  },
  {
    name: 'tx65000',
    title: '65,000-byte frames, guest to TAP',
    unit: 'bits',
    kind: 'transmit',
    frameBytes: LARGE,
    contestants: ['ringside', ...WRITE_LOOPS],
    targets: [ratio(0.8, ...WRITE_LOOPS)],
  },
  {
    name: 'rx65000',
    title: '65,000-byte TSO frames, TAP to guest',
    unit: 'bits',
    kind: 'receive',
    frameBytes: LARGE,
    contestants: ['ringside', 'read loop'],
    targets: [ratio(0.8, 'read loop')],
  },
  {
    name: 'tcp-tx',
    title: 'TCP, guest to host',
    unit: 'bits',
    kind: 'tcp-transmit',
    frameBytes: 0,
    contestants: ['ringside', 'passt'],
    targets: [TWICE_BEST_PASST],
  },
  {
    name: 'tcp-rx',
    title: 'TCP, host to guest',
    unit: 'bits',
    kind: 'tcp-receive',
    frameBytes: 0,
    contestants: ['ringside', 'passt'],
    targets: [ratio(2, 'passt')],
  },
  {
    name: 'ping',
    title: 'ping, 1000 a second (median)',
    unit: 'us',
    kind: 'ping',
    frameBytes: 98,
    contestants: ['ringside', 'echo loop'],
    targets: [{ kind: 'at-most-added', to: ['echo loop'], value: 30 }],
  },
];

/** Names idle daemon and start on the command line. */
export const FOOTPRINT = 'footprint';

/** Limits of an idle daemon and of its start. */
export const FOOTPRINT_TARGETS = { idleCpuPercent: 0.05, rssMegabytes: 90, startMs: 250 } as const;
