/** Does nothing, successfully: measures rings and pump alone. Reads leave the guest's buffers as they are. */

import type { BlkRequest } from '../request.ts';
import type { Complete, Engine } from './engine.ts';

export class NullEngine implements Engine {
  readonly name = 'null';
  readonly mustPoll = false;
  readonly completionFd = undefined;
  onCompletion: () => void = () => undefined;
  readonly #complete: Complete;
  #ended: BlkRequest[] = [];

  constructor(complete: Complete) {
    this.#complete = complete;
  }

  submit(request: BlkRequest): void {
    this.#ended.push(request);
  }

  poll(): number {
    const ended = this.#ended;
    const count = ended.length;
    for (let i = 0; i < count; i += 1) {
      const request = ended[i] as BlkRequest;
      this.#complete(request, request.length);
    }
    // Completing may have submitted more (the next range of a discard): those stay for the next round.
    ended.splice(0, count);
    return count;
  }

  close(): void {}
}
