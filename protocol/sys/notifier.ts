/**
 * Kick and call descriptors: usually eventfds, pipes where a front end has none, and sockets with User-mode Linux. Their
 * file status flags are shared with the peer, so O_NONBLOCK is neither set nor relied on; no call here may block even
 * when the peer filled or drained the descriptor behind our back.
 */

import { EAGAIN, EINTR, EOPNOTSUPP, EPERM, SysError } from './errors.ts';
import { lastErrno, libc, RWF_NOWAIT } from './libc.ts';
import { isPollable, type OwnedFd, S_IFCHR, S_IFREG, S_IFSOCK, statFd } from './owned-fd.ts';
import { allocatePinned } from './pinned.ts';

const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const POLLIN = 1;
const POLLOUT = 4;
const POLLHUP = 16;

// One 8-byte value of 1 for writes, one buffer with its iovec for reads, one pollfd; calls are synchronous.
const one = allocatePinned(8);
one.setU64(0, 1);
const sink = allocatePinned(512);
const sinkIovec = allocatePinned(16);
sinkIovec.setU64(0, sink.address);
sinkIovec.setU64(8, 512);
const pollFd = allocatePinned(8);

/** Adds 1 to an eventfd of this process, from any thread, when only its number is known. It must not be shared with a peer. */
export function signalEventFd(fd: number): void {
  libc.write(fd, one.address, 8);
}

/** The file type of a descriptor that can carry notifications. @throws SysError - it cannot; it is closed */
function carrierType(owned: OwnedFd): number {
  try {
    const { type } = statFd(owned.fd);
    if (type !== S_IFREG && type !== S_IFCHR && isPollable(owned.fd)) return type;
    throw new SysError('epoll_ctl', EPERM, 'of a descriptor that is neither an eventfd nor a pipe nor a socket');
  } catch (error) {
    owned.close();
    throw error;
  }
}

/** The receiving or sending half of a notification. Owns its descriptor. */
export class Notifier {
  readonly #owned: OwnedFd;
  readonly fd: number;
  readonly #isSocket: boolean;

  /** @throws SysError - EPERM: the descriptor is of a kind that cannot carry notifications; it is closed */
  constructor(owned: OwnedFd) {
    const type = carrierType(owned);
    this.#owned = owned;
    this.fd = owned.fd;
    this.#isSocket = type === S_IFSOCK;
  }

  /** Tells the peer. A full descriptor needs no further telling; a broken one is the peer's loss. */
  signal(): void {
    if (this.#isSocket) {
      libc.send(this.fd, one.address, 8, MSG_DONTWAIT | MSG_NOSIGNAL);
      return;
    }
    // The peer can clear O_NONBLOCK at any time, so every write is preceded by a look: 0.3 us a notification.
    if ((this.#poll(POLLOUT) & POLLOUT) === 0) return;
    libc.write(this.fd, one.address, 8);
  }

  /** Takes what is pending, so that readiness ends. Returns false when the peer closed its end or it failed. */
  drain(): boolean {
    const got = this.#isSocket
      ? libc.recv(this.fd, sink.address, 512, MSG_DONTWAIT)
      : libc.preadv2(this.fd, sinkIovec.address, 1, -1, RWF_NOWAIT);
    if (got > 0) return true;
    if (got === 0) return false;
    const errno = lastErrno();
    if (errno === EOPNOTSUPP) return this.#drainPolled();
    return errno === EAGAIN || errno === EINTR;
  }

  /** Pipes before Linux 6.5 have no RWF_NOWAIT: they are read when poll says that there is something. */
  #drainPolled(): boolean {
    const events = this.#poll(POLLIN);
    if ((events & POLLIN) === 0) return (events & POLLHUP) === 0;
    return libc.read(this.fd, sink.address, 512) > 0;
  }

  /** Which of `events` (and POLLHUP, POLLERR) hold now. */
  #poll(events: number): number {
    pollFd.data.setInt32(0, this.fd, true);
    pollFd.data.setUint32(4, events, true);
    return libc.poll(pollFd.address, 1, 0) === 1 ? pollFd.data.getUint16(6, true) : 0;
  }

  close(): void {
    this.#owned.close();
  }
}
