/** A port of the guest that is listened at, with promises: connections wait here until they are accepted. */

import type { VsockConnection, VsockHandler } from './vsock-connection.ts';
import { VsockError } from './vsock-error.ts';
import { VsockSocket } from './vsock-socket.ts';

interface Accepting {
  readonly resolve: (socket: VsockSocket) => void;
  readonly reject: (error: Error) => void;
}

export class VsockListener {
  readonly #backlog: number;
  readonly #stop: () => void;
  readonly #waiting: VsockSocket[] = [];
  readonly #accepting: Accepting[] = [];
  #failure: Error | undefined;

  /** Made by `VsockDriver.listen`. `stop` makes the port free. */
  constructor(backlog: number, stop: () => void) {
    this.#backlog = backlog;
    this.#stop = stop;
  }

  /** The next connection. @throws Error - why there will be none: the driver failed, or `close` */
  accept(): Promise<VsockSocket> {
    const socket = this.#waiting.shift();
    if (socket !== undefined) return Promise.resolve(socket);
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => this.#accepting.push({ resolve, reject }));
  }

  /** Of the driver: somebody connects. Returns undefined where too many wait. */
  offer(connection: VsockConnection): VsockHandler | undefined {
    const next = this.#accepting.shift();
    if (next === undefined && this.#waiting.length >= this.#backlog) return undefined;
    const socket = new VsockSocket().attach(connection);
    if (next !== undefined) next.resolve(socket);
    else this.#waiting.push(socket);
    return socket;
  }

  /** Of the driver: nobody will connect any more. */
  fail(error: Error): void {
    this.#failure ??= error;
    for (const { reject } of this.#accepting.splice(0)) reject(error);
    this.#stop();
  }

  /** Accepts no more; connections that nobody accepted are reset. Idempotent. */
  close(): void {
    this.fail(new VsockError('ECANCELED', 'the listener was closed'));
    for (const socket of this.#waiting.splice(0)) socket.reset();
  }
}
