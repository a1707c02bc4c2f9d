/**
 * The main thread's side of data paths on worker threads: it answers their calls, and asks them to keep quiet while
 * something changes that packets on their way must not see. It waits for none of them, so none can wait for ever.
 */

import { BroadcastChannel, threadId } from 'node:worker_threads';
import type { ControlCommand } from './control.ts';
import {
  ANSWER_WORDS,
  ANSWERED,
  type Call,
  type MainThread,
  type Order,
  type PathLink,
  type PathMessage,
  RESULT,
} from './main-thread.ts';

/** Threads that did not do yet what they were asked for. */
interface Asked {
  readonly waiting: Set<number>;
  readonly done: () => void;
}

let channels = 0;

/** Whether packets of other threads may be on their way that the command concerns. */
function concernsAll({ kind }: ControlCommand): boolean {
  return kind === 'pairs' || kind === 'offloads';
}

export class PathThreads {
  readonly #main: MainThread;
  readonly #answers: SharedArrayBuffer;
  readonly #words: Int32Array;
  readonly #threads = new Set<number>();
  readonly #asked = new Map<number, Asked>();
  #lastAsk = 0;
  #channel: BroadcastChannel | undefined;

  /** @param count threads there may be */
  constructor(main: MainThread, count: number) {
    this.#main = main;
    this.#answers = new SharedArrayBuffer(4 * ANSWER_WORDS * count);
    this.#words = new Int32Array(this.#answers);
  }

  /** Begins to listen. Returns what worker threads need to call. */
  open(): PathLink {
    channels += 1;
    const name = `vhost-user-net/${threadId}/${channels}`;
    this.#channel?.close();
    this.#channel = new BroadcastChannel(name);
    this.#channel.unref();
    this.#channel.onmessage = (event: unknown): void => this.#onMessage((event as { data: PathMessage }).data);
    return { channel: name, answers: this.#answers };
  }

  #onMessage(message: PathMessage): void {
    if (message.kind === 'call') this.#onCall(message.thread, message.call);
    else if (message.kind === 'tap-failed') this.#main.tapFailed();
    else if (message.kind === 'done') this.#onDone(message.ask, message.thread);
  }

  #onCall(thread: number, call: Call): void {
    if (call.name === 'perform' && concernsAll(call.command)) {
      // Whoever calls is in the middle of a pass, and waits: it is as quiet as a data path on this thread.
      this.quietly(() => this.#answer(thread, this.#main.perform(call.driver, call.command)), thread);
      return;
    }
    this.#answer(thread, this.#do(thread, call));
  }

  #answer(thread: number, result: boolean): void {
    const at = ANSWER_WORDS * thread;
    Atomics.store(this.#words, at + RESULT, Number(result));
    Atomics.store(this.#words, at + ANSWERED, 1);
    Atomics.notify(this.#words, at + ANSWERED);
  }

  #do(thread: number, call: Call): boolean {
    switch (call.name) {
      case 'join':
        this.#threads.add(thread);
        return true;
      case 'leave':
        this.#main.leave(call.counts);
        this.#threads.delete(thread);
        for (const ask of [...this.#asked.keys()]) this.#onDone(ask, thread);
        return true;
      case 'ringChanged':
        this.#main.ringChanged(call.driver, call.ring, call.started, call.enabled);
        return true;
      case 'attachPair':
        return this.#main.attachPair(call.pair);
      case 'perform':
        return this.#main.perform(call.driver, call.command);
      case 'applyFilter':
        this.#main.applyFilter(call.driver);
        return true;
    }
  }

  /** Asks all threads but one. `done` is called when all have done it: at once when there are none. */
  #ask(order: Order, done: () => void, except?: number): void {
    const waiting = new Set([...this.#threads].filter((thread) => thread !== except));
    if (waiting.size === 0) {
      done();
      return;
    }
    this.#lastAsk += 1;
    this.#asked.set(this.#lastAsk, { waiting, done });
    this.#channel?.postMessage({ kind: 'order', order, ask: this.#lastAsk, except } satisfies PathMessage);
  }

  #onDone(ask: number, thread: number): void {
    const asked = this.#asked.get(ask);
    if (asked === undefined) return;
    asked.waiting.delete(thread);
    if (asked.waiting.size > 0) return;
    this.#asked.delete(ask);
    asked.done();
  }

  /** Does something while no packet is on its way on any of the threads, but on one that waits for it. */
  quietly(act: () => void, except?: number): void {
    this.#ask(
      'pause',
      () => {
        act();
        this.#ask('resume', () => undefined, except);
      },
      except,
    );
  }

  /** The TAP has other queues, or none. `done` is called when nobody uses the old ones any more. */
  changeQueues(done: () => void): void {
    this.#ask('takeQueues', done);
  }

  /** There may be work. */
  wake(): void {
    this.#ask('wake', () => undefined);
  }

  close(): void {
    this.#channel?.close();
    this.#channel = undefined;
  }
}
