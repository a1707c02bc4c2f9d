/** A device in front of a scripted back end, with a guest's memory and rings: for tests of what it is told. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect } from 'vitest';
import type { DeviceOptions } from '../../../../../vmm-client/vmm/devices/attach.ts';
import { type DeviceDescription, openDevice } from '../../../../../vmm-client/vmm/devices/open.ts';
import type { VhostUserDevice } from '../../../../../vmm-client/vmm/devices/vhost-user-device.ts';
import { VirtioMmioTransport } from '../../../../../vmm-client/vmm/virtio-mmio/transport.ts';
import { MmioGuest, type MmioGuestOptions } from '../../../../support/frontend/mmio-guest.ts';
import { countOwnFds } from '../../../../support/frontend/process-probe.ts';
import { type Script, ScriptedBackend } from '../../frontend/scripted-backend.ts';

export const mask = (...bits: number[]): bigint => bits.reduce((sum, bit) => sum | (1n << BigInt(bit)), 0n);

/** MQ, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE. */
export const PROTOCOL = mask(0, 3, 5, 9, 12, 13);
/** Without CONFIG. */
export const PROTOCOL_WITHOUT_CONFIG = mask(0, 3, 12);

export class DeviceBench {
  directory = '';
  socket = '';
  guest = new MmioGuest();
  lines: string[] = [];
  backend: ScriptedBackend | undefined;
  #device: VhostUserDevice | undefined;
  #transport: VirtioMmioTransport | undefined;
  #fdsBefore = 0;

  /** Registers itself with the tests of the file; every test ends with as many descriptors as it began with. */
  constructor() {
    this.guest.close();
    beforeEach(() => {
      this.#fdsBefore = countOwnFds();
      this.directory = mkdtempSync(join(tmpdir(), 'ringside-device-'));
      this.socket = join(this.directory, 'socket');
      this.lines = [];
    });
    afterEach(() => {
      this.#close();
      rmSync(this.directory, { recursive: true, force: true });
      expect(countOwnFds()).toBe(this.#fdsBefore);
    });
  }

  #close(): void {
    this.#transport?.close();
    this.#device?.close();
    this.backend?.close();
    this.guest.close();
    this.#transport = undefined;
    this.#device = undefined;
    this.backend = undefined;
  }

  listen(script: Partial<Script>): ScriptedBackend {
    this.backend = new ScriptedBackend(this.socket, script);
    return this.backend;
  }

  /** Opens a device of the script's, in the place of the last one; the back end listens before. */
  async open(
    script: Partial<Script>,
    describe: (socket: string) => DeviceDescription,
    options: Partial<DeviceOptions> = {},
    guestOptions: MmioGuestOptions = {},
  ): Promise<VhostUserDevice> {
    this.#close();
    this.listen(script);
    this.guest = new MmioGuest(guestOptions);
    this.#device = await openDevice(describe(this.socket), {
      ram: this.guest.deviceMemory,
      log: (line) => void this.lines.push(line),
      reconnectMs: 5000,
      awayMs: 2000,
      timeoutMs: 500,
      ...options,
    });
    return this.#device;
  }

  /** Puts a transport in front of the device. */
  plug(device: VhostUserDevice): { guest: MmioGuest; transport: VirtioMmioTransport } {
    const log = (line: string) => void this.lines.push(line);
    this.#transport = new VirtioMmioTransport(device, { ...this.guest.wiring, log });
    this.guest.plug(this.#transport);
    return { guest: this.guest, transport: this.#transport };
  }

  /** What `openDevice` complains of. */
  async complaint(script: Partial<Script>, describe: (socket: string) => DeviceDescription): Promise<Error> {
    try {
      await this.open(script, describe);
    } catch (error) {
      return error as Error;
    }
    throw new Error('the device was opened');
  }
}
