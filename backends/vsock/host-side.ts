/**
 * The host's sockets of one guest. Its programs connect to `U` (streams) or `U.seqpacket` and say a port; for a guest that
 * connects to port P of the host, the program that listens on `U_P` is connected to, whose socket has to be of the type
 * that the guest asked for (docs/adr/0018-vsock-sockets.md).
 */

import type { Epoll } from '../../protocol/sys/epoll.ts';
import { EAGAIN, SysError } from '../../protocol/sys/errors.ts';
import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { type Watch, watchReadable } from '../../protocol/sys/readiness.ts';
import { sendText } from '../../protocol/sys/socket-transfer.ts';
import { SOCK_SEQPACKET, SOCK_STREAM, UnixListener, UnixStream } from '../../protocol/sys/unix-socket.ts';
import {
  VIRTIO_VSOCK_HOST_CID,
  VIRTIO_VSOCK_TYPE_SEQPACKET,
  VIRTIO_VSOCK_TYPE_STREAM,
} from '../../protocol/virtio/vsock.ts';
import type { Logger } from '../core/logging.ts';
import { connectAnswer } from './connect-line.ts';
import type { Connection, Opener } from './connection.ts';
import type { Deadlines } from './deadlines.ts';
import { Greeting, type GreetingOwner } from './greeting.ts';
import type { Muxer } from './muxer.ts';

/** Behind the path of the socket for streams. */
export const SEQPACKET_SUFFIX = '.seqpacket';
/** Ports of our end: like those of other implementations, and far from what programs choose. */
const FIRST_HOST_PORT = 0x4000_0000;
const LAST_HOST_PORT = 0x7fff_ffff;
/** Until a listener whose backlog is full is tried again, or programs are let in that too many others were before. */
const RETRY_MS = 20;
/** Programs of the host that are let in before others have their turn: they may come faster than they are refused. */
const ACCEPT_LOT = 64;

/** Tells the host's program that it is connected. */
class HostOpener implements Opener {
  established(connection: Connection): boolean {
    const { socket } = connection;
    return socket !== undefined && sendText(socket.fd, connectAnswer(connection.peerPort));
  }
}

const HOST_OPENER = new HostOpener();

interface Listening {
  readonly listener: UnixListener;
  readonly watch: Watch;
}

export class HostSide implements GreetingOwner {
  readonly #path: string;
  readonly #epoll: Epoll;
  readonly #deadlines: Deadlines;
  readonly #log: Logger;
  readonly #greetings = new Set<Greeting>();
  readonly #listening: Listening[] = [];
  /** Connections whose listener's backlog is full. */
  readonly #busy = new Set<Connection>();
  #retryTimer: NodeJS.Timeout | undefined;
  #muxer: Muxer | undefined;
  #nextPort = FIRST_HOST_PORT;
  /** The last one could not be let in for lack of descriptors, which was said. */
  #isShort = false;

  constructor(path: string, epoll: Epoll, deadlines: Deadlines, log: Logger) {
    this.#path = path;
    this.#epoll = epoll;
    this.#deadlines = deadlines;
    this.#log = log;
  }

  /** Listens for the host's programs. @throws SysError - another process listens there, or the path cannot be */
  listen(muxer: Muxer): void {
    this.#muxer = muxer;
    try {
      const { maxConnections } = muxer.limits;
      this.#listen(this.#path, SOCK_STREAM, VIRTIO_VSOCK_TYPE_STREAM, maxConnections);
      this.#listen(`${this.#path}${SEQPACKET_SUFFIX}`, SOCK_SEQPACKET, VIRTIO_VSOCK_TYPE_SEQPACKET, maxConnections);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  #listen(path: string, socketType: number, type: number, backlog: number): void {
    const listener = UnixListener.listen(path, socketType, backlog);
    const watch = watchReadable(listener.fd, () => this.#accept(listener, watch, type));
    this.#listening.push({ listener, watch });
  }

  #accept(listener: UnixListener, watch: Watch, type: number): void {
    const muxer = this.#muxer as Muxer;
    try {
      for (let taken = 0; taken < ACCEPT_LOT; taken += 1) {
        if (this.#greetings.size + muxer.halfOpen >= muxer.limits.maxHalfOpen) {
          this.#acceptLater(watch);
          break;
        }
        const stream = listener.accept();
        if (stream === undefined) break;
        this.#greet(stream.detach(), type);
      }
      this.#isShort = false;
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      // Out of descriptors.
      if (!this.#isShort) this.#log.error(error.message);
      this.#isShort = true;
      this.#acceptLater(watch);
    }
  }

  /** Who connects waits in the backlog meanwhile. */
  #acceptLater(watch: Watch): void {
    watch.pause();
    setTimeout(() => watch.resume(), RETRY_MS).unref();
  }

  #greet(owned: OwnedFd, type: number): void {
    const muxer = this.#muxer as Muxer;
    // Without a driver nobody could answer.
    if (!muxer.inService) {
      owned.close();
      return;
    }
    try {
      const greeting = new Greeting(owned, type, this.#epoll, this);
      this.#greetings.add(greeting);
      this.#deadlines.set(greeting, muxer.limits.connectTimeout);
    } catch (error) {
      owned.close();
      throw error;
    }
  }

  #forget(greeting: Greeting): void {
    this.#greetings.delete(greeting);
    this.#deadlines.clear(greeting);
  }

  failed(greeting: Greeting): void {
    this.#forget(greeting);
    this.#epoll.forget(greeting.place);
    greeting.owned.close();
  }

  greeted(greeting: Greeting, port: number): void {
    const muxer = this.#muxer as Muxer;
    const address = {
      type: greeting.type,
      guestPort: port,
      peerCid: VIRTIO_VSOCK_HOST_CID,
      peerPort: this.#nextPort,
    };
    this.#nextPort = this.#nextPort === LAST_HOST_PORT ? FIRST_HOST_PORT : this.#nextPort + 1;
    if (!muxer.canOpen(address)) {
      this.failed(greeting);
      return;
    }
    this.#forget(greeting);
    muxer.open(address, greeting.owned, HOST_OPENER, greeting);
  }

  /** Connects for a guest to the program that listens on the port. */
  dial(muxer: Muxer, connection: Connection): void {
    const socketType = connection.type === VIRTIO_VSOCK_TYPE_SEQPACKET ? SOCK_SEQPACKET : SOCK_STREAM;
    try {
      const owned = UnixStream.connect(`${this.#path}_${connection.peerPort}`, socketType).detach();
      muxer.sockets.attach(connection, owned);
      muxer.accept(connection);
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      if (error.errno === EAGAIN) this.#retryLater(muxer, connection);
      else muxer.reset(connection);
    }
  }

  #retryLater(muxer: Muxer, connection: Connection): void {
    this.#busy.add(connection);
    this.#retryTimer ??= setTimeout(() => {
      this.#retryTimer = undefined;
      const waiting = [...this.#busy];
      this.#busy.clear();
      for (const one of waiting) if (one.isWaiting) this.dial(muxer, one);
    }, RETRY_MS);
  }

  /** Stops listening and removes the sockets' files. */
  close(): void {
    clearTimeout(this.#retryTimer);
    for (const { listener, watch } of this.#listening) {
      watch.close();
      listener.close();
    }
    this.#listening.length = 0;
    for (const greeting of [...this.#greetings]) this.failed(greeting);
  }
}
