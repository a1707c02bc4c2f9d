/**
 * Daemons that the VMM starts itself. Each inherits a socket that listens already (descriptor 3): a front end can connect
 * before the daemon is there and between its death and its restart, it just waits for the answer. Nothing of this is left
 * in the file system: the directory with the socket's name is removed as soon as the name has been opened (O_PATH), and
 * front ends connect to the descriptor, `/proc/self/fd/N`. The daemon runs with --supervised: its standard input ends
 * with the VMM, also where that was killed, and the daemon with it.
 */

import { mkdtempSync, openSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { UnixListener } from '../../protocol/sys/unix-socket.ts';
import type { DaemonCommand } from './daemon-commands.ts';
import { DaemonProcess } from './daemon-process.ts';
import { VmError } from './errors.ts';
import type { Log } from './log.ts';

/** asm-generic/fcntl.h */
const O_PATH = 0o10000000;
const O_CLOEXEC = 0o2000000;
/** A daemon that dies this often in this time is given up. */
const MAX_DEATHS = 5;
const DEATHS_WITHIN_MS = 10_000;
/** Before the second restart; doubled for each further one. The first is at once. */
const RESTART_PAUSE_MS = 100;
/** What the first process of a daemon is given to serve. */
const START_DEADLINE_MS = 30_000;
/** What a daemon is given to end in order: its own deadline for requests in flight is 10 s. */
const STOP_DEADLINE_MS = 12_000;

export interface SupervisorOptions {
  /** Folder of the build: programs are at `backends/blk/main.js` and `backends/net/main.js` in it. */
  readonly root: string;
  /** Where sockets can have a name for a moment: a directory of the user's, such as XDG_RUNTIME_DIR. */
  readonly directory: string;
  /** Level of the daemons' logs; default `info`. */
  readonly logLevel?: string;
  readonly log: Log;
}

/** A daemon under supervision. */
export interface SupervisedDaemon {
  /** What a front end in this process connects to, as long as the daemon is supervised. */
  readonly socket: string;
  /** Of the present process; undefined between two. */
  readonly pid: number | undefined;
  /** Makes it look at its surroundings again (SIGHUP); one that is being started does that anyway. */
  reload(): Promise<void>;
  /** Ends it and waits until it is gone. Idempotent. */
  stop(): Promise<void>;
}

export class DaemonSupervisor {
  readonly #options: SupervisorOptions;
  readonly #daemons = new Set<Supervised>();

  constructor(options: SupervisorOptions) {
    this.#options = options;
  }

  /**
   * Starts a daemon; it is under way when this returns, and serves when the promise is kept. From then on it is started
   * again when it dies.
   * @throws VmError - it ended before it served, with its reason
   * @throws SysError - there can be no socket
   */
  async start(command: DaemonCommand): Promise<SupervisedDaemon> {
    const daemon = new Supervised(command, this.#options, (ended) => this.#daemons.delete(ended));
    this.#daemons.add(daemon);
    try {
      await daemon.serving;
    } catch (error) {
      this.#daemons.delete(daemon);
      throw error;
    }
    return daemon;
  }

  /** Ends all daemons, also those that are being started, and waits until they are gone. Idempotent. */
  async stop(): Promise<void> {
    const daemons = [...this.#daemons];
    this.#daemons.clear();
    await Promise.all(daemons.map((daemon) => daemon.stop()));
  }
}

class Supervised implements SupervisedDaemon {
  readonly socket: string;
  /** Kept when the first process serves. */
  readonly serving: Promise<void>;
  readonly #command: DaemonCommand;
  readonly #options: SupervisorOptions;
  readonly #listener: UnixListener;
  readonly #path: OwnedFd;
  readonly #onEnd: (ended: Supervised) => void;
  #process: DaemonProcess | undefined;
  #restart: NodeJS.Timeout | undefined;
  #deaths: number[] = [];
  #stopped = false;

  /** `onEnd` is called when one that served has nothing left to stop. */
  constructor(command: DaemonCommand, options: SupervisorOptions, onEnd: (ended: Supervised) => void) {
    this.#command = command;
    this.#options = options;
    this.#onEnd = onEnd;
    [this.#listener, this.#path] = listenUnseen(options.directory);
    this.socket = `/proc/self/fd/${this.#path.fd}`;
    this.serving = this.#startFirst();
  }

  get pid(): number | undefined {
    return this.#process?.pid;
  }

  async reload(): Promise<void> {
    await this.#process?.reload();
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#restart);
    this.#closeSocket();
    await this.#process?.stop(STOP_DEADLINE_MS);
    this.#onEnd(this);
  }

  async #startFirst(): Promise<void> {
    const { name, program } = this.#command;
    const first = this.#spawn();
    // One that hangs, in the open of a dead file server's image say, is not to hold everything up.
    const timer = setTimeout(() => first.giveUp(`it does not serve within ${START_DEADLINE_MS} ms`), START_DEADLINE_MS);
    try {
      await first.serving;
      void first.ended.then(() => this.#onDeath());
    } catch (error) {
      this.#stopped = true;
      this.#closeSocket();
      throw new VmError(`${name}: ${program} did not start: ${(error as Error).message}`, { cause: error });
    } finally {
      clearTimeout(timer);
    }
  }

  #spawn(): DaemonProcess {
    const { root, logLevel = 'info', log } = this.#options;
    const { name, program, args } = this.#command;
    const main = join(root, 'backends', program === 'vhost-user-blk' ? 'blk' : 'net', 'main.js');
    const own = ['--fd=3', '--supervised', '--log-format=json', `--log-level=${logLevel}`];
    this.#process = new DaemonProcess([main, ...own, ...args], this.#listener.fd, name, log);
    return this.#process;
  }

  #onDeath(): void {
    if (this.#stopped) return;
    const { name, program } = this.#command;
    const { log } = this.#options;
    const how = this.#process?.how ?? 'ended';
    const now = performance.now();
    this.#process = undefined;
    this.#deaths = [...this.#deaths.filter((at) => now - at < DEATHS_WITHIN_MS), now];
    if (this.#deaths.length > MAX_DEATHS) {
      log.error(`${name}: ${program} ${how}, the last of ${this.#deaths.length} times in 10 s: giving it up`);
      // Front ends may dial on: the number of the socket's path is nobody else's before `stop`.
      this.#listener.close();
      return;
    }
    log.warn(`${name}: ${program} ${how}: starting it again`);
    const pauseMs = this.#deaths.length === 1 ? 0 : RESTART_PAUSE_MS * 2 ** (this.#deaths.length - 2);
    this.#restart = setTimeout(() => void this.#startNext(), pauseMs);
  }

  async #startNext(): Promise<void> {
    const { name, program } = this.#command;
    const next = this.#spawn();
    await next.serving.catch((error: Error) => {
      if (!this.#stopped) this.#options.log.error(`${name}: ${program} did not start: ${error.message}`);
    });
    await next.ended;
    this.#onDeath();
  }

  #closeSocket(): void {
    this.#listener.close();
    this.#path.close();
  }
}

/** A listening socket that no other user could have reached, and that no name leads to any more; the other descriptor is its path. */
function listenUnseen(parent: string): [UnixListener, OwnedFd] {
  const directory = mkdtempSync(join(parent, 'ringside-'));
  try {
    const path = join(directory, 's');
    const listener = UnixListener.listen(path);
    try {
      return [listener, new OwnedFd(openSync(path, O_PATH | O_CLOEXEC))];
    } catch (error) {
      listener.close();
      throw error;
    }
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}
