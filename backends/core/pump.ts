/**
 * The data path's engine: it moves requests from rings to the device and completions back, inside the event loop. While
 * there is work it spins, in slices short enough that the control socket and signals get their turn; after the last work
 * it polls a little while, if that paid off lately; then it asks for kicks, looks once more, and sleeps at no cost.
 *
 * A pass takes a limited number of heads from each ring, hands them over, finishes what is complete and tells the
 * driver, before it takes more: so the driver refills while we work. Without the limit both sides fall into lockstep.
 */

import type { DataPath } from './device.ts';
import type { Vring } from './vring.ts';

/**
 * Heads of the first lot after nothing was to do, when many more wait. The driver sleeps then, and takes as long to wake up as we need for the
 * rest: the sooner the first completion is told, the less we wait for each other.
 */
const FIRST_LOT = 4;
/** Longest time without giving the event loop its turn, in ms. */
const SLICE_MS = 0.4;
/** Heads and completions between two looks at the clock. */
const WORK_PER_LOOK = 8;
/** Weight of the newest gap in the running mean of gaps. */
const GAP_WEIGHT = 1 / 8;

export interface PumpOptions {
  /** Longest time to poll for more work before sleeping, in microseconds; 0 sleeps at once. */
  readonly pollUs: number;
  /** Never sleep while a ring is started. */
  readonly alwaysPoll: boolean;
}

export class Pump {
  readonly #path: DataPath;
  readonly #pollMs: number;
  readonly #alwaysPoll: boolean;
  readonly #vrings: Vring[] = [];
  /** Where the next pass begins: behind the ring that took something last, so that one of many requests starves no other. */
  #next = 0;
  readonly #turn = (): void => this.#slice();
  #scheduled = false;
  #running = false;
  #asleep = true;
  /** Nothing was found since the last work. */
  #idle = true;
  #lastWork = 0;
  /** Running mean of the time between the end of work and the next work, in ms. */
  #meanGap = 0;
  /** A ring wants to be polled: by option, or because its front end gave no kick descriptor. */
  #neverSleep = false;

  constructor(path: DataPath, options: PumpOptions) {
    this.#path = path;
    this.#pollMs = options.pollUs / 1000;
    this.#alwaysPoll = options.alwaysPoll;
    path.onCompletion = () => this.wake();
  }

  /** Takes a started ring into the rounds. */
  add(vring: Vring): void {
    if (!this.#vrings.includes(vring)) this.#vrings.push(vring);
    this.#noteRings();
    this.wake();
  }

  remove(vring: Vring): void {
    const at = this.#vrings.indexOf(vring);
    if (at >= 0) this.#vrings.splice(at, 1);
    this.#noteRings();
  }

  #noteRings(): void {
    const vrings = this.#vrings;
    this.#neverSleep = vrings.length > 0 && (this.#alwaysPoll || vrings.some((vring) => vring.polled));
  }

  /** There may be work. Runs a slice now, unless one is running or due anyway. */
  wake(): void {
    if (!this.#running && !this.#scheduled) this.#slice();
  }

  #slice(): void {
    this.#scheduled = false;
    this.#running = true;
    if (this.#asleep) this.#awake();
    const start = performance.now();
    let now = start;
    let sinceLook = 0;
    while (now - start < SLICE_MS) {
      const work = this.#pass();
      if (work > 0) {
        if (this.#idle) this.#noteGap();
        sinceLook += work;
        if (sinceLook >= WORK_PER_LOOK) {
          sinceLook = 0;
          now = performance.now();
        }
        continue;
      }
      now = performance.now();
      if (!this.#idle) {
        this.#idle = true;
        this.#lastWork = now;
      }
      if (!this.#worthPolling(now) && this.#trySleep()) {
        this.#running = false;
        this.#checkMemory();
        return;
      }
    }
    this.#running = false;
    this.#scheduled = true;
    setImmediate(this.#turn);
    this.#checkMemory();
  }

  #awake(): void {
    this.#asleep = false;
    for (const vring of this.#vrings) vring.disableKicks();
  }

  /** Work came after none: how long did it take? Long gaps count as twice the limit, so that one does not weigh for ever. */
  #noteGap(): void {
    this.#idle = false;
    const gap = Math.min(performance.now() - this.#lastWork, 2 * this.#pollMs);
    this.#meanGap += (gap - this.#meanGap) * GAP_WEIGHT;
  }

  /** A front end that truncated its memory is told off between slices; its pages read as zeros until then. */
  #checkMemory(): void {
    // One front end at a time has rings here (see ring-lease.ts), so the first speaks for all.
    const host = this.#vrings[0]?.host;
    if (host?.memoryFaulted === true) host.onMemoryFault();
  }

  #pass(): number {
    const vrings = this.#vrings;
    const first = this.#idle;
    const { budget } = this.#path;
    let work = 0;
    const begin = this.#next;
    for (let i = 0; i < vrings.length; i += 1) {
      const place = (begin + i) % vrings.length;
      const vring = vrings[place] as Vring;
      if (!vring.runnable) continue;
      const many = first && !vring.offersBuffers && vring.offers(2 * FIRST_LOT + 1);
      const lot = many ? Math.min(FIRST_LOT, budget) : budget;
      const taken = vring.host.attachment.processQueue(vring, lot);
      if (taken > 0) this.#next = place + 1;
      work += taken;
    }
    work += this.#path.poll();
    for (let i = 0; i < vrings.length; i += 1) (vrings[i] as Vring).flush(!first);
    return work;
  }

  #worthPolling(now: number): boolean {
    if (this.#neverSleep || this.#path.mustPoll) return true;
    return this.#meanGap < this.#pollMs && now - this.#lastWork < this.#pollMs;
  }

  /** Asks for kicks; false when work came in meanwhile. */
  #trySleep(): boolean {
    let more = false;
    if (!this.#path.isFull) for (const vring of this.#vrings) more = vring.enableKicks() || more;
    if (more) for (const vring of this.#vrings) vring.disableKicks();
    else this.#fallAsleep();
    return !more;
  }

  #fallAsleep(): void {
    this.#asleep = true;
    // What waits in a ring is no reason to hold a notification back any more.
    for (const vring of this.#vrings) vring.tell();
    this.#path.arm();
  }
}
