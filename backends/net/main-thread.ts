/**
 * What a data path asks of the main thread, which alone changes the TAP and what is known of a driver. Every call is done
 * when it returns, on whatever thread the data path is: a worker thread waits (about 20 us) while the main thread, which
 * never waits for one of them, does it.
 */

import { BroadcastChannel } from 'node:worker_threads';
import type { ControlCommand } from './control.ts';
import type { Counts } from './counters.ts';

export interface MainThread {
  /** A ring of a driver was started or stopped, enabled or disabled. */
  ringChanged(driver: number, ring: number, started: boolean, enabled: boolean): void;
  /** A pair has its first buffers: the TAP may put packets there. False when it refuses to. */
  attachPair(pair: number): boolean;
  /** Does what a driver's command says, but for the filter of the TAP. False when it cannot be done, and nothing was. */
  perform(driver: number, command: ControlCommand): boolean;
  /** Puts the filter onto the TAP that the commands before said. */
  applyFilter(driver: number): void;
  /** The TAP failed as one that is down or deleted does. Not waited for. */
  tapFailed(): void;
  /** A data path ends: what it counted. */
  leave(counts: Counts): void;
}

/** What the main thread asks of a data path, each between two passes. */
export interface PathOrders {
  /** Takes nothing of any ring until `resume`, as often as it was said. */
  pause(): void;
  resume(): void;
  /** The TAP has other queues, or none: the descriptors of the old ones are about to be closed. */
  takeQueues(): void;
  /** There may be work. */
  wake(): void;
}

export type Order = keyof PathOrders;

/** A call that a worker thread waits for. */
export type Call =
  | { readonly name: 'join' }
  | { readonly name: 'leave'; readonly counts: Counts }
  | {
      readonly name: 'ringChanged';
      readonly driver: number;
      readonly ring: number;
      readonly started: boolean;
      readonly enabled: boolean;
    }
  | { readonly name: 'attachPair'; readonly pair: number }
  | { readonly name: 'perform'; readonly driver: number; readonly command: ControlCommand }
  | { readonly name: 'applyFilter'; readonly driver: number };

/** Messages on the channel, which everyone hears. */
export type PathMessage =
  | { readonly kind: 'call'; readonly thread: number; readonly call: Call }
  | { readonly kind: 'tap-failed' }
  | { readonly kind: 'done'; readonly thread: number; readonly ask: number }
  | { readonly kind: 'order'; readonly order: Order; readonly ask: number; readonly except: number | undefined };

/** How worker threads and the main thread reach each other. */
export interface PathLink {
  /** Name of a BroadcastChannel. */
  readonly channel: string;
  /** Answers to calls: two words a thread. */
  readonly answers: SharedArrayBuffer;
}

// Words of a thread in `answers`.
export const ANSWERED = 0;
export const RESULT = 1;
export const ANSWER_WORDS = 2;

/** The main thread as a worker thread reaches it. */
export class DistantMainThread implements MainThread {
  readonly #channel: BroadcastChannel;
  readonly #answers: Int32Array;
  readonly #thread: number;

  /** @param orders told what the main thread asks for, once the event loop of this thread runs */
  constructor(thread: number, { channel, answers }: PathLink, orders: PathOrders) {
    this.#thread = thread;
    this.#channel = new BroadcastChannel(channel);
    this.#answers = new Int32Array(answers, 4 * ANSWER_WORDS * thread, ANSWER_WORDS);
    this.#channel.onmessage = (event: unknown): void => {
      const message = (event as { data: PathMessage }).data;
      if (message.kind !== 'order' || message.except === thread) return;
      orders[message.order]();
      this.#post({ kind: 'done', thread, ask: message.ask });
    };
    this.#call({ name: 'join' });
  }

  #post(message: PathMessage): void {
    this.#channel.postMessage(message);
  }

  #call(call: Call): boolean {
    const answers = this.#answers;
    Atomics.store(answers, ANSWERED, 0);
    this.#post({ kind: 'call', thread: this.#thread, call });
    Atomics.wait(answers, ANSWERED, 0);
    return Atomics.load(answers, RESULT) !== 0;
  }

  ringChanged(driver: number, ring: number, started: boolean, enabled: boolean): void {
    this.#call({ name: 'ringChanged', driver, ring, started, enabled });
  }

  attachPair(pair: number): boolean {
    return this.#call({ name: 'attachPair', pair });
  }

  perform(driver: number, command: ControlCommand): boolean {
    return this.#call({ name: 'perform', driver, command });
  }

  applyFilter(driver: number): void {
    this.#call({ name: 'applyFilter', driver });
  }

  tapFailed(): void {
    this.#post({ kind: 'tap-failed' });
  }

  leave(counts: Counts): void {
    this.#call({ name: 'leave', counts });
    this.#channel.close();
  }
}
