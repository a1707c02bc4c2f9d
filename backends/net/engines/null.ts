/** No TAP: what is sent is gone, nothing is received. Measures rings and pump alone. */

import { EAGAIN } from '../../../protocol/sys/errors.ts';
import { type Packet, TRANSMIT } from '../packet.ts';
import type { Complete, Engine } from './engine.ts';

export class NullEngine implements Engine {
  readonly name = 'null';
  readonly mustPoll = false;
  readonly #complete: Complete;
  readonly #submitted: Packet[] = [];

  constructor(complete: Complete) {
    this.#complete = complete;
  }

  submit(packet: Packet): void {
    this.#submitted.push(packet);
  }

  poll(): void {
    const packets = this.#submitted;
    for (let i = 0; i < packets.length; i += 1) {
      const packet = packets[i] as Packet;
      packet.result = packet.direction === TRANSMIT ? packet.bytes : -EAGAIN;
      this.#complete(packet);
    }
    packets.length = 0;
  }

  replaceQueues(): void {}

  close(): void {}
}
