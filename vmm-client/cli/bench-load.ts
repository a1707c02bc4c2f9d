/**
 * The load of `ringside blk bench`: keeps a number of requests in flight on every queue, polling while there is work and
 * sleeping on the call descriptors otherwise. The clock is read once per round of at most MAX_ROUND completions, when the
 * first of them is found; what is submitted in their place begins at the same reading. So latencies are exact to within
 * the duration of a round, a few microseconds. Nothing is allocated per request.
 */

import { PeerError } from '../../protocol/vhost-user/errors.ts';
import {
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_SECTOR_BYTES,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
} from '../../protocol/virtio/blk.ts';
import { type BlkDriver, BlkError } from '../driver/blk-driver.ts';
import type { BlkQueue } from '../driver/blk-queue.ts';
import type { AccessPattern } from './bench-choices.ts';
import type { ByteRange } from './context.ts';
import { Histogram } from './histogram.ts';

/** Completions of one queue before it is refilled and its back end told: small, so that both sides overlap. */
const MAX_ROUND = 16;
const SLICE_MS = 2;

export interface LoadOptions {
  readonly pattern: AccessPattern;
  readonly blockBytes: number;
  /** Requests in flight on each queue. */
  readonly depth: number;
  readonly range: ByteRange;
  /** Not measured, then measured, in milliseconds. */
  readonly rampMs: number;
  readonly durationMs: number;
  /** How long to poll in vain before sleeping. */
  readonly pollMs: number;
  /** How long nothing may be completed, reconnecting aside. */
  readonly timeoutMs: number;
  readonly seed: number;
}

/** Latencies in nanoseconds. */
export interface LoadResult {
  readonly read: Histogram;
  readonly write: Histogram;
  readonly elapsedMs: number;
  readonly kicks: number;
  readonly wakeups: number;
}

export class BenchLoad {
  readonly #driver: BlkDriver;
  readonly #options: LoadOptions;
  readonly #queues: readonly BlkQueue[];
  readonly #read = new Histogram();
  readonly #write = new Histogram();
  readonly #isRandom: boolean;
  readonly #writeShare: number;
  readonly #blocks: number;
  readonly #buffer: Buffer;
  readonly #guestAddress: number;
  /** Per queue and token: when it was submitted (ms), and what it is. */
  readonly #startedAt: Float64Array;
  readonly #type: Uint8Array;
  readonly #sector: Float64Array;
  #random: number;
  #position = 0;
  #now = 0;
  #clockIsStale = false;
  #measuring = false;
  #ending = false;
  #outstanding = 0;
  #failure: Error | undefined;
  #wake: (() => void) | undefined;
  #wakeups = 0;

  /** Takes the driver's queues. `depth * queues * blockBytes` bytes of shared memory are allocated in it. */
  constructor(driver: BlkDriver, options: LoadOptions) {
    const { pattern, blockBytes, depth } = options;
    this.#driver = driver;
    this.#options = options;
    this.#isRandom = pattern.startsWith('rand');
    this.#writeShare = pattern === 'randrw' ? 0.5 : pattern.endsWith('write') ? 1 : 0;
    this.#blocks = Math.floor(options.range.length / blockBytes);
    this.#random = options.seed | 1;
    this.#buffer = driver.allocateBuffer(depth * driver.queues.length * blockBytes);
    this.#guestAddress = driver.memory.guestAddress + this.#buffer.byteOffset;
    const slots = depth * driver.queues.length;
    this.#startedAt = new Float64Array(slots);
    this.#type = new Uint8Array(slots);
    this.#sector = new Float64Array(slots);
    // Not zeroes: a back end or a disk below might treat those specially.
    for (let i = 0; i < this.#buffer.length; i += 4) this.#buffer.writeUInt32LE(this.#nextRandom() >>> 0, i);
    this.#queues = driver.takeQueues({
      onWake: () => this.#wake?.(),
      onFailure: (error) => {
        this.#failure ??= error;
        this.#wake?.();
      },
    });
    for (const queue of this.#queues) {
      const first = queue.index * depth;
      queue.setCompletion((token, status) => this.#onComplete(queue, first + token, token, status));
    }
  }

  /**
   * Runs the load to its end, or until `interrupted`.
   * @throws BlkError - a request failed
   * @throws PeerError - the back end is gone, or nothing was completed in time
   */
  async run(interrupted: AbortSignal, onProgress: (elapsedMs: number) => void): Promise<LoadResult> {
    const { depth, rampMs, durationMs } = this.#options;
    const kicksBefore = this.#kicks();
    this.#now = performance.now();
    const rampEnd = this.#now + rampMs;
    const end = rampEnd + durationMs;
    let measuredFrom = rampEnd;
    let measuredTo = end;
    for (const queue of this.#queues) {
      for (let token = 0; token < depth; token++) this.#submit(queue, queue.index * depth + token, token);
      queue.disarm();
      queue.flush();
    }
    let lastProgress = this.#now;
    while (this.#outstanding > 0) {
      if (this.#failure !== undefined) throw this.#failure;
      if (this.#slice(rampEnd, end)) lastProgress = this.#now;
      if (!this.#measuring && !this.#ending && this.#now >= rampEnd) {
        this.#measuring = true;
        measuredFrom = this.#now;
      }
      if (!this.#ending && (this.#now >= end || interrupted.aborted)) {
        this.#ending = true;
        this.#measuring = false;
        measuredTo = this.#now;
      }
      if (this.#driver.frontend.isReconnecting) {
        if (interrupted.aborted) break;
        lastProgress = this.#now;
      }
      if (this.#now - lastProgress > this.#options.timeoutMs) {
        throw new PeerError(`none of ${this.#outstanding} requests was completed within ${this.#options.timeoutMs} ms`);
      }
      onProgress(this.#now - rampEnd);
      if (this.#now - lastProgress >= this.#options.pollMs) await this.#sleep();
      else await new Promise<void>((resolve) => setImmediate(resolve));
    }
    if (this.#failure !== undefined) throw this.#failure;
    return {
      read: this.#read,
      write: this.#write,
      elapsedMs: Math.max(0, measuredTo - measuredFrom),
      kicks: this.#kicks() - kicksBefore,
      wakeups: this.#wakeups,
    };
  }

  #kicks(): number {
    return this.#queues.reduce((sum, queue) => sum + queue.kicks, 0);
  }

  /** Polls for a while. Returns whether anything was completed. */
  #slice(rampEnd: number, end: number): boolean {
    const started = performance.now();
    const idleLimit = this.#options.pollMs;
    let lastProgress = -1;
    do {
      let completed = 0;
      for (const queue of this.#queues) {
        this.#clockIsStale = true;
        const count = queue.poll(MAX_ROUND);
        if (count < 0) {
          this.#failure ??= new PeerError(`queue ${queue.index}: ${queue.fault}`);
          return false;
        }
        completed += count;
        // Also what was submitted by a completion outside of this loop, when the back end came back.
        queue.flush();
      }
      if (completed > 0) {
        lastProgress = this.#now;
        continue;
      }
      this.#now = performance.now();
      if (this.#now - (lastProgress === -1 ? started : lastProgress) > idleLimit) break;
    } while (
      this.#failure === undefined &&
      this.#outstanding > 0 &&
      this.#now - started < SLICE_MS &&
      (this.#ending || (this.#now < end && (this.#measuring || this.#now < rampEnd)))
    );
    return lastProgress !== -1;
  }

  /** Until a queue has something, or a while has passed. */
  async #sleep(): Promise<void> {
    const woken = new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
    const timer = setTimeout(() => this.#wake?.(), 100);
    let armed = true;
    for (const queue of this.#queues) armed = queue.arm() && armed;
    if (armed && this.#failure === undefined) {
      this.#wakeups += 1;
      await woken;
    }
    clearTimeout(timer);
    this.#wake = undefined;
    for (const queue of this.#queues) queue.disarm();
    this.#now = performance.now();
  }

  #onComplete(queue: BlkQueue, slot: number, token: number, status: number): void {
    this.#outstanding -= 1;
    if (this.#clockIsStale) {
      this.#now = performance.now();
      this.#clockIsStale = false;
    }
    if (status !== VIRTIO_BLK_S_OK) {
      const what = this.#type[slot] === VIRTIO_BLK_T_IN ? 'read' : 'write';
      const offset = this.#sector[slot]! * VIRTIO_BLK_SECTOR_BYTES;
      this.#failure ??= new BlkError(
        `${what} of ${this.#options.blockBytes} bytes at ${offset} failed with status ${status}`,
        status,
      );
      return;
    }
    if (this.#measuring) {
      const latencyNs = (this.#now - this.#startedAt[slot]!) * 1e6;
      if (this.#type[slot] === VIRTIO_BLK_T_IN) this.#read.record(latencyNs);
      else this.#write.record(latencyNs);
    }
    if (!this.#ending && this.#failure === undefined) this.#submit(queue, slot, token);
  }

  #submit(queue: BlkQueue, slot: number, token: number): void {
    const { blockBytes, range } = this.#options;
    let block: number;
    if (this.#isRandom) {
      block = Math.floor(((this.#nextRandom() >>> 0) / 0x1_0000_0000) * this.#blocks);
    } else {
      block = this.#position;
      this.#position = block + 1 < this.#blocks ? block + 1 : 0;
    }
    const isWrite = this.#writeShare === 1 || (this.#writeShare !== 0 && this.#nextRandom() < 0);
    const type = isWrite ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN;
    const sector = (range.offset + block * blockBytes) / VIRTIO_BLK_SECTOR_BYTES;
    this.#startedAt[slot] = this.#now;
    this.#type[slot] = type;
    this.#sector[slot] = sector;
    if (!queue.submit(type, sector, this.#guestAddress + slot * blockBytes, blockBytes, token)) {
      this.#failure ??= new Error(`queue ${queue.index} of ${queue.size} entries took no more requests`);
      return;
    }
    this.#outstanding += 1;
  }

  /** xorshift32 (Marsaglia, 2003): signed 32 bits. */
  #nextRandom(): number {
    let x = this.#random;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#random = x;
    return x;
  }
}
