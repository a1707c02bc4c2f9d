/** What vm.queues tells of a machine: its rings, and the CPU time of its vCPUs. */

import type { ObservedSlot } from './observed.ts';
import type { MachineReport } from './queue-report.ts';
import { QueueWatch, type WatchedRam } from './queue-watch.ts';
import { threadCpuMs } from './thread-time.ts';

/** What is watched of a machine; a reset replaces its processors. */
export interface WatchedMachine {
  readonly ram: WatchedRam;
  readonly slots: { observe(): readonly ObservedSlot[] };
  readonly processors: { readonly vcpus: readonly { readonly index: number; readonly thread: number }[] };
}

export class MachineWatch {
  readonly #parts: () => WatchedMachine;
  readonly #queues: QueueWatch;
  #closed = false;

  /** `parts` is called until `close`. */
  constructor(parts: () => WatchedMachine) {
    this.#parts = parts;
    this.#queues = new QueueWatch({ ram: parts().ram, observe: () => parts().slots.observe() });
  }

  async report(): Promise<MachineReport> {
    const report = await this.#queues.report();
    const vcpus = this.#closed ? [] : this.#parts().processors.vcpus;
    return { ...report, vcpus: vcpus.map(({ index, thread }) => ({ index, cpu_ms: threadCpuMs(thread) ?? 0 })) };
  }

  close(): void {
    this.#closed = true;
    this.#queues.close();
  }
}
