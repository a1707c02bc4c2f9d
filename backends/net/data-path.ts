/**
 * Serves pairs of rings on one thread: each has a queue of the TAP; `processQueue` submits packets, `poll` hands them to the
 * kernel and finishes them. What is to be changed about the TAP or the driver it asks the main thread for. With --threads,
 * worker threads load this module, and pair i is served by thread i % threads.
 */

import { EBADFD, EINVAL, EIO, ENOSYS, EPERM, SysError } from '../../protocol/sys/errors.ts';
import { supportsNowait } from '../../protocol/sys/tap.ts';
import type { DataPath } from '../core/device.ts';
import type { Logger } from '../core/logging.ts';
import type { Vring } from '../core/vring.ts';
import { Counters } from './counters.ts';
import type { Engine } from './engines/engine.ts';
import { NullEngine } from './engines/null.ts';
import { SyscallEngine } from './engines/syscalls.ts';
import { UringEngine } from './engines/uring.ts';
import { LOT } from './limits.ts';
import { DistantMainThread, type MainThread, type PathLink, type PathOrders } from './main-thread.ts';
import { Packet, RECEIVE, TRANSMIT } from './packet.ts';
import { QueuePair } from './queue-pair.ts';
import { NetRings } from './rings.ts';
import { NetDriverState, NetTapState } from './state.ts';

/** What a data path is made from. */
export interface NetDataPathOptions {
  /** Pairs of the device, and the threads they are spread over. */
  readonly pairs: number;
  readonly threads: number;
  /** False with --null. */
  readonly hasTap: boolean;
  /** The control queue is served here, and not by the front end. */
  readonly controlQueue: boolean;
  /** Of NetTapState. */
  readonly tap: SharedArrayBuffer;
}

/** What a worker thread is given. */
export interface NetWorkerData {
  readonly options: NetDataPathOptions;
  readonly link: PathLink;
}

/** How worker threads open their data path. */
export function openDataPath(data: unknown, log: Logger, thread: number): NetDataPath {
  const { options, link } = data as NetWorkerData;
  return new NetDataPath(options, (path) => new DistantMainThread(thread, link, path), log, thread);
}

export class NetDataPath implements DataPath<SharedArrayBuffer>, PathOrders {
  readonly budget = LOT;
  readonly isFull = false;
  onCompletion: () => void = () => undefined;

  readonly options: NetDataPathOptions;
  readonly main: MainThread;
  readonly #tap: NetTapState;
  readonly #log: Logger;
  readonly #counters: Counters;
  readonly #engine: Engine;
  /** Those that are served here. */
  readonly #pairs: readonly QueuePair[];
  /** The same by their index. */
  readonly #pairAt: readonly (QueuePair | undefined)[];
  /** How often `pause` was said more than `resume`. */
  #pauses = 0;
  #failureIsDue = false;

  /** @throws SysError - io_uring failed in a way that is not "not to be had" */
  constructor(options: NetDataPathOptions, reach: (path: NetDataPath) => MainThread, log: Logger, thread = 0) {
    this.options = options;
    this.#tap = new NetTapState(options.pairs, options.tap);
    this.#log = log;
    this.#counters = new Counters(log);
    const packets: Packet[] = [];
    this.#pairAt = Array.from({ length: options.pairs }, (_, index) =>
      index % options.threads === thread ? this.#createPair(index, packets) : undefined,
    );
    this.#pairs = this.#pairAt.filter((pair) => pair !== undefined);
    this.#engine = this.#createEngine(packets);
    this.main = reach(this);
    this.takeQueues();
    log.info({ engine: this.#engine.name }, `packets are moved by ${this.#engine.name}`);
  }

  #createPair(index: number, packets: Packet[]): QueuePair {
    const make = (direction: typeof TRANSMIT | typeof RECEIVE): Packet[] =>
      Array.from({ length: LOT }, () => {
        const packet = new Packet(packets.length, direction, index);
        packets.push(packet);
        return packet;
      });
    const pair = new QueuePair(index, this.#tap, make(TRANSMIT), make(RECEIVE), this.#counters);
    pair.onError = (errno) => this.#onError(pair, errno);
    pair.onReadable = () => this.onCompletion();
    return pair;
  }

  #createEngine(packets: readonly Packet[]): Engine {
    const complete = (packet: Packet): void => (this.#pairAt[packet.pair] as QueuePair).complete(packet);
    if (!this.options.hasTap) return new NullEngine(complete);
    const { fds } = this.#tap;
    if (!supportsNowait(fds[0] as number)) {
      this.#log.warn('TAPs of this kernel (before 6.4) need one system call a packet, which is slower');
      return new SyscallEngine(fds, complete);
    }
    try {
      return new UringEngine(fds, packets, complete);
    } catch (error) {
      if (!(error instanceof SysError) || ![ENOSYS, EPERM, EINVAL].includes(error.errno)) throw error;
      this.#log.warn(`io_uring is not to be had (${error.code}): one system call a packet, which is slower`);
      return new SyscallEngine(fds, complete);
    }
  }

  get mustPoll(): boolean {
    return this.#engine.mustPoll;
  }

  serve(driver: SharedArrayBuffer): NetRings {
    return new NetRings(this, new NetDriverState(driver));
  }

  /** The pair of a ring; undefined when it is none, or another thread's. */
  pairOf(ring: number): QueuePair | undefined {
    return this.#pairAt[ring >> 1];
  }

  /** Whether packets can pass now. */
  get #engineWithLink(): Engine | undefined {
    return this.#tap.link ? this.#engine : undefined;
  }

  /** Whether rings are left alone for now. */
  get isPaused(): boolean {
    return this.#pauses > 0;
  }

  /** Takes chains of a transmit ring. Returns how many were given back or submitted. */
  transmit(pair: QueuePair, vring: Vring, budget: number, driver: NetDriverState): number {
    // A driver may send by a pair that it does not receive with.
    const queue = pair.attached ? pair.index : 0;
    return pair.transmitter.run(vring, budget, driver.format.headerBytes, queue, this.#engineWithLink);
  }

  /** Offers chains of a receive ring to the TAP. Returns how many were given back. */
  receive(pair: QueuePair, vring: Vring, budget: number, driver: NetDriverState): number {
    vring.noteEnough();
    if (!this.#tap.isOpen || !(pair.attached || this.#beginToUse(pair, vring, driver))) return 0;
    pair.dropStale();
    return pair.receiver.run(vring, budget, driver.format, this.#engine);
  }

  /** A driver that brings the first buffers to a pair begins to use it. Returns whether it does. */
  #beginToUse(pair: QueuePair, vring: Vring, driver: NetDriverState): boolean {
    if (!pair.usable || pair.index >= driver.activePairs) return false;
    // Not again and again for every packet.
    if (vring.offers(1)) pair.usable = this.main.attachPair(pair.index);
    else vring.noteShort();
    return pair.attached;
  }

  poll(): number {
    const pairs = this.#pairs;
    for (let i = 0; i < pairs.length; i += 1) (pairs[i] as QueuePair).dropStale();
    this.#engine.poll();
    let packets = 0;
    for (let i = 0; i < pairs.length; i += 1) packets += (pairs[i] as QueuePair).finish();
    return packets;
  }

  /** Packets of the TAP wake the pump when a ring has buffers for them; else the driver does, when it brings some. */
  arm(): void {
    for (const pair of this.#pairs) pair.arm();
  }

  /** A call of the kernel failed, and a packet may be lost. */
  #onError(pair: QueuePair, errno: number): void {
    this.#counters.noteError(errno);
    // It may fail again at once, and must not keep us busy.
    pair.rest();
    // Deleted, or down: the link's state tells what is to be done, but not in the middle of a pass.
    if ((errno !== EBADFD && errno !== EIO) || this.#failureIsDue) return;
    this.#failureIsDue = true;
    setImmediate(() => {
      this.#failureIsDue = false;
      this.main.tapFailed();
    });
  }

  pause(): void {
    this.#pauses += 1;
  }

  resume(): void {
    this.#pauses -= 1;
    this.onCompletion();
  }

  takeQueues(): void {
    const { fds } = this.#tap;
    for (const pair of this.#pairs) pair.setQueue(fds[pair.index]);
    if (fds.length > 0) this.#engine.replaceQueues(fds);
  }

  wake(): void {
    this.onCompletion();
  }

  shutDown(): void {
    for (const pair of this.#pairs) pair.setQueue(undefined);
    this.#engine.close();
    this.main.leave(this.#counters.summary());
  }
}
