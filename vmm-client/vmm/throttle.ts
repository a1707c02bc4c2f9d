/**
 * Slows a guest down: its vCPUs run for a part of the time alone, so that it writes less memory while that is sent.
 */

/** What is slowed down. It runs when the first percentage is set. */
export interface Throttled {
  /** Resolves when the guest does not run any more. @throws Error - it has ended */
  hold(): Promise<void>;
  run(): void;
}

/** For how long it runs in one go: as long as a guest's scheduler lets a task run, about. */
const RUN_MS = 10;
const MAX_PERCENT = 99;

export class Throttle {
  readonly #guest: Throttled;
  #percent = 0;
  #turns: Promise<void> | undefined;
  #isEnding = false;
  #wake: () => void = () => undefined;

  constructor(guest: Throttled) {
    this.#guest = guest;
  }

  /** Holds the guest for so many percent of the time, 1 to 99, from now on. */
  set(percent: number): void {
    this.#percent = Math.min(percent, MAX_PERCENT);
    // A guest that has ended needs no brake; who waits for its end hears of that.
    this.#turns ??= this.#takeTurns().catch(() => undefined);
  }

  /** The guest is not touched any more: it is held, or it runs. Idempotent. */
  async end(): Promise<void> {
    this.#isEnding = true;
    this.#wake();
    await this.#turns;
    this.#isEnding = false;
    this.#turns = undefined;
  }

  async #takeTurns(): Promise<void> {
    for (;;) {
      await this.#wait(RUN_MS);
      if (this.#isEnding) return;
      await this.#guest.hold();
      await this.#wait((RUN_MS * this.#percent) / (100 - this.#percent));
      if (this.#isEnding) return;
      this.#guest.run();
    }
  }

  /** Until the time has passed or the end is wanted. */
  async #wait(ms: number): Promise<void> {
    if (this.#isEnding) return;
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
      timer = setTimeout(resolve, ms);
    });
    clearTimeout(timer);
  }
}
