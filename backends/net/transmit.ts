/**
 * From a transmit queue to the TAP: each chain is one packet, header first, and goes to the kernel where it lies. The
 * kernel reads the header, once, and is the judge of what it says. Source: VIRTIO 1.3, 5.1.6.2 Packet Transmission.
 */

import { allocatePinned } from '../../protocol/sys/pinned.ts';
import { ETHERNET_HEADER_BYTES, VIRTIO_NET_MAX_PACKET_BYTES } from '../../protocol/virtio/net.ts';
import type { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import { NO_FAULT } from '../../protocol/virtqueue/faults.ts';
import type { Vring } from '../core/vring.ts';
import type { Counters } from './counters.ts';
import type { Engine } from './engines/engine.ts';
import { MAX_BUFFERS } from './limits.ts';
import type { Packet } from './packet.ts';

const MAX_HEADER_BYTES = 12;

export class Transmitter {
  readonly #free: Packet[];
  readonly #counters: Counters;
  /** Where packets of too many pieces are put together, and the one that is there. */
  readonly #bounce = allocatePinned(MAX_HEADER_BYTES + VIRTIO_NET_MAX_PACKET_BYTES);
  #bounced: Packet | undefined;

  constructor(packets: readonly Packet[], counters: Counters) {
    this.#free = [...packets];
    this.#counters = counters;
  }

  /** Takes up to `budget` chains and submits their packets; drops them when there is no link. Returns how many it took. */
  run(vring: Vring, budget: number, headerBytes: number, engine: Engine | undefined): number {
    const { chain } = vring;
    const free = this.#free;
    const discard = engine === undefined || !vring.enabled;
    let taken = 0;
    while (taken < budget) {
      const packet = free[free.length - 1];
      if (packet === undefined || !vring.pop()) break;
      if (chain.fault === NO_FAULT && !discard && this.#fits(chain, headerBytes)) {
        if (!this.#fill(packet, chain, vring)) {
          vring.unpop(chain.head);
          break;
        }
        free.pop();
        packet.vring = vring;
        packet.head = chain.head;
        engine.submit(packet);
      } else this.#drop(vring, discard);
      taken += 1;
    }
    return taken;
  }

  #fits(chain: DescriptorChain, headerBytes: number): boolean {
    const bytes = chain.readableBytes - headerBytes;
    return bytes >= ETHERNET_HEADER_BYTES && bytes <= VIRTIO_NET_MAX_PACKET_BYTES;
  }

  #drop(vring: Vring, discard: boolean): void {
    const { chain } = vring;
    if (chain.fault !== NO_FAULT) vring.noteChainFault(chain.fault);
    else if (discard) this.#counters.discarded += 1;
    else this.#counters.malformed += 1;
    vring.push(chain.head, 0);
  }

  /** False when the packet has to wait for another one to be written. */
  #fill(packet: Packet, chain: DescriptorChain, vring: Vring): boolean {
    packet.clear();
    const segments = chain.readableSegments;
    if (segments > MAX_BUFFERS) return this.#gather(packet, chain, vring);
    for (let i = 0; i < segments; i += 1) packet.append(chain.address[i] as number, chain.length[i] as number);
    return true;
  }

  #gather(packet: Packet, chain: DescriptorChain, vring: Vring): boolean {
    if (this.#bounced !== undefined) return false;
    this.#bounced = packet;
    let at = 0;
    for (let i = 0; i < chain.readableSegments; i += 1) {
      const length = chain.length[i] as number;
      vring.host.memory.copyOut(chain.guest[i] as number, this.#bounce.bytes.subarray(at, at + length));
      at += length;
    }
    packet.append(this.#bounce.address, at);
    return true;
  }

  /** The packet was written, or was not: its chain goes back. */
  complete(packet: Packet): void {
    if (packet === this.#bounced) this.#bounced = undefined;
    if (packet.result >= 0) this.#counters.transmitted += 1;
    else this.#counters.noteError(-packet.result);
    (packet.vring as Vring).push(packet.head, 0);
    packet.vring = undefined;
    this.#free.push(packet);
  }
}
