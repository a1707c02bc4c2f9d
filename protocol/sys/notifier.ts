/**
 * Kick and call descriptors: usually eventfds, pipes where a front end has none, and sockets with User-mode Linux. Their
 * file status flags are shared with the peer, so O_NONBLOCK is neither set nor relied on; no call here may block even
 * when the peer filled or drained the descriptor behind our back.
 */

import { EAGAIN, EINTR } from './errors.ts';
import { lastErrno, libc } from './libc.ts';
import { isPollable, type OwnedFd, S_IFCHR, S_IFIFO, S_IFREG, S_IFSOCK, statFd, statusFlags } from './owned-fd.ts';
import { allocatePinned } from './pinned.ts';

const O_NONBLOCK = 0x800;
const RWF_NOWAIT = 8;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const POLLOUT = 4;

// One 8-byte value of 1 for writes, one buffer with its iovec for reads, one pollfd; calls are synchronous.
const one = allocatePinned(8);
one.setU64(0, 1);
const sink = allocatePinned(512);
const sinkIovec = allocatePinned(16);
sinkIovec.setU64(0, sink.address);
sinkIovec.setU64(8, 512);
const pollFd = allocatePinned(8);

/** The receiving or sending half of a notification. Owns its descriptor. */
export class Notifier {
  readonly #owned: OwnedFd;
  readonly fd: number;
  readonly #isSocket: boolean;
  readonly #mayBlock: boolean;

  /** @throws Error - the descriptor is of a kind that cannot carry notifications; it is closed */
  constructor(owned: OwnedFd) {
    const { type } = statFd(owned.fd);
    if (type === S_IFREG || type === S_IFCHR || !isPollable(owned.fd)) {
      owned.close();
      throw new Error('notification descriptor is neither an eventfd nor a pipe nor a socket');
    }
    this.#owned = owned;
    this.fd = owned.fd;
    this.#isSocket = type === S_IFSOCK;
    this.#mayBlock = type === S_IFIFO || (statusFlags(owned.fd) & O_NONBLOCK) === 0;
  }

  /** Tells the peer. A full descriptor needs no further telling; a broken one is the peer's loss. */
  signal(): void {
    if (this.#isSocket) {
      libc.send(this.fd, one.address, 8, MSG_DONTWAIT | MSG_NOSIGNAL);
      return;
    }
    if (this.#mayBlock) {
      pollFd.data.setInt32(0, this.fd, true);
      pollFd.data.setUint32(4, POLLOUT, true);
      if (libc.poll(pollFd.address, 1, 0) !== 1 || (pollFd.data.getUint16(6, true) & POLLOUT) === 0) return;
    }
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
    return errno === EAGAIN || errno === EINTR;
  }

  close(): void {
    this.#owned.close();
  }
}
