/** The rings of one driver as a data path serves them: what each is for, and who takes what is in it. */

import { VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ } from '../../protocol/virtio/net.ts';
import type { RingAttachment } from '../core/device.ts';
import { REQUEST_RING, type RingTraits } from '../core/ring-traits.ts';
import type { Vring } from '../core/vring.ts';
import { type ControlCommand, type Controlled, processControlQueue } from './control.ts';
import type { NetDataPath } from './data-path.ts';
import type { NetDriverState } from './state.ts';

const RECEIVE_RING: RingTraits = { offersBuffers: true, runsDisabled: false };
/** What is sent while the ring is disabled is taken and dropped. */
const TRANSMIT_RING: RingTraits = { offersBuffers: false, runsDisabled: true };

/** Index of the control queue, behind the pairs that are negotiated, 5.1.2; -1 when there is none. */
export function controlQueueOf(driver: NetDriverState, pairs: number): number {
  if (!driver.hasNegotiated(VIRTIO_NET_F_CTRL_VQ)) return -1;
  return driver.hasNegotiated(VIRTIO_NET_F_MQ) ? 2 * pairs : 2;
}

export class NetRings implements RingAttachment, Controlled {
  readonly #path: NetDataPath;
  readonly #driver: NetDriverState;
  /** Looked up when a ring is started. */
  #controlQueue = -1;
  #filterIsDue = false;

  constructor(path: NetDataPath, driver: NetDriverState) {
    this.#path = path;
    this.#driver = driver;
  }

  ringTraits(index: number): RingTraits {
    const { pairs, controlQueue } = this.#path.options;
    this.#controlQueue = controlQueue ? controlQueueOf(this.#driver, pairs) : -1;
    if (index === this.#controlQueue) return REQUEST_RING;
    return (index & 1) === 0 ? RECEIVE_RING : TRANSMIT_RING;
  }

  ringChanged(vring: Vring): void {
    const { index, started, enabled } = vring;
    this.#path.main.ringChanged(this.#driver.id, index, started, enabled);
    const pair = index === this.#controlQueue ? undefined : this.#path.pairOf(index);
    if (pair !== undefined && (index & 1) === 0) pair.receiveRing = started && enabled ? vring : undefined;
  }

  processQueue(vring: Vring, budget: number): number {
    const { index } = vring;
    if (this.#path.isPaused) return 0;
    if (index === this.#controlQueue) return this.#control(vring, budget);
    const pair = this.#path.pairOf(index);
    if (pair === undefined) return 0;
    if ((index & 1) === 1) return this.#path.transmit(pair, vring, budget, this.#driver);
    return this.#path.receive(pair, vring, budget, this.#driver);
  }

  #control(vring: Vring, budget: number): number {
    const taken = processControlQueue(vring, budget, this);
    // Before the driver is told that the commands are done.
    if (this.#filterIsDue) {
      this.#filterIsDue = false;
      this.#path.main.applyFilter(this.#driver.id);
    }
    return taken;
  }

  hasNegotiated(feature: number): boolean {
    return this.#driver.hasNegotiated(feature);
  }

  perform(command: ControlCommand): boolean {
    const done = this.#path.main.perform(this.#driver.id, command);
    this.#filterIsDue ||= done && ['mode', 'tables', 'address', 'vlan'].includes(command.kind);
    return done;
  }
}
