/**
 * The threads of vCPUs. One takes longer to start than everything else that comes before a guest's first instruction, so
 * who knows that there will be a guest starts one beforehand.
 */

import { extname } from 'node:path';
import { Worker } from 'node:worker_threads';
import type { VcpuThreadData } from './vcpu-channel.ts';

// Beside this module, compiled or not.
const THREAD_MODULE = new URL(`./vcpu-thread${extname(import.meta.url)}`, import.meta.url);
/** The heap of a thread that allocates next to nothing, in MiB. */
const THREAD_LIMITS = { maxOldGenerationSizeMb: 16, maxYoungGenerationSizeMb: 1 };

let started: Worker | undefined;

function createWorker(): Worker {
  return new Worker(THREAD_MODULE, { resourceLimits: THREAD_LIMITS, name: 'vcpu' });
}

/** Starts a thread for the next `takeVcpuWorker`. It does not keep the process from ending. */
export function startVcpuWorker(): void {
  if (started !== undefined) return;
  started = createWorker();
  started.unref();
}

/** A thread that runs the vCPU that `data` names until that is stopped. */
export function takeVcpuWorker(data: VcpuThreadData): Worker {
  const worker = started ?? createWorker();
  started = undefined;
  worker.ref();
  worker.postMessage(data);
  return worker;
}
