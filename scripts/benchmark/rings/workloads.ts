/**
 * What scripts/bench measures of the rings themselves, with our back end on both sides of each comparison: packed against split rings,
 * queues on several threads, the dirty log, translated addresses. One row for each line of the report.
 */
import type { Target, Workload } from '../results.ts';

export type Contestant =
  | 'packed'
  | 'split'
  | '2 queues, 2 threads'
  | '1 queue, 1 thread'
  | '2 queues, 1 thread'
  | '4 queues, 2 threads'
  | '2 loops'
  | '1 loop'
  | 'dirty log'
  | 'IOMMU';

/** How the client and our back end are set up. */
export interface RingSetup {
  queues: number;
  /** Threads of the back end. */
  threads: number;
  packed?: true;
  /** The client has all writes of the device noted, and takes the notes every 100 ms. */
  dirtyLog?: true;
  /** The device is behind an IOMMU: addresses are looked up. */
  iommu?: true;
}

/** Loops of pread in C, each on a thread of its own: what the cores give without any rings. */
export interface LoopSetup {
  loops: number;
}

const ONE: RingSetup = { queues: 1, threads: 1 };

export const SETUPS: Readonly<Record<Contestant, RingSetup | LoopSetup>> = {
  split: ONE,
  packed: { ...ONE, packed: true },
  '1 queue, 1 thread': ONE,
  '2 queues, 1 thread': { queues: 2, threads: 1 },
  '2 queues, 2 threads': { queues: 2, threads: 2 },
  '4 queues, 2 threads': { queues: 4, threads: 2 },
  '1 loop': { loops: 1 },
  '2 loops': { loops: 2 },
  'dirty log': { ...ONE, dirtyLog: true },
  IOMMU: { ...ONE, iommu: true },
};

export interface RingsWorkload extends Workload {
  unit: 'iops';
  kind: 'layout' | 'threads' | 'cost';
  /** `null` does no I/O; `io_uring` reads a file that is in the page cache. */
  engine: 'null' | 'io_uring';
  blockBytes: number;
  /** Requests in flight, on all queues together. */
  depth: number;
  /** How long the client polls before it sleeps. */
  clientPollUs: number;
  /** Client and back end have a core each. Otherwise the scheduler places all threads. */
  isPinned: boolean;
  contestants: readonly Contestant[];
}

const POLLING = { unit: 'iops', blockBytes: 4096, clientPollUs: 200, isPinned: true } as const;
const ATOP_SPLIT: readonly Target[] = [{ kind: 'at-least-ratio', to: ['split'], ratio: 1 }];

function layout(engine: RingsWorkload['engine'], depth: number): RingsWorkload {
  const isNull = engine === 'null';
  return {
    ...POLLING,
    name: `packed-${isNull ? 'null' : 'read'}-qd${depth}`,
    title: `packed rings: ${isNull ? 'null engine' : 'page cache'}, read 4 KiB, QD ${depth}`,
    kind: 'layout',
    engine,
    depth,
    contestants: ['packed', 'split'],
    targets: isNull ? ATOP_SPLIT : [],
  };
}

const QUEUES: readonly Contestant[] = [
  '2 queues, 2 threads',
  '1 queue, 1 thread',
  '2 queues, 1 thread',
  '4 queues, 2 threads',
];

/**
 * The client sleeps at once, so that it leaves the cores to the back end, and `depth` is enough for it to find several completions whenever
 * it wakes. The work is the kernel's copying.
 */
function threads(blockKib: number, depth: number): RingsWorkload {
  return {
    name: `threads-${blockKib}k`,
    title: `threads: page cache, read ${blockKib} KiB, ${depth} in flight`,
    unit: 'iops',
    kind: 'threads',
    engine: 'io_uring',
    blockBytes: blockKib * 1024,
    depth,
    clientPollUs: 0,
    isPinned: false,
    contestants: [...QUEUES, '2 loops', '1 loop'],
    targets: [{ kind: 'at-least-ratio', to: ['1 queue, 1 thread'], ratio: 1.6 }],
  };
}

function cost(engine: RingsWorkload['engine']): RingsWorkload {
  const isNull = engine === 'null';
  return {
    ...POLLING,
    name: isNull ? 'log-null' : 'log-read',
    title: `dirty log: ${isNull ? 'null engine' : 'page cache'}, read 4 KiB, QD 32`,
    kind: 'cost',
    engine,
    depth: 32,
    contestants: ['dirty log', 'split', 'IOMMU'],
    targets: [{ kind: 'at-least-ratio', to: ['split'], ratio: 0.9 }],
  };
}

export const WORKLOADS: readonly RingsWorkload[] = [
  layout('null', 1),
  layout('null', 32),
  layout('null', 128),
  layout('io_uring', 32),
  threads(64, 256),
  threads(256, 64),
  {
    ...threads(4, 32),
    name: 'threads-null',
    title: 'threads: null engine, read 4 KiB, 32 in flight',
    engine: 'null',
    contestants: QUEUES,
    targets: [],
  },
  cost('null'),
  cost('io_uring'),
];

/** Whom a contestant is compared with in the table of all values. */
export function baselineOf({ kind }: RingsWorkload, contestant: Contestant): Contestant {
  if (kind !== 'threads') return 'split';
  return 'loops' in SETUPS[contestant] ? '1 loop' : '1 queue, 1 thread';
}
