/** From the transmit queue to connections: each chain is one packet and goes back at once. */

import { VIRTIO_VSOCK_HDR_BYTES } from '../../protocol/virtio/vsock.ts';
import { NO_FAULT } from '../../protocol/virtqueue/faults.ts';
import type { Vring } from '../core/vring.ts';
import type { Muxer } from './muxer.ts';
import { PacketHeader } from './packet.ts';

export class Transmitter {
  readonly #muxer: Muxer;
  readonly #header = new PacketHeader();

  constructor(muxer: Muxer) {
    this.#muxer = muxer;
  }

  /**
   * Takes up to `budget` packets; fewer when the answers to them find no place any more: then the ring is held until the
   * guest takes some, 5.10.6.1.2. Returns how many.
   */
  run(vring: Vring, budget: number): number {
    const { chain, host } = vring;
    const muxer = this.#muxer;
    let taken = 0;
    for (; taken < budget; taken += 1) {
      if (muxer.isCongested) {
        vring.held = true;
        break;
      }
      if (!vring.pop()) break;
      if (chain.fault !== NO_FAULT) vring.noteChainFault(chain.fault);
      else if (chain.readableBytes < VIRTIO_VSOCK_HDR_BYTES) muxer.counters.malformed += 1;
      else {
        this.#header.readFrom(chain, host.memory);
        muxer.counters.transmitted += 1;
        muxer.receive(this.#header, chain, host.memory);
      }
      vring.push(chain.head, 0);
    }
    return taken;
  }
}
