/**
 * Readiness of many descriptors, edge-triggered, taken with one system call a batch and without a callback of libuv for
 * each: who is told keeps in mind that its descriptor is readable or writable until a call says EAGAIN. The descriptor
 * of the set is itself readable when something happened, for readiness.ts. Source: epoll(7), linux/eventpoll.h.
 *
 *     struct epoll_event: events u32 @0, data u64 @4 (packed on x86-64), @8 elsewhere
 */

import { EINTR, SysError } from './errors.ts';
import { checked, lastErrno, libc } from './libc.ts';
import { OwnedFd } from './owned-fd.ts';
import { allocatePinned } from './pinned.ts';

export const EPOLLIN = 0x001;
export const EPOLLOUT = 0x004;
export const EPOLLERR = 0x008;
export const EPOLLHUP = 0x010;
export const EPOLLRDHUP = 0x2000;
const EPOLLET = 0x8000_0000;
const EPOLL_CLOEXEC = 0x80000;
const EPOLL_CTL_ADD = 1;

const PACKED = process.arch === 'x64';
const EVENT_BYTES = PACKED ? 12 : 16;
const DATA_AT = PACKED ? 4 : 8;
/** Events taken with one call. */
const BATCH = 64;

const argument = allocatePinned(EVENT_BYTES);

/** Who is told of a descriptor's readiness. */
export interface EpollTarget {
  /** @param events EPOLL bits that became true since the last call, and others that hold */
  onEvents(events: number): void;
}

/** A set of descriptors. */
export class Epoll {
  readonly #owned: OwnedFd;
  readonly fd: number;
  readonly #events = allocatePinned(EVENT_BYTES * BATCH);
  readonly #targets: (EpollTarget | undefined)[] = [];
  /** How often each place was used: an event of its former user is not told to the next one. */
  readonly #generations: number[] = [];
  readonly #free: number[] = [];

  /** @throws SysError - no more descriptors */
  constructor() {
    this.#owned = new OwnedFd(checked(libc.epoll_create1(EPOLL_CLOEXEC), 'epoll_create1'));
    this.fd = this.#owned.fd;
  }

  /** Targets of the set. */
  get size(): number {
    return this.#targets.length - this.#free.length;
  }

  /**
   * Watches a descriptor for both directions and their ends. Returns its place, for `retarget` and `forget`.
   * @throws SysError - the descriptor cannot be watched, or no memory
   */
  add(fd: number, target: EpollTarget): number {
    const place = this.#free[this.#free.length - 1] ?? this.#targets.length;
    const generation = ((this.#generations[place] ?? 0) + 1) >>> 0;
    argument.data.setUint32(0, (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET) >>> 0, true);
    argument.data.setUint32(DATA_AT, place, true);
    argument.data.setUint32(DATA_AT + 4, generation, true);
    checked(libc.epoll_ctl(this.fd, EPOLL_CTL_ADD, fd, argument.address), 'epoll_ctl', `fd ${fd}`);
    if (this.#free.length > 0) this.#free.pop();
    this.#targets[place] = target;
    this.#generations[place] = generation;
    return place;
  }

  /** Tells somebody else from now on. What was told already is not repeated. */
  retarget(place: number, target: EpollTarget): void {
    this.#targets[place] = target;
  }

  /** Tells nobody any more. The caller closes the descriptor, its only one, which takes it out of the set. */
  forget(place: number): void {
    this.#targets[place] = undefined;
    this.#free.push(place);
  }

  /** Tells targets what happened, at most 64 of them, without waiting. Returns how many events there were. */
  dispatch(): number {
    const count = libc.epoll_wait(this.fd, this.#events.address, BATCH, 0);
    if (count === -1) {
      const errno = lastErrno();
      if (errno === EINTR) return 0;
      throw new SysError('epoll_wait', errno);
    }
    const { data } = this.#events;
    for (let i = 0; i < count; i += 1) {
      const at = i * EVENT_BYTES;
      const place = data.getUint32(at + DATA_AT, true);
      if (data.getUint32(at + DATA_AT + 4, true) !== this.#generations[place]) continue;
      this.#targets[place]?.onEvents(data.getUint32(at, true));
    }
    return count;
  }

  close(): void {
    this.#owned.close();
  }
}
