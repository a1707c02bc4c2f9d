/**
 * From a transmit queue to the TAP: each chain is one packet, header first, and goes to the kernel where it lies. The
 * kernel reads the header, once, and is the judge of what it says. Source: VIRTIO 1.3, 5.1.6.2 Packet Transmission.
 */

import { allocatePinned } from '../../protocol/sys/pinned.ts';
import { ETHERNET_HEADER_BYTES, VIRTIO_NET_HDR, VIRTIO_NET_MAX_PACKET_BYTES } from '../../protocol/virtio/net.ts';
import type { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import { NO_FAULT } from '../../protocol/virtqueue/faults.ts';
import type { Vring } from '../core/vring.ts';
import type { Counters } from './counters.ts';
import type { Engine } from './engines/engine.ts';
import { MAX_BUFFERS } from './limits.ts';
import type { Packet } from './packet.ts';

const MAX_HEADER_BYTES = 12;

/** What the kernel takes as hdr_len of a frame of so many bytes: nothing, or an Ethernet header at least. */
function isGoodHdrLen(hdrLen: number, frameBytes: number): boolean {
  return hdrLen === 0 || (hdrLen >= ETHERNET_HEADER_BYTES && hdrLen <= frameBytes);
}

export class Transmitter {
  readonly #free: Packet[];
  readonly #counters: Counters;
  readonly #onError: (errno: number) => void;
  /** Where packets of too many pieces are put together, and the one that is there. */
  readonly #bounce = allocatePinned(MAX_HEADER_BYTES + VIRTIO_NET_MAX_PACKET_BYTES);
  #bounced: Packet | undefined;

  /** @param onError is called with the errno of each packet that the kernel did not take */
  constructor(packets: readonly Packet[], counters: Counters, onError: (errno: number) => void) {
    this.#free = [...packets];
    this.#counters = counters;
    this.#onError = onError;
  }

  /**
   * Takes up to `budget` chains and submits their packets to a queue of the TAP; drops them when there is no link (no
   * engine). Returns how many it took.
   */
  run(vring: Vring, budget: number, headerBytes: number, queue: number, engine: Engine | undefined): number {
    const { chain } = vring;
    const free = this.#free;
    const discard = engine === undefined || !vring.enabled;
    let taken = 0;
    while (taken < budget) {
      const packet = free[free.length - 1];
      if (packet === undefined || !vring.pop()) break;
      if (chain.fault === NO_FAULT && !discard && this.#fits(chain, headerBytes)) {
        if (!this.#fill(packet, vring, headerBytes)) {
          vring.unpop(chain.head);
          break;
        }
        free.pop();
        packet.vring = vring;
        packet.head = chain.head;
        packet.queue = queue;
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
  #fill(packet: Packet, vring: Vring, headerBytes: number): boolean {
    const { chain } = vring;
    packet.clear();
    const segments = chain.readableSegments;
    if (segments > MAX_BUFFERS || !this.#hasGoodHeader(vring, headerBytes)) {
      return this.#gather(packet, vring, headerBytes);
    }
    for (let i = 0; i < segments; i += 1) packet.append(chain.address[i] as number, chain.length[i] as number);
    return true;
  }

  /**
   * Whether the kernel takes the packet's hdr_len, if it can be seen at once. It refuses some values, but drivers may say
   * anything there, 5.1.6.2.2.
   */
  #hasGoodHeader({ chain, host }: Vring, headerBytes: number): boolean {
    const { memory } = host;
    const end = VIRTIO_NET_HDR.hdr_len + 2;
    if ((chain.length[0] as number) < end || !memory.locate(chain.guest[0] as number, end)) return false;
    const hdrLen = memory.view.getUint16(memory.offset + VIRTIO_NET_HDR.hdr_len, true);
    return isGoodHdrLen(hdrLen, chain.readableBytes - headerBytes);
  }

  #gather(packet: Packet, vring: Vring, headerBytes: number): boolean {
    if (this.#bounced !== undefined) return false;
    this.#bounced = packet;
    const { chain } = vring;
    let at = 0;
    for (let i = 0; i < chain.readableSegments; i += 1) {
      const length = chain.length[i] as number;
      vring.host.memory.copyOut(chain.guest[i] as number, this.#bounce.bytes.subarray(at, at + length));
      at += length;
    }
    const { data } = this.#bounce;
    if (!isGoodHdrLen(data.getUint16(VIRTIO_NET_HDR.hdr_len, true), at - headerBytes)) {
      data.setUint16(VIRTIO_NET_HDR.hdr_len, 0, true);
    }
    packet.append(this.#bounce.address, at);
    return true;
  }

  /** The packet was written, or was not: its chain goes back. */
  complete(packet: Packet): void {
    if (packet === this.#bounced) this.#bounced = undefined;
    if (packet.result >= 0) this.#counters.transmitted += 1;
    else this.#onError(-packet.result);
    (packet.vring as Vring).push(packet.head, 0);
    packet.vring = undefined;
    this.#free.push(packet);
  }
}
