/**
 * The io_uring engine: all packets of a pass, both ways, are one call of the kernel. Reads and writes of a TAP never
 * wait (RWF_NOWAIT), so they end inside that call and in the order in which they were prepared.
 */

import {
  IORING_OP_READ,
  IORING_OP_READV,
  IORING_OP_WRITE,
  IORING_OP_WRITEV,
  IoUring,
} from '../../../protocol/sys/io-uring.ts';
import { RWF_NOWAIT } from '../../../protocol/sys/libc.ts';
import { type Packet, RECEIVE } from '../packet.ts';
import type { Complete, Engine } from './engine.ts';

export class UringEngine implements Engine {
  readonly name = 'io_uring';
  readonly #packets: readonly Packet[];
  readonly #complete: Complete;
  readonly #ring: IoUring;

  /** @throws SysError - io_uring is not to be had */
  constructor(fds: readonly number[], packets: readonly Packet[], complete: Complete) {
    this.#packets = packets;
    this.#complete = complete;
    const entries = 2 ** Math.ceil(Math.log2(packets.length));
    this.#ring = new IoUring({ entries, completionEntries: 2 * entries });
    this.#ring.registerFiles(fds);
  }

  submit(packet: Packet): void {
    const { queue, id, direction } = packet;
    const read = direction === RECEIVE;
    if (packet.buffers === 1) {
      const op = read ? IORING_OP_READ : IORING_OP_WRITE;
      this.#ring.prepare(op, queue, 0, packet.address, packet.length, RWF_NOWAIT, id);
    } else {
      const op = read ? IORING_OP_READV : IORING_OP_WRITEV;
      this.#ring.prepare(op, queue, 0, packet.iovecAddress, packet.buffers, RWF_NOWAIT, id);
    }
  }

  poll(): void {
    const ring = this.#ring;
    if (ring.inFlight === 0) return;
    ring.enter();
    while (ring.reap()) {
      const packet = this.#packets[ring.completedId] as Packet;
      packet.result = ring.completedResult;
      this.#complete(packet);
    }
    ring.endReap();
  }

  get mustPoll(): boolean {
    return this.#ring.inFlight > 0;
  }

  replaceQueues(fds: readonly number[]): void {
    fds.forEach((fd, queue) => {
      this.#ring.replaceFile(queue, fd);
    });
  }

  close(): void {
    this.#ring.close();
  }
}
