/** What vm.queues answers: how the queues of a machine and its vCPUs do, as seen from outside. Plain data. */

/** Of a queue whose buffers are requests, which the device is to answer, or offered for what may come. */
export type QueueRole = 'requests' | 'buffers';

/**
 * off: the driver has not started it. idle: nothing waits, or buffers wait that are there to wait. busy: the device used
 * buffers within the window. waiting: requests wait, and for `waiting_ms` none was used. stuck: the same for STUCK_MS or
 * more. empty: the driver offers no buffers for what may come. unknown: `reason` says why its indexes cannot be read.
 */
export type QueueState = 'off' | 'idle' | 'busy' | 'waiting' | 'stuck' | 'empty' | 'unknown';

export interface QueueReport {
  readonly index: number;
  /** As the standard calls it: `request 0`, `receive 0`, `transmit 0`, `control`, `event`. */
  readonly name: string;
  readonly role: QueueRole;
  readonly state: QueueState;
  /** Entries. */
  readonly size: number;
  /** Descriptor chains that the driver made available and the device has not used: now, and in the mean of the window. */
  readonly in_flight: number;
  readonly mean_in_flight: number;
  /** Chains that the device used, a second. */
  readonly rate: number;
  /** From available to used, in the mean (Little's law); null for buffers, and where none was used in the window. */
  readonly latency_us: number | null;
  /** How long something has been in flight and nothing was used. 0 for buffers. */
  readonly waiting_ms: number;
  /** Chains used since the watch began or the queue was started. */
  readonly used: number;
  /** False where the driver's indexes contradict each other, or there was so long between two looks that one may have wrapped. */
  readonly exact: boolean;
  readonly reason?: string;
}

export interface DeviceReport {
  readonly id: string;
  readonly slot: number;
  /** `disk`, `net`, `fs`, `vsock`, `iommu`, `mem`, or `device` and its number. */
  readonly kind: string;
  /** down: no driver has it. failed: its driver gave it up. */
  readonly status: 'down' | 'driver' | 'running' | 'needs reset' | 'failed';
  /** Null for a device that this process serves itself. */
  readonly backend: 'connected' | 'away' | null;
  readonly queues: readonly QueueReport[];
}

export interface VcpuReport {
  readonly index: number;
  /** CPU time of its thread so far, in the guest and for it. */
  readonly cpu_ms: number;
}

export interface MachineReport {
  /** On a clock of this process that only goes forward. */
  readonly at_ms: number;
  /** What rates and means are over; less than a second after the watch began. */
  readonly window_ms: number;
  readonly devices: readonly DeviceReport[];
  readonly vcpus: readonly VcpuReport[];
  readonly watch: WatchReport;
}

/** What watching costs. */
export interface WatchReport {
  /** Between two looks at the rings, as it is meant to be now. */
  readonly period_ms: number;
  readonly looks: number;
  /** CPU time of one look at all rings, in the mean. */
  readonly look_us: number;
}
