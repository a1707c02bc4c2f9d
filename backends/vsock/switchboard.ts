/**
 * Where a guest's connections go: to the host's programs, or to another guest of this daemon in a common group. Two guests
 * are joined by a pair of sockets, each end of which is a connection like any other, with the credit of its own guest.
 */

import { SysError } from '../../protocol/sys/errors.ts';
import { SOCK_SEQPACKET, SOCK_STREAM, UnixStream } from '../../protocol/sys/unix-socket.ts';
import { VIRTIO_VSOCK_HOST_CID, VIRTIO_VSOCK_TYPE_SEQPACKET } from '../../protocol/virtio/vsock.ts';
import type { Connection } from './connection.ts';
import type { HostSide } from './host-side.ts';
import type { Dialer, Muxer } from './muxer.ts';

/** One guest's place. */
interface Line {
  readonly muxer: Muxer;
  readonly groups: ReadonlySet<string>;
  readonly hostSide: HostSide;
}

export class Switchboard implements Dialer {
  readonly #lines = new Map<number, Line>();

  /** Its CID is not taken. */
  add(muxer: Muxer, groups: ReadonlySet<string>, hostSide: HostSide): void {
    this.#lines.set(muxer.guestCid, { muxer, groups, hostSide });
  }

  remove(muxer: Muxer): void {
    this.#lines.delete(muxer.guestCid);
  }

  dial(muxer: Muxer, connection: Connection): void {
    const from = this.#lines.get(muxer.guestCid);
    const to = this.#lines.get(connection.peerCid);
    if (connection.peerCid === VIRTIO_VSOCK_HOST_CID && from !== undefined) from.hostSide.dial(muxer, connection);
    else if (from !== undefined && to !== undefined && to !== from && areNeighbours(from, to)) {
      this.#join(muxer, connection, to.muxer);
    } else muxer.reset(connection);
  }

  #join(muxer: Muxer, connection: Connection, other: Muxer): void {
    const { type, guestPort, peerPort } = connection;
    const address = { type, guestPort: peerPort, peerCid: muxer.guestCid, peerPort: guestPort };
    if (!other.canOpen(address)) {
      muxer.reset(connection);
      return;
    }
    let further: UnixStream | undefined;
    try {
      const [near, far] = UnixStream.pair(type === VIRTIO_VSOCK_TYPE_SEQPACKET ? SOCK_SEQPACKET : SOCK_STREAM);
      further = far;
      muxer.sockets.attach(connection, near.detach());
      const owned = far.detach();
      further = undefined;
      other.open(address, owned, {
        established: () => {
          if (!connection.isWaiting) return false;
          muxer.accept(connection);
          return true;
        },
      });
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      further?.close();
      muxer.reset(connection);
    }
  }
}

function areNeighbours(a: Line, b: Line): boolean {
  for (const group of a.groups) if (b.groups.has(group)) return true;
  return false;
}
