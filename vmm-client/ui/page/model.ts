/** What the server tells the page: one snapshot of all machines, once a second. Plain data, for both sides. */

import type { DeviceReport } from '../../vmm/queues/queue-report.ts';

/**
 * How urgent something is, the most urgent first: `bad` does not go on by itself, `slow` waits for longer than usual,
 * `away` cannot be asked.
 */
export type Severity = 'bad' | 'slow' | 'away' | 'busy' | 'idle' | 'still';

export interface VcpuView {
  readonly index: number;
  /** CPU time of its thread in time, 0 to 1; null before there are two looks. */
  readonly load: number | null;
  /** Exits to the VMM a second, by reason, those that occur often first. */
  readonly exits: readonly { readonly reason: string; readonly rate: number }[];
}

/** The long operation that is under way. */
export interface OperationView {
  readonly name: string;
  readonly phase: string;
  readonly bytesDone: number;
  /** 0 where it is not known. */
  readonly bytesTotal: number;
}

export interface MachineView {
  /** In paths of the server. */
  readonly key: string;
  readonly name: string;
  readonly socket: string;
  /** Of the VMM, where it answers: Created, Running, Paused, Shutdown; `none` when it has no machine; `gone`. */
  readonly state: string;
  readonly severity: Severity;
  /** The most important in one sentence. */
  readonly headline: string;
  readonly memoryBytes: number;
  readonly vcpus: readonly VcpuView[];
  readonly devices: readonly DeviceReport[];
  readonly operation: OperationView | null;
  /** What can be asked for now; empty where the page may not control. */
  readonly actions: readonly Action[];
  readonly hasConsole: boolean;
}

export const ACTIONS = ['boot', 'pause', 'resume', 'power-button', 'reboot', 'shutdown'] as const;
export type Action = (typeof ACTIONS)[number];

export interface Snapshot {
  readonly machines: readonly MachineView[];
  /** Whether actions and console input are allowed. */
  readonly control: boolean;
  /** Whether there is a login to end. */
  readonly login: boolean;
}

/** An event of a console: text that the guest printed, or why nothing comes. */
export type ConsoleEvent = { readonly text: string } | { readonly end: string };
