/**
 * A request that takes its time: while the VMM works at it, its progress is shown, as a bar on a terminal and as lines
 * elsewhere, and an interruption becomes vm.cancel-migration.
 */

import { setTimeout as delay } from 'node:timers/promises';
import type { LongOperationName, VmProgress } from '../api/vmm-control.ts';
import type { CliContext } from './context.ts';
import { ApiError, type ApiRequest, requestApi } from './ctl-request.ts';
import { type ProgressOutput, renderProgress, StatusLine } from './progress.ts';
import { formatSize } from './quantity.ts';

const POLL_MS = 200;
/** How long the VMM may take to say how far it is, or to cancel. */
const ANSWER_MS = 10_000;
const ENDS: ReadonlySet<string> = new Set(['completed', 'cancelled', 'failed']);

export interface WatchedRequest extends ApiRequest {
  readonly operation: LongOperationName;
  /** An interruption cancels it at the VMM. */
  readonly cancels: boolean;
}

type Output = Pick<CliContext, 'stderr'>;

/** One line: a bar, or a word and the time while there is nothing to count. */
export function renderOperation(progress: VmProgress, columns: number): string {
  const { operation, phase, round, bytes_done, bytes_total, elapsed_ms, converges, throttle_percent } = progress;
  const where = round > 1 ? `${operation}: ${phase}, round ${round}` : `${operation}: ${phase}`;
  if (bytes_total === 0) return `${where}, ${Math.floor(elapsed_ms / 1000)} s`.slice(0, Math.max(0, columns - 1));
  const slow = throttle_percent === undefined ? '' : `, the guest is held for ${throttle_percent} % of the time`;
  const label = converges === false && slow === '' ? `${where}, the guest writes faster` : `${where}${slow}`;
  return renderProgress(label, bytes_done, bytes_total, elapsed_ms, columns);
}

/** What is left to say at the end. */
export function summarize({ operation, bytes_done, elapsed_ms, downtime_ms }: VmProgress): string {
  const rate = elapsed_ms > 0 ? ` (${formatSize((bytes_done / elapsed_ms) * 1000)}/s)` : '';
  const downtime = downtime_ms === undefined ? '' : `, the guest stood still for ${downtime_ms} ms`;
  const time = `${(elapsed_ms / 1000).toFixed(2)} s`;
  // Memory that is handed over.
  if (bytes_done === 0) return `${operation}: completed in ${time}${downtime}`;
  return `${operation}: ${formatSize(bytes_done)} in ${time}${rate}${downtime}`;
}

/** Shows how far the VMM is until `ended` is aborted. */
async function watch(request: WatchedRequest, output: ProgressOutput, ended: AbortSignal): Promise<void> {
  const line = new StatusLine(output);
  let told = '';
  try {
    for (;;) {
      await delay(POLL_MS, undefined, { signal: ended });
      const progress = await askProgress(request, ended);
      // Before its turn there is none, or the last one's.
      if (progress?.operation !== request.operation || ENDS.has(progress.phase)) continue;
      line.draw((columns) => renderOperation(progress, columns));
      const step = `${progress.phase} ${progress.round}`;
      if (output.isTTY !== true && step !== told) output.write(`${renderOperation(progress, 200)}\n`);
      told = step;
    }
  } finally {
    line.clear();
  }
}

/** How far the last long operation is, or undefined where there has been none. */
async function askProgress({ socketPath }: WatchedRequest, interrupted: AbortSignal): Promise<VmProgress | undefined> {
  const request = { socketPath, method: 'GET', name: 'vm.progress', timeoutMs: ANSWER_MS, interrupted } as const;
  try {
    return JSON.parse(await requestApi(request)) as VmProgress;
  } catch (error) {
    if (error instanceof ApiError && error.code === 'API_REFUSED') return undefined;
    throw error;
  }
}

/**
 * Resolves when the VMM has done it.
 * @throws ApiError - what `requestApi` throws
 * @throws what interrupted the command, after the VMM has let go of a migration
 */
export async function requestAtLength(request: WatchedRequest, { stderr }: Output): Promise<void> {
  const { interrupted, cancels, socketPath } = request;
  const begun = performance.now();
  const hangUp = new AbortController();
  const ended = new AbortController();
  const cancel = () => {
    const never = new AbortController().signal;
    const cancellation = { socketPath, method: 'PUT', name: 'vm.cancel-migration', interrupted: never } as const;
    requestApi({ ...cancellation, timeoutMs: ANSWER_MS }).catch((error: ApiError) => {
      // Refused: the migration ends by itself at this moment, and we are told. Otherwise nobody tells us any more.
      if (error.code !== 'API_REFUSED') hangUp.abort(error);
    });
  };
  // There may be nobody to say how far it is: the answer to the request itself is what counts.
  const watching = watch(request, stderr, ended.signal).catch(() => undefined);
  if (cancels) interrupted.addEventListener('abort', cancel, { once: true });
  try {
    await requestApi({ ...request, interrupted: cancels ? hangUp.signal : interrupted });
  } catch (error) {
    if (!cancels || !interrupted.aborted) throw error;
    ended.abort();
    await watching;
    stderr.write(`ringside: ${(error as Error).message}\n`);
    throw interrupted.reason;
  } finally {
    interrupted.removeEventListener('abort', cancel);
    ended.abort();
    await watching;
  }
  // A VMM that ends with its guest may be gone already.
  const last = await askProgress(request, interrupted).catch(() => undefined);
  const time = ((performance.now() - begun) / 1000).toFixed(2);
  const isTold = last?.operation === request.operation;
  stderr.write(`${isTold ? summarize(last) : `${request.operation}: completed in ${time} s`}\n`);
}
