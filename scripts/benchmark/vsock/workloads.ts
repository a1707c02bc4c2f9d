/** What scripts/bench measures of a socket device: one row for each line of the report. */
import type { Target, Workload } from '../results.ts';

/**
 * `socat` is a relay between two plain Unix sockets, the work that is left of the daemon's when there is no guest: the limit. `direct` is
 * no relay at all, for comparison.
 */
export type Contestant = 'ringside' | 'vhost-device' | 'socat' | 'direct';

export interface VsockWorkload extends Workload {
  /** As `ringside vsock bench` and unix-load call it, seen from the guest. */
  load: 'tx' | 'rx' | 'rr' | 'connect';
  /** Bytes of one write. */
  writeBytes: number;
  connections: number;
  contestants: readonly Contestant[];
}

const ALL: readonly Contestant[] = ['ringside', 'vhost-device', 'socat', 'direct'];
const WRITE_BYTES = 64 * 1024;

function ofSocat(ratio: number): readonly Target[] {
  return [{ kind: 'at-least-ratio', to: ['socat'], ratio }];
}

function both(
  name: string,
  title: string,
  rest: Pick<VsockWorkload, 'unit' | 'load' | 'writeBytes' | 'targets'>,
): VsockWorkload[] {
  return [1, 100].map((connections) => ({
    name: connections === 1 ? name : `${name}-${connections}`,
    title: `${title}, ${connections} ${connections === 1 ? 'connection' : 'connections'}`,
    contestants: ALL,
    connections,
    ...rest,
  }));
}

export const WORKLOADS: readonly VsockWorkload[] = [
  ...both('tx', '64 KiB writes, guest to host', {
    unit: 'bits',
    load: 'tx',
    writeBytes: WRITE_BYTES,
    targets: ofSocat(0.5),
  }),
  ...both('rx', '64 KiB writes, host to guest', {
    unit: 'bits',
    load: 'rx',
    writeBytes: WRITE_BYTES,
    targets: ofSocat(0.5),
  }),
  ...both('rr', 'round trips of 1 byte', { unit: 'iops', load: 'rr', writeBytes: 1, targets: ofSocat(0.6) }),
  ...both('connect', 'connections to the host', { unit: 'iops', load: 'connect', writeBytes: 1, targets: [] }),
];

/** Names idle daemon and start on the command line. */
export const FOOTPRINT = 'footprint';

/** Limits of an idle daemon and of its start. */
export const FOOTPRINT_TARGETS = { idleCpuPercent: 0.05, rssMegabytes: 90, startMs: 250 } as const;
