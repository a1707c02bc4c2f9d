/**
 * Asks all VMMs in rounds while somebody wants to know, and tells everybody the same: one snapshot a round. A VMM that is
 * slow to answer keeps nobody waiting; its machine is shown as it was until it has answered or its time is over.
 */

import { readExits, readInfo, readProgress, readQueues } from './answers.ts';
import { ApiClient, Refusal, Unreachable } from './api-client.ts';
import { type MachineName, type Round, viewMachine, viewUnreachable } from './machine-view.ts';
import type { Action, MachineView } from './page/model.ts';
import { nameMachines } from './sockets.ts';

export const ROUND_MS = 1000;
/** A VMM that takes longer is said not to answer. */
const ANSWER_MS = 5000;
/** What is done to a machine waits for back ends, which have 10 s to finish what is in flight. */
const ACTION_MS = 60_000;
/** A snapshot does not wait longer than this for those that take their time. */
const PATIENCE_MS = 600;
/** How long a socket that a directory does not have any more is shown as gone. */
const FORGET_MS = 30_000;

export interface WatcherOptions {
  /** The sockets there are now. */
  readonly sockets: () => readonly string[];
  readonly control: boolean;
}

class Watched {
  named: MachineName;
  readonly client: ApiClient;
  readonly #control: boolean;
  view: MachineView;
  /** Since when its socket is missing from the list. */
  missingSinceMs: number | undefined;
  #last: Round | undefined;
  #pending: Promise<void> | undefined;

  constructor(named: MachineName, control: boolean) {
    this.named = named;
    this.client = new ApiClient(named.socket, ANSWER_MS);
    this.#control = control;
    this.view = viewUnreachable(named, 'it was not asked yet');
  }

  /** Asks, unless the answers to the last questions are still awaited. Never rejects. */
  refresh(): Promise<void> {
    this.#pending ??= this.#ask().finally(() => {
      this.#pending = undefined;
    });
    return this.#pending;
  }

  async #ask(): Promise<void> {
    try {
      const round = await this.#round();
      this.view = viewMachine(this.named, round, this.#last, this.#control);
      this.#last = round;
    } catch (error) {
      if (!(error instanceof Unreachable) && !(error instanceof Refusal)) throw error;
      this.#last = undefined;
      this.view = viewUnreachable(this.named, error.message);
    }
  }

  async #round(): Promise<Round> {
    // A machine that was not created is no fault; neither is a VMM that does not know a question.
    const ask = (route: string): Promise<unknown> =>
      this.client.get(route).catch((error: unknown) => {
        if (error instanceof Refusal) return undefined;
        throw error;
      });
    const [info, queues, counters, progress] = await Promise.all(
      ['vm.info', 'vm.queues', 'vm.counters', 'vm.progress'].map(ask),
    );
    return {
      atMs: performance.now(),
      info: info === undefined ? undefined : readInfo(info),
      queues: queues === undefined ? undefined : readQueues(queues),
      exits: counters === undefined ? undefined : readExits(counters),
      progress: readProgress(progress),
    };
  }
}

export class Watcher {
  readonly #options: WatcherOptions;
  readonly #machines = new Map<string, Watched>();
  readonly #listeners = new Set<(machines: readonly MachineView[]) => void>();
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: WatcherOptions) {
    this.#options = options;
  }

  /** Tells `listener` of every round, beginning with one that starts now. Returns what ends that. */
  subscribe(listener: (machines: readonly MachineView[]) => void): () => void {
    this.#listeners.add(listener);
    clearTimeout(this.#timer);
    void this.#round();
    return () => {
      this.#listeners.delete(listener);
    };
  }

  /** The client of a machine; undefined where there is none of that key. */
  client(key: string): ApiClient | undefined {
    this.#findMachines();
    return this.#machines.get(key)?.client;
  }

  /** Has a VMM do something. @throws Refusal, Unreachable */
  async act(key: string, action: Action): Promise<boolean> {
    const client = this.client(key);
    if (client === undefined) return false;
    await client.put(`vm.${action}`, undefined, ACTION_MS);
    return true;
  }

  /** Idempotent. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#listeners.clear();
    for (const { client } of this.#machines.values()) client.close();
    this.#machines.clear();
  }

  async #round(): Promise<void> {
    const startedMs = performance.now();
    this.#findMachines();
    const refreshed = Promise.all([...this.#machines.values()].map((machine) => machine.refresh()));
    let patience: NodeJS.Timeout | undefined;
    await Promise.race([
      refreshed,
      new Promise((resolve) => {
        patience = setTimeout(resolve, PATIENCE_MS);
      }),
    ]);
    clearTimeout(patience);
    if (this.#closed) return;
    const views = [...this.#machines.values()].map(({ view }) => view);
    for (const listener of this.#listeners) listener(views);
    if (this.#listeners.size === 0) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.#round(), Math.max(0, startedMs + ROUND_MS - performance.now()));
    this.#timer.unref();
  }

  #findMachines(): void {
    const nowMs = performance.now();
    const found = nameMachines(this.#options.sockets());
    for (const named of found) {
      const known = this.#machines.get(named.key);
      if (known === undefined) this.#machines.set(named.key, new Watched(named, this.#options.control));
      else {
        known.named = named;
        known.missingSinceMs = undefined;
      }
    }
    const present = new Set(found.map(({ key }) => key));
    for (const [key, machine] of this.#machines) {
      if (present.has(key)) continue;
      machine.missingSinceMs ??= nowMs;
      if (nowMs - machine.missingSinceMs < FORGET_MS) continue;
      machine.client.close();
      this.#machines.delete(key);
    }
  }
}
