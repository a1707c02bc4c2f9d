/**
 * A host's program that connected to us, until it said which port of the guest it wants. Its line is looked at where the
 * kernel keeps it, and only the line is taken: what follows it is for the guest.
 */

import { EPOLLHUP, EPOLLRDHUP, type Epoll, type EpollTarget } from '../../protocol/sys/epoll.ts';
import { EAGAIN } from '../../protocol/sys/errors.ts';
import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { discardBytes, peekBytes } from '../../protocol/sys/socket-transfer.ts';
import { VIRTIO_VSOCK_TYPE_STREAM } from '../../protocol/virtio/vsock.ts';
import {
  findConnectLine,
  LINE_BAD,
  LINE_INCOMPLETE,
  MAX_CONNECT_LINE_BYTES,
  parseConnectLine,
} from './connect-line.ts';
import type { Timed } from './deadlines.ts';

/** One byte more than a line may have: a message that is longer is none. */
const line = new Uint8Array(MAX_CONNECT_LINE_BYTES + 1);

/** What becomes of greetings. */
export interface GreetingOwner {
  /** The line came; `greeting.owned` is to be taken over or closed. */
  greeted(greeting: Greeting, port: number): void;
  /** It will not come: to be closed. */
  failed(greeting: Greeting): void;
}

export class Greeting implements EpollTarget, Timed {
  readonly owned: OwnedFd;
  /** VIRTIO_VSOCK_TYPE_ of the socket. */
  readonly type: number;
  /** In the set of watched descriptors. */
  readonly place: number;
  /** The program has said already that it sends no more. */
  ended = false;
  deadline = 0;
  readonly #owner: GreetingOwner;

  /** @throws SysError - the socket cannot be watched */
  constructor(owned: OwnedFd, type: number, epoll: Epoll, owner: GreetingOwner) {
    this.owned = owned;
    this.type = type;
    this.#owner = owner;
    this.place = epoll.add(owned.fd, this);
  }

  onEvents(events: number): void {
    if ((events & EPOLLRDHUP) !== 0) this.ended = true;
    const got = peekBytes(this.owned.fd, line);
    if (got === -EAGAIN) return;
    if (got <= 0 || (events & EPOLLHUP) !== 0) {
      this.#owner.failed(this);
      return;
    }
    const seen = line.subarray(0, got);
    const bytes = findConnectLine(seen);
    const isStream = this.type === VIRTIO_VSOCK_TYPE_STREAM;
    if (bytes === LINE_INCOMPLETE && isStream && !this.ended) return;
    const isLine = bytes !== LINE_INCOMPLETE && bytes !== LINE_BAD && (isStream || bytes === got);
    const port = isLine ? parseConnectLine(Buffer.from(seen.subarray(0, bytes)).toString('latin1')) : undefined;
    if (port === undefined) {
      this.#owner.failed(this);
      return;
    }
    discardBytes(this.owned.fd, bytes);
    this.#owner.greeted(this, port);
  }

  onDeadline(): void {
    this.#owner.failed(this);
  }
}
