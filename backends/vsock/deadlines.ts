/** What must happen by some time. One timer for all, and none while nothing is waited for. */

/** How exactly deadlines are kept, in milliseconds. */
const PERIOD_MS = 100;

export interface Timed {
  /** performance.now() at which `onDeadline` is called; kept by Deadlines. */
  deadline: number;
  onDeadline(): void;
}

export class Deadlines {
  readonly #waiting = new Set<Timed>();
  #timer: NodeJS.Timeout | undefined;

  /** Calls `onDeadline` in `delayMs`, in place of any earlier deadline of the same one. */
  set(timed: Timed, delayMs: number): void {
    timed.deadline = performance.now() + delayMs;
    this.#waiting.add(timed);
    this.#timer ??= setInterval(() => this.#sweep(), PERIOD_MS);
  }

  clear(timed: Timed): void {
    this.#waiting.delete(timed);
    if (this.#waiting.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  #sweep(): void {
    const now = performance.now();
    for (const timed of [...this.#waiting]) {
      if (timed.deadline > now || !this.#waiting.has(timed)) continue;
      this.clear(timed);
      timed.onDeadline();
    }
  }
}
