/** One system call a packet, where io_uring is not to be had (containers often forbid it). */

import { readPacket, writePacket } from '../../../protocol/sys/tap.ts';
import { type Packet, RECEIVE } from '../packet.ts';
import type { Complete, Engine } from './engine.ts';

export class SyscallEngine implements Engine {
  readonly name = 'syscalls';
  readonly mustPoll = false;
  readonly #complete: Complete;
  readonly #submitted: Packet[] = [];
  #fds: readonly number[];

  constructor(fds: readonly number[], complete: Complete) {
    this.#fds = fds;
    this.#complete = complete;
  }

  submit(packet: Packet): void {
    this.#submitted.push(packet);
  }

  poll(): void {
    const packets = this.#submitted;
    for (let i = 0; i < packets.length; i += 1) {
      const packet = packets[i] as Packet;
      const fd = this.#fds[packet.queue] as number;
      const transfer = packet.direction === RECEIVE ? readPacket : writePacket;
      packet.result = transfer(fd, packet.iovecAddress, packet.buffers);
      this.#complete(packet);
    }
    packets.length = 0;
  }

  replaceQueues(fds: readonly number[]): void {
    this.#fds = fds;
  }

  close(): void {}
}
