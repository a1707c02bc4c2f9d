/**
 * What scripts/bench measures of a block device: one row for each line of the report, with the options of the client, who takes part and the
 * target. A row's `unit` says what is compared: I/Os per second (more is better) or the back end's CPU time per I/O (less is).
 */
import type { Target, Workload } from '../results.ts';

/** `ringside-null` is our daemon with its null engine: rings and control flow only, no file I/O. */
export type Contestant = 'ringside' | 'qemu-storage-daemon' | 'fio' | 'ringside-null';

export interface BlkWorkload extends Workload {
  unit: 'iops' | 'cpu-us-per-io';
  readWrite: 'randread' | 'randwrite' | 'read';
  blockBytes: number;
  depth: number;
  direct: boolean;
  /** Requests per second in bursts of `depth`; 0: as fast as it goes. */
  rate: number;
  contestants: readonly Contestant[];
}

const FILE_CONTESTANTS: readonly Contestant[] = ['ringside', 'qemu-storage-daemon', 'fio'];

const RANDOM_READ = {
  unit: 'iops',
  readWrite: 'randread',
  blockBytes: 4096,
  direct: false,
  rate: 0,
  contestants: FILE_CONTESTANTS,
} as const;

const QEMU = ['qemu-storage-daemon'] as const;

function timesQemu(ratio: number): Target[] {
  return [{ kind: 'at-least-ratio', to: QEMU, ratio }];
}

export const WORKLOADS: readonly BlkWorkload[] = [
  { ...RANDOM_READ, name: 'read-qd1', title: 'random read 4 KiB, QD 1', depth: 1, targets: timesQemu(3) },
  { ...RANDOM_READ, name: 'read-qd32', title: 'random read 4 KiB, QD 32', depth: 32, targets: timesQemu(2.5) },
  { ...RANDOM_READ, name: 'read-qd128', title: 'random read 4 KiB, QD 128', depth: 128, targets: timesQemu(3.5) },
  {
    ...RANDOM_READ,
    name: 'write-qd32',
    title: 'random write 4 KiB, QD 32',
    readWrite: 'randwrite',
    depth: 32,
    targets: timesQemu(4),
  },
  {
    ...RANDOM_READ,
    name: 'sequential-qd16',
    title: 'sequential read 128 KiB, QD 16',
    readWrite: 'read',
    blockBytes: 128 * 1024,
    depth: 16,
    targets: timesQemu(1.1),
  },
  {
    ...RANDOM_READ,
    name: 'direct-qd32',
    title: 'random read 4 KiB, O_DIRECT, QD 32',
    direct: true,
    depth: 32,
    targets: [{ kind: 'at-least-ratio', to: ['fio'], ratio: 0.95 }],
  },
  {
    ...RANDOM_READ,
    name: 'null-qd32',
    title: 'null engine, read 4 KiB, QD 32',
    depth: 32,
    contestants: ['ringside-null'],
    targets: [{ kind: 'at-least', value: 900_000 }],
  },
  {
    ...RANDOM_READ,
    name: 'null-qd128',
    title: 'null engine, read 4 KiB, QD 128',
    depth: 128,
    contestants: ['ringside-null'],
    targets: [{ kind: 'at-least', value: 1_500_000 }],
  },
  {
    ...RANDOM_READ,
    name: 'cpu-20k',
    title: 'CPU time per I/O, 20k reads/s in bursts of 8',
    unit: 'cpu-us-per-io',
    depth: 8,
    rate: 20_000,
    contestants: ['ringside', 'qemu-storage-daemon'],
    targets: [{ kind: 'below-ratio', to: QEMU, ratio: 1 }],
  },
  {
    ...RANDOM_READ,
    name: 'cpu-50k',
    title: 'CPU time per I/O, 50k reads/s in bursts of 32',
    unit: 'cpu-us-per-io',
    depth: 32,
    rate: 50_000,
    contestants: ['ringside', 'qemu-storage-daemon'],
    targets: [{ kind: 'below-ratio', to: QEMU, ratio: 1 }],
  },
];

/** Names idle daemon and start on the command line. */
export const FOOTPRINT = 'footprint';

/** Limits of an idle daemon and of its start. */
export const FOOTPRINT_TARGETS = { idleCpuPercent: 0.05, rssMegabytes: 90, startMs: 250 } as const;
