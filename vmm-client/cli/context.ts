/** What commands see of the world, so that only main.ts touches the process; and how they get at a disk. */

import type { Readable, Writable } from 'node:stream';
import { BlkDriver } from '../driver/blk-driver.ts';
import { VhostUserFrontend } from '../frontend/frontend.ts';
import { formatSize, UsageError } from './quantity.ts';

export interface CliContext {
  readonly stdin: Readable;
  readonly stdout: Writable & { readonly isTTY?: boolean };
  readonly stderr: Writable & { readonly isTTY?: boolean; readonly columns?: number };
  /** Aborted when the user wants an end (SIGINT, SIGTERM, SIGHUP). */
  readonly interrupted: AbortSignal;
  readonly host: Host;
}

/** What a virtual machine needs of its process. */
export interface Host {
  /** Folder that has the programs of the suite, at their places in the build. */
  readonly root: string;
  /** A directory of the user's for what lives as long as the process. */
  readonly runtimeDirectory: string;
  /** Calls `hook` when the process ends, however it does, signals that cannot be caught aside. Returns what forgets it. */
  onExit(hook: () => void): () => void;
}

/** A run that did what it should and found that the data is not what it should be. Ends in exit code 1. */
export class VerifyError extends Error {
  override readonly name = 'VerifyError';
  readonly code = 'VERIFY';
}

/** Options of every command that runs queues. */
export interface QueueOptions {
  readonly timeout: number;
  readonly reconnect: number;
  readonly queueSize: number;
  readonly packed?: boolean;
  readonly inOrder?: boolean;
}

/** Options of every `blk` command. */
export interface DiskOptions extends QueueOptions {
  readonly queues: number;
}

/** What drivers are told of their rings. */
export function ringOptions({ queueSize, packed = false, inOrder = false }: QueueOptions) {
  return { queueSize, packed, inOrder };
}

/** @throws UsageError - no split queue has that many entries */
export function checkQueueSize({ queueSize, packed }: QueueOptions): void {
  if (packed === true || (queueSize & (queueSize - 1)) === 0) return;
  throw new UsageError(`--queue-size ${queueSize} is not a power of two`);
}

/** Connects to the back end at `socket`, and tells the user when it goes away and comes back. */
export async function connectTo(
  context: CliContext,
  socket: string,
  { timeout, reconnect }: Pick<QueueOptions, 'timeout' | 'reconnect'>,
): Promise<VhostUserFrontend> {
  const frontend = await VhostUserFrontend.connect(socket, { timeoutMs: timeout, reconnectMs: reconnect });
  frontend.on('disconnect', (error) => context.stderr.write(`ringside: ${error.message}; dialing again\n`));
  frontend.on('reconnect', () => context.stderr.write('ringside: the back end is back\n'));
  frontend.on('channelFault', (error) => context.stderr.write(`ringside: request channel: ${error.message}\n`));
  return frontend;
}

/** Runs `use` with the driver that `open` makes of the back end at `socket`, closed afterwards in every case. */
export async function withDriver<D extends { close(): Promise<void> }, T>(
  context: CliContext,
  socket: string,
  options: QueueOptions,
  open: (frontend: VhostUserFrontend) => Promise<D>,
  use: (driver: D) => Promise<T>,
): Promise<T> {
  checkQueueSize(options);
  const frontend = await connectTo(context, socket, options);
  let driver: D;
  try {
    driver = await open(frontend);
  } catch (error) {
    frontend.close();
    throw error;
  }
  let failed = true;
  try {
    const result = await use(driver);
    failed = false;
    return result;
  } finally {
    const closing = driver.close();
    // The first failure is the one to tell.
    await (failed ? closing.catch(() => undefined) : closing);
  }
}

/** Runs `use` with a driver of the disk at `socket`, closed afterwards in every case. */
export function withDisk<T>(
  context: CliContext,
  socket: string,
  options: DiskOptions,
  dataBytes: number,
  use: (driver: BlkDriver) => Promise<T>,
): Promise<T> {
  const { queues } = options;
  const all = { ...ringOptions(options), queues, dataBytes, timeoutMs: Math.max(options.timeout, 1000) };
  const open = (frontend: VhostUserFrontend) => BlkDriver.open(frontend, all);
  return withDriver(context, socket, options, open, use);
}

/** A byte range of a disk. */
export interface ByteRange {
  readonly offset: number;
  readonly length: number;
}

/** The range that `--offset` and `--length` name; without a length to the end. @throws UsageError - outside the disk */
export function rangeOf(driver: BlkDriver, offset: number, length: number | undefined, alignment: number): ByteRange {
  const { capacityBytes } = driver.config;
  if (offset > capacityBytes || (length ?? 0) > capacityBytes - offset) {
    const end = length === undefined ? '' : ` and length ${length}`;
    throw new UsageError(
      `offset ${offset}${end} are outside the disk of ${formatSize(capacityBytes)} (${capacityBytes})`,
    );
  }
  const range = { offset, length: length ?? capacityBytes - offset };
  for (const [name, value] of [
    ['offset', range.offset],
    ['length', range.length],
  ] as const) {
    if (value % alignment !== 0) throw new UsageError(`${name} ${value} is not a multiple of ${alignment} bytes`);
  }
  return range;
}

/** `1.5 GiB in 2.10 s (731 MiB/s)`. */
export function describeRate(bytes: number, elapsedMs: number): string {
  const rate = elapsedMs > 0 ? (bytes / elapsedMs) * 1000 : 0;
  return `${formatSize(bytes)} in ${(elapsedMs / 1000).toFixed(2)} s (${formatSize(rate)}/s)`;
}
