/** What scripts/bench measures of guests that move: from one monitor to another, and to files and back. */

/** `qemu` is QEMU's microvm on the same /dev/kvm, with the same guest. */
export type Monitor = 'ringside' | 'qemu';
export type Transport = 'unix' | 'tcp';

/** Who moves a guest, and by what. */
export type Mover = 'ringside, unix' | 'ringside, tcp' | 'ringside, local' | 'qemu, unix';

/** `isLocal`: memory is handed over, not sent. */
export const MOVERS: Readonly<Record<Mover, { monitor: Monitor; transport: Transport; isLocal?: boolean }>> = {
  'ringside, unix': { monitor: 'ringside', transport: 'unix' },
  'ringside, local': { monitor: 'ringside', transport: 'unix', isLocal: true },
  'ringside, tcp': { monitor: 'ringside', transport: 'tcp' },
  'qemu, unix': { monitor: 'qemu', transport: 'unix' },
};

/** The guest's job=dirty (test/support/vm/guest/dirty.c), and what is in its memory besides. */
export interface Load {
  memoryMib: number;
  /** Of the initramfs, which is random: data that the guest has and does not touch. */
  dataMib: number;
  processors: number;
  /** Of each processor, in which it writes a word a page. */
  rangeMib: number;
  /** Of each processor; more than there can be for as many as it can write. */
  pagesPerSecond: number;
  /** It reads random blocks of a disk meanwhile, 16 at a time. */
  reads: boolean;
}

interface Named {
  name: string;
  title: string;
}

/** A guest goes from one monitor to another. */
export interface MoveWorkload extends Named {
  kind: 'idle' | 'dirty';
  load: Load;
  movers: readonly Mover[];
  /** How long the guest may stand still: what the monitor is told. */
  downtimeMs: number;
  /** A guest that has not moved by then does not. */
  giveUpMs: number;
}

/** What the dirty log costs a guest, of what it does. */
export interface LogWorkload extends Named {
  kind: 'log';
  load: Load;
  counts: 'pages' | 'requests';
}

/** A guest goes to files and comes back. */
export interface SnapshotWorkload extends Named {
  kind: 'snapshot';
  load: Load;
}

export type MigrationWorkload = MoveWorkload | LogWorkload | SnapshotWorkload;

const AS_MANY_AS_IT_CAN = 1_000_000_000;
const PAGE_BYTES = 4096;

const RESTING: Load = {
  memoryMib: 128,
  dataMib: 0,
  processors: 1,
  rangeMib: 1,
  pagesPerSecond: 0,
  reads: false,
};

function idle(memoryMib: number, dataMib: number, name: string): MoveWorkload {
  return {
    kind: 'idle',
    name: `idle-${name}`,
    title: `${memoryMib} MiB, of which ${dataMib} are data`,
    load: { ...RESTING, memoryMib, dataMib },
    movers: ['ringside, unix', 'qemu, unix', 'ringside, tcp', 'ringside, local'],
    downtimeMs: 300,
    giveUpMs: 60_000,
  };
}

const WRITTEN_MIB = 128;

function dirty(name: string, processors: number, pagesPerSecond: number): MoveWorkload {
  const rate =
    pagesPerSecond === AS_MANY_AS_IT_CAN
      ? `as many as ${processors} processors can write`
      : `${pagesPerSecond} pages (${Math.round((pagesPerSecond * PAGE_BYTES) / 1e6)} MB) a second`;
  const rangeMib = WRITTEN_MIB / processors;
  return {
    kind: 'dirty',
    name: `dirty-${name}`,
    title: rate,
    load: { ...RESTING, memoryMib: 256, processors, rangeMib, pagesPerSecond },
    movers: ['ringside, unix', 'qemu, unix'],
    downtimeMs: 50,
    giveUpMs: 5000,
  };
}

function log(name: string, title: string, counts: LogWorkload['counts'], load: Partial<Load>): LogWorkload {
  // There is little in its memory, so that the first round is short: what is measured comes after it.
  return { kind: 'log', name: `log-${name}`, title, counts, load: { ...RESTING, ...load } };
}

export const WORKLOADS: readonly MigrationWorkload[] = [
  idle(256, 192, '256m'),
  idle(1024, 768, '1g'),
  dirty('10k', 1, 10_000),
  dirty('50k', 1, 50_000),
  dirty('100k', 1, 100_000),
  dirty('most', 2, AS_MANY_AS_IT_CAN),
  log('hot', 'pages of 1 MiB written a second', 'pages', { pagesPerSecond: AS_MANY_AS_IT_CAN }),
  log('spread', 'pages of 16 MiB written a second', 'pages', { pagesPerSecond: AS_MANY_AS_IT_CAN, rangeMib: 16 }),
  log('disk', 'random reads 4 KiB a second, QD 16', 'requests', { reads: true }),
  {
    kind: 'snapshot',
    name: 'snapshot',
    title: '1024 MiB, of which 192 are data',
    load: { ...RESTING, memoryMib: 1024, dataMib: 192 },
  },
];
