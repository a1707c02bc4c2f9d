/**
 * From the TAP to a receive queue. The kernel reads packets straight into the guest's buffers, a lot of them with one
 * call. How long a packet is, is known only afterwards, so there are two ways to read:
 *
 * - narrow: every read of a lot gets one chain. What a packet has more than fits goes to a place of our own (`spill`).
 * - wide, with mergeable buffers, after a packet that needed several chains: one read gets as many chains as the largest
 *   packet needs, and those it left empty go back to the ring.
 *
 * A packet that is not where the ring's order wants it (it spilled, or the read before it found nothing) is put together
 * in `spill` and copied into the chains that are next: rare, and the order of packets is kept in every case. What finds
 * no buffers waits there. Source: VIRTIO 1.3, 5.1.6.3 Setting Up Receive Buffers, 5.1.6.4 Processing of Incoming Packets.
 */

import { EAGAIN } from '../../protocol/sys/errors.ts';
import { allocatePinned } from '../../protocol/sys/pinned.ts';
import { VIRTIO_NET_HDR, VIRTIO_NET_HDR_BYTES, VIRTIO_NET_MAX_PACKET_BYTES } from '../../protocol/virtio/net.ts';
import { NO_FAULT } from '../../protocol/virtqueue/faults.ts';
import type { Vring } from '../core/vring.ts';
import { BufferRun } from './buffer-run.ts';
import type { Counters } from './counters.ts';
import type { Engine } from './engines/engine.ts';
import { LOT, MAX_BUFFERS } from './limits.ts';
import type { Packet } from './packet.ts';

const SPILL_BYTES = VIRTIO_NET_HDR_BYTES + VIRTIO_NET_MAX_PACKET_BYTES;
/** Packets that would have fitted one chain, after which the reads are narrow again. */
const SMALL_RUN = 8;

/** Segments of the chains that a packet is copied into: small mergeable buffers, many of them. */
const MAX_COPY_SEGMENTS = 1024;

// What taking one more chain came to.
const TAKEN = 0;
/** The ring is empty. */
const NONE = 1;
/** The next chain is no buffer, and it is not its turn to go back. */
const BLOCKED = 2;
/** The run takes no more. */
const FULL = 3;

/** What a driver negotiated, as far as receiving goes. */
export interface ReceiveFormat {
  readonly headerBytes: number;
  /** MRG_RXBUF: a packet may span chains. */
  readonly mergeable: boolean;
  /** The largest packet that can come, with its header. */
  readonly maxBytes: number;
}

/** One read: its packet, the chains it reads into, and where the rest goes. */
interface Read {
  readonly packet: Packet;
  readonly run: BufferRun;
  readonly spill: { readonly address: number; readonly bytes: Uint8Array };
}

export class Receiver {
  readonly #reads: Read[];
  readonly #counters: Counters;
  readonly #onError: (errno: number) => void;
  /** Reads of the lot that was submitted, and how many of them did not end yet. */
  #count = 0;
  #outstanding = 0;
  #vring: Vring | undefined;
  #format: ReceiveFormat | undefined;
  #wide = false;
  #smallRun = 0;
  #lot = 1;
  /** Reads whose packets wait in `spill` for buffers, oldest first, and their lengths. */
  #waiting: { read: Read; length: number }[] = [];
  readonly #copyRun = new BufferRun(MAX_COPY_SEGMENTS);
  /** Chains that were given back unused in this pass: bounded, or a driver could keep us busy with them. */
  #refused = 0;

  /** @param onError is called with each errno that is not EAGAIN; the packet, if there was one, is lost */
  constructor(packets: readonly Packet[], counters: Counters, onError: (errno: number) => void) {
    this.#counters = counters;
    this.#onError = onError;
    this.#reads = packets.map((packet) => ({
      packet,
      run: new BufferRun(MAX_BUFFERS),
      spill: allocatePinned(SPILL_BYTES),
    }));
  }

  /** Forgets packets that wait, and what was learned of their sizes. */
  reset(): void {
    this.#waiting = [];
    this.#wide = false;
    this.#lot = 1;
  }

  /** Submits reads into the next chains of the ring. Returns how many chains went back because they were no buffers. */
  run(vring: Vring, budget: number, format: ReceiveFormat, engine: Engine): number {
    if (this.#outstanding > 0) return 0;
    this.#refused = 0;
    this.#vring = vring;
    this.#format = format;
    this.#wide = this.#wide && format.mergeable;
    if (this.#waiting.length > 0) this.#deliverWaiting();
    if (this.#waiting.length > 0) return this.#refused;
    const lot = this.#wide ? 1 : Math.min(this.#lot, budget, LOT);
    let count = 0;
    let took = TAKEN;
    while (count < lot) {
      took = this.#takeBuffers(this.#reads[count] as Read, vring, format, count === 0);
      if (took !== TAKEN) break;
      count += 1;
    }
    if (count === 0 && took === NONE) vring.noteShort();
    this.#count = count;
    this.#outstanding = count;
    for (let i = 0; i < count; i += 1) engine.submit((this.#reads[i] as Read).packet);
    return this.#refused;
  }

  /** Takes the chains of one read and lays its buffers out. TAKEN when there is at least one. */
  #takeBuffers({ packet, run, spill }: Read, vring: Vring, format: ReceiveFormat, first: boolean): number {
    run.clear();
    packet.clear();
    const wanted = this.#wide ? format.maxBytes : 1;
    let took = TAKEN;
    while (took === TAKEN && run.bytes < wanted && !run.isFull) took = this.#take(run, vring, format, first);
    if (run.chains === 0) return took;
    for (let i = 0; i < run.segments; i += 1) packet.append(run.address[i] as number, run.length[i] as number);
    // The start is left free for what the chains hold, should the packet have to be put together.
    // A byte more than can come shows that the MTU grew under our hands.
    const rest = Math.min(SPILL_BYTES, format.maxBytes + 1) - run.bytes;
    if (rest > 0) packet.append(spill.address + run.bytes, rest);
    packet.vring = vring;
    return TAKEN;
  }

  /**
   * Adds the next chain of the ring to the run. One that is no buffer goes back when all chains before it are filled, which
   * can only be said of the very first of a pass.
   */
  #take(run: BufferRun, vring: Vring, format: ReceiveFormat, first: boolean): number {
    for (;;) {
      if (!vring.pop()) return NONE;
      if (this.#isBuffer(vring, format)) {
        run.add(vring.chain);
        return TAKEN;
      }
      if (!first || run.chains > 0 || this.#refused >= LOT) {
        vring.unpop(vring.chain.head);
        return BLOCKED;
      }
      this.#refuse(vring);
    }
  }

  #isBuffer({ chain }: Vring, format: ReceiveFormat): boolean {
    return chain.fault === NO_FAULT && chain.readableSegments === 0 && chain.writableBytes >= format.headerBytes;
  }

  /** Gives back a chain that can hold nothing. */
  #refuse(vring: Vring): void {
    const { chain } = vring;
    if (chain.fault !== NO_FAULT) vring.noteChainFault(chain.fault);
    else this.#counters.malformed += 1;
    vring.push(chain.head, 0);
    this.#refused += 1;
  }

  /** A read ended. */
  complete(): void {
    this.#outstanding -= 1;
  }

  /** Returns the packets of the lot to the driver, when all its reads ended. Returns how many there were. */
  finish(): number {
    const count = this.#count;
    if (count === 0 || this.#outstanding > 0) return 0;
    this.#count = 0;
    const vring = this.#vring as Vring;
    let packets = 0;
    let inPlace = true;
    let filled = 0;
    for (let i = 0; i < count; i += 1) {
      const read = this.#reads[i] as Read;
      const { result } = read.packet;
      if (result <= 0) {
        inPlace = false;
        if (result !== -EAGAIN) this.#onError(-result);
        continue;
      }
      packets += 1;
      if (this.#isCut(read.packet)) {
        inPlace = false;
        this.#counters.oversized += 1;
        continue;
      }
      this.#noteSize(read.run, result);
      if (inPlace && result <= read.run.bytes) {
        inPlace = this.#deliver(vring, read.run, result) === read.run.chains;
        filled = i;
      } else {
        inPlace = false;
        this.#gather(read, vring, result);
      }
    }
    // Chains that hold nothing are the last ones that were taken.
    for (let i = count - 1; i >= filled; i -= 1) (this.#reads[i] as Read).run.giveBack(vring);
    this.#lot = packets === count ? Math.min(2 * this.#lot, LOT) : Math.max(1, packets);
    if (this.#waiting.length > 0) this.#deliverWaiting();
    return packets;
  }

  /** Whether the packet was larger than any that could come when its read was prepared: its end may be lost. */
  #isCut({ result, bytes }: Packet): boolean {
    return result === bytes && result > (this.#format as ReceiveFormat).maxBytes;
  }

  /** Decides how to read next: wide after a packet that needed several chains, narrow after a run of others. */
  #noteSize(run: BufferRun, bytes: number): void {
    if (bytes > run.firstChainBytes) {
      this.#wide = true;
      this.#smallRun = 0;
    } else if (this.#wide) {
      this.#smallRun += 1;
      if (this.#smallRun >= SMALL_RUN) this.#wide = false;
    }
  }

  /** Hands a packet of `bytes` bytes, which lies in the first chains of the run, to the driver. Returns how many chains. */
  #deliver(vring: Vring, run: BufferRun, bytes: number): number {
    const chains = run.chainsFor(bytes);
    if (this.#format?.headerBytes === VIRTIO_NET_HDR_BYTES) {
      run.write16(vring.host.memory, VIRTIO_NET_HDR.num_buffers, chains);
    }
    run.push(vring, chains, bytes);
    this.#counters.received += 1;
    return chains;
  }

  /** Puts a packet together in `spill`: its beginning lies in chains, the rest is there. It waits for its turn. */
  #gather(read: Read, vring: Vring, length: number): void {
    read.run.copyOut(vring.host.memory, read.spill.bytes.subarray(0, Math.min(length, read.run.bytes)));
    this.#waiting.push({ read, length });
  }

  /** Copies waiting packets into the next chains of the ring. */
  #deliverWaiting(): void {
    let done = 0;
    while (done < this.#waiting.length) {
      const { read, length } = this.#waiting[done] as { read: Read; length: number };
      if (!this.#copyToRing(read.spill.bytes.subarray(0, length))) break;
      done += 1;
    }
    this.#waiting.splice(0, done);
  }

  /** False when the packet has to wait for more buffers. */
  #copyToRing(bytes: Uint8Array): boolean {
    const vring = this.#vring as Vring;
    const format = this.#format as ReceiveFormat;
    const run = this.#copyRun;
    run.clear();
    while (run.bytes < bytes.length) {
      const full = run.isFull || run.chains === vring.size || (run.chains === 1 && !format.mergeable);
      const took = full ? FULL : this.#take(run, vring, format, true);
      if (took === TAKEN) continue;
      if (took === BLOCKED && run.chains > 0) {
        // Or the ring would stand still: what precedes it goes back empty, and it is the next.
        run.push(vring, run.chains, 0);
        run.clear();
        continue;
      }
      if (took === NONE) vring.noteShort();
      run.giveBack(vring);
      // What the driver offers can never hold it.
      if (took === FULL) this.#counters.oversized += 1;
      return took === FULL;
    }
    run.copyIn(vring.host.memory, bytes);
    this.#deliver(vring, run, bytes.length);
    return true;
  }
}
