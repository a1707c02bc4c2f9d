/**
 * Where the rings of a daemon's device are served: on this thread, or spread over worker threads, each with a data path
 * of its own (event loop, io_uring, pump).
 */

import { installFaultGuard } from '../../protocol/sys/fault-guard.ts';
import type { Attachment, DataPath, Device } from './device.ts';
import type { Logger } from './logging.ts';
import { UsageError } from './options.ts';
import { Pump, type PumpOptions } from './pump.ts';
import { LocalRingServer, type RingEvents } from './ring-server.ts';
import { RingServers } from './ring-servers.ts';
import { RingThread } from './ring-thread.ts';

/** Opens what serves the rings of front ends. */
export interface DataPaths {
  /** Servers for the rings of a front end that connected. */
  openServers(attachment: Attachment, events: RingEvents, log: Logger): RingServers;
  /** Ends everything. No request is in flight. */
  shutDown(): Promise<void>;
}

class OwnThread implements DataPaths {
  readonly #device: Device;
  readonly #path: DataPath;
  readonly #pump: Pump;

  constructor(device: Device, options: PumpOptions) {
    this.#device = device;
    this.#path = device.openDataPath();
    this.#pump = new Pump(this.#path, options);
  }

  openServers(attachment: Attachment, events: RingEvents, log: Logger): RingServers {
    const rings = this.#path.serve(attachment.shared);
    const server = new LocalRingServer(this.#pump, rings, this.#device.maxQueues, events, log);
    return new RingServers([server], () => 0);
  }

  async shutDown(): Promise<void> {
    this.#path.shutDown();
  }
}

class WorkerThreads implements DataPaths {
  readonly #device: Device;
  readonly #threads: readonly RingThread[];
  readonly #laneOf: (ring: number) => number;

  constructor(device: Device, threads: readonly RingThread[], laneOf: (ring: number) => number) {
    this.#device = device;
    this.#threads = threads;
    this.#laneOf = laneOf;
  }

  openServers(attachment: Attachment, events: RingEvents, log: Logger): RingServers {
    const { maxQueues } = this.#device;
    const servers = this.#threads.map((thread) => thread.openServer(attachment.shared, maxQueues, events, log));
    return new RingServers(servers, this.#laneOf);
  }

  async shutDown(): Promise<void> {
    await Promise.all(this.#threads.map((thread) => thread.end()));
  }
}

/**
 * Opens the data paths of a device.
 * @param threads 1 serves rings on this thread
 * @throws UsageError, SysError - a data path cannot be opened
 */
export async function openDataPaths(
  device: Device,
  threads: number,
  options: PumpOptions,
  log: Logger,
): Promise<DataPaths> {
  if (threads === 1) return new OwnThread(device, options);
  const { worker } = device;
  if (worker === undefined)
    throw new UsageError(`--threads=${threads}: the rings of this device are served by one thread`);
  // The handler belongs to the process, and this thread outlives the others.
  installFaultGuard();
  const opened = await Promise.allSettled(
    Array.from({ length: threads }, (_, thread) => RingThread.start(worker, thread, options, log)),
  );
  const running = opened.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  const failed = opened.find((result) => result.status === 'rejected');
  if (failed !== undefined) {
    await Promise.all(running.map((thread) => thread.end()));
    throw failed.reason;
  }
  return new WorkerThreads(device, running, worker.laneOf);
}
