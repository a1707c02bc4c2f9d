/** The fallback where io_uring is not to be had: blocking system calls on the thread pool of the Node process. */

import {
  discardLater,
  fallocateLater,
  fdatasyncLater,
  preadvLater,
  pwritevLater,
} from '../../../protocol/sys/storage.ts';
import { type BlkRequest, IO_ALLOCATE, IO_DISCARD, IO_READ, IO_SYNC, IO_WRITE } from '../request.ts';
import type { Complete, Engine } from './engine.ts';

/** Calls handed to the pool at once; further ones wait here. */
const MAX_CALLS = 64;

export class ThreadsEngine implements Engine {
  readonly name = 'threads';
  readonly mustPoll = false;
  onCompletion: () => void = () => undefined;
  readonly #complete: Complete;
  readonly #files: readonly [number, number];
  #waiting: BlkRequest[] = [];
  #ended: { request: BlkRequest; result: number }[] = [];
  #calls = 0;

  constructor(files: readonly [main: number, buffered: number], complete: Complete) {
    this.#files = files;
    this.#complete = complete;
  }

  submit(request: BlkRequest): void {
    if (this.#calls >= MAX_CALLS) this.#waiting.push(request);
    else this.#call(request);
  }

  #call(request: BlkRequest): void {
    this.#calls += 1;
    const fd = this.#files[request.file] as number;
    const ended = (result: number): void => {
      this.#calls -= 1;
      const next = this.#waiting.shift();
      if (next !== undefined) this.#call(next);
      this.#ended.push({ request, result });
      this.onCompletion();
    };
    switch (request.kind) {
      case IO_READ:
      case IO_WRITE: {
        if (request.buffers === 1) {
          request.reserveIovecs(1);
          request.firstIovec = 0;
          request.setIovec(0, request.address, request.length);
        }
        const start = request.kind === IO_READ ? preadvLater : pwritevLater;
        start(fd, request.iovecAddress, request.buffers, request.offset, request.flags, ended);
        return;
      }
      case IO_SYNC:
        fdatasyncLater(fd, ended);
        return;
      case IO_DISCARD:
        discardLater(fd, request.discardRange(), ended);
        return;
      case IO_ALLOCATE:
        fallocateLater(fd, request.flags, request.offset, request.length, ended);
        return;
    }
  }

  poll(): number {
    const ended = this.#ended;
    if (ended.length === 0) return 0;
    this.#ended = [];
    for (const { request, result } of ended) this.#complete(request, result);
    return ended.length;
  }

  close(): void {}
}
