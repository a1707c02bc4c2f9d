/** The in-flight region of all queues of one front end: made for GET_INFLIGHT_FD, taken over by SET_INFLIGHT_FD. */

import { partOf, type SharedExtent, SharedMapping } from '../../protocol/sys/mapping.ts';
import { createSealedMemfd, type OwnedFd, statFd } from '../../protocol/sys/owned-fd.ts';
import { INFLIGHT_HEADER_BYTES, inflightQueueBytes } from '../../protocol/vhost-user/inflight-layout.ts';
import type { Inflight } from '../../protocol/vhost-user/payloads.ts';
import { isPackedQueueSize } from '../../protocol/virtqueue/packed-queue.ts';
import { isSplitQueueSize } from '../../protocol/virtqueue/split-queue.ts';
import { KEPT_CHOICES_BYTES, KeptChoices } from './kept-choices.ts';
import { Refused } from './refused.ts';

const ROOMY_QUEUE_SIZE = 1024;
const PAGE_BYTES = 4096;
const STATE_BIT = 1;
/** Word of the header whose low half is the version. */
const VERSION_WORD = 2;

/** @throws Refused - no queues, too many, or of a size that no ring has */
function checkShape({ numQueues, queueSize }: Inflight, maxQueues: number): void {
  if (numQueues === 0 || numQueues > maxQueues) {
    throw new Refused(`in-flight region for ${numQueues} queues, 1 to ${maxQueues} are possible`);
  }
  if (!isPackedQueueSize(queueSize)) {
    throw new Refused(`in-flight region for queues of ${queueSize} entries, 1 to 32768 is possible`);
  }
}

/**
 * Bytes for one queue in regions that we make. QEMU asks for 128 entries and then, on virtio-mmio, lets the guest choose
 * up to 1024; it gives our size back with its own count of entries.
 */
function roomyStride(queueSize: number, packed: boolean): number {
  return inflightQueueBytes(Math.max(queueSize, ROOMY_QUEUE_SIZE), packed);
}

/** Where choices are kept in the file of a region of so many bytes. */
function choicesAt(mmapSize: number): number {
  return Math.ceil(mmapSize / PAGE_BYTES) * PAGE_BYTES;
}

/**
 * Makes the region that a front end asks for, for rings of either layout; with `choices` there is room for those behind it.
 * The descriptor is the caller's.
 */
export function createInflightFd(
  request: Inflight,
  maxQueues: number,
  choices = false,
): { reply: Inflight; fd: OwnedFd } {
  checkShape(request, maxQueues);
  const mmapSize = request.numQueues * roomyStride(request.queueSize, true);
  const length = choices ? choicesAt(mmapSize) + KEPT_CHOICES_BYTES : mmapSize;
  const fd = createSealedMemfd('vhost-user-inflight', length);
  return { reply: { ...request, mmapSize, mmapOffset: 0 }, fd };
}

export class InflightMemory {
  /** What the driver chose; undefined where the file has no room for that. */
  readonly choices: KeptChoices | undefined;
  readonly #mapping: SharedMapping;
  readonly #choicesMapping: SharedMapping | undefined;
  /** Of the first queue. */
  readonly #header: Uint32Array;
  readonly #area: Inflight;

  /**
   * Maps a region; the descriptor stays the caller's. `packed` says which rings have been negotiated so far: what the
   * region must have room for at least.
   * @throws Refused, SysError - sizes do not fit
   */
  constructor(area: Inflight, fd: OwnedFd, maxQueues: number, packed: boolean) {
    checkShape(area, maxQueues);
    const { numQueues, queueSize, mmapSize, mmapOffset } = area;
    if (!packed && !isSplitQueueSize(queueSize)) {
      throw new Refused(`in-flight region for queues of ${queueSize} entries, which need packed rings`);
    }
    this.#area = area;
    const least = numQueues * inflightQueueBytes(queueSize, packed);
    if (mmapSize < least) throw new Refused(`in-flight region of ${mmapSize} bytes, ${least} are needed`);
    const needed = numQueues * this.#stride(packed);
    const { size } = statFd(fd.fd);
    if (size < mmapOffset || size - mmapOffset < needed) {
      throw new Refused(`in-flight region at ${mmapOffset} of a file of ${size} bytes, ${needed} are needed`);
    }
    const length = Math.min(mmapSize, size - mmapOffset, numQueues * roomyStride(queueSize, true));
    this.#mapping = new SharedMapping(fd.fd, mmapOffset, length);
    this.#header = new Uint32Array(this.#mapping.view(0, INFLIGHT_HEADER_BYTES));
    const at = choicesAt(mmapSize);
    // Other back ends' files end with the region.
    if (mmapOffset !== 0 || size !== at + KEPT_CHOICES_BYTES) return;
    this.#choicesMapping = new SharedMapping(fd.fd, at, KEPT_CHOICES_BYTES);
    this.choices = new KeptChoices(this.#choicesMapping.view(0, KEPT_CHOICES_BYTES));
  }

  /** Bytes of one queue's part: as much as we give it, or as the layout needs where another back end made the region. */
  #stride(packed: boolean): number {
    const { numQueues, queueSize, mmapSize } = this.#area;
    // Version 0.1.0 made regions with room for split rings only.
    for (const made of [roomyStride(queueSize, true), roomyStride(queueSize, false)]) {
      if (mmapSize === numQueues * made) return made;
    }
    return inflightQueueBytes(queueSize, packed);
  }

  /** Whether a daemon ran rings with this region before. */
  get wasUsed(): boolean {
    return ((this.#header[VERSION_WORD] ?? 0) & 0xffff) !== 0;
  }

  /**
   * The device's bit of state, in the first queue's feature word, which the protocol leaves unused. The tracker of a packed
   * queue has another bit of it.
   */
  get deviceState(): boolean {
    return ((this.#header[0] ?? 0) & STATE_BIT) !== 0;
  }

  set deviceState(state: boolean) {
    this.#header[0] = ((this.#header[0] ?? 0) & ~STATE_BIT) | (state ? STATE_BIT : 0);
  }

  get faulted(): boolean {
    return this.#mapping.faulted || this.#choicesMapping?.faulted === true;
  }

  /**
   * The part of one queue, for the thread that serves it; undefined when the region has none for it, or too small a one.
   */
  queue(index: number, size: number, packed: boolean): SharedExtent | undefined {
    const stride = this.#stride(packed);
    if (inflightQueueBytes(size, packed) > stride || index >= this.#area.numQueues) return undefined;
    const offset = index * stride;
    if (stride > this.#mapping.length - offset) return undefined;
    return partOf(this.#mapping.share(), offset, stride);
  }

  close(): void {
    this.#mapping.retire();
    this.#choicesMapping?.retire();
  }
}
