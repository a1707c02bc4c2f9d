/** A receive and a transmit queue with their queue of the TAP. */

import { type Watch, watchReadable } from '../../protocol/sys/readiness.ts';
import type { Vring } from '../core/vring.ts';
import type { Counters } from './counters.ts';
import { type Packet, TRANSMIT } from './packet.ts';
import { Receiver } from './receive.ts';
import type { NetTapState } from './state.ts';
import { Transmitter } from './transmit.ts';

/** How long not to listen after an error. */
const REST_MS = 100;

export class QueuePair {
  readonly index: number;
  readonly receiver: Receiver;
  readonly transmitter: Transmitter;
  /** Called when the TAP has packets, once after each `arm`. */
  onReadable: () => void = () => undefined;
  /** Called with each errno of a packet that did not get through, but EAGAIN. */
  onError: (errno: number) => void = () => undefined;
  /** The TAP did not refuse to put packets into this queue. */
  usable = true;
  /** The receive ring while it is started and enabled. */
  receiveRing: Vring | undefined;
  /** The queue's descriptor; undefined while there is no TAP. Not owned. */
  fd: number | undefined;
  readonly #tap: NetTapState;
  /** `stale` of the TAP when packets were delivered last. */
  #stale = 0;
  #watch: Watch | undefined;
  #armed = false;
  #resting = false;
  /** Packets sent in this pass. */
  #transmitted = 0;

  constructor(
    index: number,
    tap: NetTapState,
    transmit: readonly Packet[],
    receive: readonly Packet[],
    counters: Counters,
  ) {
    this.index = index;
    this.#tap = tap;
    const onError = (errno: number): void => this.onError(errno);
    this.transmitter = new Transmitter(transmit, counters, onError);
    this.receiver = new Receiver(receive, counters, onError);
  }

  /** The TAP puts packets into this queue. */
  get attached(): boolean {
    return this.#tap.isAttached(this.index);
  }

  /** Takes another descriptor; called before the old one is closed. */
  setQueue(fd: number | undefined): void {
    this.#watch?.close();
    this.#watch = undefined;
    this.#armed = false;
    this.usable = true;
    this.fd = fd;
    if (fd === undefined) return;
    this.#watch = watchReadable(fd, () => {
      this.#disarm();
      this.onReadable();
    });
    this.#watch.pause();
  }

  /** Asks to be told of packets, if the receive ring has buffers for them. */
  arm(): void {
    const ring = this.receiveRing;
    if (this.#armed || this.#resting || !this.attached || ring === undefined || !ring.runnable || ring.short) return;
    this.#armed = true;
    this.#watch?.resume();
  }

  /** Does not listen to the TAP for a while. */
  rest(): void {
    if (this.#resting) return;
    this.#resting = true;
    setTimeout(() => {
      this.#resting = false;
      this.onReadable();
    }, REST_MS).unref();
  }

  /** Forgets packets that were read and must not be delivered any more. */
  dropStale(): void {
    if (this.#stale === this.#tap.stale) return;
    this.#stale = this.#tap.stale;
    this.receiver.reset();
  }

  #disarm(): void {
    this.#armed = false;
    this.#watch?.pause();
  }

  complete(packet: Packet): void {
    if (packet.direction === TRANSMIT) this.transmitter.complete(packet);
    else this.receiver.complete();
    this.#transmitted += packet.direction === TRANSMIT ? 1 : 0;
  }

  /** Ends a pass. Returns how many packets went through. */
  finish(): number {
    const sent = this.#transmitted;
    this.#transmitted = 0;
    return sent + this.receiver.finish();
  }
}
