/**
 * A snapshot, a restore or a migration: what it says of its progress while it is under way and afterwards, and how it is
 * told to give up.
 */

import type { LongOperationName, VmProgress } from '../api/vmm-control.ts';
import { VmError } from './errors.ts';

/** What whoever does the operation knows; the rest is time. */
export type Reported = Omit<VmProgress, 'operation' | 'elapsed_ms' | 'error'>;

export class LongOperation {
  readonly name: LongOperationName;
  readonly #abort = new AbortController();
  readonly #startedAt = performance.now();
  /** Kept when it is over, whatever came of it. */
  readonly ended: Promise<void>;
  #onEnd: () => void = () => undefined;
  #endedAt: number | undefined;
  #error: string | undefined;
  #reported: Reported = {
    phase: 'starting',
    round: 0,
    bytes_done: 0,
    bytes_total: 0,
    dirty_bytes: 0,
    bytes_per_second: 0,
  };

  constructor(name: LongOperationName) {
    this.name = name;
    this.ended = new Promise((resolve) => {
      this.#onEnd = resolve;
    });
  }

  /** Aborted, with an Error that says why, when the operation is to give up. */
  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  get progress(): VmProgress {
    const elapsed_ms = Math.round((this.#endedAt ?? performance.now()) - this.#startedAt);
    const error = this.#error === undefined ? {} : { error: this.#error };
    return { operation: this.name, ...this.#reported, elapsed_ms, ...error };
  }

  /** What is given has changed. */
  report(changes: Partial<Reported>): void {
    this.#reported = { ...this.#reported, ...changes };
  }

  /** Idempotent: the first reason counts. */
  cancel(why: string): void {
    this.#abort.abort(new VmError(`${this.name}: ${why}`));
  }

  /** It is over; `error` is why nothing came of it. */
  end(error?: Error): void {
    this.#endedAt = performance.now();
    const isCancelled = error !== undefined && error === this.signal.reason;
    this.#error = error?.message;
    this.report({ phase: error === undefined ? 'completed' : isCancelled ? 'cancelled' : 'failed' });
    this.#onEnd();
  }
}
