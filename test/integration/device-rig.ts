/**
 * A virtio-mmio device in front of a daemon, with a guest that drives it; and the same guest somewhere else, with what of
 * its memory was copied: what a snapshot or a migration does to one device.
 */

import type { DeviceOptions } from '../../vmm-client/vmm/devices/attach.ts';
import type { DeviceDescription } from '../../vmm-client/vmm/devices/open.ts';
import { openDevice } from '../../vmm-client/vmm/devices/open.ts';
import { decodeState, encodeState } from '../../vmm-client/vmm/state/codec.ts';
import { VirtioMmioTransport } from '../../vmm-client/vmm/virtio-mmio/transport.ts';
import type { Cleanup } from '../support/cleanup.ts';
import { MmioGuest, type MmioGuestOptions } from '../support/frontend/mmio-guest.ts';

export class DeviceRig {
  readonly guest: MmioGuest;
  readonly transport: VirtioMmioTransport;
  readonly lines: string[];
  readonly #cleanup: Cleanup;

  private constructor(cleanup: Cleanup, guest: MmioGuest, transport: VirtioMmioTransport, lines: string[]) {
    this.#cleanup = cleanup;
    this.guest = guest;
    this.transport = transport;
    this.lines = lines;
  }

  static async plug(
    cleanup: Cleanup,
    device: DeviceDescription,
    options: MmioGuestOptions | MmioGuest = {},
    deviceOptions: Partial<DeviceOptions> = {},
  ): Promise<DeviceRig> {
    const guest = options instanceof MmioGuest ? options : new MmioGuest(options);
    cleanup.add(() => guest.close());
    const lines: string[] = [];
    const log = (line: string) => void lines.push(line);
    const ram = guest.deviceMemory;
    const common = { ram, log, reconnectMs: 20_000, waitMs: 1000, awayMs: 15_000 };
    const opened = await openDevice(device, { ...common, ...deviceOptions });
    const transport = new VirtioMmioTransport(opened, { ...guest.wiring, log });
    cleanup.add(() => transport.close());
    guest.plug(transport);
    return new DeviceRig(cleanup, guest, transport, lines);
  }

  get driver() {
    return this.guest.driver;
  }

  /** Stops the device, and takes its state as bytes that could have come from anywhere. */
  async suspend(): Promise<unknown> {
    return decodeState(encodeState(await this.transport.suspend()));
  }

  /** The same guest in front of another daemon, with a copy of all its memory. Its driver has not been heard there. */
  async elsewhere(device: DeviceDescription, deviceOptions: Partial<DeviceOptions> = {}): Promise<DeviceRig> {
    const twin = this.guest.twin();
    twin.ram.bytes.set(this.guest.ram.bytes);
    return DeviceRig.plug(this.#cleanup, device, twin, deviceOptions);
  }

  close(): void {
    this.transport.close();
    this.guest.close();
  }
}
