/** What scripts/bench measures of the virtual machine monitor: one row for each line of the report. */
import type { Target, Workload } from '../results.ts';

/** `qemu` is QEMU's microvm on the same /dev/kvm, with the same guest. */
export type Contestant = 'ringside' | 'qemu';

/** What a run starts and looks at. */
export type VmTask =
  /** From exec to the guest's first byte at the serial port. */
  | { kind: 'start'; disk: 'none' | 'socket' | 'path' }
  /** Resident memory that is not the guest's, with the API served and asked. */
  | { kind: 'memory'; cpus: number }
  /** CPU time of a machine whose processors are halted. */
  | { kind: 'idle'; cpus: number }
  /** One request to the API. */
  | { kind: 'api'; route: string; keepAlive: boolean }
  /** A write of the guest to where nothing is. */
  | { kind: 'exit'; where: 'port' | 'memory' }
  /** Random reads of 4 KiB by the guest. */
  | { kind: 'read'; depth: number };

export interface VmWorkload extends Workload {
  contestants: readonly Contestant[];
  task: VmTask;
}

const BOTH: readonly Contestant[] = ['ringside', 'qemu'];
const OURS: readonly Contestant[] = ['ringside'];

const START = { unit: 'ms', targets: [{ kind: 'at-most', value: 150 }] } as const satisfies Partial<VmWorkload>;
const MEMORY = {
  unit: 'megabytes',
  contestants: BOTH,
  targets: [{ kind: 'at-most', value: 100 }],
} as const satisfies Partial<VmWorkload>;
const EXIT = { unit: 'us', contestants: BOTH, targets: [] } as const satisfies Partial<VmWorkload>;
const READ = { unit: 'iops', contestants: BOTH, targets: [] } as const satisfies Partial<VmWorkload>;
const ANSWER: readonly Target[] = [{ kind: 'at-most', value: 5 }];
/** What rounds to 0.0 %. */
const IDLE: readonly Target[] = [{ kind: 'at-most', value: 0.05 }];

const API: readonly VmWorkload[] = ['vmm.ping', 'vm.info', 'vm.counters'].flatMap((route) =>
  [false, true].map((keepAlive) => ({
    name: `api-${route.split('.')[1]}${keepAlive ? '-keep' : ''}`,
    title: `${route}, ${keepAlive ? 'one connection for all' : 'a connection each'} (p99)`,
    unit: 'ms' as const,
    contestants: OURS,
    targets: ANSWER,
    task: { kind: 'api' as const, route, keepAlive },
  })),
);

export const WORKLOADS: readonly VmWorkload[] = [
  {
    ...START,
    name: 'start',
    title: 'exec to first byte, no devices',
    contestants: BOTH,
    task: { kind: 'start', disk: 'none' },
  },
  {
    ...START,
    name: 'start-disk',
    title: 'exec to first byte, a disk at a socket',
    contestants: BOTH,
    task: { kind: 'start', disk: 'socket' },
  },
  {
    ...START,
    name: 'start-path',
    title: 'exec to first byte, a disk and its daemon',
    contestants: OURS,
    targets: [],
    task: { kind: 'start', disk: 'path' },
  },
  { ...MEMORY, name: 'memory-1', title: 'memory beside the guest, 1 vCPU', task: { kind: 'memory', cpus: 1 } },
  { ...MEMORY, name: 'memory-4', title: 'memory beside the guest, 4 vCPUs', task: { kind: 'memory', cpus: 4 } },
  {
    name: 'idle',
    title: 'CPU time while the guest is halted',
    unit: 'percent',
    contestants: BOTH,
    targets: IDLE,
    task: { kind: 'idle', cpus: 1 },
  },
  ...API,
  { ...EXIT, name: 'exit-port', title: "exit for a port that is nobody's", task: { kind: 'exit', where: 'port' } },
  {
    ...EXIT,
    name: 'exit-memory',
    title: "exit for an address that is nobody's",
    task: { kind: 'exit', where: 'memory' },
  },
  { ...READ, name: 'read-qd1', title: 'random read 4 KiB, QD 1', task: { kind: 'read', depth: 1 } },
  { ...READ, name: 'read-qd32', title: 'random read 4 KiB, QD 32', task: { kind: 'read', depth: 32 } },
];

/** Names the exits of kicks and interrupts on the command line. */
export const EXITS = 'exits';
