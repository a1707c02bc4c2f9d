/** A worker thread that serves rings, with a data path and a pump of its own; `ring-thread.ts` tells it what to do. */

import { parentPort, workerData } from 'node:worker_threads';
import { SysError } from '../../protocol/sys/errors.ts';
import type { DataPath, DataPathModule } from './device.ts';
import { isRefusal } from './dispatcher.ts';
import { createWorkerLogger, type Logger } from './logging.ts';
import { UsageError } from './options.ts';
import { Pump } from './pump.ts';
import { LocalRingServer, type RingEvents } from './ring-server.ts';
import type { FromWorker, RingWorkerData, ToWorker } from './ring-thread.ts';

if (parentPort === null) throw new Error('this module is a thread');
const port = parentPort;

function post(message: FromWorker): void {
  port.postMessage(message);
}

/** Calls of one front end, done one after the other. */
class Servant {
  readonly #server: LocalRingServer;
  #last: Promise<void> = Promise.resolve();

  constructor(server: LocalRingServer) {
    this.#server = server;
  }

  do({ call, method, args }: Extract<ToWorker, { kind: 'call' }>): void {
    this.#last = this.#last.then(async () => {
      try {
        // Both ends have the types of RingServer.
        const perform = this.#server[method] as (...args: unknown[]) => Promise<unknown>;
        post({ kind: 'done', call, value: await perform.apply(this.#server, args) });
      } catch (error) {
        if (!isRefusal(error)) throw error;
        post({ kind: 'refused', call, message: error.message });
      }
    });
  }
}

function eventsOf(server: number): RingEvents {
  const tell =
    (event: keyof RingEvents) =>
    (...args: unknown[]): void =>
      post({ kind: 'event', server, event, args });
  return { onMemoryFault: tell('onMemoryFault'), onMissing: tell('onMissing'), onSignal: tell('onSignal') };
}

function serve(path: DataPath, pump: Pump, log: Logger): void {
  const servants = new Map<number, Servant>();
  port.on('message', (message: ToWorker) => {
    if (message.kind === 'open') {
      const { server, shared, rings, bindings } = message;
      const local = new LocalRingServer(pump, path.serve(shared), rings, eventsOf(server), log.child(bindings));
      servants.set(server, new Servant(local));
    } else if (message.kind === 'call') {
      const servant = servants.get(message.server);
      // Asked of a server that is closed, when the session did not know yet: nothing is left to be done.
      if (servant === undefined) post({ kind: 'done', call: message.call, value: undefined });
      else servant.do(message);
      if (message.method === 'close') servants.delete(message.server);
    } else {
      path.shutDown();
      port.close();
    }
  });
}

const { module, data, thread, pump, bindings, logLevel } = workerData as RingWorkerData;
const log = createWorkerLogger(bindings, logLevel, (line) => post({ kind: 'log', line }));
try {
  const { openDataPath } = (await import(module)) as DataPathModule;
  const path = openDataPath(data, log, thread);
  serve(path, new Pump(path, pump), log);
  post({ kind: 'ready' });
} catch (error) {
  if (error instanceof UsageError) post({ kind: 'unusable', reason: { usage: error.message } });
  else if (error instanceof SysError)
    post({ kind: 'unusable', reason: { syscall: error.syscall, errno: error.errno, what: error.what } });
  else throw error;
}
