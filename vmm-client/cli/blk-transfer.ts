/** `ringside blk read` and `ringside blk write`: bytes of a disk to a file or standard output, and back. */

import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import type { Readable } from 'node:stream';
import type { BlkDriver } from '../driver/blk-driver.ts';
import { type ByteRange, type CliContext, type DiskOptions, describeRate, rangeOf, withDisk } from './context.ts';
import { PIPELINE_BYTES, runPipeline } from './pipeline.ts';
import { Progress } from './progress.ts';
import { UsageError } from './quantity.ts';
import { openSink } from './sink.ts';

export interface ReadOptions extends DiskOptions {
  readonly offset: number;
  readonly length?: number;
  /** A file, or `-` for standard output. */
  readonly output: string;
}

export interface WriteOptions extends DiskOptions {
  readonly offset: number;
  /** A file, or `-` for standard input. */
  readonly input: string;
}

/** Any range of bytes; the disk is read in whole blocks. */
export async function readDisk(context: CliContext, socket: string, options: ReadOptions): Promise<void> {
  await withDisk(context, socket, options, PIPELINE_BYTES, async (driver) => {
    const wanted = rangeOf(driver, options.offset, options.length, 1);
    const { blockSize } = driver.config;
    const begin = Math.floor(wanted.offset / blockSize) * blockSize;
    const wantedEnd = wanted.offset + wanted.length;
    const end = Math.ceil(wantedEnd / blockSize) * blockSize;
    const sink = await openSink(options.output, context.stdout);
    const progress = new Progress(context.stderr, 'read', wanted.length);
    const started = performance.now();
    try {
      await runPipeline(driver, { offset: begin, length: end - begin }, context.interrupted, {
        start: (offset, bytes) => driver.read(offset, bytes),
        take: async (offset, bytes) => {
          const from = Math.max(0, wanted.offset - offset);
          const to = Math.min(bytes.length, wantedEnd - offset);
          await sink.write(bytes.subarray(from, to));
          progress.update(offset + to - wanted.offset);
        },
      });
    } finally {
      progress.clear();
      await sink.close();
    }
    if (options.output !== '-') {
      context.stdout.write(`read ${describeRate(wanted.length, performance.now() - started)}\n`);
    }
  });
}

/** Everything the input has, to the disk. The rest of a last block that the input does not fill stays as it is. */
export async function writeDisk(context: CliContext, socket: string, options: WriteOptions): Promise<void> {
  const fromFile = options.input !== '-';
  const inputLength = fromFile ? await regularFileLength(options.input) : undefined;
  await withDisk(context, socket, options, PIPELINE_BYTES, async (driver) => {
    const { capacityBytes, blockSize } = driver.config;
    if (driver.isReadOnly) throw new UsageError('the disk is read-only');
    if (options.offset % blockSize !== 0) {
      throw new UsageError(`offset ${options.offset} is not a multiple of the block size of ${blockSize} bytes`);
    }
    const room = rangeOf(driver, options.offset, undefined, 1);
    const tooLong = () =>
      new UsageError(
        `the input does not fit: ${room.length} of the disk's ${capacityBytes} bytes are behind offset ${options.offset}`,
      );
    if (inputLength !== undefined && inputLength > room.length) throw tooLong();

    const input = fromFile ? createReadStream(options.input, { highWaterMark: 1024 * 1024 }) : context.stdin;
    const progress = new Progress(context.stderr, 'write', inputLength ?? 0);
    const started = performance.now();
    const source = new ChunkSource(input);
    let written = 0;
    try {
      await pumpInput(driver, source, room, context.interrupted, (bytes) => {
        written += bytes;
        if (inputLength !== undefined) progress.update(written);
      });
      if (await source.hasMore()) throw tooLong();
      await driver.flush();
    } finally {
      progress.clear();
      input.destroy();
    }
    context.stdout.write(`wrote ${describeRate(written, performance.now() - started)}\n`);
  });
}

async function regularFileLength(path: string): Promise<number | undefined> {
  const stats = await stat(path);
  return stats.isFile() ? stats.size : undefined;
}

/** Fills buffers from a stream whose pieces have whatever length they have. */
class ChunkSource {
  readonly #pieces: AsyncIterator<Buffer>;
  #rest: Buffer = Buffer.alloc(0);

  constructor(input: Readable) {
    this.#pieces = input[Symbol.asyncIterator]();
  }

  /** Copies up to the target's length; less only at the end of the input. Returns how many bytes. */
  async fill(target: Buffer): Promise<number> {
    let filled = 0;
    while (filled < target.length && (await this.hasMore())) {
      const copied = this.#rest.copy(target, filled);
      this.#rest = this.#rest.subarray(copied);
      filled += copied;
    }
    return filled;
  }

  async hasMore(): Promise<boolean> {
    while (this.#rest.length === 0) {
      const piece = await this.#pieces.next();
      if (piece.done === true) return false;
      this.#rest = Buffer.from(piece.value);
    }
    return true;
  }
}

/** Chunk by chunk until the input ends or the disk does; several are written at the same time. */
async function pumpInput(
  driver: BlkDriver,
  source: ChunkSource,
  range: ByteRange,
  interrupted: AbortSignal,
  onWritten: (bytes: number) => void,
): Promise<void> {
  let ended = false;
  let lastFill = Promise.resolve(0);
  const fillInTurn = (bytes: Buffer): Promise<number> => {
    // One fill at a time, in the order of the chunks.
    lastFill = lastFill.then(async () => {
      const filled = ended ? 0 : await source.fill(bytes);
      if (filled < bytes.length) ended = true;
      return filled;
    });
    return lastFill;
  };
  await runPipeline(driver, range, interrupted, {
    isOver: () => ended,
    start: async (place, bytes) => {
      const filled = await fillInTurn(bytes);
      if (filled === 0) return;
      await writeChunk(driver, place, bytes, filled);
      onWritten(filled);
    },
  });
}

/** Writes the first `filled` bytes of a chunk; what a last block lacks is read from the disk first. */
async function writeChunk(driver: BlkDriver, place: number, bytes: Buffer, filled: number): Promise<void> {
  const { blockSize } = driver.config;
  const whole = filled - (filled % blockSize);
  const end = filled === whole ? whole : whole + blockSize;
  if (end > whole) {
    const tail = Buffer.from(bytes.subarray(whole, filled));
    await driver.read(place + whole, bytes.subarray(whole, end));
    tail.copy(bytes, whole);
  }
  await driver.write(place, bytes.subarray(0, end));
}
