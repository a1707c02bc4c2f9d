/**
 * Who may run rings. Any number of front ends may be connected and ask; one at a time may have started rings, so that
 * two guests never write to one disk through us. A front end that comes back while its old connection is being drained
 * waits for that.
 */

import { Refused } from './refused.ts';

/** How long a new front end waits for one that shows no sign of going: its end may not have reached us yet. */
const PATIENCE_MS = 1000;
/** How long it waits for one whose connection is closed and whose requests are being finished. */
const LEAVING_PATIENCE_MS = 30_000;

/** What is claimed for whoever runs rings: a device that other processes may want too. */
export interface Claimed {
  /** @throws Refused - it is not to be had */
  claim?(): Promise<void>;
}

export class RingLease {
  readonly #claimed: Claimed;
  #holder: object | undefined;
  #leaving = false;
  readonly #waiters = new Set<() => void>();

  constructor(claimed: Claimed) {
    this.#claimed = claimed;
  }

  /** @throws Refused - another front end keeps its rings running, or another process the device */
  async acquire(who: object): Promise<void> {
    const start = performance.now();
    while (this.#holder !== undefined && this.#holder !== who) {
      const left = start + (this.#leaving ? LEAVING_PATIENCE_MS : PATIENCE_MS) - performance.now();
      if (left <= 0) throw new Refused('another front end has started rings of this device');
      await this.#change(left);
    }
    if (this.#holder === who) return;
    this.#holder = who;
    this.#leaving = false;
    try {
      await this.#claimed.claim?.();
    } catch (error) {
      this.release(who);
      throw error;
    }
  }

  /** Waits for the holder to leave or start leaving, at most this long. */
  #change(timeoutMs: number): Promise<void> {
    return new Promise((resolve) => {
      const wake = (): void => {
        clearTimeout(timer);
        this.#waiters.delete(wake);
        resolve();
      };
      const timer = setTimeout(wake, timeoutMs);
      this.#waiters.add(wake);
    });
  }

  #wakeAll(): void {
    for (const wake of [...this.#waiters]) wake();
  }

  /** The holder's connection is closed; what it has in flight is being finished. */
  leave(who: object): void {
    if (this.#holder !== who) return;
    this.#leaving = true;
    this.#wakeAll();
  }

  release(who: object): void {
    if (this.#holder !== who) return;
    this.#holder = undefined;
    this.#leaving = false;
    this.#wakeAll();
  }
}
