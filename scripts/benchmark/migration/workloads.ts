/** What scripts/bench measures of guests that move: from one monitor to another, and to files and back. */

/** `qemu` is QEMU's microvm on the same /dev/kvm, with the same guest. */
export type Monitor = 'ringside' | 'qemu';
export type Transport = 'unix' | 'tcp';

/** Who moves a guest, and by what. */
export type Mover = 'ringside, unix' | 'ringside, tcp' | 'qemu, unix' | 'qemu, tcp';

export const MOVERS: Readonly<Record<Mover, { monitor: Monitor; transport: Transport }>> = {
  'ringside, unix': { monitor: 'ringside', transport: 'unix' },
  'ringside, tcp': { monitor: 'ringside', transport: 'tcp' },
  'qemu, unix': { monitor: 'qemu', transport: 'unix' },
  'qemu, tcp': { monitor: 'qemu', transport: 'tcp' },
};

/** The guest's job=dirty (test/support/vm/guest/dirty.c), and what is in its memory besides. */
export interface Load {
  memoryMib: number;
  /** Of the initramfs, which is random: data that the guest has and does not touch. */
  dataMib: number;
  /** Range of which it writes a word a page. */
  rangeMib: number;
  /** Pages a second; more than there can be for as many as it can write. */
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

function idle(memoryMib: number, dataMib: number, name: string): MoveWorkload {
  return {
    kind: 'idle',
    name: `idle-${name}`,
    title: `a guest of ${memoryMib} MiB with ${dataMib} MiB of data, which writes nothing`,
    load: { memoryMib, dataMib, rangeMib: 1, pagesPerSecond: 0, reads: false },
    movers: ['ringside, unix', 'qemu, unix', 'ringside, tcp', 'qemu, tcp'],
    downtimeMs: 300,
  };
}

const RANGE_MIB = 128;

function dirty(pagesPerSecond: number, name: string): MoveWorkload {
  const rate =
    pagesPerSecond === AS_MANY_AS_IT_CAN
      ? 'as many pages as it can'
      : `${pagesPerSecond} pages (${Math.round((pagesPerSecond * PAGE_BYTES) / 1e6)} MB) a second`;
  return {
    kind: 'dirty',
    name: `dirty-${name}`,
    title: `a guest that writes to ${rate} of ${RANGE_MIB} MiB`,
    load: { memoryMib: 256, dataMib: 0, rangeMib: RANGE_MIB, pagesPerSecond, reads: false },
    movers: ['ringside, unix', 'qemu, unix'],
    downtimeMs: 50,
  };
}

function log(name: string, title: string, counts: LogWorkload['counts'], load: Partial<Load>): LogWorkload {
  // Memory is small, so that the first round is: what is measured comes after it.
  const all = { memoryMib: 128, dataMib: 0, rangeMib: 1, pagesPerSecond: AS_MANY_AS_IT_CAN, reads: false, ...load };
  return { kind: 'log', name: `log-${name}`, title, counts, load: all };
}

export const WORKLOADS: readonly MigrationWorkload[] = [
  idle(256, 192, '256m'),
  idle(1024, 768, '1g'),
  dirty(10_000, '10k'),
  dirty(50_000, '50k'),
  dirty(100_000, '100k'),
  dirty(200_000, '200k'),
  dirty(AS_MANY_AS_IT_CAN, 'most'),
  log('hot', 'pages of 1 MiB written a second', 'pages', {}),
  log('spread', 'pages of 16 MiB written a second', 'pages', { rangeMib: 16 }),
  log('disk', 'random reads 4 KiB a second, QD 16', 'requests', { pagesPerSecond: 0, reads: true }),
  {
    kind: 'snapshot',
    name: 'snapshot',
    title: 'a guest of 1024 MiB with 192 MiB of data, to files and back',
    load: { memoryMib: 1024, dataMib: 192, rangeMib: 1, pagesPerSecond: 0, reads: false },
  },
];
