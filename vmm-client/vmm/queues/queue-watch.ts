/**
 * Looks at the rings of a machine from outside. Kicks and interrupts do not come by this process, so what it knows of a
 * queue is what guest memory says: the driver's index in the available ring and the device's in the used ring, two numbers
 * of 16 bits, every few milliseconds. It looks only while somebody asks: from one call of `report` until IDLE_MS after
 * the last. A look that takes long makes the next one wait, so that looking costs at most 2 % of one CPU.
 */

import type { GuestMemory } from '../../../protocol/memory/guest-memory.ts';
import {
  VIRTIO_STATUS_DEVICE_NEEDS_RESET,
  VIRTIO_STATUS_DRIVER,
  VIRTIO_STATUS_DRIVER_OK,
  VIRTIO_STATUS_FAILED,
} from '../../../protocol/virtio/device-status.ts';
import {
  hasFeature,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_RING_PACKED,
} from '../../../protocol/virtio/reserved-features.ts';
import type { ObservedDevice, ObservedQueue, ObservedSlot } from './observed.ts';
import { nameKind, nameQueue } from './queue-names.ts';
import type { DeviceReport, MachineReport, QueueReport, QueueRole, QueueState } from './queue-report.ts';
import { type RingFigures, RingMeter } from './ring-meter.ts';

/** Between two looks: the indexes of a queue of 6 million chains a second would go round. */
export const PERIOD_MS = 10;
/** Without a question for so long nobody looks any more. */
export const IDLE_MS = 5000;
/** What the first answer takes: a rate needs some time to be over. */
export const FIRST_MS = 250;
/** The period is at least so many times what a look takes. */
const MAX_SHARE = 50;
/** Requests that wait for so long are no longer under way as usual. */
export const WAITING_MS = 250;
export const STUCK_MS = 2000;

/** Of the available and the used ring: idx, behind the flags. */
const INDEX_OFFSET = 2;
const INDEX_BYTES = 2;

/** The guest's RAM. User addresses are those that an IOMMU's mappings have. */
export interface WatchedRam {
  readonly memory: Pick<GuestMemory, 'locate' | 'view' | 'offset'>;
  readonly regions: readonly {
    readonly region: { readonly guestAddress: number; readonly size: number; readonly userAddress: number };
  }[];
}

export interface QueueWatchOptions {
  readonly ram: WatchedRam;
  /** The devices that are there now. */
  readonly observe: () => readonly ObservedSlot[];
}

/** One life of a ring: from its start on, at one place. */
interface WatchedRing {
  readonly activations: number;
  readonly size: number;
  readonly availRing: number;
  readonly usedRing: number;
  readonly meter: RingMeter;
}

/** A device whose rings are looked at, as long as it has its slot and its driver the same features. */
interface WatchedSlot {
  readonly id: string;
  readonly features: bigint;
  readonly isPacked: boolean;
  readonly isTranslated: boolean;
  /** By queue; none of those that cannot be seen. */
  readonly rings: (WatchedRing | undefined)[];
}

export class QueueWatch {
  readonly #ram: WatchedRam;
  readonly #observe: () => readonly ObservedSlot[];
  /** By slot. */
  #slots: (WatchedSlot | undefined)[] = [];
  #timer: NodeJS.Timeout | undefined;
  #startedMs = 0;
  #askedMs = 0;
  #periodMs = PERIOD_MS;
  #looks = 0;
  #lookMs = 0;
  #closed = false;

  constructor({ ram, observe }: QueueWatchOptions) {
    this.#ram = ram;
    this.#observe = observe;
  }

  /** Starts looking, if need be, and returns what was seen; the first answer takes FIRST_MS. */
  async report(): Promise<Omit<MachineReport, 'vcpus'>> {
    this.#askedMs = performance.now();
    if (this.#timer === undefined && !this.#closed) this.#start();
    const missingMs = this.#startedMs + FIRST_MS - performance.now();
    if (missingMs > 0) await new Promise((resolve) => setTimeout(resolve, missingMs));
    const nowMs = performance.now();
    // What happened since the last look counts, too.
    const observed = this.#closed ? [] : this.#look(nowMs);
    let windowMs = 0;
    const devices = observed.map((slot) => {
      const watched = this.#slots[slot.slot];
      const queues = slot.device.queues.map((queue) => {
        const figures = watched?.rings[queue.index]?.meter.figures();
        windowMs = Math.max(windowMs, figures?.windowMs ?? 0);
        return describeQueue(slot.device, queue, figures, () => this.#whyUnseen(slot, queue));
      });
      return describeDevice(slot, queues);
    });
    const lookUs = this.#looks === 0 ? 0 : (this.#lookMs * 1000) / this.#looks;
    return {
      at_ms: round(nowMs, 3),
      window_ms: round(windowMs, 0),
      devices,
      watch: { period_ms: round(this.#periodMs, 1), looks: this.#looks, look_us: round(lookUs, 1) },
    };
  }

  /** Looks no more, and reports no devices. Idempotent. */
  close(): void {
    this.#closed = true;
    this.#stop();
  }

  #start(): void {
    this.#startedMs = performance.now();
    this.#looks = 0;
    this.#lookMs = 0;
    this.#periodMs = PERIOD_MS;
    this.#look(this.#startedMs);
    this.#arm();
  }

  #arm(): void {
    this.#timer = setTimeout(() => {
      const nowMs = performance.now();
      if (nowMs - this.#askedMs > IDLE_MS) {
        this.#stop();
        return;
      }
      this.#look(nowMs);
      const tookMs = performance.now() - nowMs;
      this.#looks += 1;
      this.#lookMs += tookMs;
      this.#periodMs = Math.max(PERIOD_MS, tookMs * MAX_SHARE);
      this.#arm();
    }, this.#periodMs);
    this.#timer.unref();
  }

  #stop(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#slots = [];
  }

  /** Looks at all rings. Returns the devices as they were observed. */
  #look(nowMs: number): readonly ObservedSlot[] {
    const observed = this.#observe();
    const slots: (WatchedSlot | undefined)[] = [];
    for (const slot of observed) {
      const watched = this.#watchedSlot(slot);
      slots[slot.slot] = watched;
      for (const queue of slot.device.queues) {
        watched.rings[queue.index] = this.#lookAt(slot, watched, queue, nowMs);
      }
    }
    // Without those that have left their slots.
    this.#slots = slots;
    return observed;
  }

  #watchedSlot({ slot, id, device: { features } }: ObservedSlot): WatchedSlot {
    const present = this.#slots[slot];
    if (present !== undefined && present.id === id && present.features === features) return present;
    const isPacked = hasFeature(features, VIRTIO_F_RING_PACKED);
    const isTranslated = hasFeature(features, VIRTIO_F_ACCESS_PLATFORM);
    return { id, features, isPacked, isTranslated, rings: [] };
  }

  /** The ring after a look at it; undefined where there is nothing to see. One that had another life begins anew. */
  #lookAt(slot: ObservedSlot, watched: WatchedSlot, queue: ObservedQueue, nowMs: number): WatchedRing | undefined {
    const { size, availRing, usedRing } = queue;
    if (!queue.started || watched.isPacked) return undefined;
    const { isTranslated } = watched;
    // The used index first: what the device uses in between can only make less look done than is.
    const used = this.#readIndex(slot, isTranslated, usedRing);
    let available = this.#readIndex(slot, isTranslated, availRing);
    if (used === undefined || available === undefined) return undefined;
    if (((available - used) & 0xffff) > size) {
      // The driver may have put new chains in the place of those used in between.
      const later = this.#readIndex(slot, isTranslated, usedRing);
      if (later !== undefined && later !== used) available = (used + size) & 0xffff;
    }
    const { activations } = slot.device;
    const ring = watched.rings[queue.index];
    const isSame =
      ring !== undefined &&
      ring.activations === activations &&
      ring.size === size &&
      ring.availRing === availRing &&
      ring.usedRing === usedRing;
    if (!isSame) return { activations, size, availRing, usedRing, meter: new RingMeter(size, nowMs, available, used) };
    ring.meter.look(nowMs, available, used);
    return ring;
  }

  /** An index of a ring, read once; undefined where it is in no RAM. */
  #readIndex(slot: ObservedSlot, isTranslated: boolean, ring: number): number | undefined {
    const { memory } = this.#ram;
    const address = isTranslated ? this.#translate(slot, ring + INDEX_OFFSET) : ring + INDEX_OFFSET;
    if (address === undefined || !memory.locate(address, INDEX_BYTES)) return undefined;
    return memory.view.getUint16(memory.offset, true);
  }

  /** Where an I/O address is; indexes are aligned, so that none lies in two mappings. */
  #translate({ iommu }: ObservedSlot, address: number): number | undefined {
    const mapping = iommu?.find(address);
    if (mapping === undefined) return undefined;
    const userAddress = mapping.userAddress + (address - mapping.iova);
    for (const { region } of this.#ram.regions) {
      const offset = userAddress - region.userAddress;
      if (offset >= 0 && offset < region.size) return region.guestAddress + offset;
    }
    return undefined;
  }

  /** Why a started queue has no figures. */
  #whyUnseen(slot: ObservedSlot, queue: ObservedQueue): string {
    const { isPacked, isTranslated } = this.#watchedSlot(slot);
    if (isPacked) return 'a packed ring has no indexes that tell';
    for (const [what, address] of [
      ['available ring', queue.availRing],
      ['used ring', queue.usedRing],
    ] as const) {
      if (this.#readIndex(slot, isTranslated, address) !== undefined) continue;
      const where = isTranslated ? 'is not mapped by the IOMMU' : 'is not in RAM';
      return `its ${what} at 0x${address.toString(16)} ${where}`;
    }
    return 'it was started just now';
  }
}

function round(value: number, digits: number): number {
  return Number(value.toFixed(digits));
}

function describeDevice({ id, slot, device }: ObservedSlot, queues: readonly QueueReport[]): DeviceReport {
  const { deviceId, status, backendConnected } = device;
  const backend = backendConnected === undefined ? null : backendConnected ? 'connected' : 'away';
  return { id, slot, kind: nameKind(deviceId), status: describeStatus(status), backend, queues };
}

function describeStatus(status: number): DeviceReport['status'] {
  if ((status & VIRTIO_STATUS_DEVICE_NEEDS_RESET) !== 0) return 'needs reset';
  if ((status & VIRTIO_STATUS_FAILED) !== 0) return 'failed';
  if ((status & VIRTIO_STATUS_DRIVER_OK) !== 0) return 'running';
  return (status & VIRTIO_STATUS_DRIVER) !== 0 ? 'driver' : 'down';
}

/** The state of a started queue by its figures. Pure. */
export function judgeQueue(role: QueueRole, { inFlight, rate, waitingMs }: RingFigures): QueueState {
  if (role === 'buffers') return rate > 0 ? 'busy' : inFlight === 0 ? 'empty' : 'idle';
  if (waitingMs >= STUCK_MS) return 'stuck';
  if (waitingMs >= WAITING_MS) return 'waiting';
  return rate > 0 ? 'busy' : inFlight > 0 ? 'waiting' : 'idle';
}

function describeQueue(
  { deviceId, features, queues }: ObservedDevice,
  { index, size, started }: ObservedQueue,
  figures: RingFigures | undefined,
  whyUnseen: () => string,
): QueueReport {
  const { name, role } = nameQueue(deviceId, features, queues.length, index);
  if (figures === undefined) {
    const state = started
      ? { state: 'unknown' as const, exact: false, reason: whyUnseen() }
      : { state: 'off' as const, exact: true };
    const none = { in_flight: 0, mean_in_flight: 0, rate: 0, latency_us: null, waiting_ms: 0, used: 0 };
    return { index, name, role, size, ...none, ...state };
  }
  const hasLatency = role === 'requests' && figures.latencyMs !== undefined;
  return {
    index,
    name,
    role,
    state: judgeQueue(role, figures),
    size,
    in_flight: figures.inFlight,
    mean_in_flight: round(figures.meanInFlight, 2),
    rate: round(figures.rate, 1),
    latency_us: hasLatency ? round((figures.latencyMs ?? 0) * 1000, 1) : null,
    waiting_ms: role === 'requests' ? round(figures.waitingMs, 0) : 0,
    used: figures.used,
    exact: figures.exact,
  };
}
