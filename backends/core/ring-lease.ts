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
  /** Returns whether it was not ours before. @throws Refused - it is not to be had */
  claim?(): Promise<boolean>;
  /** It is not needed any more by whom it was claimed for. */
  disclaim?(): void;
}

export class RingLease {
  readonly #claimed: Claimed;
  #holder: object | undefined;
  /** For whom something was claimed that was not ours; later, who held the lease last. */
  #claimant: object | undefined;
  /** It was claimed when the holder got the lease. */
  #isFresh = false;
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
      this.#isFresh = (await this.#claimed.claim?.()) === true;
      if (this.#isFresh || this.#claimant !== undefined) this.#claimant = who;
    } catch (error) {
      this.release(who);
      throw error;
    }
  }

  /** Whether nobody else runs rings. */
  isFreeFor(who: object): boolean {
    return this.#holder === undefined || this.#holder === who;
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
    this.#isFresh = false;
    this.#leaving = false;
    this.#wakeAll();
  }

  /** The holder runs no rings after all. What was claimed for it now is free again: where it came from it is missed. */
  giveUp(who: object): void {
    if (this.#holder !== who) return;
    if (this.#isFresh) this.#disclaim();
    this.release(who);
  }

  /** A connection is over, and its rings are stopped: what was claimed for it is free again. */
  end(who: object): void {
    this.release(who);
    if (this.#claimant === who) this.#disclaim();
  }

  #disclaim(): void {
    this.#claimant = undefined;
    this.#claimed.disclaim?.();
  }
}
