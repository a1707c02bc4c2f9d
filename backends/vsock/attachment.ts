/** What one front end negotiated of the socket device, and what its rings are. */

import { VIRTIO_VSOCK_TX_QUEUE } from '../../protocol/virtio/vsock.ts';
import type { Attachment, RingAttachment } from '../core/device.ts';
import { REQUEST_RING, type RingTraits } from '../core/ring-traits.ts';
import type { Vring } from '../core/vring.ts';
import { encodeVsockConfig } from './config-space.ts';
import type { VsockDevice } from './device.ts';
import { decodeGuestState, encodeGuestState } from './guest-state.ts';

const BUFFER_RING: RingTraits = { offersBuffers: true, runsDisabled: false };

export class VsockAttachment implements Attachment<VsockAttachment>, RingAttachment {
  readonly shared = this;
  readonly #device: VsockDevice;
  /** Virtio feature bits that the driver accepted. */
  features = 0n;
  /** The driver came from another host, and was not told yet that its connections are gone. */
  hasMoved = false;

  constructor(device: VsockDevice) {
    this.#device = device;
  }

  setFeatures(accepted: bigint): void {
    this.features = accepted;
  }

  readConfig(): Uint8Array {
    return encodeVsockConfig(this.#device.guestCid);
  }

  writeConfig(offset: number, data: Uint8Array, migration: boolean): string | undefined {
    // A migrated configuration space comes whole; its CID may be another one, which TRANSPORT_RESET makes the driver read.
    if (migration) return undefined;
    return `${data.length} bytes at ${offset} of the configuration space: nothing of it is writable`;
  }

  ringTraits(index: number): RingTraits {
    return index === VIRTIO_VSOCK_TX_QUEUE ? REQUEST_RING : BUFFER_RING;
  }

  ringChanged(vring: Vring): void {
    this.#device.ringChanged(this, vring);
  }

  /** Buffers are filled in `poll`, when the packets of the pass were taken. */
  processQueue(vring: Vring, budget: number): number {
    return vring.index === VIRTIO_VSOCK_TX_QUEUE ? this.#device.transmit(vring, budget) : 0;
  }

  saveState(): boolean {
    return false;
  }

  restoreState(): void {}

  exportState(): Uint8Array {
    return encodeGuestState(this.#device.guestCid);
  }

  importState(state: Uint8Array): string | undefined {
    const cid = decodeGuestState(state);
    if (typeof cid === 'string') return cid;
    this.hasMoved = true;
    this.#device.noteMove(cid);
    return undefined;
  }

  reset(): void {
    this.features = 0n;
    this.hasMoved = false;
  }
}
