/**
 * The block device: it joins rings and disk. `processQueue` takes chains and starts their requests, `poll` finishes those
 * that the engine completed. One per daemon; each front end has an attachment with what it negotiated.
 */

import { EINVAL, ENOSYS, EPERM, SysError } from '../../protocol/sys/errors.ts';
import { unlock } from '../../protocol/sys/storage.ts';
import {
  VIRTIO_BLK_CONFIG,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_ID_BYTES,
} from '../../protocol/virtio/blk.ts';
import { hasFeature } from '../../protocol/virtio/reserved-features.ts';
import type { Attachment, Device } from '../core/device.ts';
import type { Logger } from '../core/logging.ts';
import { UsageError } from '../core/options.ts';
import { REQUEST_RING, type RingTraits } from '../core/ring-traits.ts';
import type { Vring } from '../core/vring.ts';
import { type BlkGeometry, blkFeatures, encodeBlkConfig } from './config-space.ts';
import { type Disk, diskCapacity } from './disk.ts';
import type { Engine } from './engines/engine.ts';
import { NullEngine } from './engines/null.ts';
import { ThreadsEngine } from './engines/threads.ts';
import { UringEngine } from './engines/uring.ts';
import { Executor, mustRunAlone } from './execute.ts';
import { MAX_REQUESTS } from './limits.ts';
import { BlkRequest, finishBlkRequest, PARSED_DONE, parseBlkRequest } from './request.ts';

export const ENGINES = ['auto', 'io_uring', 'threads', 'null'] as const;

/**
 * The page cache answers at once: more requests a pass cost less each, until both sides wait for each other. A disk starts
 * on what it has while we bring the next.
 */
const CACHED_BUDGET = 16;
const DIRECT_BUDGET = 4;
/** Bytes after which a lot is full, however few requests it has: no pass may take long. */
const LOT_BYTES = 512 * 1024;

export interface BlkDeviceOptions {
  readonly serial: string;
  readonly numQueues: number;
  /** Bytes: 512 or 4096. */
  readonly blockSize: number;
  readonly engine: (typeof ENGINES)[number];
  readonly iopoll: boolean;
}

export class BlkDevice implements Device {
  readonly type = 'block';
  readonly maxQueues: number;
  readonly features: bigint;
  readonly protocolFeatures = 0n;
  onConfigChange: () => void = () => undefined;

  readonly budget: number;
  readonly disk: Disk;
  readonly geometry: BlkGeometry;
  readonly serial = new Uint8Array(VIRTIO_BLK_ID_BYTES);
  /** Whole sectors, in bytes. */
  capacityBytes: number;

  readonly #log: Logger;
  readonly #engine: Engine;
  readonly #executor: Executor;
  readonly #free: BlkRequest[] = [];
  readonly #poolSize: number;
  /** A request that must run alone, waiting for the others to end or running. */
  #exclusive: BlkRequest | undefined;
  #exclusiveStarted = false;
  #finished = 0;

  /** Takes over the disk. @throws UsageError - the engine is not to be had */
  constructor(disk: Disk, options: BlkDeviceOptions, log: Logger) {
    this.disk = disk;
    this.budget = disk.direct ? DIRECT_BUDGET : CACHED_BUDGET;
    this.#log = log;
    this.maxQueues = options.numQueues;
    this.geometry = {
      readOnly: disk.readOnly,
      numQueues: options.numQueues,
      blockSize: options.blockSize,
      physicalBlock: Math.max(disk.physicalBlock, options.blockSize),
    };
    this.features = blkFeatures(this.geometry);
    new TextEncoder().encodeInto(options.serial, this.serial);
    this.capacityBytes = diskCapacity(disk);
    const requests = Array.from({ length: MAX_REQUESTS }, (_, id) => new BlkRequest(id));
    this.#poolSize = requests.length;
    this.#free.push(...requests);
    this.#engine = this.#createEngine(options, requests);
    this.#executor = new Executor(this.#engine, disk, log);
  }

  #createEngine(options: BlkDeviceOptions, requests: readonly BlkRequest[]): Engine {
    const complete = (request: BlkRequest, result: number): void => this.#complete(request, result);
    const files = [this.disk.main.fd, this.disk.buffered.fd] as const;
    const { engine, iopoll } = options;
    if (engine === 'null') return new NullEngine(complete);
    if (engine === 'threads') return new ThreadsEngine(files, complete);
    try {
      return new UringEngine({ files, direct: this.disk.direct, iopoll }, requests, complete);
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      if (iopoll) throw new UsageError(`--iopoll: the disk or the kernel cannot: ${error.message}`);
      if (engine === 'io_uring') throw new UsageError(`--engine=io_uring: ${error.message}`);
      if (![ENOSYS, EPERM, EINVAL].includes(error.errno)) throw error;
      this.#log.warn(`io_uring is not to be had (${error.code}): using the thread pool, which is slower`);
      return new ThreadsEngine(files, complete);
    }
  }

  get engineName(): string {
    return this.#engine.name;
  }

  get mustPoll(): boolean {
    return this.#engine.mustPoll;
  }

  get isFull(): boolean {
    return this.#free.length === 0 || this.#exclusive !== undefined;
  }

  get onCompletion(): () => void {
    return this.#engine.onCompletion;
  }

  set onCompletion(callback: () => void) {
    this.#engine.onCompletion = callback;
  }

  /** Engines tell by themselves. */
  arm(): void {}

  attach(): Attachment {
    return new BlkAttachment(this);
  }

  /** Takes requests from the ring while there is room. */
  processQueue(vring: Vring, budget: number, attachment: BlkAttachment): number {
    const { memory } = vring.host;
    const { chain } = vring;
    let taken = 0;
    let bytes = 0;
    while (taken < budget && bytes < LOT_BYTES && this.#exclusive === undefined) {
      const request = this.#free.pop();
      if (request === undefined) break;
      if (!vring.pop()) {
        this.#free.push(request);
        break;
      }
      taken += 1;
      const parsed = parseBlkRequest(request, vring, chain, memory, attachment);
      request.durable = attachment.writethrough;
      bytes += request.length;
      if (parsed === PARSED_DONE) this.#finish(request);
      else if (this.disk.direct && mustRunAlone(request, this.disk)) this.#hold(request);
      else if (!this.#executor.start(request)) this.#finish(request);
    }
    return taken;
  }

  /**
   * A request that goes through the page cache beside O_DIRECT waits until it is alone, and nothing else starts until it
   * is on the disk.
   */
  #hold(request: BlkRequest): void {
    request.exclusive = true;
    this.#exclusive = request;
    this.#exclusiveStarted = false;
    this.#startExclusive();
  }

  #startExclusive(): void {
    const inFlight = this.#poolSize - this.#free.length;
    if (this.#exclusive === undefined || this.#exclusiveStarted || inFlight > 1) return;
    this.#exclusiveStarted = true;
    if (!this.#executor.start(this.#exclusive)) this.#finish(this.#exclusive);
  }

  #complete(request: BlkRequest, result: number): void {
    if (!this.#executor.advance(request, result)) this.#finish(request);
  }

  #finish(request: BlkRequest): void {
    if (request === this.#exclusive) this.#exclusive = undefined;
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

  /** Looks at the size of the file again, and tells front ends when it changed. @throws SysError */
  reload(): void {
    const capacity = diskCapacity(this.disk);
    if (capacity === this.capacityBytes) {
      this.#log.info(`${this.disk.path}: still ${capacity} bytes`);
      return;
    }
    this.#log.info(`${this.disk.path}: ${this.capacityBytes} -> ${capacity} bytes`);
    this.capacityBytes = capacity;
    this.onConfigChange();
  }

  close(): void {
    unlock(this.disk.main.fd);
    this.#engine.close();
    this.disk.main.close();
    this.disk.buffered.close();
  }
}

/** What one front end negotiated, and what its requests are checked against. */
export class BlkAttachment implements Attachment {
  readonly #device: BlkDevice;
  readonly readOnly: boolean;
  readonly serial: Uint8Array;
  discard = false;
  writeZeroes = false;
  /** Each completed write must be on stable storage. */
  writethrough = false;
  #accepted = 0n;
  #writeback = true;

  constructor(device: BlkDevice) {
    this.#device = device;
    this.readOnly = device.geometry.readOnly;
    this.serial = device.serial;
    this.setFeatures(0n);
  }

  get capacityBytes(): number {
    return this.#device.capacityBytes;
  }

  setFeatures(accepted: bigint): void {
    this.#accepted = accepted;
    this.discard = hasFeature(accepted, VIRTIO_BLK_F_DISCARD);
    this.writeZeroes = hasFeature(accepted, VIRTIO_BLK_F_WRITE_ZEROES);
    // 5.2.5.2: with CONFIG_WCE but without FLUSH the cache starts in writethrough mode.
    const wce = hasFeature(accepted, VIRTIO_BLK_F_CONFIG_WCE);
    if (wce && !hasFeature(accepted, VIRTIO_BLK_F_FLUSH)) this.#writeback = false;
    this.#updateCacheMode();
  }

  /** 5.2.6.2: with neither FLUSH nor CONFIG_WCE accepted the driver cannot ask for stability, so it always gets it. */
  #updateCacheMode(): void {
    const flush = hasFeature(this.#accepted, VIRTIO_BLK_F_FLUSH);
    const wce = hasFeature(this.#accepted, VIRTIO_BLK_F_CONFIG_WCE);
    this.writethrough = wce ? !this.#writeback : !flush;
  }

  readConfig(): Uint8Array {
    return encodeBlkConfig(this.#device.geometry, this.#device.capacityBytes, this.#writeback);
  }

  writeConfig(offset: number, data: Uint8Array, migration: boolean): string | undefined {
    // A migrated configuration space comes whole; only the cache mode is state.
    const value = migration ? data[VIRTIO_BLK_CONFIG.writeback - offset] : data[0];
    if (!migration && (offset !== VIRTIO_BLK_CONFIG.writeback || data.length !== 1)) {
      return `${data.length} bytes at ${offset} of the configuration space: only the byte at 32 (writeback) is writable`;
    }
    if (value !== undefined && value > 1) return `writeback = ${value}, 0 or 1 is possible`;
    this.#writeback = value === undefined ? this.#writeback : value === 1;
    this.#updateCacheMode();
    return undefined;
  }

  /** True in writethrough mode by the driver's choice: Linux then sends no flushes. */
  saveState(): boolean {
    return !this.#writeback;
  }

  restoreState(state: boolean): void {
    this.#writeback = !state;
    this.#updateCacheMode();
  }

  ringTraits(): RingTraits {
    return REQUEST_RING;
  }

  ringChanged(): void {}

  processQueue(vring: Vring, budget: number): number {
    return this.#device.processQueue(vring, budget, this);
  }

  reset(): void {
    this.#accepted = 0n;
    this.#writeback = true;
    this.setFeatures(0n);
  }
}
