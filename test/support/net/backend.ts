/**
 * vhost-user-net as a child process in a network namespace. Its socket has a path, and paths know no network
 * namespaces: front ends reach it from outside.
 */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { Cleanup } from '../cleanup.ts';
import { DaemonProcess } from '../daemon-process.ts';
import { projectDirectory } from '../peers.ts';
import type { NetworkNamespace } from './namespace.ts';

export interface NetBackendOptions {
  readonly namespace: NetworkNamespace;
  /** The TAP interface; tap0 by default. */
  readonly tap?: string;
  readonly queuePairs?: number;
  readonly ctrlVq?: boolean;
  /** More arguments, `--mtu=9000` for instance. */
  readonly extra?: readonly string[];
}

const MAIN = join(projectDirectory, 'dist/backends/net/main.js');

export class NetBackend extends DaemonProcess {
  /** Name of the TAP interface. */
  readonly tap: string;

  private constructor(socket: string, options: NetBackendOptions) {
    const tap = options.tap ?? 'tap0';
    const args = [
      MAIN,
      `--socket-path=${socket}`,
      `--tap=${tap}`,
      '--log-format=json',
      ...(options.queuePairs === undefined ? [] : [`--num-queue-pairs=${options.queuePairs}`]),
      ...(options.ctrlVq === true ? ['--ctrl-vq'] : []),
      ...(options.extra ?? []),
    ];
    super(socket, () => options.namespace.spawn(process.execPath, args));
    this.tap = tap;
  }

  /** Starts a daemon and waits until it listens. Its namespace kills it at the latest. */
  static async start(cleanup: Cleanup, options: NetBackendOptions): Promise<NetBackend> {
    if (!existsSync(MAIN)) throw new Error(`${MAIN} is not built: run scripts/build`);
    const backend = new NetBackend(join(cleanup.directory(), 'net.sock'), options);
    await backend.waitUntilListening();
    return backend;
  }

  override async waitUntilListening(): Promise<void> {
    await this.waitForLog(/"listening on /, 15_000);
  }
}
