/**
 * A vring that was found in guest memory: its virtqueue, and what is kept of the chains in flight. They are noted in the
 * in-flight region (for the next daemon), in the write log (for a migration) and in the order they were taken (for
 * IN_ORDER), as far as the front end negotiated that.
 */

import { MAX_IOTLB_ENTRIES } from '../../protocol/memory/iotlb.ts';
import { RingPlace } from '../../protocol/memory/ring-view.ts';
import { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import { FAULT_TRANSLATION_MISSING } from '../../protocol/virtqueue/faults.ts';
import { InOrder } from '../../protocol/virtqueue/in-order.ts';
import { PackedQueue } from '../../protocol/virtqueue/packed-queue.ts';
import { SplitQueue } from '../../protocol/virtqueue/split-queue.ts';
import { type RingAddresses, RingError, type Virtqueue } from '../../protocol/virtqueue/virtqueue.ts';
import { createInflightTracker, type InflightTracker } from './inflight.ts';
import { IovaUse } from './iova-use.ts';
import { ringWrites } from './ring-writes.ts';
import type { VringHost } from './vring.ts';
import { WriteLog } from './write-log.ts';

/** A ring as the front end described it. */
export interface RingSettings {
  /** Entries. */
  readonly size: number;
  /** Where to begin, as SET_VRING_BASE says. */
  readonly base: number;
  readonly addresses: RingAddresses | undefined;
  /** Guest address at which writes to the used ring are logged; undefined when they are not. */
  readonly usedLog: number | undefined;
  /** This ring's in-flight region, when the front end gave one. */
  readonly inflight: ArrayBuffer | undefined;
}

// What `pop` came to, beside the negative queue faults of protocol/virtqueue/faults.ts.
export const NO_CHAIN = 0;
export const CHAIN_TAKEN = 1;
/** The next chain has addresses whose translation is missing: they are in `chain.missing`. */
export const CHAIN_UNTRANSLATED = 2;

/** Pages that the front end is asked for because of one chain: twice what the IOTLB holds. */
const MAX_ASKED_PAGES = 2 * MAX_IOTLB_ENTRIES;

export class PlacedRing {
  /** The chain of the last successful `pop`. */
  readonly chain: DescriptorChain;
  /** Heads that an earlier life of the daemon fetched and that are to be done again. */
  readonly resubmits: number;
  readonly #queue: Virtqueue;
  readonly #place: RingPlace;
  readonly #inflight: InflightTracker | undefined;
  readonly #inOrder: InOrder | undefined;
  readonly #writeLog: WriteLog | undefined;
  readonly #iovaUse: IovaUse | undefined;
  /** Any of the four above. */
  readonly #tracks: boolean;
  #resubmit: readonly number[] = [];
  #resubmitted = 0;
  /** By token: taken as one of an earlier life, and in flight. The token of one that came back may be a new chain's. */
  readonly #isOld: Uint8Array;
  /** Pages that the front end was asked for because of the next chain. */
  #asked = 0;
  /** Used entries not published yet. */
  #staged = 0;

  /**
   * Finds the ring in guest memory and goes on at its base, or where the in-flight region says.
   * @throws RingError, MemoryError - it is not there
   * @throws TranslationMissing - the front end has to be asked where it is
   */
  constructor({ memory, iotlb, dirtyLog, ringFeatures }: VringHost, index: number, settings: RingSettings) {
    const { size, addresses, inflight } = settings;
    if (addresses === undefined) throw new RingError(`vring ${index} was started without SET_VRING_ADDR`);
    const { packed, inOrder } = ringFeatures;
    this.#place = new RingPlace(memory, iotlb);
    this.#inflight = inflight === undefined ? undefined : createInflightTracker(packed, inflight, size);
    const options = { ...ringFeatures, size, addresses };
    try {
      const place = this.#place.view;
      this.#queue = packed ? new PackedQueue(place, options) : new SplitQueue(place, options);
      this.#queue.seek(settings.base);
      this.#resubmit = this.#inflight?.recover(this.#queue) ?? [];
    } catch (error) {
      this.#place.retire();
      throw error;
    }
    this.chain = new DescriptorChain(memory, size, iotlb);
    this.#inOrder = inOrder ? new InOrder(size) : undefined;
    const writes = dirtyLog === undefined ? [] : ringWrites(memory, iotlb, settings, packed);
    this.#writeLog = dirtyLog === undefined ? undefined : new WriteLog(dirtyLog, size, writes);
    this.resubmits = this.#resubmit.length;
    this.#isOld = new Uint8Array(this.resubmits === 0 ? 0 : size);
    this.#iovaUse = iotlb === undefined ? undefined : new IovaUse(size, addresses, packed);
    const tracked = [this.#inflight, this.#inOrder, this.#writeLog, this.#iovaUse];
    this.#tracks = tracked.some((tracker) => tracker !== undefined);
  }

  /** Whether heads of an earlier life wait to be taken. */
  get hasResubmits(): boolean {
    return this.#resubmitted < this.#resubmit.length;
  }

  /** Whether pages of a ring that was stitched together were taken away. */
  get faulted(): boolean {
    return this.#place.faulted;
  }

  get inFlight(): number {
    return this.#queue.inFlight;
  }

  get staged(): number {
    return this.#staged;
  }

  get hasPast(): boolean {
    return this.#queue.hasPast;
  }

  get position(): number {
    return this.#queue.position;
  }

  offers(count: number): boolean {
    return this.#queue.offers(count);
  }

  /** Takes the next chain; of the ring itself only when `fromRing`. Returns a value of the kinds above. */
  pop(fromRing: boolean): number {
    const { chain } = this;
    if (this.#resubmitted < this.#resubmit.length) return this.#retake();
    if (!fromRing) return NO_CHAIN;
    const result = this.#queue.pop(chain);
    if (result !== CHAIN_TAKEN) return result;
    if (chain.fault === FAULT_TRANSLATION_MISSING && this.#asked < MAX_ASKED_PAGES) {
      this.#queue.untake(chain.head);
      return CHAIN_UNTRANSLATED;
    }
    this.#asked = 0;
    if (this.#tracks) {
      this.#inflight?.fetch(chain);
      this.#noteTaken();
    }
    return CHAIN_TAKEN;
  }

  /** The chain is in flight from now on, whichever life of the daemon fetched it. */
  #noteTaken(): void {
    const { chain } = this;
    this.#inOrder?.take(chain.head);
    this.#writeLog?.take(chain);
    this.#iovaUse?.take(chain);
  }

  #retake(): number {
    const { chain } = this;
    const token = this.#resubmit[this.#resubmitted] as number;
    (this.#inflight as InflightTracker).retake(token, chain);
    if (chain.fault === FAULT_TRANSLATION_MISSING && this.#asked < MAX_ASKED_PAGES) {
      this.#queue.release(token);
      return CHAIN_UNTRANSLATED;
    }
    this.#asked = 0;
    this.#resubmitted += 1;
    this.#isOld[token] = 1;
    this.#noteTaken();
    return CHAIN_TAKEN;
  }

  /**
   * The front end was asked for pages of the chain that `pop` could not take. One whose pages drive each other out of the
   * IOTLB would be asked for for ever: after so many of them it goes back with its fault.
   */
  noteAsked(pages: number): void {
    this.#asked += pages;
  }

  /** Gives the head that was taken last back to the ring. Only for heads after which none was pushed. */
  unpop(token: number): void {
    this.#inOrder?.untake(token);
    this.#iovaUse?.end(token);
    // Heads of an earlier life are taken before any of the ring, so they are given back after those.
    if (this.#isOld[token] === 1) {
      this.#queue.release(token);
      this.#resubmitted -= 1;
      this.#isOld[token] = 0;
      return;
    }
    this.#queue.untake(token);
    this.#inflight?.unfetch(token);
  }

  /** Stages the end of a request; with IN_ORDER, when those before it have ended. `logged` bytes may have been written. */
  push(token: number, length: number, logged: number): void {
    this.#writeLog?.finish(token, logged);
    this.#iovaUse?.end(token);
    const inOrder = this.#inOrder;
    if (inOrder === undefined) {
      this.#stage(token, length);
      return;
    }
    inOrder.finish(token, length);
    for (let next = inOrder.next(); next >= 0; next = inOrder.next()) this.#stage(next, inOrder.length);
  }

  #stage(token: number, length: number): void {
    this.#queue.push(token, length);
    this.#inflight?.complete(token);
    if (this.#resubmitted > 0) this.#isOld[token] = 0;
    this.#staged += 1;
  }

  /** Makes what is staged visible to the driver. */
  publish(): void {
    const queue = this.#queue;
    this.#staged = 0;
    queue.publish();
    this.#inflight?.commit();
    this.#writeLog?.markRing();
    // Those that are in flight still may be given back.
    if (this.#resubmitted === 0 || this.#resubmitted < this.#resubmit.length || queue.inFlight > 0) return;
    this.#resubmit = [];
    this.#resubmitted = 0;
  }

  /** Whether the ring or a chain in flight uses an I/O virtual address in [start, end). */
  usesIova(start: number, end: number): boolean {
    return this.#iovaUse?.overlaps(start, end) === true;
  }

  needsNotification(): boolean {
    return this.#queue.needsNotification();
  }

  disableKicks(): void {
    this.#queue.disableKicks();
    this.#writeLog?.markRing();
  }

  enableKicks(position?: number): boolean {
    const more = this.#queue.enableKicks(position);
    this.#writeLog?.markRing();
    return more;
  }

  /** Lets go of the ring's memory. Nothing is in flight. Returns where the ring stands, as GET_VRING_BASE says it. */
  release(): number {
    // Buffers that an earlier life of the daemon fetched and nobody filled are the ring's next ones.
    if (this.hasResubmits) this.#inflight?.giveBack(this.#queue, this.#resubmit.slice(this.#resubmitted));
    // Whoever serves the ring next must not find us asking not to be kicked.
    this.enableKicks();
    this.#place.retire();
    return this.#queue.base;
  }

  /** The same, for a front end that hears where the ring stands. */
  rest(): number {
    const base = this.release();
    this.#inflight?.rest();
    return base;
  }
}
