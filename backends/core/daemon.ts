/**
 * The life of a daemon: where connections come from (a listening socket, an inherited one, or dialling the VMM), the
 * sessions on them, and an orderly end. It knows nothing of what the device is.
 */

import { SysError } from '../../protocol/sys/errors.ts';
import { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { type Watch, watchReadable } from '../../protocol/sys/readiness.ts';
import { socketRole, UnixListener, UnixStream } from '../../protocol/sys/unix-socket.ts';
import { userFaultsAvailable } from '../../protocol/sys/userfault.ts';
import type { DataPaths } from './data-paths.ts';
import type { Device } from './device.ts';
import type { Logger } from './logging.ts';
import { type CoreOptions, UsageError } from './options.ts';
import { RingLease } from './ring-lease.ts';
import { Session, type SessionContext } from './session.ts';

/** Connections open at once; each may ask, one may run rings. */
const MAX_SESSIONS = 64;
const REDIAL_MS = 100;
const MAX_REDIAL_MS = 2000;
/** How long an orderly stop waits for requests in flight. */
const STOP_DEADLINE_MS = 10_000;

export class Daemon {
  readonly #context: SessionContext;
  readonly #log: Logger;
  readonly #options: CoreOptions;
  readonly #sessions = new Map<Session, Promise<void>>();
  #listener: UnixListener | undefined;
  #acceptWatch: Watch | undefined;
  #redialTimer: NodeJS.Timeout | undefined;
  #connections = 0;
  #stopping = false;
  #finish: (drained: boolean) => void = () => undefined;
  /** Fulfilled when the daemon has nothing left to do: true when no request is in flight any more. */
  readonly finished: Promise<boolean>;

  /** @param alone the only daemon of this process: what keeps its thread waiting keeps nobody else waiting */
  constructor(device: Device, paths: DataPaths, options: CoreOptions, log: Logger, alone: boolean) {
    this.#context = {
      device,
      lease: new RingLease(device),
      iommu: options.iommu === true,
      inBand: options.inBand === true,
      pageFaults: alone && userFaultsAvailable(),
      openServers: (attachment, events, sessionLog) => paths.openServers(attachment, events, sessionLog),
    };
    this.#options = options;
    this.#log = log;
    this.finished = new Promise((resolve) => {
      this.#finish = resolve;
    });
    device.onConfigChange = () => {
      for (const session of this.#sessions.keys()) session.notifyConfigChange();
    };
  }

  /**
   * Starts to serve.
   * @throws UsageError - the descriptor of --fd is not a stream socket
   * @throws SysError - the socket cannot be made
   */
  start(): void {
    const { socketPath, fd, client } = this.#options;
    if (fd !== undefined) this.#inherit(fd);
    else if (client === true) this.#dial(socketPath as string, REDIAL_MS);
    else this.#listen(UnixListener.listen(socketPath as string), socketPath as string);
  }

  #inherit(fd: number): void {
    const role = socketRole(fd);
    if (role === 'none') throw new UsageError(`--fd=${fd} is not an open socket`);
    if (role === 'listening') {
      this.#listen(UnixListener.fromFd(new OwnedFd(fd)), `fd ${fd}`);
      return;
    }
    this.#log.info(`serving the connection on fd ${fd}`);
    this.#serve(new UnixStream(new OwnedFd(fd)), () => this.#finish(true));
  }

  #listen(listener: UnixListener, where: string): void {
    this.#listener = listener;
    this.#acceptWatch = watchReadable(listener.fd, () => this.#accept(listener));
    this.#log.info({ socket: where }, `listening on ${where}`);
  }

  #accept(listener: UnixListener): void {
    try {
      for (let stream = listener.accept(); stream !== undefined; stream = listener.accept()) {
        if (this.#sessions.size < MAX_SESSIONS) {
          this.#serve(stream, () => undefined);
          continue;
        }
        this.#log.warn(`connection refused: ${MAX_SESSIONS} are open, the limit`);
        stream.close();
      }
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      // Out of descriptors: the connection waits in the backlog until one is free.
      this.#log.error(error.message);
      this.#acceptWatch?.pause();
      setTimeout(() => this.#acceptWatch?.resume(), REDIAL_MS).unref();
    }
  }

  #dial(path: string, delayMs: number): void {
    if (this.#stopping) return;
    let stream: UnixStream;
    try {
      stream = UnixStream.connect(path);
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      if (delayMs === REDIAL_MS) this.#log.info(`waiting for a front end: ${error.message}`);
      const next = Math.min(delayMs * 2, MAX_REDIAL_MS);
      this.#redialTimer = setTimeout(() => this.#dial(path, next), delayMs);
      return;
    }
    this.#log.info(`connected to ${path}`);
    this.#serve(stream, () => {
      this.#redialTimer = setTimeout(() => this.#dial(path, REDIAL_MS), REDIAL_MS);
    });
  }

  #serve(stream: UnixStream, ended: () => void): void {
    this.#connections += 1;
    const log = this.#log.child({ connection: this.#connections });
    log.info('front end connected');
    const session = new Session(this.#context, stream, log);
    const done = session.run().then(() => {
      this.#sessions.delete(session);
      if (!this.#stopping) ended();
    });
    this.#sessions.set(session, done);
  }

  /** Stops accepting, finishes what is in flight, closes every connection, removes the socket. Idempotent. */
  async stop(): Promise<void> {
    if (this.#stopping) return;
    this.#stopping = true;
    clearTimeout(this.#redialTimer);
    this.#acceptWatch?.close();
    this.#listener?.close();
    for (const session of this.#sessions.keys()) session.close();
    const deadline = setTimeout(() => {
      this.#log.error(`requests are still in flight after ${STOP_DEADLINE_MS} ms: leaving them`);
      this.#finish(false);
    }, STOP_DEADLINE_MS);
    await Promise.race([Promise.all(this.#sessions.values()), this.finished]);
    clearTimeout(deadline);
    this.#finish(true);
  }
}
