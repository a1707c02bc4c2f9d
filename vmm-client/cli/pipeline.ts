/**
 * Keeps several chunks of a range in flight and hands them on in order. One buffer of shared memory per chunk in flight;
 * a step is the asynchronous work on one chunk (reading it, or writing it), a take what is done with it in turn.
 */

import type { BlkDriver } from '../driver/blk-driver.ts';
import type { ByteRange } from './context.ts';

const MAX_CHUNK_BYTES = 256 * 1024;
const DEPTH = 16;

/** Shared memory that a pipeline may need, in bytes. */
export const PIPELINE_BYTES = DEPTH * MAX_CHUNK_BYTES;

/** Bytes of one chunk on this disk: whole blocks. */
function chunkBytes(driver: BlkDriver): number {
  const { blockSize } = driver.config;
  return Math.max(1, Math.floor(Math.min(MAX_CHUNK_BYTES, driver.maxRequestBytes) / blockSize)) * blockSize;
}

/** `bytes` is valid until the promise of `take` is kept; `offset` is the chunk's place on the disk. */
export interface PipelineStages {
  /** Whether no more chunks are to be started although the range has not ended. */
  isOver?(): boolean;
  /** Called in order, and not before the buffer is free. Chunks of different offsets run at the same time. */
  start(offset: number, bytes: Buffer): Promise<void>;
  /** Called in order, after `start` of the same chunk is done. */
  take?(offset: number, bytes: Buffer): Promise<void>;
}

/** @throws whatever a stage throws, after everything in flight has come to its end */
export async function runPipeline(
  driver: BlkDriver,
  range: ByteRange,
  interrupted: AbortSignal,
  stages: PipelineStages,
): Promise<void> {
  const size = chunkBytes(driver);
  const buffers = Array.from({ length: DEPTH }, () => driver.allocateBuffer(size));
  const flying: { offset: number; bytes: Buffer; buffer: Buffer; done: Promise<void> }[] = [];
  const free = [...buffers];
  let next = range.offset;
  const end = range.offset + range.length;
  try {
    while (next < end || flying.length > 0) {
      interrupted.throwIfAborted();
      if (stages.isOver?.() === true) next = end;
      const buffer = next < end ? free.pop() : undefined;
      if (buffer !== undefined) {
        const bytes = buffer.subarray(0, Math.min(size, end - next));
        const done = stages.start(next, bytes);
        // It is awaited in its turn; until then a failure is not unhandled.
        done.catch(() => undefined);
        flying.push({ offset: next, bytes, buffer, done });
        next += bytes.length;
        continue;
      }
      const first = flying.shift();
      if (first === undefined) break;
      await first.done;
      await stages.take?.(first.offset, first.bytes);
      free.push(first.buffer);
    }
  } finally {
    await Promise.allSettled(flying.map(({ done }) => done));
    for (const buffer of buffers) driver.freeBuffer(buffer);
  }
}
