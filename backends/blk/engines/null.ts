/** Does nothing, successfully: measures rings and pump alone. Reads leave the guest's buffers as they are. */

import type { BlkRequest } from '../request.ts';
import type { Complete, Engine } from './engine.ts';

export class NullEngine implements Engine {
  readonly name = 'null';
  onCompletion: () => void = () => undefined;
  readonly #complete: Complete;
  #ended: BlkRequest[] = [];
  #reported: BlkRequest[] = [];

  constructor(complete: Complete) {
    this.#complete = complete;
  }

  submit(request: BlkRequest): void {
    this.#ended.push(request);
  }

  poll(): number {
    const ended = this.#ended;
    const count = ended.length;
    if (count === 0) return 0;
    // Completing may submit more (the next range of a discard): those are for the next round.
    this.#ended = this.#reported;
    this.#reported = ended;
    for (let i = 0; i < count; i += 1) {
      const request = ended[i] as BlkRequest;
      this.#complete(request, request.length);
    }
    ended.length = 0;
    return count;
  }

  get mustPoll(): boolean {
    return this.#ended.length > 0;
  }

  close(): void {}
}
