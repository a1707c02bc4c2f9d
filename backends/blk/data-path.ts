/**
 * Serves rings of the block device on one thread: it joins rings and disk. `processQueue` takes chains and starts their
 * requests, `poll` finishes those that the engine completed. With --threads, worker threads load this module.
 */

import { EINVAL, ENOSYS, EPERM, SysError } from '../../protocol/sys/errors.ts';
import { VIRTIO_BLK_ID_BYTES } from '../../protocol/virtio/blk.ts';
import type { DataPath, RingAttachment } from '../core/device.ts';
import type { Logger } from '../core/logging.ts';
import { UsageError } from '../core/options.ts';
import { REQUEST_RING, type RingTraits } from '../core/ring-traits.ts';
import type { Vring } from '../core/vring.ts';
import type { DiskFiles } from './disk.ts';
import type { Engine } from './engines/engine.ts';
import { NullEngine } from './engines/null.ts';
import { ThreadsEngine } from './engines/threads.ts';
import { UringEngine } from './engines/uring.ts';
import { Executor, mustRunAlone } from './execute.ts';
import { MAX_REQUESTS } from './limits.ts';
import { type BlkPolicy, BlkRequest, finishBlkRequest, PARSED_DONE, parseBlkRequest } from './request.ts';
import { BlkDiskState, BlkDriverState } from './state.ts';

export const ENGINES = ['auto', 'io_uring', 'threads', 'null'] as const;

/**
 * The page cache answers at once: more requests a pass cost less each, until both sides wait for each other. A disk starts
 * on what it has while we bring the next.
 */
const CACHED_BUDGET = 16;
const DIRECT_BUDGET = 4;
/** Bytes after which a lot is full, however few requests it has: no pass may take long. */
const LOT_BYTES = 512 * 1024;

export interface BlkDataPathOptions {
  readonly serial: string;
  readonly engine: (typeof ENGINES)[number];
  readonly iopoll: boolean;
}

/** What a worker thread is given. */
export interface BlkWorkerData {
  readonly disk: DiskFiles;
  readonly options: BlkDataPathOptions;
  readonly state: SharedArrayBuffer;
}

/** How worker threads open their data path. */
export function openDataPath(data: unknown, log: Logger, thread: number): BlkDataPath {
  const { disk, options, state } = data as BlkWorkerData;
  return new BlkDataPath(disk, options, state, log, thread);
}

export class BlkDataPath implements DataPath<SharedArrayBuffer> {
  readonly budget: number;
  readonly disk: DiskFiles;
  readonly serial = new Uint8Array(VIRTIO_BLK_ID_BYTES);
  readonly #state: BlkDiskState;
  readonly #log: Logger;
  readonly #engine: Engine;
  readonly #executor: Executor;
  readonly #free: BlkRequest[] = [];
  readonly #thread: number;
  /** A request that must run alone, waiting for the others to end or running. */
  #exclusive: BlkRequest | undefined;
  #exclusiveStarted = false;
  /** `changes` of the disk's state when others stood in the way last; undefined while none does. */
  #blockedAt: number | undefined;
  /** We are told of the next change. */
  #isToldOfChange = false;
  #finished = 0;

  /** @param thread this data path's number among those of the disk. @throws UsageError - the engine is not to be had */
  constructor(disk: DiskFiles, options: BlkDataPathOptions, state: SharedArrayBuffer, log: Logger, thread = 0) {
    this.disk = disk;
    this.budget = disk.direct ? DIRECT_BUDGET : CACHED_BUDGET;
    this.#state = new BlkDiskState(state);
    this.#log = log;
    this.#thread = thread;
    new TextEncoder().encodeInto(options.serial, this.serial);
    const requests = Array.from({ length: MAX_REQUESTS }, (_, id) => new BlkRequest(id));
    this.#free.push(...requests);
    this.#engine = this.#createEngine(options, requests);
    this.#executor = new Executor(this.#engine, disk, log);
    if (thread === 0)
      log.info({ engine: this.#engine.name }, `requests of ${disk.path} are done by ${this.#engine.name}`);
  }

  #createEngine({ engine, iopoll }: BlkDataPathOptions, requests: readonly BlkRequest[]): Engine {
    const complete = (request: BlkRequest, result: number): void => this.#complete(request, result);
    const { fds, direct } = this.disk;
    if (engine === 'null') return new NullEngine(complete);
    if (engine === 'threads') return new ThreadsEngine(fds, complete);
    try {
      return new UringEngine({ files: fds, direct, iopoll }, requests, complete);
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      if (iopoll) throw new UsageError(`--iopoll: the disk or the kernel cannot: ${error.message}`);
      if (engine === 'io_uring') throw new UsageError(`--engine=io_uring: ${error.message}`);
      if (![ENOSYS, EPERM, EINVAL].includes(error.errno)) throw error;
      this.#log.warn(`io_uring is not to be had (${error.code}): using the thread pool, which is slower`);
      return new ThreadsEngine(fds, complete);
    }
  }

  /** Whole sectors, in bytes. */
  get capacityBytes(): number {
    return this.#state.capacityBytes;
  }

  get mustPoll(): boolean {
    return this.#engine.mustPoll;
  }

  get isFull(): boolean {
    return this.#free.length === 0 || this.#exclusive !== undefined || this.#blockedAt !== undefined;
  }

  get onCompletion(): () => void {
    return this.#engine.onCompletion;
  }

  set onCompletion(callback: () => void) {
    this.#engine.onCompletion = callback;
  }

  /** Engines tell by themselves, requests of other threads do not. */
  arm(): void {
    const seen = this.#blockedAt;
    this.#blockedAt = undefined;
    if (seen === undefined || this.#isToldOfChange) return;
    this.#isToldOfChange = true;
    this.#state.whenChanged(seen, () => {
      this.#isToldOfChange = false;
      this.onCompletion();
    });
  }

  serve(driver: SharedArrayBuffer): RingAttachment {
    return new BlkRings(this, new BlkDriverState(driver));
  }

  /** Takes requests from the ring while there is room. */
  processQueue(vring: Vring, budget: number, policy: BlkRings): number {
    const { memory } = vring.host;
    const { chain } = vring;
    const { direct } = this.disk;
    let taken = 0;
    let bytes = 0;
    while (taken < budget && bytes < LOT_BYTES && this.#exclusive === undefined) {
      const request = this.#free.pop();
      if (request === undefined) break;
      if (!this.#begin(vring)) {
        this.#free.push(request);
        break;
      }
      taken += 1;
      const parsed = parseBlkRequest(request, vring, chain, memory, policy);
      request.durable = policy.writethrough;
      bytes += request.length;
      if (parsed === PARSED_DONE) this.#finish(request);
      else if (direct && mustRunAlone(request, this.disk)) this.#hold(request);
      else if (!this.#executor.start(request)) this.#finish(request);
    }
    return taken;
  }

  #begin(vring: Vring): boolean {
    if (!this.disk.direct) return vring.pop();
    if (!this.#tryBegin()) return false;
    if (vring.pop()) return true;
    this.#state.end();
    return false;
  }

  #tryBegin(): boolean {
    this.#blockedAt = undefined;
    if (this.#state.tryBegin(this.#thread)) return true;
    const { changes } = this.#state;
    if (this.#state.tryBegin(this.#thread)) return true;
    this.#blockedAt = changes;
    return false;
  }

  /**
   * A request that goes through the page cache beside O_DIRECT waits until it is alone, and nothing else starts until it
   * is on the disk.
   */
  #hold(request: BlkRequest): void {
    request.exclusive = true;
    // It does not count while it waits: of two such requests each would wait for the other's end.
    this.#state.end();
    this.#exclusive = request;
    this.#exclusiveStarted = false;
    this.#startExclusive();
  }

  #startExclusive(): void {
    if (this.#exclusive === undefined || this.#exclusiveStarted) return;
    const { changes } = this.#state;
    if (!this.#state.tryTake(this.#thread) || this.#state.inFlight > 0) {
      this.#blockedAt = changes;
      return;
    }
    this.#blockedAt = undefined;
    this.#exclusiveStarted = true;
    if (!this.#executor.start(this.#exclusive)) this.#finish(this.#exclusive);
  }

  #complete(request: BlkRequest, result: number): void {
    if (!this.#executor.advance(request, result)) this.#finish(request);
  }

  #finish(request: BlkRequest): void {
    if (request === this.#exclusive) {
      this.#exclusive = undefined;
      this.#state.shareAgain();
    } else if (this.disk.direct) this.#state.end();
    finishBlkRequest(request);
    this.#free.push(request);
    this.#finished += 1;
  }

  poll(): number {
    this.#finished = 0;
    this.#engine.poll();
    if (this.#exclusive !== undefined) this.#startExclusive();
    return this.#finished;
  }

  shutDown(): void {
    this.#engine.close();
  }
}

/** What requests of one driver are checked against. */
class BlkRings implements RingAttachment, BlkPolicy {
  readonly readOnly: boolean;
  readonly serial: Uint8Array;
  readonly #path: BlkDataPath;
  readonly #driver: BlkDriverState;

  constructor(path: BlkDataPath, driver: BlkDriverState) {
    this.#path = path;
    this.#driver = driver;
    this.readOnly = path.disk.readOnly;
    this.serial = path.serial;
  }

  get capacityBytes(): number {
    return this.#path.capacityBytes;
  }

  get discard(): boolean {
    return this.#driver.discard;
  }

  get writeZeroes(): boolean {
    return this.#driver.writeZeroes;
  }

  get writethrough(): boolean {
    return this.#driver.writethrough;
  }

  ringTraits(): RingTraits {
    return REQUEST_RING;
  }

  ringChanged(): void {}

  processQueue(vring: Vring, budget: number): number {
    return this.#path.processQueue(vring, budget, this);
  }
}
