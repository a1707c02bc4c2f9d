/** Readiness of descriptors on the event loop of this thread. Level-triggered: what is left unread is reported again. */

import { type PollHandle, pollHandle } from './libc.ts';
import { duplicateFd, isPollable, type OwnedFd } from './owned-fd.ts';

/** A watch of one descriptor. Close it before the descriptor. */
export class Watch {
  #handle: PollHandle | undefined;
  readonly #events: { readable?: boolean; writable?: boolean };
  readonly #callback: () => void;
  readonly #owned: OwnedFd | undefined;

  /** @param owned a descriptor to close with the watch */
  constructor(fd: number, events: { readable?: boolean; writable?: boolean }, callback: () => void, owned?: OwnedFd) {
    if (!isPollable(fd)) throw new Error(`file descriptor ${fd} cannot be watched: it is a regular file`);
    this.#owned = owned;
    this.#events = events;
    this.#callback = () => {
      // libuv may have queued one more event before close() took effect.
      if (this.#handle === undefined) return;
      try {
        callback();
      } catch (error) {
        // Native code called us and would keep it to itself: it is to end the process as any other.
        setImmediate(() => {
          throw error;
        });
      }
    };
    this.#handle = pollHandle(fd, events, this.#callback);
  }

  /** Stops calling back until `resume`. */
  pause(): void {
    this.#handle?.stop();
  }

  resume(): void {
    this.#handle?.start(this.#events, this.#callback);
  }

  close(): void {
    this.#handle?.stop();
    this.#handle?.close();
    this.#handle = undefined;
    this.#owned?.close();
  }
}

/** Calls back whenever `fd` is readable or hung up. @throws Error - the descriptor is a regular file */
export function watchReadable(fd: number, callback: () => void): Watch {
  return new Watch(fd, { readable: true }, callback);
}

/**
 * Calls back whenever `fd` is writable. libuv takes one watch a descriptor, and the other direction may be watched too:
 * this one is on a duplicate.
 * @throws Error - the descriptor is a regular file
 * @throws SysError - no more descriptors
 */
export function watchWritable(fd: number, callback: () => void): Watch {
  const owned = duplicateFd(fd);
  return new Watch(owned.fd, { writable: true }, callback, owned);
}
