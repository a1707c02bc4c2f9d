/**
 * Serves the rings of one front end on one thread. The session tells it what the front end asked for; what it needs to
 * tell the session it calls `RingEvents` with. Requests and answers are plain values, so that a worker thread can take the
 * place of this one (`ring-thread.ts`): descriptors are numbers, and who gets one owns it.
 */

import { DirtyLog } from '../../protocol/memory/dirty-log.ts';
import { GuestMemory, type SharedRegion } from '../../protocol/memory/guest-memory.ts';
import {
  IOTLB_HIT,
  IOTLB_PAGE_BYTES,
  Iotlb,
  MAX_MISSING_PAGES,
  type MissingPages,
} from '../../protocol/memory/iotlb.ts';
import { BorrowedMapping, type SharedExtent } from '../../protocol/sys/mapping.ts';
import { Notifier } from '../../protocol/sys/notifier.ts';
import { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import type { RingAddresses, VirtqueueFeatures } from '../../protocol/virtqueue/virtqueue.ts';
import type { RingAttachment } from './device.ts';
import { isRefusal } from './dispatcher.ts';
import type { Logger } from './logging.ts';
import type { RingSettings } from './placed-ring.ts';
import type { Pump } from './pump.ts';
import { type Signal, Vring, type VringHost } from './vring.ts';

/** How rings are described to a server: `RingSettings` with the in-flight region by its place. */
export interface RingDescription extends Omit<RingSettings, 'inflight'> {
  readonly inflight: SharedExtent | undefined;
}

/** What all rings of a front end have in common. */
export interface RingFeatures extends VirtqueueFeatures {
  /** The front end has an IOMMU before the device. */
  readonly translated: boolean;
}

/** How the driver is told: by a descriptor, by a message to the front end, or not at all. */
export type SignalTarget = number | 'in-band' | undefined;

/** Kinds of messages on the back end's channel. */
export type InBand = 'call' | 'error';

/** What a server tells its session. */
export interface RingEvents {
  /** Pages of the memory that the front end shares are gone. */
  onMemoryFault(): void;
  /** The front end is to be asked for the page at this I/O virtual address; a change of translations follows. */
  onMissing(iova: number, writable: boolean): void;
  /** The driver is to be told by a message. */
  onSignal(index: number, kind: InBand): void;
}

/**
 * What the front end said about I/O virtual addresses: IOTLB_MSG, that there is no translation of a missing page, and by
 * which channel it is to be asked from now on.
 */
export type Translation =
  | {
      readonly kind: 'update';
      readonly iova: bigint;
      readonly size: bigint;
      readonly userAddress: bigint;
      readonly permission: number;
    }
  | { readonly kind: 'invalidate'; readonly iova: bigint; readonly size: bigint }
  | { readonly kind: 'deny'; readonly iova: number; readonly writable: boolean }
  | { readonly kind: 'ask again' };

/** What a session asks of a server. Every call is done when its promise is. */
export interface RingServer {
  setFeatures(features: RingFeatures): Promise<void>;
  /** The regions of guest memory, all of them. Rings were displaced before. */
  setMemory(regions: readonly SharedRegion[]): Promise<void>;
  /** Drains all rings and lets go of their memory: no access after this, until `placeAll`. */
  displaceAll(): Promise<void>;
  /** Looks for started rings again. One that is not there waits for the next change. */
  placeAll(): Promise<void>;
  /**
   * From now on writes to guest memory are noted there, or not. Rings were displaced before. While a log is awaited no
   * ring is served.
   */
  setLog(log: SharedExtent | 'awaited' | undefined): Promise<void>;
  /** After an invalidation, nothing of it is accessed any more. */
  translate(change: Translation): Promise<void>;
  /** @throws RingError, MemoryError, Refused - the ring cannot be used as described; the descriptor is closed */
  start(index: number, ring: RingDescription, kick: number | undefined, polled: boolean): Promise<void>;
  /** Another kick descriptor for a started ring. */
  setKick(index: number, kick: number | undefined, polled: boolean): Promise<void>;
  /** @throws RingError, MemoryError */
  relocate(index: number, addresses: RingAddresses, usedLog: number | undefined): Promise<void>;
  /** Drains and stops a ring. Returns where it stands. */
  stop(index: number): Promise<number>;
  enable(index: number, enabled: boolean): Promise<void>;
  setSignal(index: number, kind: InBand, target: SignalTarget): Promise<void>;
  /** VRING_KICK: the driver's notification as a message. */
  kick(index: number): Promise<void>;
  /** Marks all rings as broken: their memory is not to be trusted. */
  breakAll(): Promise<void>;
  /** Stops all rings and forgets everything. */
  close(): Promise<void>;
}

const NO_FEATURES: RingFeatures = {
  packed: false,
  indirect: false,
  eventIdx: false,
  inOrder: false,
  translated: false,
};

/** The server of this thread. */
export class LocalRingServer implements RingServer, VringHost {
  readonly attachment: RingAttachment;
  readonly memory = new GuestMemory();
  readonly log: Logger;
  iotlb: Iotlb | undefined;
  dirtyLog: DirtyLog | undefined;
  awaitsLog = false;
  ringFeatures = NO_FEATURES;

  readonly #pump: Pump;
  readonly #events: RingEvents;
  readonly #vrings: readonly Vring[];
  #logMapping: BorrowedMapping | undefined;
  /** Part of the in-flight region, which is one mapping. */
  #inflight: BorrowedMapping | undefined;
  /** Pages that the front end was asked for, oldest first: the address, and 1 more where it is to be written. */
  readonly #asked = new Set<number>();
  /** Why a ring is out of service, by its index. */
  readonly #complaints = new Map<number, string>();

  constructor(pump: Pump, attachment: RingAttachment, rings: number, events: RingEvents, log: Logger) {
    this.#pump = pump;
    this.attachment = attachment;
    this.#events = events;
    this.log = log;
    this.#vrings = Array.from({ length: rings }, (_, index) => new Vring(index, this));
  }

  wake(): void {
    this.#pump.wake();
  }

  get memoryFaulted(): boolean {
    if (this.memory.faulted || this.#logMapping?.faulted === true || this.#inflight?.faulted === true) return true;
    return this.#vrings.some((vring) => vring.faulted);
  }

  onMemoryFault(): void {
    // At once: the session may be a thread away, and what is read from the memory meanwhile is not the guest's.
    for (const vring of this.#vrings) vring.broken = true;
    this.#events.onMemoryFault();
  }

  requestTranslations(missing: MissingPages): number {
    let asked = 0;
    for (let i = 0; i < missing.count; i += 1) {
      const [iova, writable] = [missing.iova(i), missing.writable(i)];
      const page = iova + (writable ? 1 : 0);
      if (this.#asked.has(page)) continue;
      this.#asked.add(page);
      asked += 1;
      this.#events.onMissing(iova, writable);
    }
    // Each ring waits for so many at most. What is older was never answered, and nobody waits for it any more.
    for (const oldest of this.#asked) {
      if (this.#asked.size <= MAX_MISSING_PAGES * this.#vrings.length) break;
      this.#asked.delete(oldest);
    }
    return asked;
  }

  #settings(ring: RingDescription): RingSettings {
    if (ring.inflight === undefined) return { ...ring, inflight: undefined };
    this.#inflight = new BorrowedMapping(ring.inflight);
    return { ...ring, inflight: this.#inflight.view(0, ring.inflight.length) };
  }

  #vring(index: number): Vring {
    const vring = this.#vrings[index];
    if (vring === undefined) throw new RangeError(`vring ${index}`);
    return vring;
  }

  async setFeatures(features: RingFeatures): Promise<void> {
    this.ringFeatures = features;
    if (features.translated) this.iotlb ??= new Iotlb(this.memory);
    else this.iotlb = undefined;
  }

  async setMemory(regions: readonly SharedRegion[]): Promise<void> {
    this.memory.adopt(regions);
  }

  async displaceAll(): Promise<void> {
    for (const vring of this.#vrings) await vring.displace();
  }

  async placeAll(): Promise<void> {
    for (const vring of this.#vrings) {
      if (!vring.started || vring.placed) continue;
      try {
        vring.place();
        this.#complaints.delete(vring.index);
      } catch (error) {
        if (!isRefusal(error)) throw error;
        this.#complain(vring.index, error.message);
      }
    }
    this.wake();
  }

  /** Once, however often the ring is looked for. */
  #complain(index: number, reason: string): void {
    if (this.#complaints.get(index) === reason) return;
    this.#complaints.set(index, reason);
    this.log.warn(`vring ${index} is out of service: ${reason}`);
  }

  async setLog(log: SharedExtent | 'awaited' | undefined): Promise<void> {
    const lost = this.dirtyLog?.ignored ?? 0;
    if (lost > 0) this.log.warn(`${lost} writes were to pages that the dirty log had no bit for`);
    this.awaitsLog = log === 'awaited';
    this.#logMapping = undefined;
    this.dirtyLog = undefined;
    if (log === undefined || log === 'awaited') return;
    this.#logMapping = new BorrowedMapping(log);
    this.dirtyLog = new DirtyLog(this.#logMapping.view(0, log.length));
  }

  async translate(change: Translation): Promise<void> {
    const { iotlb } = this;
    if (iotlb === undefined) return;
    if (change.kind === 'invalidate') await this.#invalidate(iotlb, change.iova, change.size);
    else if (change.kind === 'update') {
      iotlb.update(change.iova, change.size, change.userAddress, change.permission);
      this.#noteAnswer(iotlb, Number(change.iova), Number(change.iova + change.size));
    } else if (change.kind === 'deny') this.#noteAnswer(iotlb, change.iova, change.iova + IOTLB_PAGE_BYTES);
    else this.#asked.clear();
    for (const vring of this.#vrings) vring.translationsChanged();
    await this.placeAll();
  }

  /** Nobody finds the range any more, and rings that use it let go of it: their requests in flight end. */
  async #invalidate(iotlb: Iotlb, iova: bigint, size: bigint): Promise<void> {
    // First: while one ring is waited for, others take chains.
    iotlb.invalidate(iova, size);
    // Size 0 stands for 2^64.
    const end = size === 0n ? Number.POSITIVE_INFINITY : Number(iova + size);
    for (const vring of this.#vrings) if (vring.usesIova(Number(iova), end)) await vring.displace();
  }

  /**
   * The front end said what it has for a range: what was asked for and is not there is not to be had. A denial may come
   * after an update that says otherwise, by the other socket: then it was asked for no more.
   */
  #noteAnswer(iotlb: Iotlb, start: number, end: number): void {
    for (const page of this.#asked) {
      const writable = page % 2 === 1;
      const iova = writable ? page - 1 : page;
      if (iova < start || iova >= end) continue;
      if (iotlb.lookup(iova, writable) !== IOTLB_HIT) iotlb.deny(iova, writable);
      this.#asked.delete(page);
    }
  }

  async start(index: number, ring: RingDescription, kick: number | undefined, polled: boolean): Promise<void> {
    const vring = this.#vring(index);
    vring.setKick(notifierOf(kick), polled);
    // Of a driver that was there before: what was denied or not answered then may be mapped now.
    this.iotlb?.forgetDenied();
    this.#asked.clear();
    try {
      vring.start(this.#settings(ring));
    } catch (error) {
      vring.setKick(undefined, false);
      throw error;
    }
    this.#pump.add(vring);
  }

  async setKick(index: number, kick: number | undefined, polled: boolean): Promise<void> {
    const vring = this.#vring(index);
    vring.setKick(notifierOf(kick), polled);
    this.#pump.add(vring);
  }

  async relocate(index: number, addresses: RingAddresses, usedLog: number | undefined): Promise<void> {
    await this.#vring(index).relocate({ addresses, usedLog });
    this.wake();
  }

  async stop(index: number): Promise<number> {
    const vring = this.#vring(index);
    const base = await vring.stop();
    this.#pump.remove(vring);
    // While a device is stopped, front ends (QEMU) do not tell what the guest unmaps.
    if (!this.#vrings.some(({ started }) => started)) this.iotlb?.clear();
    return base;
  }

  async enable(index: number, enabled: boolean): Promise<void> {
    this.#vring(index).enabled = enabled;
    this.wake();
  }

  async setSignal(index: number, kind: InBand, target: SignalTarget): Promise<void> {
    const vring = this.#vring(index);
    const signal = this.#signal(index, kind, target);
    if (kind === 'call') vring.setCall(signal);
    else vring.setErr(signal);
  }

  #signal(index: number, kind: InBand, target: SignalTarget): Signal | undefined {
    if (target === undefined) return undefined;
    if (target !== 'in-band') return notifierOf(target);
    return { signal: () => this.#events.onSignal(index, kind), close: () => undefined };
  }

  async kick(): Promise<void> {
    this.wake();
  }

  async breakAll(): Promise<void> {
    for (const vring of this.#vrings) vring.broken = true;
  }

  async close(): Promise<void> {
    for (const vring of this.#vrings) {
      await vring.reset();
      this.#pump.remove(vring);
    }
    this.memory.adopt([]);
    this.iotlb = undefined;
    this.#inflight = undefined;
    this.#asked.clear();
  }
}

function notifierOf(fd: number | undefined): Notifier | undefined {
  return fd === undefined ? undefined : new Notifier(new OwnedFd(fd));
}
