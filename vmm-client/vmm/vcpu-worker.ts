/**
 * The threads of vCPUs. One takes longer to start than everything else that comes before a guest's first instruction, and
 * leaves some address space mapped when it ends; so who knows that there will be a guest starts one beforehand, and a
 * machine that resets uses those it has again.
 */

import { extname } from 'node:path';
import { Worker } from 'node:worker_threads';
import { VmError } from './errors.ts';
import { IDLE, READY, type VcpuThreadData } from './vcpu-channel.ts';

// Beside this module, compiled or not.
const THREAD_MODULE = new URL(`./vcpu-thread${extname(import.meta.url)}`, import.meta.url);
/** The heap of a thread that allocates next to nothing, in MiB. */
const THREAD_LIMITS = { maxOldGenerationSizeMb: 16, maxYoungGenerationSizeMb: 1 };

/** Threads without a vCPU. They do not keep the process from ending. */
const idle = new Set<Worker>();
/** When each thread was loaded, or has ended. One that is ended while it loads koffi takes the process with it. */
const loaded = new WeakMap<Worker, Promise<void>>();

function createWorker(): Worker {
  const worker = new Worker(THREAD_MODULE, { resourceLimits: THREAD_LIMITS, name: 'vcpu' });
  // Whoever uses it hears of it; one that nobody uses is not missed.
  worker.on('error', () => undefined);
  worker.once('exit', () => idle.delete(worker));
  loaded.set(
    worker,
    new Promise((resolve) => {
      worker.once('exit', () => resolve());
      worker.on('message', (message) => {
        if (message === READY) resolve();
      });
    }),
  );
  return worker;
}

function rest(worker: Worker): void {
  worker.unref();
  idle.add(worker);
}

/** Starts a thread for a vCPU to come. */
export function startVcpuWorker(): void {
  if (idle.size === 0) rest(createWorker());
}

/**
 * Runs the vCPU that `data` names on a thread. Kept when it was stopped; nothing of `data` is used any more.
 * @throws Error - the thread failed, and has ended
 */
export function runVcpu(data: VcpuThreadData): Promise<void> {
  const worker = idle.values().next().value ?? createWorker();
  idle.delete(worker);
  worker.ref();
  worker.postMessage(data);
  return new Promise((resolve, reject) => {
    let failure: Error = new VmError('the thread of a vCPU ended by itself');
    const onError = (error: Error): void => {
      failure = error;
    };
    const onExit = (): void => reject(failure);
    worker.once('error', onError);
    worker.once('exit', onExit);
    const onMessage = (message: unknown): void => {
      if (message !== IDLE) return;
      worker.off('message', onMessage);
      worker.off('error', onError);
      worker.off('exit', onExit);
      rest(worker);
      resolve();
    };
    worker.on('message', onMessage);
  });
}

/** Ends the threads that have no vCPU, and waits until they are gone. To be called before a process ends that has any. */
export async function endVcpuWorkers(): Promise<void> {
  const workers = [...idle];
  idle.clear();
  for (const worker of workers) worker.ref();
  await Promise.all(workers.map((worker) => loaded.get(worker)?.then(() => worker.terminate())));
}
