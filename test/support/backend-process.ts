/**
 * A vhost-user-blk back end as a child process: ours from dist, or qemu-storage-daemon with
 * RINGSIDE_TEST_BACKEND=qsd, which shows that what a test expects is no private idea of ours.
 */

import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Child } from './child.ts';
import type { Cleanup } from './cleanup.ts';
import { DaemonProcess } from './daemon-process.ts';
import { peerPath, projectDirectory } from './peers.ts';

export interface BlkBackendOptions {
  /** The file or block device to serve. */
  readonly image: string;
  /** Where to listen; by default a path in a directory of its own. */
  readonly socket?: string;
  /** Dial the socket instead of listening at it, and dial again after a disconnect. Not with the peer. */
  readonly client?: boolean;
  readonly readOnly?: boolean;
  readonly serial?: string;
  readonly numQueues?: number;
  /** Logical block size in bytes. */
  readonly blockSize?: number;
  /** More arguments for our daemon. */
  readonly extra?: readonly string[];
}

/** Which daemon the tests run against. */
export const backendKind = process.env.RINGSIDE_TEST_BACKEND === 'qsd' ? 'qsd' : 'ringside';

const MAIN = join(projectDirectory, 'dist/backends/blk/main.js');

const ringsideCommand = (socket: string, options: BlkBackendOptions): string[] => [
  process.execPath,
  MAIN,
  `--socket-path=${socket}`,
  `--blk-file=${options.image}`,
  '--log-format=json',
  ...(options.client === true ? ['--client'] : []),
  ...(options.readOnly === true ? ['--read-only'] : []),
  ...(options.serial === undefined ? [] : [`--serial=${options.serial}`]),
  ...(options.numQueues === undefined ? [] : [`--num-queues=${options.numQueues}`]),
  ...(options.blockSize === undefined ? [] : [`--blk-size=${options.blockSize}`]),
  ...(options.extra ?? []),
];

const qsdCommand = (socket: string, options: BlkBackendOptions): string[] => [
  peerPath('qemu-storage-daemon'),
  '--blockdev',
  `driver=file,node-name=f,filename=${options.image},aio=io_uring,discard=unmap,read-only=${options.readOnly ? 'on' : 'off'}`,
  '--export',
  `type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=${socket},writable=${options.readOnly ? 'off' : 'on'}` +
    `,num-queues=${options.numQueues ?? 1},logical-block-size=${options.blockSize ?? 512}`,
];

/** Whether a Unix socket listens at `path`. Asked of the kernel: a connection made to find out would be one too many. */
export const listensAt = (path: string): boolean =>
  readFileSync('/proc/net/unix', 'utf8')
    .split('\n')
    // Num RefCount Protocol Flags Type St Inode Path; __SO_ACCEPTCON is set in Flags of a listener.
    .some((line) => line.endsWith(` ${path}`) && line.split(/\s+/)[3] === '00010000');

export class BlkBackend extends DaemonProcess {
  readonly image: string;
  readonly #listens: boolean;

  private constructor(socket: string, options: BlkBackendOptions) {
    const [program = '', ...args] = (backendKind === 'qsd' ? qsdCommand : ringsideCommand)(socket, options);
    super(socket, () => new Child(program, args));
    this.image = options.image;
    this.#listens = options.client !== true;
  }

  /** Starts a daemon and waits until it listens, if it is to. `cleanup` kills it at the latest. */
  static async start(cleanup: Cleanup, options: BlkBackendOptions): Promise<BlkBackend> {
    if (backendKind === 'ringside' && !existsSync(MAIN)) throw new Error(`${MAIN} is not built: run scripts/build`);
    const socket = options.socket ?? join(cleanup.directory(), 'blk.sock');
    const backend = new BlkBackend(socket, options);
    cleanup.add(() => backend.child.stop());
    await backend.waitUntilListening();
    return backend;
  }

  override async restart(): Promise<void> {
    // Replacing a stale socket is part of what our daemon promises; the peer does not.
    if (backendKind === 'qsd' && !this.running) rmSync(this.socket, { force: true });
    await super.restart();
  }

  override async waitUntilListening(deadlineMs = 15_000): Promise<void> {
    if (!this.#listens) return;
    const end = performance.now() + deadlineMs;
    while (!listensAt(this.socket)) {
      if (!this.running) throw new Error(`the back end ended before it listened:\n${this.child.tail()}`);
      if (performance.now() > end) throw new Error(`the back end does not listen:\n${this.child.tail()}`);
      await delay(5);
    }
  }
}
