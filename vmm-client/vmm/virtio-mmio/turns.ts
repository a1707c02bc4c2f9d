/**
 * Steps one after the other, of which some take their time: a step begins when all before it have ended, at once where
 * there is none.
 */
export class Turns {
  /** Kept when all that was begun so far and takes its time has ended. */
  #tail: Promise<unknown> | undefined;

  /** Does a step when it is its turn. Returns what it returns; a promise where it has to wait or takes its time. */
  run<T>(step: () => T | Promise<T>): T | Promise<T> {
    if (this.#tail !== undefined) return this.#hold(this.#tail.then(step));
    const result = step();
    return result instanceof Promise ? this.#hold(result) : result;
  }

  #hold<T>(pending: Promise<T>): Promise<T> {
    const ended = pending.finally(() => {
      if (this.#tail === tail) this.#tail = undefined;
    });
    const tail = ended.catch(() => undefined);
    this.#tail = tail;
    return ended;
  }
}
