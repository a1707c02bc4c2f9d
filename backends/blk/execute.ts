/**
 * From what a request asks for to operations of the engine, one at a time: a transfer that the kernel cut short goes on
 * where it stopped, DISCARD and WRITE_ZEROES go from range to range. Source: VIRTIO 1.3, 5.2.6.2 Device Requirements.
 */

import { EAGAIN, EINTR, EINVAL, EOPNOTSUPP, errnoText } from '../../protocol/sys/errors.ts';
import { RWF_DSYNC } from '../../protocol/sys/io-uring.ts';
import { allocatePinned } from '../../protocol/sys/pinned.ts';
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE } from '../../protocol/sys/storage.ts';
import { VIRTIO_BLK_S_IOERR } from '../../protocol/virtio/blk.ts';
import type { Logger } from '../core/logging.ts';
import type { DiskFiles } from './disk.ts';
import { BUFFERED_FILE, type Engine, MAIN_FILE } from './engines/engine.ts';
import {
  type BlkRequest,
  IO_ALLOCATE,
  IO_DISCARD,
  IO_READ,
  IO_SYNC,
  IO_WRITE,
  PARSED_DISCARD,
  PARSED_FLUSH,
  PARSED_READ,
  PARSED_WRITE,
  PARSED_WRITE_ZEROES,
} from './request.ts';

const PUNCH_HOLE = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
const ZERO_BYTES = 1024 * 1024;
const LOG_INTERVAL_MS = 1000;

const names: ReadonlyMap<number, string> = new Map([
  [PARSED_READ, 'read'],
  [PARSED_WRITE, 'write'],
  [PARSED_FLUSH, 'flush'],
  [PARSED_DISCARD, 'discard'],
  [PARSED_WRITE_ZEROES, 'write zeroes'],
]);

export class Executor {
  readonly #engine: Engine;
  readonly #disk: DiskFiles;
  readonly #log: Logger;
  /** How ranges can be deallocated and zeroed here: found out by trying. */
  #canPunch = true;
  #canZero = true;
  #zeroes = 0;
  #lastLog = Number.NEGATIVE_INFINITY;
  #unlogged = 0;

  constructor(engine: Engine, disk: DiskFiles, log: Logger) {
    this.#engine = engine;
    this.#disk = disk;
    this.#log = log;
  }

  /** Starts a parsed request. Returns false when it is finished already (status set). */
  start(request: BlkRequest): boolean {
    switch (request.what) {
      case PARSED_READ:
        request.kind = IO_READ;
        request.flags = 0;
        request.file = this.#fileFor(request);
        this.#engine.submit(request);
        return true;
      case PARSED_WRITE:
        request.kind = IO_WRITE;
        request.flags = request.durable || request.exclusive ? RWF_DSYNC : 0;
        request.file = request.exclusive ? BUFFERED_FILE : MAIN_FILE;
        this.#engine.submit(request);
        return true;
      case PARSED_FLUSH:
        this.#sync(request);
        return true;
      case PARSED_DISCARD:
      case PARSED_WRITE_ZEROES:
        return this.#nextRange(request);
      default:
        return false;
    }
  }

  /** The engine ended an operation of the request. Returns true when there is another one to wait for. */
  advance(request: BlkRequest, result: number): boolean {
    if (result === -EAGAIN || result === -EINTR) {
      this.#engine.submit(request);
      return true;
    }
    switch (request.kind) {
      case IO_READ:
      case IO_WRITE:
        return this.#advanceTransfer(request, result);
      case IO_ALLOCATE:
        return this.#advanceRange(request, result);
      case IO_DISCARD:
        // A disk that cannot discard, or not so finely, keeps the data: the standard allows that.
        return this.#advanceRange(request, result === -EOPNOTSUPP || result === -EINVAL ? 0 : result);
      default:
        return result < 0 ? this.#fail(request, result) : false;
    }
  }

  /** O_DIRECT where buffers and place are aligned for it, the page cache otherwise. */
  #fileFor(request: BlkRequest): number {
    return this.#disk.direct && !isAligned(request, this.#disk) ? BUFFERED_FILE : MAIN_FILE;
  }

  #advanceTransfer(request: BlkRequest, result: number): boolean {
    if (result <= 0) return this.#fail(request, result);
    request.offset += result;
    // The length is that of one piece; where the range ends, #writeZeroes knows.
    if (request.what === PARSED_WRITE_ZEROES) return this.#writeZeroes(request);
    if (request.what === PARSED_READ) request.written += result;
    request.length -= result;
    if (request.length === 0) return false;
    skipBuffers(request, result);
    // What is left of a direct transfer may not be aligned any more.
    request.file = this.#fileFor(request);
    if (request.kind === IO_WRITE && request.file === BUFFERED_FILE) request.flags = RWF_DSYNC;
    this.#engine.submit(request);
    return true;
  }

  #sync(request: BlkRequest): void {
    request.kind = IO_SYNC;
    request.file = MAIN_FILE;
    request.length = 0;
    this.#engine.submit(request);
  }

  /** Starts the next range; after the last one, makes the result durable if it must be. */
  #nextRange(request: BlkRequest): boolean {
    while (request.range < request.ranges) {
      request.offset = request.rangeOffset[request.range] as number;
      request.length = request.rangeLength[request.range] as number;
      if (request.length > 0 && this.#allocate(request)) return true;
      request.range += 1;
    }
    if (!request.durable) return false;
    this.#sync(request);
    return true;
  }

  /** Deallocates or zeroes the current range. False when there is nothing to do: a discard that cannot be. */
  #allocate(request: BlkRequest): boolean {
    request.kind = IO_ALLOCATE;
    request.file = MAIN_FILE;
    if (request.what === PARSED_DISCARD && this.#disk.isBlockDevice) {
      // Punching a hole in a block device means zeroing it; TRIM is a call of its own.
      request.kind = IO_DISCARD;
      this.#engine.submit(request);
      return true;
    }
    const mayPunch = request.what === PARSED_DISCARD || request.unmap;
    if (mayPunch && this.#canPunch) request.flags = PUNCH_HOLE;
    else if (request.what === PARSED_DISCARD) return false;
    else if (this.#canZero) request.flags = ZERO_RANGE;
    else return this.#writeZeroes(request);
    this.#engine.submit(request);
    return true;
  }

  #advanceRange(request: BlkRequest, result: number): boolean {
    if (result === -EOPNOTSUPP) {
      if (request.flags === PUNCH_HOLE) this.#canPunch = false;
      else this.#canZero = false;
      return this.#nextRange(request);
    }
    if (result < 0) return this.#fail(request, result);
    request.range += 1;
    return this.#nextRange(request);
  }

  /** Where the file system cannot zero a range, zeroes are written, a piece at a time. */
  #writeZeroes(request: BlkRequest): boolean {
    if (this.#zeroes === 0) this.#zeroes = allocatePinned(ZERO_BYTES).address;
    const end = (request.rangeOffset[request.range] as number) + (request.rangeLength[request.range] as number);
    if (request.offset === end) return this.#advanceRange(request, 0);
    request.kind = IO_WRITE;
    request.flags = 0;
    request.buffers = 1;
    request.address = this.#zeroes;
    request.length = Math.min(ZERO_BYTES, end - request.offset);
    request.file = this.#fileFor(request);
    this.#engine.submit(request);
    return true;
  }

  #fail(request: BlkRequest, result: number): false {
    request.status = VIRTIO_BLK_S_IOERR;
    const now = performance.now();
    if (now - this.#lastLog < LOG_INTERVAL_MS) {
      this.#unlogged += 1;
      return false;
    }
    const reason = result === 0 ? 'the file ended early (was it truncated?)' : errnoText(-result);
    const more = this.#unlogged > 0 ? ` (and ${this.#unlogged} more errors before)` : '';
    const what = names.get(request.what) ?? 'request';
    this.#log.error(`${what} of ${request.length} bytes at ${request.offset} of ${this.#disk.path}: ${reason}${more}`);
    this.#lastLog = now;
    this.#unlogged = 0;
    return false;
  }
}

/** Whether O_DIRECT can do the transfer as it is. */
function isAligned(request: BlkRequest, disk: DiskFiles): boolean {
  if (request.offset % disk.offsetAlign !== 0 || request.length % disk.offsetAlign !== 0) return false;
  return request.buffersAreAligned(disk.memoryAlign, disk.offsetAlign);
}

/**
 * Whether a request writes through the page cache beside O_DIRECT. Together with direct writes to the same page that could
 * lose one of them: such a request has to run alone.
 */
export function mustRunAlone(request: BlkRequest, disk: DiskFiles): boolean {
  if (request.what === PARSED_WRITE) return !isAligned(request, disk);
  if (request.what !== PARSED_WRITE_ZEROES) return false;
  for (let i = 0; i < request.ranges; i += 1) {
    if ((request.rangeOffset[i] as number) % disk.offsetAlign !== 0) return true;
    if ((request.rangeLength[i] as number) % disk.offsetAlign !== 0) return true;
  }
  return false;
}

/** Drops the first `bytes` of the request's buffers. */
function skipBuffers(request: BlkRequest, bytes: number): void {
  if (request.buffers === 1) request.address += bytes;
  else request.dropIovecs(bytes);
}
