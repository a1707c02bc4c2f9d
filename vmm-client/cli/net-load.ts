/**
 * The load of `ringside net bench`: keeps the transmit queues full and empties the receive queues, polling while there is
 * work and sleeping on the call descriptors otherwise. Packets are written into shared memory once, before the run; a
 * packet counts as sent when the device has given it back. Nothing is allocated per packet.
 */

import { PeerError } from '../../protocol/vhost-user/errors.ts';
import { ETHERNET_HEADER_BYTES } from '../../protocol/virtio/net.ts';
import type { DriverQueue } from '../driver/driver-queue.ts';
import type { NetDriver } from '../driver/net-driver.ts';
import type { NetReceiveQueue } from '../driver/net-receive-queue.ts';
import type { NetTransmitQueue } from '../driver/net-transmit-queue.ts';
import { NOTHING_USED } from '../driver/virtqueue.ts';
import type { Direction } from './bench-choices.ts';

const SLICE_MS = 2;
/** How long to sleep at most, in milliseconds: the clock has to be looked at. */
const NAP_MS = 100;

/** What every packet header of the load says; zeroes for packets that are complete as they are. */
export interface LoadHeader {
  readonly flags: number;
  readonly gsoType: number;
  readonly headerBytes: number;
  readonly gsoSize: number;
  readonly csumStart: number;
  readonly csumOffset: number;
}

export interface NetLoadOptions {
  readonly direction: Direction;
  /** Packets that are made available, or taken, at a time. */
  readonly batch: number;
  /** Not measured, then measured, in milliseconds. */
  readonly rampMs: number;
  readonly durationMs: number;
  /** How long to poll in vain before sleeping. */
  readonly pollMs: number;
  /** How long no packet may be given back, reconnecting aside. */
  readonly timeoutMs: number;
  /** The packet to send on each pair; all of one length. */
  readonly packets: readonly Uint8Array[];
  readonly header: LoadHeader;
}

export interface NetLoadResult {
  readonly elapsedMs: number;
  readonly sentPackets: number;
  readonly sentBytes: number;
  readonly receivedPackets: number;
  readonly receivedBytes: number;
  /** Of the received ones: spread over several buffers; shorter than an Ethernet header. */
  readonly spreadPackets: number;
  readonly runts: number;
  /** Packets that a back end which went away had begun. */
  readonly cutOff: number;
  readonly kicks: number;
  readonly wakeups: number;
}

export class NetLoad {
  readonly #driver: NetDriver;
  readonly #options: NetLoadOptions;
  readonly #transmit: readonly NetTransmitQueue[];
  readonly #receive: readonly NetReceiveQueue[];
  readonly #armed: readonly DriverQueue[];
  readonly #packetBytes: number;
  readonly #sends: boolean;
  readonly #receives: boolean;
  #now = 0;
  #measuring = false;
  #ending = false;
  #sentPackets = 0;
  #receivedPackets = 0;
  #receivedBytes = 0;
  #spreadPackets = 0;
  #runts = 0;
  #failure: Error | undefined;
  #wake: (() => void) | undefined;
  #wakeups = 0;

  /** Takes the driver's queues and writes the packets into all their slots. */
  constructor(driver: NetDriver, options: NetLoadOptions) {
    const { direction, packets, header } = options;
    this.#driver = driver;
    this.#options = options;
    this.#sends = direction !== 'rx';
    this.#receives = direction !== 'tx';
    this.#transmit = driver.transmitQueues;
    this.#receive = driver.receiveQueues;
    this.#packetBytes = packets[0]?.length ?? 0;
    this.#armed = [
      ...(this.#sends ? this.#transmit.map(({ queue }) => queue) : []),
      ...(this.#receives ? this.#receive.map(({ queue }) => queue) : []),
    ];
    for (const [pair, transmit] of this.#transmit.entries()) {
      const packet = packets[pair];
      if (packet === undefined || !this.#sends) continue;
      for (let slot = 0; slot < transmit.queue.ring.size; slot++) {
        driver.memory.bytes.set(packet, transmit.packetOffset(slot));
        transmit.setHeader(
          slot,
          header.flags,
          header.gsoType,
          header.headerBytes,
          header.gsoSize,
          header.csumStart,
          header.csumOffset,
        );
      }
    }
    driver.takeQueues({
      onWake: () => this.#wake?.(),
      onFailure: (error) => {
        this.#failure ??= error;
        this.#wake?.();
      },
    });
  }

  /**
   * Runs the load to its end, or until `interrupted`.
   * @throws PeerError - the back end is gone, breaks a rule, or took nothing in time
   */
  async run(interrupted: AbortSignal, onProgress: (elapsedMs: number) => void): Promise<NetLoadResult> {
    const { rampMs, durationMs, pollMs, timeoutMs } = this.#options;
    const kicksBefore = this.#kicks();
    for (const { queue } of [...this.#transmit, ...this.#receive]) queue.disarm();
    this.#now = performance.now();
    const rampEnd = this.#now + rampMs;
    const end = rampEnd + durationMs;
    let measuredFrom = rampEnd;
    let measuredTo = end;
    let lastWork = this.#now;
    let lastSent = this.#now;
    while (!this.#ending || this.#outstanding() > 0) {
      if (this.#failure !== undefined) throw this.#failure;
      const sentBefore = this.#sentPackets;
      if (this.#slice(this.#ending ? Number.POSITIVE_INFINITY : this.#measuring ? end : rampEnd)) {
        lastWork = this.#now;
      }
      if (this.#sentPackets !== sentBefore || this.#outstanding() === 0 || this.#driver.frontend.isReconnecting) {
        lastSent = this.#now;
      }
      if (!this.#measuring && !this.#ending && this.#now >= rampEnd) {
        this.#measuring = true;
        this.#forget();
        measuredFrom = this.#now;
      }
      if (!this.#ending && (this.#now >= end || interrupted.aborted)) {
        this.#ending = true;
        // An interrupt during the ramp leaves nothing to report.
        if (!this.#measuring) this.#forget();
        this.#measuring = false;
        measuredTo = this.#now;
      }
      if (interrupted.aborted && this.#driver.frontend.isReconnecting) break;
      if (this.#now - lastSent > timeoutMs) {
        throw new PeerError(`none of ${this.#outstanding()} packets was taken within ${timeoutMs} ms`);
      }
      onProgress(this.#now - rampEnd);
      if (this.#now - lastWork >= pollMs) await this.#sleep();
      else await new Promise<void>((resolve) => setImmediate(resolve));
    }
    if (this.#failure !== undefined) throw this.#failure;
    return {
      elapsedMs: Math.max(0, measuredTo - measuredFrom),
      sentPackets: this.#sentPackets,
      sentBytes: this.#sentPackets * this.#packetBytes,
      receivedPackets: this.#receivedPackets,
      receivedBytes: this.#receivedBytes,
      spreadPackets: this.#spreadPackets,
      runts: this.#runts,
      cutOff: this.#receive.reduce((sum, queue) => sum + queue.cutOff, 0),
      kicks: this.#kicks() - kicksBefore,
      wakeups: this.#wakeups,
    };
  }

  #kicks(): number {
    return [...this.#transmit, ...this.#receive].reduce((sum, { queue }) => sum + queue.kicks, 0);
  }

  #outstanding(): number {
    let sum = 0;
    for (const queue of this.#transmit) sum += queue.outstanding;
    return sum;
  }

  #forget(): void {
    this.#sentPackets = 0;
    this.#receivedPackets = 0;
    this.#receivedBytes = 0;
    this.#spreadPackets = 0;
    this.#runts = 0;
    this.#wakeups = 0;
  }

  /** Polls for a while, not beyond `until`. Returns whether there was any work. */
  #slice(until: number): boolean {
    const started = performance.now();
    const { pollMs } = this.#options;
    let lastWork = -1;
    do {
      let work = 0;
      for (const transmit of this.#transmit) work += this.#passTransmit(transmit);
      for (const receive of this.#receive) work += this.#passReceive(receive);
      this.#now = performance.now();
      if (work > 0) lastWork = this.#now;
      else if (this.#now - (lastWork === -1 ? started : lastWork) > pollMs) break;
    } while (this.#failure === undefined && this.#now - started < SLICE_MS && this.#now < until);
    return lastWork !== -1;
  }

  /** Takes back what was sent, and sends as much again. Returns how many packets moved. */
  #passTransmit(transmit: NetTransmitQueue): number {
    if (!this.#sends) return 0;
    const { batch } = this.#options;
    const sent = transmit.reap(transmit.queue.ring.size);
    if (sent < 0) {
      this.#fail(transmit.queue, transmit.fault);
      return 0;
    }
    // What comes back after the end was sent before it, but nobody knows when.
    if (!this.#ending) this.#sentPackets += sent;
    let pushed = 0;
    while (!this.#ending) {
      let staged = 0;
      while (staged < batch && transmit.push(this.#packetBytes)) staged += 1;
      if (staged === 0) break;
      transmit.queue.flush();
      pushed += staged;
    }
    return sent + pushed;
  }

  /** Takes a batch and gives its buffers back. Packets that nobody wants to count are taken all the same. */
  #passReceive(receive: NetReceiveQueue): number {
    const { batch } = this.#options;
    let count = 0;
    while (count < batch) {
      const length = receive.receive();
      if (length === NOTHING_USED) break;
      if (length < 0) {
        this.#fail(receive.queue, receive.fault);
        return 0;
      }
      if (!this.#ending) {
        this.#receivedPackets += 1;
        this.#receivedBytes += length;
        if (receive.buffers > 1) this.#spreadPackets += 1;
        if (length < ETHERNET_HEADER_BYTES) this.#runts += 1;
      }
      receive.release();
      count += 1;
    }
    if (count > 0) receive.queue.flush();
    return count;
  }

  #fail(queue: DriverQueue, fault: string): void {
    this.#failure ??= new PeerError(`queue ${queue.index}: ${fault}`);
  }

  /** Until a queue has something, or a while has passed. */
  async #sleep(): Promise<void> {
    const woken = new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
    const timer = setTimeout(() => this.#wake?.(), NAP_MS);
    let armed = true;
    for (const queue of this.#armed) armed = queue.arm() && armed;
    if (armed && this.#failure === undefined) {
      this.#wakeups += 1;
      await woken;
    }
    clearTimeout(timer);
    this.#wake = undefined;
    for (const queue of this.#armed) queue.disarm();
    this.#now = performance.now();
  }
}
