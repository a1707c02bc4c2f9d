/** What waits for the guest's receive buffers: resets for connections that are no more, then connections in turn. */

import { VIRTIO_VSOCK_OP_RST } from '../../protocol/virtio/vsock.ts';
import type { Connection } from './connection.ts';
import type { PacketHeader } from './packet.ts';

export class Outbox {
  /** Of each reset: the peer's CID and port, the guest's port, the type. */
  readonly #resets: Float64Array;
  readonly #capacity: number;
  #firstReset = 0;
  resets = 0;
  #first: Connection | undefined;
  #last: Connection | undefined;

  /** @param capacity resets that may wait; what is more is lost */
  constructor(capacity: number) {
    this.#capacity = capacity;
    this.#resets = new Float64Array(4 * capacity);
  }

  addReset(peerCid: number, peerPort: number, guestPort: number, type: number): void {
    if (this.resets === this.#capacity) return;
    const at = 4 * ((this.#firstReset + this.resets) % this.#capacity);
    this.#resets[at] = peerCid;
    this.#resets[at + 1] = peerPort;
    this.#resets[at + 2] = guestPort;
    this.#resets[at + 3] = type;
    this.resets += 1;
  }

  /** Takes the oldest reset and writes its packet. There is one. */
  takeReset(header: PacketHeader): void {
    const at = 4 * this.#firstReset;
    header.srcCid = this.#resets[at] as number;
    header.srcPort = this.#resets[at + 1] as number;
    header.dstPort = this.#resets[at + 2] as number;
    header.type = this.#resets[at + 3] as number;
    header.op = VIRTIO_VSOCK_OP_RST;
    header.len = 0;
    header.flags = 0;
    header.bufAlloc = 0;
    header.fwdCnt = 0;
    this.#firstReset = (this.#firstReset + 1) % this.#capacity;
    this.resets -= 1;
  }

  /** Puts a connection to the end of the line, if it is not in it. */
  add(connection: Connection): void {
    if (connection.isReady) return;
    connection.isReady = true;
    connection.previousReady = this.#last;
    if (this.#last === undefined) this.#first = connection;
    else this.#last.nextReady = connection;
    this.#last = connection;
  }

  /** Takes a connection out of the line, if it is in it. */
  remove(connection: Connection): void {
    if (!connection.isReady) return;
    const { previousReady, nextReady } = connection;
    if (previousReady === undefined) this.#first = nextReady;
    else previousReady.nextReady = nextReady;
    if (nextReady === undefined) this.#last = previousReady;
    else nextReady.previousReady = previousReady;
    connection.previousReady = undefined;
    connection.nextReady = undefined;
    connection.isReady = false;
  }

  /** The connection whose turn it is; one that has nothing more for the guest is passed over. */
  peek(): Connection | undefined {
    while (this.#first !== undefined && !this.#first.wantsBuffers) this.remove(this.#first);
    return this.#first;
  }

  clear(): void {
    while (this.#first !== undefined) this.remove(this.#first);
    this.resets = 0;
  }
}
