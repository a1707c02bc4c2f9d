/**
 * The sockets of all connections of one guest: watched, and closed. A connection that is over for the guest may linger
 * here, until the host's program took what the guest sent.
 */

import type { Epoll } from '../../protocol/sys/epoll.ts';
import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { SocketTransfer } from '../../protocol/sys/socket-transfer.ts';
import { VIRTIO_VSOCK_TYPE_SEQPACKET } from '../../protocol/virtio/vsock.ts';
import { PinnedPool } from './byte-ring.ts';
import type { Connection } from './connection.ts';
import type { Deadlines } from './deadlines.ts';
import { HostSocket, type SocketResources } from './host-socket.ts';
import type { Limits } from './limits.ts';

/** A socket that is watched already: its place in the set, and whether its end was seen. */
export interface Watched {
  readonly place: number;
  readonly ended: boolean;
}

export class HostSockets {
  readonly resources: SocketResources;
  readonly #epoll: Epoll;
  readonly #deadlines: Deadlines;
  readonly #lingerMs: number;
  readonly #lingering = new Set<Connection>();

  constructor(epoll: Epoll, deadlines: Deadlines, { bufferSize, closeTimeout }: Limits) {
    this.#epoll = epoll;
    this.#deadlines = deadlines;
    this.#lingerMs = closeTimeout;
    this.resources = { transfer: new SocketTransfer(), pool: new PinnedPool(bufferSize) };
  }

  /** Connections that linger. */
  get lingering(): number {
    return this.#lingering.size;
  }

  /** Gives a connection its socket. @throws SysError - it cannot be watched; it is closed */
  attach(connection: Connection, owned: OwnedFd, watched?: Watched): void {
    const isSeqpacket = connection.type === VIRTIO_VSOCK_TYPE_SEQPACKET;
    connection.socket = new HostSocket(owned, isSeqpacket, this.resources);
    if (watched !== undefined) {
      connection.place = watched.place;
      connection.socket.ended = watched.ended;
      this.#epoll.retarget(watched.place, connection);
      return;
    }
    try {
      connection.place = this.#epoll.add(owned.fd, connection);
    } catch (error) {
      connection.socket.close();
      connection.socket = undefined;
      throw error;
    }
  }

  /** Closes the socket of a connection that is over, if there is nothing for the host's program any more. */
  closeWhenDrained(connection: Connection): void {
    const { socket } = connection;
    if (socket === undefined || socket.isDrained || socket.gone) {
      this.close(connection);
      return;
    }
    this.#lingering.add(connection);
    // It made progress, or begins to.
    this.#deadlines.set(connection, this.#lingerMs);
  }

  /** Closes the socket of a connection, if it has one. */
  close(connection: Connection): void {
    this.#lingering.delete(connection);
    this.#deadlines.clear(connection);
    if (connection.socket === undefined) return;
    this.#epoll.forget(connection.place);
    connection.socket.close();
    connection.socket = undefined;
  }

  /** Waits for nobody. */
  closeLingering(): void {
    for (const connection of [...this.#lingering]) this.close(connection);
  }
}
