/**
 * Who may run rings. Any number of front ends may be connected and ask; one at a time may have started rings, so that
 * two guests never write to one disk through us. A front end that comes back while its old connection is being drained
 * waits for that.
 */

import { Refused } from './refused.ts';

/** How long a new front end waits for the old one to go. */
const PATIENCE_MS = 1000;

export class RingLease {
  #holder: object | undefined;
  #waiters: (() => void)[] = [];

  /** @throws Refused - another front end keeps its rings running */
  async acquire(who: object): Promise<void> {
    const deadline = performance.now() + PATIENCE_MS;
    while (this.#holder !== undefined && this.#holder !== who) {
      const left = deadline - performance.now();
      if (left <= 0) throw new Refused('another front end has started rings of this device');
      await this.#released(left);
    }
    this.#holder = who;
  }

  #released(timeoutMs: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, timeoutMs);
      this.#waiters.push(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }

  release(who: object): void {
    if (this.#holder !== who) return;
    this.#holder = undefined;
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const wake of waiters) wake();
  }
}
