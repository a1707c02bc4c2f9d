/** A vhost-user-vsock back end as a child process, with a guest attached and what has to be as before afterwards. */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { Child } from '../child.ts';
import type { Cleanup } from '../cleanup.ts';
import { DaemonProcess } from '../daemon-process.ts';
import { projectDirectory } from '../peers.ts';
import { eventually } from './process-probe.ts';
import { VsockGuest, type VsockGuestOptions } from './vsock-guest.ts';

const MAIN = join(projectDirectory, 'dist/backends/vsock/main.js');

export interface VsockDaemonOptions {
  readonly cid?: number;
  readonly extra?: readonly string[];
  /** In place of the options of one guest. */
  readonly arguments?: readonly string[];
  /** Lines "listening on" to wait for. */
  readonly sockets?: number;
}

export class VsockDaemon extends DaemonProcess {
  /** The socket for programs of the host. */
  readonly uds: string;
  readonly directory: string;
  readonly #sockets: number;
  readonly #cleanup: Cleanup;
  idleFds = 0;

  private constructor(cleanup: Cleanup, directory: string, args: readonly string[], sockets: number) {
    super(join(directory, 'vhost.sock'), () => new Child(process.execPath, [MAIN, ...args, '--log-format=json']));
    this.directory = directory;
    this.uds = join(directory, 'v');
    this.#sockets = sockets;
    this.#cleanup = cleanup;
  }

  static async start(cleanup: Cleanup, options: VsockDaemonOptions = {}): Promise<VsockDaemon> {
    if (!existsSync(MAIN)) throw new Error(`${MAIN} is not built: run scripts/build`);
    const directory = cleanup.directory();
    const single = [
      `--socket-path=${join(directory, 'vhost.sock')}`,
      `--guest-cid=${options.cid ?? 3}`,
      `--uds-path=${join(directory, 'v')}`,
    ];
    const own = options.arguments?.map((text) => text.replaceAll('@', directory)) ?? single;
    const daemon = new VsockDaemon(cleanup, directory, [...own, ...(options.extra ?? [])], options.sockets ?? 1);
    cleanup.add(() => daemon.child.stop());
    await daemon.waitUntilListening();
    return daemon;
  }

  override async waitUntilListening(): Promise<void> {
    await this.waitForLog(new RegExp(`(?:"listening on [^]*?){${this.#sockets}}`), 15_000);
    this.idleFds = this.fdCount();
  }

  /** A guest on the daemon's (first) socket. */
  async guest(options: VsockGuestOptions = {}, socket = this.socket): Promise<VsockGuest> {
    const guest = await VsockGuest.start(socket, options);
    this.#cleanup.add(() => guest.close());
    return guest;
  }

  /** Waits until the daemon holds as many descriptors as `count`. */
  async waitForFds(count: number): Promise<void> {
    await eventually(
      'descriptors of the daemon',
      () => this.fdCount(),
      (now) => now === count,
    );
  }
}
