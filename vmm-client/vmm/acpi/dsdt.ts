/**
 * The machine's devices as ACPI describes them: every virtio-mmio device as LNRO0005 with its page of registers and its
 * interrupt, the serial port as PNP0501, and the sleep type of S5 (soft off). Source: ACPI 6.5, 6.1 Device Identification
 * Objects, 7.4.2.6 \_S5; Linux, drivers/virtio/virtio_mmio.c (the id) and drivers/tty/serial/8250/8250_pnp.c.
 */

import { SERIAL_GSI, SERIAL_PORT, SERIAL_PORT_COUNT, VIRTIO_MMIO_BYTES } from '../layout.ts';
import {
  concat,
  device,
  edgeInterrupt,
  integer,
  ioPorts,
  memory32Fixed,
  name,
  packageOf,
  resourceTemplate,
  scope,
  string,
} from './aml.ts';

/** A virtio-mmio device: guest physical address of its registers, and its global system interrupt. */
export interface MmioDevice {
  readonly address: number;
  readonly gsi: number;
}

export interface DsdtOptions {
  readonly devices: readonly MmioDevice[];
  readonly hasSerial: boolean;
}

/** What a guest writes as SLP_TYP to the sleep control register to switch the machine off. */
export const S5_SLEEP_TYPE = 5;

const virtioDevice = ({ address, gsi }: MmioDevice, index: number): Uint8Array =>
  device(
    `V${index.toString(16).toUpperCase().padStart(3, '0')}`,
    name('_HID', string('LNRO0005')),
    name('_UID', integer(index)),
    name('_CCA', integer(1)),
    name('_CRS', resourceTemplate(memory32Fixed(address, VIRTIO_MMIO_BYTES), edgeInterrupt(gsi))),
  );

const serialPort = (): Uint8Array =>
  device(
    'COM1',
    name('_HID', string('PNP0501')),
    name('_UID', integer(0)),
    name('_CRS', resourceTemplate(ioPorts(SERIAL_PORT, SERIAL_PORT_COUNT), edgeInterrupt(SERIAL_GSI))),
  );

/** The terms of the DSDT, without the table's header. */
export const encodeDsdtBody = ({ devices, hasSerial }: DsdtOptions): Uint8Array =>
  concat(
    scope('\\_SB', ...devices.map(virtioDevice), ...(hasSerial ? [serialPort()] : [])),
    name('\\_S5', packageOf(integer(S5_SLEEP_TYPE), integer(0), integer(0), integer(0))),
  );
