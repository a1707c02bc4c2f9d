/**
 * One vring: vhost-user's name for a virtqueue with its addresses, descriptors (file) and states. Source: vhost-user,
 * Ring states.
 *
 *     stopped --SET_VRING_KICK--> started --GET_VRING_BASE (waits for what is in flight)--> stopped
 *
 * Independent of that it is enabled or disabled; requests are taken only while started, enabled, and not broken by a
 * queue fault. `broken` lasts until the ring is started again.
 */

import { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import type { Notifier } from '../../protocol/sys/notifier.ts';
import { type Watch, watchReadable } from '../../protocol/sys/readiness.ts';
import { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import { describeFault } from '../../protocol/virtqueue/faults.ts';
import { type RingAddresses, RingError, SplitQueue } from '../../protocol/virtqueue/split-queue.ts';
import type { Attachment } from './device.ts';
import { InflightQueue } from './inflight.ts';
import type { Logger } from './logging.ts';
import { REQUEST_RING, type RingTraits } from './ring-traits.ts';

/** What a vring needs of its surroundings. */
export interface VringHost {
  readonly attachment: Attachment;
  readonly memory: GuestMemory;
  readonly log: Logger;
  /** There may be work: run the pump. */
  wake(): void;
  /** Whether pages of the memory that the front end shares are gone. */
  readonly memoryFaulted: boolean;
  /** They are. */
  onMemoryFault(): void;
}

export interface VringFeatures {
  readonly indirect: boolean;
  readonly eventIdx: boolean;
}

function deferred(): { promise: Promise<void>; resolve: () => void } {
  let resolve = (): void => undefined;
  const promise = new Promise<void>((fulfil) => {
    resolve = fulfil;
  });
  return { promise, resolve };
}

/** Stands in while a ring has no place in memory. */
const NO_CHAIN = new DescriptorChain(new GuestMemory(), 1);

/**
 * A notification that wakes the driver's processor costs more than a dozen requests (15 us in a virtual machine), and the
 * driver takes as long to come back. So it is held back while more than twice as many heads wait as were finished since the
 * last one: what waits keeps us busy until the driver is there. But no longer than for this many requests.
 */
const MAX_UNTOLD = 64;

/** Chain faults logged per ring between starts; the rest is only counted. */
const MAX_LOGGED_FAULTS = 5;

export class Vring {
  readonly index: number;
  readonly host: VringHost;
  size = 0;
  base = 0;
  addresses: RingAddresses | undefined;
  broken = false;
  /** Chains returned without being served, since the ring was started. */
  chainFaults = 0;
  /** The chain of the last successful `pop`. */
  chain: DescriptorChain;

  #queue: SplitQueue | undefined;
  #inflight: InflightQueue | undefined;
  /** Heads that an earlier life of the daemon fetched, and how many of them were taken again. */
  #resubmit: number[] = [];
  #resubmitted = 0;
  #traits: RingTraits = REQUEST_RING;
  #enabled = false;
  /** Available index up to which a ring of buffers has too few of them; -1 while it has enough. */
  #shortAt = -1;
  #draining: { promise: Promise<void>; resolve: () => void } | undefined;
  #kick: Notifier | undefined;
  #kickWatch: Watch | undefined;
  #call: Notifier | undefined;
  #err: Notifier | undefined;
  /** What an earlier life of the daemon fetched is being finished, on a disabled ring too. */
  #finishing = false;
  /** Used entries not published yet. */
  #staged = 0;
  /** Used entries published without asking whether the driver wants to be told. */
  #untold = 0;
  #started = false;
  /** Started without a kick descriptor: the front end expects polling. */
  polled = false;
  /** The device can take nothing from it for now, and says so again when it can: what waits there is no work meanwhile. */
  held = false;

  constructor(index: number, host: VringHost) {
    this.index = index;
    this.host = host;
    this.chain = NO_CHAIN;
  }

  get started(): boolean {
    return this.#started;
  }

  get enabled(): boolean {
    return this.#enabled;
  }

  set enabled(enabled: boolean) {
    if (enabled === this.#enabled) return;
    this.#enabled = enabled;
    if (this.#started) this.host.attachment.ringChanged(this);
  }

  get offersBuffers(): boolean {
    return this.#traits.offersBuffers;
  }

  /** A ring of buffers has fewer than the device needs. */
  get short(): boolean {
    return this.#shortAt >= 0;
  }

  /** The device holds all buffers there are, and they are too few: it is to be told of the next. Before it gives them back. */
  noteShort(): void {
    this.#shortAt = (this.#queue as SplitQueue).nextAvail;
  }

  /** The device looks at the ring's buffers again. */
  noteEnough(): void {
    this.#shortAt = -1;
  }

  /** Whether the ring was found in guest memory. */
  get placed(): boolean {
    return this.#queue !== undefined;
  }

  /** Whether requests may be taken. */
  get runnable(): boolean {
    if (this.broken || this.held || this.#queue === undefined || this.#draining !== undefined) return false;
    return this.#enabled || this.#traits.runsDisabled || this.#finishing;
  }

  /** Heads that wait to be taken from the ring. */
  get backlog(): number {
    return this.#queue === undefined ? 0 : this.#queue.backlog;
  }

  /** Whether the ring was used before we got it: by an earlier life of the daemon, or on another host. */
  get hasPast(): boolean {
    return this.#queue !== undefined && (this.#queue.nextAvail !== 0 || this.#queue.nextUsed !== 0);
  }

  get inFlight(): number {
    return this.#queue === undefined ? 0 : this.#queue.inFlight;
  }

  setCall(call: Notifier | undefined): void {
    this.#call?.close();
    this.#call = call;
    // A front end that attaches again may have missed the last notification.
    if (this.#started) call?.signal();
  }

  setErr(err: Notifier | undefined): void {
    this.#err?.close();
    this.#err = err;
  }

  /**
   * SET_VRING_KICK: takes the ring into service. On a started ring only the descriptor is replaced.
   * @param kick taken over when this returns; closed by the caller when it throws
   * @param inflight this ring's in-flight region, when the front end gave one
   * @throws RingError, MemoryError - the ring cannot be used as described
   */
  start(kick: Notifier | undefined, features: VringFeatures, inflight: ArrayBuffer | undefined): void {
    const watch = kick === undefined ? undefined : watchReadable(kick.fd, () => this.#onKick(kick));
    try {
      if (!this.#started) this.place(features, inflight);
    } catch (error) {
      watch?.close();
      throw error;
    }
    this.#closeKick();
    this.#kick = kick;
    this.#kickWatch = watch;
    this.polled = kick === undefined;
    if (this.#started) return;
    this.#started = true;
    this.broken = false;
    this.held = false;
    this.chainFaults = 0;
    this.#shortAt = -1;
    this.#call?.signal();
    this.host.attachment.ringChanged(this);
  }

  /**
   * Finds the ring in guest memory and goes on at `base`, or where the in-flight region says.
   * @throws RingError, MemoryError - it is not there
   */
  place(features: VringFeatures, inflight: ArrayBuffer | undefined): void {
    const { memory, log, attachment } = this.host;
    this.#traits = attachment.ringTraits(this.index);
    if (this.addresses === undefined) throw new RingError(`vring ${this.index} was started without SET_VRING_ADDR`);
    const queue = new SplitQueue(memory, { size: this.size, addresses: this.addresses, ...features });
    this.chain = new DescriptorChain(memory, this.size);
    this.#inflight = inflight === undefined ? undefined : new InflightQueue(inflight, this.size);
    const recovered = this.#inflight?.recover(queue.nextUsed);
    this.#resubmit = recovered?.heads ?? [];
    this.#resubmitted = 0;
    queue.seek(recovered?.nextAvail ?? this.base);
    if (this.#resubmit.length > 0) {
      log.info({ vring: this.index }, `vring ${this.index}: resubmitting ${this.#resubmit.length} requests in flight`);
    }
    this.#queue = queue;
  }

  /** Drains the ring and lets go of its memory, without leaving service: `place` goes on where it was. */
  async displace(): Promise<void> {
    await this.#drain();
    const queue = this.#queue;
    if (queue === undefined) return;
    // Buffers that an earlier life of the daemon fetched and nobody filled are the ring's next ones.
    const unfilled = this.#resubmit.slice(this.#resubmitted);
    for (const head of unfilled) this.#inflight?.unfetch(head);
    this.base = (queue.nextAvail - unfilled.length) & 0xffff;
    // Whoever serves the ring next must not find us asking not to be kicked.
    queue.enableKicks();
    this.#queue = undefined;
    this.#inflight = undefined;
    this.chain = NO_CHAIN;
  }

  #onKick(kick: Notifier): void {
    if (!kick.drain()) this.#closeKick();
    this.host.wake();
  }

  #closeKick(): void {
    this.#kickWatch?.close();
    this.#kickWatch = undefined;
    this.#kick?.close();
    this.#kick = undefined;
  }

  /** Takes the next chain into `chain`. False when there is none, or the ring just broke. */
  pop(): boolean {
    const queue = this.#queue as SplitQueue;
    if (this.#resubmitted < this.#resubmit.length) {
      queue.take(this.#resubmit[this.#resubmitted] as number, this.chain);
      this.#resubmitted += 1;
      return true;
    }
    if (!this.#enabled && !this.#traits.runsDisabled) return false;
    const result = queue.pop(this.chain);
    if (result === 1) {
      this.#inflight?.fetch(this.chain.head);
      return true;
    }
    if (result < 0) this.#break(describeFault(result));
    return false;
  }

  /**
   * Gives the head that was taken last back to the ring: the next `pop` takes it again. Only for heads after which none
   * was pushed.
   */
  unpop(head: number): void {
    const queue = this.#queue as SplitQueue;
    // Heads of an earlier life are taken before any of the ring, so they are given back after those.
    if (this.#resubmitted > 0 && this.#resubmit[this.#resubmitted - 1] === head) {
      queue.release(head);
      this.#resubmitted -= 1;
      return;
    }
    queue.untake(head);
    this.#inflight?.unfetch(head);
  }

  #break(reason: string): void {
    this.broken = true;
    this.host.log.error({ vring: this.index }, `vring ${this.index} is broken: ${reason}`);
    this.#err?.signal();
  }

  /** Notes that the chain just popped cannot be served. The caller pushes it back. */
  noteChainFault(fault: number): void {
    this.chainFaults += 1;
    if (this.chainFaults > MAX_LOGGED_FAULTS) return;
    const last = this.chainFaults === MAX_LOGGED_FAULTS ? '; further ones are only counted' : '';
    this.host.log.warn(
      { vring: this.index, head: this.chain.head },
      `vring ${this.index}: chain returned unserved: ${describeFault(fault)}${last}`,
    );
  }

  /** Stages the end of a request: `length` bytes were written to the chain of `head`. */
  push(head: number, length: number): void {
    (this.#queue as SplitQueue).push(head, length);
    this.#inflight?.complete(head);
    this.#staged += 1;
  }

  /** Publishes what is staged, and tells the driver if it wants to know; a little later if that pays and `mayHold`. */
  flush(mayHold: boolean): void {
    if (this.#staged > 0) this.#publish();
    if (this.#untold > 0) {
      const hold = mayHold && !this.#traits.offersBuffers && this.#untold < MAX_UNTOLD && this.runnable;
      if (hold && (this.#queue as SplitQueue).backlog > 2 * this.#untold) return;
      this.tell();
    }
    if (this.#draining !== undefined && this.inFlight === 0) this.#draining.resolve();
  }

  /** Tells the driver of what was published, if it wants to know: the end of a hold, at the latest before sleeping. */
  tell(): void {
    if (this.#untold === 0) return;
    const queue = this.#queue as SplitQueue;
    this.#untold = 0;
    if (queue.needsNotification()) this.#call?.signal();
  }

  #publish(): void {
    const queue = this.#queue as SplitQueue;
    queue.publish();
    this.#inflight?.commit(queue.publishedUsed);
    this.#untold += this.#staged;
    this.#staged = 0;
    // Those that are in flight still may be given back.
    if (this.#resubmitted === 0 || this.#resubmitted < this.#resubmit.length || this.inFlight > 0) return;
    this.#resubmit = [];
    this.#resubmitted = 0;
  }

  disableKicks(): void {
    if (this.runnable) this.#queue?.disableKicks();
  }

  /** Before sleeping: returns true when work came meanwhile. Buffers are asked for when there are too few of them. */
  enableKicks(): boolean {
    if (!this.runnable) return false;
    const queue = this.#queue as SplitQueue;
    if (!this.#traits.offersBuffers) return queue.enableKicks();
    return this.#shortAt >= 0 && queue.enableKicks(this.#shortAt);
  }

  /** Takes no more requests and waits for those in flight. */
  async #drain(): Promise<void> {
    // Requests of an earlier life of the daemon are finished too: the driver is not asked for them again.
    this.#finishing = true;
    while (!this.#traits.offersBuffers && this.#resubmitted < this.#resubmit.length && this.runnable) {
      this.host.wake();
      await new Promise((resolve) => setImmediate(resolve));
    }
    this.#finishing = false;
    if (this.#queue === undefined || (this.inFlight === 0 && this.#staged === 0 && this.#untold === 0)) return;
    if (this.#draining === undefined) {
      const { promise, resolve } = deferred();
      this.#draining = { promise, resolve };
    }
    const { promise } = this.#draining;
    this.host.wake();
    await promise;
    this.#draining = undefined;
  }

  /** GET_VRING_BASE: drains the ring and leaves service. Returns the next available index. */
  async stop(): Promise<number> {
    await this.displace();
    this.#resubmit = [];
    this.#resubmitted = 0;
    this.#closeKick();
    if (this.#started) {
      this.#started = false;
      this.host.attachment.ringChanged(this);
    }
    return this.base;
  }

  /** Stops, forgets everything a front end configured, and closes its descriptors. */
  async reset(): Promise<void> {
    await this.stop();
    this.setCall(undefined);
    this.setErr(undefined);
    this.enabled = false;
    this.broken = false;
    this.size = 0;
    this.base = 0;
    this.addresses = undefined;
  }
}
