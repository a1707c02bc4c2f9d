/**
 * What one front end asks of the device itself: configuration space, status, reset, state for another host. Source:
 * vhost-user, Front-end message types, Migrating back-end state.
 */

import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import {
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_RARP,
} from '../../protocol/vhost-user/features.ts';
import { FRONTEND } from '../../protocol/vhost-user/messages.ts';
import { type ConfigSpace, MAX_CONFIG_BYTES } from '../../protocol/vhost-user/payloads.ts';
import { hasFeature } from '../../protocol/virtio/reserved-features.ts';
import type { Attachment } from './device.ts';
import { DeviceState } from './device-state.ts';
import type { Dispatcher } from './dispatcher.ts';
import type { Logger } from './logging.ts';
import { Refused } from './refused.ts';

/** Bit 0 of the flags of SET_CONFIG: the state of a migrated device, not a driver's write. */
const CONFIG_FLAG_MIGRATION = 1;

/** What a session knows that its device needs. */
export interface DeviceContext {
  readonly attachment: Attachment;
  /** Protocol features that are offered. */
  readonly offered: bigint;
  readonly anyStarted: boolean;
  readonly log: Logger;
  /** Stops and disables all rings. */
  resetRings(): Promise<void>;
  /** The device's bit of state may have changed. */
  saveState(): void;
}

export class SessionDevice {
  readonly #context: DeviceContext;
  readonly #state: DeviceState | undefined;
  /** The driver's device status as the front end told it. */
  #status = 0n;

  constructor(context: DeviceContext) {
    this.#context = context;
    const { offered, attachment, log } = context;
    if (hasFeature(offered, VHOST_USER_PROTOCOL_F_DEVICE_STATE)) this.#state = new DeviceState(attachment, log);
  }

  register(d: Dispatcher): void {
    const { offered, attachment } = this.#context;
    d.on(FRONTEND.GET_CONFIG, (request) => this.#readConfig(request));
    d.on(FRONTEND.SET_CONFIG, ({ offset, flags, data }) => {
      // rust-vmm numbers the flags differently (1 writable, 2 migration): a driver's write comes with any of them.
      const complaint = attachment.writeConfig(offset, data, flags === CONFIG_FLAG_MIGRATION && data.length > 1);
      if (complaint !== undefined) throw new Refused(complaint);
      this.#context.saveState();
    });
    d.on(FRONTEND.RESET_DEVICE, () => this.#reset());
    d.on(FRONTEND.SET_STATUS, async (status) => {
      if (status > 0xffn) throw new Refused(`device status 0x${status.toString(16)}: it has 8 bits`);
      this.#status = status;
      if (status === 0n) await this.#reset();
    });
    d.on(FRONTEND.GET_STATUS, () => this.#status);
    if (hasFeature(offered, VHOST_USER_PROTOCOL_F_MTU)) this.#registerMtu(d);
    if (hasFeature(offered, VHOST_USER_PROTOCOL_F_RARP)) this.#registerRarp(d);
    if (this.#state !== undefined) this.#registerState(d, this.#state);
  }

  #registerMtu(d: Dispatcher): void {
    d.on(FRONTEND.NET_SET_MTU, (mtu) => {
      const { attachment } = this.#context;
      const complaint = mtu > 0xffffn ? `MTU ${mtu}: at most 65535 is possible` : attachment.setMtu?.(Number(mtu));
      if (complaint !== undefined) throw new Refused(complaint);
    });
  }

  #registerRarp(d: Dispatcher): void {
    d.on(FRONTEND.SEND_RARP, (value) => {
      const bytes = new Uint8Array(8);
      new DataView(bytes.buffer).setBigUint64(0, value, true);
      this.#context.attachment.announce?.(bytes.subarray(0, 6));
    });
  }

  #registerState(d: Dispatcher, state: DeviceState): void {
    d.on(FRONTEND.SET_DEVICE_STATE_FD, ({ direction, phase }, [fd]) => {
      if (this.#context.anyStarted) throw new Refused('device state is transferred while all rings are stopped');
      return state.begin(direction, phase, fd as OwnedFd);
    });
    d.on(FRONTEND.CHECK_DEVICE_STATE, () => state.check());
  }

  async #reset(): Promise<void> {
    await this.#context.resetRings();
    this.#status = 0n;
    this.#context.attachment.reset();
    this.#context.saveState();
  }

  #readConfig({ offset, size, flags }: ConfigSpace): ConfigSpace {
    if (size === 0 || offset > MAX_CONFIG_BYTES || size > MAX_CONFIG_BYTES - offset) {
      throw new Refused(`${size} bytes at ${offset} of a configuration space of at most ${MAX_CONFIG_BYTES} bytes`);
    }
    const padded = new Uint8Array(MAX_CONFIG_BYTES);
    padded.set(this.#context.attachment.readConfig());
    return { offset, size, flags, data: padded.slice(offset, offset + size) };
  }

  /** Ends a transfer that is under way. */
  close(): void {
    this.#state?.close();
  }
}
