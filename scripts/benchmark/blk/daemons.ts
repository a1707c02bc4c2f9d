/** The block back ends under test: their command lines. */
import { existsSync } from 'node:fs';
import path from 'node:path';
import type { Children } from '../children.ts';
import { type Daemon, startDaemon } from '../daemons.ts';

export type DaemonKind = 'ringside' | 'ringside-null' | 'qemu-storage-daemon';

export interface DaemonOptions {
  kind: DaemonKind;
  image: string;
  direct: boolean;
  /** The core it is pinned to; undefined: the scheduler's choice. */
  cpu: number | undefined;
  /** Further options of our daemon. */
  extra: readonly string[];
}

export const OUR_DAEMON = path.join('dist', 'backends', 'blk', 'main.js');

export function commandLine(options: DaemonOptions, socket: string): string[] {
  if (options.kind === 'qemu-storage-daemon') {
    const direct = options.direct ? ',cache.direct=on' : '';
    return [
      'qemu-storage-daemon',
      '--blockdev',
      `driver=file,node-name=file0,filename=${options.image},aio=io_uring,discard=unmap${direct}`,
      '--export',
      `type=vhost-user-blk,id=export0,node-name=file0,addr.type=unix,addr.path=${socket},writable=on`,
    ];
  }
  const command = [process.execPath, OUR_DAEMON, `--socket-path=${socket}`, `--blk-file=${options.image}`];
  if (options.kind === 'ringside-null') command.push('--engine=null');
  if (options.direct) command.push('--direct');
  return [...command, ...options.extra];
}

export function isOurDaemonBuilt(): boolean {
  return existsSync(OUR_DAEMON);
}

/** Runs `use` with a freshly started daemon. */
export async function withDaemon<T>(
  children: Children,
  options: DaemonOptions,
  use: (daemon: Daemon) => Promise<T>,
): Promise<T> {
  const socket = children.newSocketPath();
  const line = commandLine(options, socket);
  if (options.cpu !== undefined) line.unshift('taskset', '-c', String(options.cpu));
  const daemon = await startDaemon(children, { name: options.kind, line, socket });
  try {
    return await use(daemon);
  } finally {
    await daemon.stop();
  }
}
