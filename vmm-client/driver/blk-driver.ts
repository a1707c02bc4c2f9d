/**
 * A virtio-blk driver in user space: takes a connected front end, negotiates the block device, runs its queues in shared
 * memory of its own. Requests as promises for tools, or `queues` directly for those who count every nanosecond (then
 * nobody else uses them). Offsets and lengths are bytes. Source: VIRTIO 1.3, 5.2 Block Device.
 */

import { type Watch, watchReadable } from '../../protocol/sys/readiness.ts';
import { PeerError } from '../../protocol/vhost-user/errors.ts';
import {
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_ID_BYTES,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_S_UNSUPP,
  VIRTIO_BLK_SECTOR_BYTES,
  VIRTIO_BLK_SEGMENT_F_UNMAP,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_GET_ID,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_WRITE_ZEROES,
} from '../../protocol/virtio/blk.ts';
import { hasFeature } from '../../protocol/virtio/reserved-features.ts';
import type { VhostUserFrontend } from '../frontend/frontend.ts';
import type { SharedMemory } from '../frontend/shared-memory.ts';
import type { BlkConfig, RangeLimits } from './blk-config.ts';
import { BlkQueue, STATUS_UNWRITTEN } from './blk-queue.ts';
import { type BlkDriverOptions, planQueues, readBlkConfig, wantedBlkFeatures } from './blk-setup.ts';
import { RING_FAULT } from './virtqueue.ts';

/** A request failed. `status` is the status byte, or undefined for a request that was impossible to begin with. */
export class BlkError extends Error {
  override readonly name = 'BlkError';
  readonly code = 'BLK_REQUEST';
  readonly status: number | undefined;

  constructor(message: string, status?: number) {
    super(message);
    this.status = status;
  }
}

/** Who polls the queues instead of the driver. */
export interface QueuePoller {
  /** The queue may have completions, or room to flush into: it was armed, or the back end came back. */
  onWake(queue: BlkQueue): void;
  /** Nothing will be completed any more. */
  onFailure(error: Error): void;
}

interface Request {
  readonly what: string;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

export class BlkDriver {
  readonly frontend: VhostUserFrontend;
  readonly memory: SharedMemory;
  readonly queues: readonly BlkQueue[];
  readonly features: bigint;
  /** Bytes of data that one request may have. */
  readonly maxRequestBytes: number;
  #config: BlkConfig;
  readonly #timeoutMs: number;
  readonly #watches: Watch[] = [];
  readonly #requests: (Request | undefined)[] = [];
  readonly #freeTokens: number[] = [];
  readonly #waiting: (() => void)[] = [];
  #inFlight = 0;
  #nextQueue = 0;
  #lastProgress = 0;
  #watchdog: NodeJS.Timeout | undefined;
  #failure: Error | undefined;
  #poller: QueuePoller | undefined;

  private constructor(
    frontend: VhostUserFrontend,
    memory: SharedMemory,
    queues: BlkQueue[],
    config: BlkConfig,
    maxRequestBytes: number,
    timeoutMs: number,
  ) {
    this.frontend = frontend;
    this.memory = memory;
    this.queues = queues;
    this.features = frontend.features;
    this.#config = config;
    this.maxRequestBytes = maxRequestBytes;
    this.#timeoutMs = timeoutMs;
    for (const queue of queues) {
      queue.setCompletion((token, status) => this.#complete(token, status));
      this.#watches.push(
        watchReadable(queue.callFd, () => this.#onCall(queue)),
        watchReadable(queue.errorFd, () =>
          this.fail(new PeerError(`the back end declared queue ${queue.index} broken`)),
        ),
      );
    }
    frontend.on('lost', (error) => this.fail(error));
    frontend.on('configChange', () => void this.#reloadConfig());
    frontend.on('reconnect', () => {
      void this.#reloadConfig();
      for (const queue of queues) this.#onCall(queue);
    });
  }

  /**
   * Negotiates the block device of `frontend`, which it owns from now on, and starts its queues.
   * @throws PeerError - the device lacks what is needed, or the back end refuses
   */
  static async open(frontend: VhostUserFrontend, options: BlkDriverOptions = {}): Promise<BlkDriver> {
    const config = await readBlkConfig(frontend);
    const features = await frontend.acceptFeatures(wantedBlkFeatures(options));
    const plan = planQueues(config, features, frontend.capabilities.queueCount, options);
    const memory = frontend.createMemory(plan.memoryBytes);
    const queues = plan.queues.map((queue) => new BlkQueue(memory, queue));
    const driver = new BlkDriver(frontend, memory, queues, config, plan.maxRequestBytes, options.timeoutMs ?? 30_000);
    try {
      await frontend.setMemory([memory]);
      await frontend.trackInflight(queues.length, plan.queueSize);
      await frontend.startVrings(queues);
      return driver;
    } catch (error) {
      await driver.close();
      throw error;
    }
  }

  /** The configuration as last read; a device may grow. */
  get config(): BlkConfig {
    return this.#config;
  }

  get isReadOnly(): boolean {
    return hasFeature(this.features, VIRTIO_BLK_F_RO);
  }

  /** Why nothing works any more, once that is so. */
  get failure(): Error | undefined {
    return this.#failure;
  }

  /** Takes `length` bytes of shared memory for data, at a page. Free it by `freeBuffer` when no request uses it. */
  allocateBuffer(length: number): Buffer {
    return this.memory.slice(this.memory.allocate(length, 4096), length);
  }

  freeBuffer(buffer: Buffer): void {
    this.memory.release(buffer.byteOffset);
  }

  /** Reads into a buffer of `allocateBuffer` or a part of one, at most `maxRequestBytes`. @throws BlkError, PeerError */
  async read(offset: number, target: Buffer): Promise<void> {
    this.#check('read', offset, target.length);
    await this.#transfer(VIRTIO_BLK_T_IN, offset, target);
  }

  /** Writes such a buffer, which must not change meanwhile. Volatile until `flush`. @throws BlkError, PeerError */
  async write(offset: number, source: Buffer): Promise<void> {
    this.#check('write', offset, source.length, true);
    await this.#transfer(VIRTIO_BLK_T_OUT, offset, source);
  }

  /** Makes what was written durable. Nothing to do on a device without FLUSH, whose writes are. */
  async flush(): Promise<void> {
    if (!hasFeature(this.features, VIRTIO_BLK_F_FLUSH)) return;
    await this.#run('flush', (queue, token) => queue.submit(VIRTIO_BLK_T_FLUSH, 0, 0, 0, token));
  }

  /** Gives space back; what is read there afterwards is undefined. */
  async discard(offset: number, length: number): Promise<void> {
    await this.#runRange('discard', VIRTIO_BLK_T_DISCARD, this.config.discard, offset, length, 0);
  }

  /** Zeroes a range; `unmap` allows the device to give the space back. */
  async writeZeroes(offset: number, length: number, unmap = false): Promise<void> {
    const flags = unmap ? VIRTIO_BLK_SEGMENT_F_UNMAP : 0;
    await this.#runRange('write zeroes', VIRTIO_BLK_T_WRITE_ZEROES, this.config.writeZeroes, offset, length, flags);
  }

  /** The device's serial number, up to 20 characters. @throws BlkError - it has none */
  async getId(): Promise<string> {
    const buffer = this.allocateBuffer(VIRTIO_BLK_ID_BYTES);
    await this.#run('get id', (queue, token) =>
      queue.submit(VIRTIO_BLK_T_GET_ID, 0, this.#guestAddress(buffer), buffer.length, token),
    );
    const text = buffer.toString('latin1').replace(/\0.*$/s, '').trimEnd();
    this.freeBuffer(buffer);
    return text;
  }

  /** Gives the queues to a caller that submits and polls by itself. From then on no other request may be made here. */
  takeQueues(poller: QueuePoller): readonly BlkQueue[] {
    this.#poller = poller;
    if (this.#failure !== undefined) poller.onFailure(this.#failure);
    return this.queues;
  }

  /** Rejects everything that waits, and everything from now on. */
  fail(error: Error): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    for (const request of this.#requests.splice(0)) request?.reject(error);
    for (const wake of this.#waiting.splice(0)) wake();
    this.#poller?.onFailure(error);
    clearInterval(this.#watchdog);
    this.#watchdog = undefined;
    for (const watch of this.#watches.splice(0)) watch.close();
  }

  /** Stops the queues (what is in flight is completed first), ends the connection and frees the memory. Idempotent. */
  async close(): Promise<void> {
    // Rings of a back end that is away need no stopping.
    const stopped =
      this.#failure === undefined && !this.frontend.isReconnecting
        ? await Promise.allSettled(this.queues.map((queue) => this.frontend.stopVring(queue.index)))
        : [];
    this.fail(new PeerError('the driver was closed'));
    this.frontend.close();
    for (const queue of this.queues) queue.close();
    this.memory.close();
    const refused = stopped.find((result) => result.status === 'rejected');
    if (refused !== undefined) throw refused.reason;
  }

  #guestAddress(buffer: Buffer): number {
    return this.memory.guestAddress + buffer.byteOffset;
  }

  #check(what: string, offset: number, length: number, writes = false): void {
    const { capacityBytes } = this.config;
    const fail = (why: string) => {
      throw new BlkError(`${what} of ${length} bytes at ${offset}: ${why}`);
    };
    if (writes && this.isReadOnly) fail('the device is read-only');
    if (offset % VIRTIO_BLK_SECTOR_BYTES !== 0 || length % VIRTIO_BLK_SECTOR_BYTES !== 0) {
      fail(`offset and length must be multiples of ${VIRTIO_BLK_SECTOR_BYTES}`);
    }
    if (offset < 0 || offset > capacityBytes || length > capacityBytes - offset) {
      fail(`the device has ${capacityBytes} bytes`);
    }
  }

  async #transfer(type: number, offset: number, buffer: Buffer): Promise<void> {
    const what = `${type === VIRTIO_BLK_T_IN ? 'read' : 'write'} of ${buffer.length} bytes at ${offset}`;
    if (buffer.buffer !== this.memory.bytes.buffer) throw new Error('not a buffer of shared memory');
    const sector = offset / VIRTIO_BLK_SECTOR_BYTES;
    const guestAddress = this.#guestAddress(buffer);
    await this.#run(what, (queue, token) => queue.submit(type, sector, guestAddress, buffer.length, token));
  }

  async #runRange(
    what: string,
    type: number,
    limits: RangeLimits | undefined,
    offset: number,
    length: number,
    flags: number,
  ): Promise<void> {
    if (limits === undefined) throw new BlkError(`the device does not offer ${what}`);
    this.#check(what, offset, length, true);
    const end = (offset + length) / VIRTIO_BLK_SECTOR_BYTES;
    const step = limits.maxSectors || 0xffff_ffff;
    for (let sector = offset / VIRTIO_BLK_SECTOR_BYTES; sector < end; sector += step) {
      const sectors = Math.min(step, end - sector);
      await this.#run(`${what} of ${sectors} sectors at ${sector}`, (queue, token) =>
        queue.submitRange(type, sector, sectors, flags, token),
      );
    }
  }

  /** Submits one request, waiting for room in the queue, and waits for its completion. */
  async #run(what: string, submit: (queue: BlkQueue, token: number) => boolean): Promise<void> {
    for (;;) {
      if (this.#failure !== undefined) throw this.#failure;
      const queue = this.queues[this.#nextQueue];
      if (queue === undefined) throw new Error('a driver without queues');
      this.#nextQueue = (this.#nextQueue + 1) % this.queues.length;
      const token = this.#freeTokens.pop() ?? this.#requests.length;
      if (submit(queue, token)) {
        const done = new Promise<void>((resolve, reject) => {
          this.#requests[token] = { what, resolve, reject };
        });
        this.#inFlight += 1;
        this.#startWatchdog();
        queue.flush();
        // What is there already needs no interrupt.
        this.#poll(queue);
        return done;
      }
      if (token < this.#requests.length) this.#freeTokens.push(token);
      await new Promise<void>((wake) => this.#waiting.push(wake));
    }
  }

  #complete(token: number, status: number): void {
    const request = this.#requests[token];
    if (request === undefined) return;
    this.#requests[token] = undefined;
    this.#freeTokens.push(token);
    this.#inFlight -= 1;
    this.#lastProgress = performance.now();
    if (status === VIRTIO_BLK_S_OK) request.resolve();
    else request.reject(new BlkError(`${request.what}: ${describeStatus(status)}`, status));
    this.#waiting.shift()?.();
  }

  #onCall(queue: BlkQueue): void {
    queue.drainCall();
    if (this.#poller === undefined) this.#poll(queue);
    else this.#poller.onWake(queue);
  }

  #poll(queue: BlkQueue): void {
    do {
      if (queue.poll(queue.size) === RING_FAULT) {
        this.fail(new PeerError(`queue ${queue.index}: ${queue.fault}`));
        return;
      }
    } while (!queue.arm());
  }

  /** Requests have no deadline each, but some completion must come in time while the back end is there. */
  #startWatchdog(): void {
    if (this.#inFlight === 1) this.#lastProgress = performance.now();
    this.#watchdog ??= setInterval(() => {
      if (this.#inFlight === 0) {
        clearInterval(this.#watchdog);
        this.#watchdog = undefined;
      } else if (this.frontend.isReconnecting) {
        this.#lastProgress = performance.now();
      } else if (performance.now() - this.#lastProgress > this.#timeoutMs) {
        this.fail(new PeerError(`none of ${this.#inFlight} requests was completed within ${this.#timeoutMs} ms`));
      }
    }, 500);
  }

  async #reloadConfig(): Promise<void> {
    try {
      this.#config = await readBlkConfig(this.frontend);
    } catch (error) {
      this.fail(error as Error);
    }
  }
}

function describeStatus(status: number): string {
  if (status === VIRTIO_BLK_S_UNSUPP) return 'the device does not support it';
  if (status === STATUS_UNWRITTEN) return 'the device completed it without a status';
  return `the device reported an I/O error (status ${status})`;
}
