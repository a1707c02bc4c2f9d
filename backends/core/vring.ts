/**
 * One vring: vhost-user's name for a virtqueue with its addresses, descriptors (file) and states. Source: vhost-user,
 * Ring states.
 *
 *     stopped --SET_VRING_KICK--> started --GET_VRING_BASE (waits for what is in flight)--> stopped
 *
 * Independent of that it is enabled or disabled; requests are taken only while started, enabled, and not broken by a
 * queue fault. `broken` lasts until the ring is started again.
 */

import type { DirtyLog } from '../../protocol/memory/dirty-log.ts';
import { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import type { Iotlb, MissingPages } from '../../protocol/memory/iotlb.ts';
import { TranslationMissing } from '../../protocol/memory/ring-view.ts';
import type { Notifier } from '../../protocol/sys/notifier.ts';
import { type Watch, watchReadable } from '../../protocol/sys/readiness.ts';
import { PACKED_START_BASE } from '../../protocol/virtio/packed-ring.ts';
import { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import { describeFault, NO_FAULT } from '../../protocol/virtqueue/faults.ts';
import type { VirtqueueFeatures } from '../../protocol/virtqueue/virtqueue.ts';
import type { RingAttachment } from './device.ts';
import type { Logger } from './logging.ts';
import { CHAIN_TAKEN, CHAIN_UNTRANSLATED, PlacedRing, type RingSettings } from './placed-ring.ts';
import { REQUEST_RING, type RingTraits } from './ring-traits.ts';

/** What a vring needs of its surroundings. */
export interface VringHost {
  readonly attachment: RingAttachment;
  readonly memory: GuestMemory;
  /** Translates what the driver says, when the front end has an IOMMU before the device. */
  readonly iotlb: Iotlb | undefined;
  /** Where writes to guest memory are noted, while the front end wants that. */
  readonly dirtyLog: DirtyLog | undefined;
  /** They are to be noted, and the front end has not said yet where. */
  readonly awaitsLog: boolean;
  /** What this front end negotiated for its rings. */
  readonly ringFeatures: VirtqueueFeatures;
  readonly log: Logger;
  /** There may be work: run the pump. */
  wake(): void;
  /** Whether pages of the memory that the front end shares are gone. */
  readonly memoryFaulted: boolean;
  /** They are. */
  onMemoryFault(): void;
  /**
   * The front end is to be asked for these; `translationsChanged` follows with each of its answers. Returns how many it
   * had not been asked for before.
   */
  requestTranslations(missing: MissingPages): number;
}

/** Tells the driver or the front end: by a descriptor, or by a message where notifications are in band. */
export interface Signal {
  signal(): void;
  close(): void;
}

function deferred(): { promise: Promise<void>; resolve: () => void } {
  let resolve = (): void => undefined;
  const promise = new Promise<void>((fulfil) => {
    resolve = fulfil;
  });
  return { promise, resolve };
}

/** Stands in while a ring has no place in memory. */
const EMPTY_CHAIN = new DescriptorChain(new GuestMemory(), 1);

/**
 * A notification that wakes the driver's processor costs more than a dozen requests (15 us in a virtual machine), and the
 * driver takes as long to come back. So it is held back while more than twice as many heads wait as were finished since the
 * last one: what waits keeps us busy until the driver is there. But no longer than for this many requests.
 */
const MAX_UNTOLD = 64;

/** Chain faults logged per ring between starts; the rest is only counted. */
const MAX_LOGGED_FAULTS = 5;

const NOTHING: RingSettings = { size: 0, base: 0, addresses: undefined, usedLog: undefined, inflight: undefined };

export class Vring {
  readonly index: number;
  readonly host: VringHost;
  broken = false;
  /** Chains returned without being served, since the ring was started. */
  chainFaults = 0;
  /** The chain of the last successful `pop`. */
  chain: DescriptorChain = EMPTY_CHAIN;
  /** Started without a kick descriptor: the front end expects polling. */
  polled = false;
  /** The device can take nothing from it for now, and says so again when it can: what waits there is no work meanwhile. */
  held = false;

  #settings = NOTHING;
  #ring: PlacedRing | undefined;
  #traits: RingTraits = REQUEST_RING;
  #started = false;
  #enabled = false;
  /** The front end was asked where buffers or the ring are. */
  #untranslated = false;
  /** Place up to which a ring of buffers has too few of them; -1 while it has enough. */
  #shortAt = -1;
  #draining: { promise: Promise<void>; resolve: () => void } | undefined;
  /** What an earlier life of the daemon fetched is being finished, on a disabled ring too. */
  #finishing = false;
  /** Used entries published without asking whether the driver wants to be told. */
  #untold = 0;
  #kick: Notifier | undefined;
  #kickWatch: Watch | undefined;
  #call: Signal | undefined;
  #err: Signal | undefined;

  constructor(index: number, host: VringHost) {
    this.index = index;
    this.host = host;
  }

  /** Entries. */
  get size(): number {
    return this.#settings.size;
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
    this.#shortAt = (this.#ring as PlacedRing).position;
  }

  /** The device looks at the ring's buffers again. */
  noteEnough(): void {
    this.#shortAt = -1;
  }

  /** Whether the ring was found in guest memory. */
  get placed(): boolean {
    return this.#ring !== undefined;
  }

  /** Whether requests may be taken. */
  get runnable(): boolean {
    if (this.broken || this.held || this.#ring === undefined || this.#draining !== undefined) return false;
    if (this.#untranslated || this.host.awaitsLog) return false;
    return this.#enabled || this.#traits.runsDisabled || this.#finishing;
  }

  /** Whether about `count` heads wait to be taken from the ring: exact for 1. */
  offers(count: number): boolean {
    return this.#ring?.offers(count) === true;
  }

  /** Whether the ring was used before we got it: by an earlier life of the daemon, or on another host. */
  get hasPast(): boolean {
    if (this.#ring !== undefined) return this.#ring.hasPast;
    // One that is still looked for: what the front end said of it. A packed ring begins with both wrap counters 1.
    return this.#settings.base !== 0 && this.#settings.base !== PACKED_START_BASE;
  }

  get inFlight(): number {
    return this.#ring === undefined ? 0 : this.#ring.inFlight;
  }

  /** Whether pages of the ring's own mapping are gone. */
  get faulted(): boolean {
    return this.#ring?.faulted === true;
  }

  setCall(call: Signal | undefined): void {
    this.#call?.close();
    this.#call = call;
    // A front end that attaches again may have missed the last notification.
    if (this.#started) call?.signal();
  }

  setErr(err: Signal | undefined): void {
    this.#err?.close();
    this.#err = err;
  }

  /** SET_VRING_KICK: takes the ring into service. @throws RingError, MemoryError - it cannot be used as described */
  start(settings: RingSettings): void {
    this.#settings = settings;
    this.place();
    this.#started = true;
    this.broken = false;
    this.held = false;
    this.chainFaults = 0;
    this.#shortAt = -1;
    this.#call?.signal();
    this.host.attachment.ringChanged(this);
  }

  /** Takes over where the driver's notifications come from. @param polled nobody will kick */
  setKick(kick: Notifier | undefined, polled: boolean): void {
    this.#closeKick();
    this.#kick = kick;
    if (kick !== undefined) this.#kickWatch = watchReadable(kick.fd, () => this.#onKick(kick));
    this.polled = polled;
  }

  /** SET_VRING_ADDR on a started ring: it lies elsewhere from now on, or is logged. @throws RingError, MemoryError */
  async relocate(settings: Pick<RingSettings, 'addresses' | 'usedLog'>): Promise<void> {
    await this.displace();
    this.#settings = { ...this.#settings, ...settings };
    this.place();
  }

  /**
   * Finds the ring in guest memory and goes on at its base, or where the in-flight region says. A ring that the front end
   * has to be asked for waits for the answer.
   * @throws RingError, MemoryError - it is not there
   */
  place(): void {
    const { attachment, log } = this.host;
    this.#traits = attachment.ringTraits(this.index);
    try {
      this.#ring = new PlacedRing(this.host, this.index, this.#settings);
    } catch (error) {
      if (!(error instanceof TranslationMissing)) throw error;
      this.host.requestTranslations(error.missing);
      return;
    }
    this.chain = this.#ring.chain;
    const { resubmits } = this.#ring;
    if (resubmits === 0) return;
    log.info({ vring: this.index }, `vring ${this.index}: resubmitting ${resubmits} requests in flight`);
  }

  /** Drains the ring and lets go of its memory, without leaving service: `place` goes on where it was. */
  displace(): Promise<void> {
    return this.#letGo((ring) => ring.release());
  }

  async #letGo(release: (ring: PlacedRing) => number): Promise<void> {
    await this.#drain();
    if (this.#ring === undefined) return;
    this.#settings = { ...this.#settings, base: release(this.#ring) };
    this.#ring = undefined;
    this.#draining = undefined;
    this.chain = EMPTY_CHAIN;
  }

  /** Whether the ring or a chain in flight uses an I/O virtual address in [start, end). */
  usesIova(start: number, end: number): boolean {
    return this.#ring?.usesIova(start, end) === true;
  }

  /** The front end answered: what waits for a translation is looked at again. */
  translationsChanged(): void {
    this.#untranslated = false;
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

  /** Takes the next chain into `chain`. False when there is none, when it has to wait, or when the ring just broke. */
  pop(): boolean {
    const ring = this.#ring as PlacedRing;
    const result = ring.pop(this.#enabled || this.#traits.runsDisabled);
    if (result === CHAIN_TAKEN) {
      // A denial is good for the chain that met it: the guest may map the page later, and nobody would tell us.
      if (ring.chain.fault !== NO_FAULT) this.host.iotlb?.forgetDenied();
      return true;
    }
    if (result === CHAIN_UNTRANSLATED) {
      this.#untranslated = true;
      ring.noteAsked(this.host.requestTranslations(ring.chain.missing));
    } else if (result < 0) this.#break(describeFault(result));
    return false;
  }

  /**
   * Gives the head that was taken last back to the ring: the next `pop` takes it again. Only for heads after which none
   * was pushed.
   */
  unpop(head: number): void {
    (this.#ring as PlacedRing).unpop(head);
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
    // A request that failed may have written more than it says.
    const logged = this.#traits.offersBuffers ? length : Number.POSITIVE_INFINITY;
    (this.#ring as PlacedRing).push(head, length, logged);
  }

  /** Publishes what is staged, and tells the driver if it wants to know; a little later if that pays and `mayHold`. */
  flush(mayHold: boolean): void {
    const ring = this.#ring;
    if (ring !== undefined && ring.staged > 0) {
      this.#untold += ring.staged;
      ring.publish();
    }
    if (this.#untold > 0) {
      const hold = mayHold && !this.#traits.offersBuffers && this.#untold < MAX_UNTOLD && this.runnable;
      if (hold && this.offers(2 * this.#untold + 1)) return;
      this.tell();
    }
    if (this.#draining !== undefined && this.inFlight === 0) this.#draining.resolve();
  }

  /** Tells the driver of what was published, if it wants to know: the end of a hold, at the latest before sleeping. */
  tell(): void {
    if (this.#untold === 0) return;
    this.#untold = 0;
    if ((this.#ring as PlacedRing).needsNotification()) this.#call?.signal();
  }

  disableKicks(): void {
    if (this.runnable) this.#ring?.disableKicks();
  }

  /** Before sleeping: returns true when work came meanwhile. Buffers are asked for when there are too few of them. */
  enableKicks(): boolean {
    if (!this.runnable) return false;
    const ring = this.#ring as PlacedRing;
    if (!this.#traits.offersBuffers) return ring.enableKicks();
    return this.#shortAt >= 0 && ring.enableKicks(this.#shortAt);
  }

  /** Takes no more requests, until the ring is let go of, and waits for those in flight. */
  async #drain(): Promise<void> {
    // Requests of an earlier life of the daemon are finished too: the driver is not asked for them again.
    this.#finishing = true;
    while (!this.#traits.offersBuffers && this.#ring?.hasResubmits === true && this.runnable) {
      this.host.wake();
      await new Promise((resolve) => setImmediate(resolve));
    }
    this.#finishing = false;
    if (this.#ring === undefined) return;
    this.#draining ??= deferred();
    if (this.inFlight === 0 && this.#ring.staged === 0 && this.#untold === 0) return;
    this.host.wake();
    await this.#draining.promise;
  }

  /** GET_VRING_BASE: drains the ring and leaves service. Returns where it stands, for the front end. */
  async stop(): Promise<number> {
    await this.#letGo((ring) => ring.rest());
    return this.#leave();
  }

  #leave(): number {
    const { base } = this.#settings;
    this.#settings = NOTHING;
    this.#untranslated = false;
    this.#closeKick();
    if (this.#started) {
      this.#started = false;
      this.host.attachment.ringChanged(this);
    }
    return base;
  }

  /** Stops, forgets what a front end configured, and closes its descriptors. */
  async reset(): Promise<void> {
    await this.displace();
    this.#leave();
    this.setCall(undefined);
    this.setErr(undefined);
    this.enabled = false;
    this.broken = false;
  }
}
