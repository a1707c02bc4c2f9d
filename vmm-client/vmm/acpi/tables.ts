/**
 * The ACPI tables of a machine without the hardware that ACPI once prescribed (hardware-reduced): processors and the I/O
 * APIC, the registers for reset and soft off, and the devices.
 *
 *     RSDP (revision 2) -> XSDT -> FADT (6.5) -> DSDT
 *                              `-> MADT
 *                              `-> VIOT, where there is an IOMMU
 *
 * Source: ACPI 6.5, 5.2 ACPI System Description Tables, 4.8.3.7 Sleep Control/Status and 4.8.3.6 Reset Register.
 */

import { VmConfigError } from '../errors.ts';
import { ACPI_ADDRESS, ACPI_POWER_PORT, IO_APIC_ADDRESS, LOCAL_APIC_ADDRESS, RESET_VECTOR_ADDRESS } from '../layout.ts';
import { concat } from './aml.ts';
import { type DsdtOptions, encodeDsdtBody } from './dsdt.ts';
import { encodeViotBody, type ViotOptions } from './viot.ts';

export interface AcpiOptions extends DsdtOptions {
  readonly cpuCount: number;
  readonly viot?: ViotOptions | undefined;
}

/** What a guest writes to the reset register, the first of the power ports. */
export const RESET_VALUE = 1;

const RSDP_BYTES = 36;
const RSDP_V1_BYTES = 20;
const HEADER_BYTES = 36;
/** Tables begin at multiples of it; the standard asks for none but of the RSDP (16). */
const TABLE_ALIGNMENT = 64;

const OEM_ID = 'RINGSD';
const OEM_TABLE_ID = 'RINGSIDE';
const CREATOR_ID = 'RING';

const MADT_LOCAL_APIC = 0;
const MADT_IO_APIC = 1;
const LOCAL_APIC_ENABLED = 1;

const FADT_BYTES = 276;
const FADT_MINOR_VERSION = 5;
/** No fixed power and sleep buttons, reset register present, no fixed hardware at all; WBINVD works. */
const FADT_FLAGS = (1 << 0) | (1 << 4) | (1 << 5) | (1 << 10) | (1 << 20);
/** No VGA and no CMOS clock to probe for. Bit 1 (8042 keyboard controller) stays clear: only its reset line is there. */
const IAPC_BOOT_ARCH = (1 << 2) | (1 << 5);
/** Byte offsets in the FADT. */
const FADT = {
  dsdt: 40,
  iapc_boot_arch: 109,
  flags: 112,
  reset_reg: 116,
  reset_value: 128,
  minor_version: 131,
  x_dsdt: 140,
  sleep_control_reg: 244,
  sleep_status_reg: 256,
  hypervisor_vendor: 268,
} as const;

const ADDRESS_SPACE_IO = 1;
const ACCESS_BYTE = 1;

const ascii = (text: string): number[] => Array.from(text, (character) => character.charCodeAt(0));

/** Makes all bytes of the structure add up to 0 modulo 256. */
const putChecksum = (bytes: Uint8Array, offset: number): void => {
  bytes[offset] = 0;
  bytes[offset] = -bytes.reduce((sum, byte) => sum + byte, 0) & 0xff;
};

/** A table: 36 bytes of header in front of `body`, checksum included. */
const encodeTable = (signature: string, revision: number, body: Uint8Array): Uint8Array => {
  const bytes = new Uint8Array(HEADER_BYTES + body.length);
  const view = new DataView(bytes.buffer);
  bytes.set(ascii(signature), 0);
  view.setUint32(4, bytes.length, true);
  view.setUint8(8, revision);
  bytes.set(ascii(OEM_ID), 10);
  bytes.set(ascii(OEM_TABLE_ID), 16);
  view.setUint32(24, 1, true);
  bytes.set(ascii(CREATOR_ID), 28);
  view.setUint32(32, 1, true);
  bytes.set(body, HEADER_BYTES);
  putChecksum(bytes, 9);
  return bytes;
};

const encodeMadt = (cpuCount: number): Uint8Array => {
  const fixed = new Uint8Array(8);
  new DataView(fixed.buffer).setUint32(0, LOCAL_APIC_ADDRESS, true);
  const localApics = Array.from({ length: cpuCount }, (_, id) => [
    MADT_LOCAL_APIC,
    8,
    id,
    id,
    LOCAL_APIC_ENABLED,
    0,
    0,
    0,
  ]);
  const ioApic = new Uint8Array(12);
  ioApic.set([MADT_IO_APIC, 12]);
  new DataView(ioApic.buffer).setUint32(4, IO_APIC_ADDRESS, true);
  return encodeTable('APIC', 5, concat(fixed, ...localApics, ioApic));
};

/** A generic address structure for a register of one byte in port space. */
const putPortRegister = (view: DataView, offset: number, port: number): void => {
  view.setUint8(offset, ADDRESS_SPACE_IO);
  view.setUint8(offset + 1, 8);
  view.setUint8(offset + 3, ACCESS_BYTE);
  view.setBigUint64(offset + 4, BigInt(port), true);
};

const encodeFadt = (dsdtAddress: number): Uint8Array => {
  const table = new Uint8Array(FADT_BYTES);
  const view = new DataView(table.buffer);
  view.setUint32(FADT.dsdt, dsdtAddress, true);
  view.setUint16(FADT.iapc_boot_arch, IAPC_BOOT_ARCH, true);
  view.setUint32(FADT.flags, FADT_FLAGS, true);
  putPortRegister(view, FADT.reset_reg, ACPI_POWER_PORT);
  view.setUint8(FADT.reset_value, RESET_VALUE);
  view.setUint8(FADT.minor_version, FADT_MINOR_VERSION);
  view.setBigUint64(FADT.x_dsdt, BigInt(dsdtAddress), true);
  putPortRegister(view, FADT.sleep_control_reg, ACPI_POWER_PORT + 1);
  putPortRegister(view, FADT.sleep_status_reg, ACPI_POWER_PORT + 2);
  table.set(ascii(OEM_TABLE_ID), FADT.hypervisor_vendor);
  return encodeTable('FACP', 6, table.subarray(HEADER_BYTES));
};

const encodeXsdt = (...addresses: readonly number[]): Uint8Array =>
  encodeTable('XSDT', 1, new Uint8Array(BigUint64Array.from(addresses, (address) => BigInt(address)).buffer));

const encodeRsdp = (xsdtAddress: number): Uint8Array => {
  const bytes = new Uint8Array(RSDP_BYTES);
  const view = new DataView(bytes.buffer);
  bytes.set(ascii('RSD PTR '), 0);
  bytes.set(ascii(OEM_ID), 9);
  view.setUint8(15, 2);
  view.setUint32(20, RSDP_BYTES, true);
  view.setBigUint64(24, BigInt(xsdtAddress), true);
  putChecksum(bytes.subarray(0, RSDP_V1_BYTES), 8);
  putChecksum(bytes, 32);
  return bytes;
};

/**
 * All tables in one piece, to be put at guest physical address `base`: the RSDP is at its start.
 * @throws VmConfigError - they do not fit between ACPI_ADDRESS and RESET_VECTOR_ADDRESS
 */
export const encodeAcpiTables = (base: number, options: AcpiOptions): Uint8Array => {
  const placed: { offset: number; bytes: Uint8Array }[] = [];
  let end = TABLE_ALIGNMENT;
  const place = (bytes: Uint8Array): number => {
    const offset = end;
    placed.push({ offset, bytes });
    end = Math.ceil((offset + bytes.length) / TABLE_ALIGNMENT) * TABLE_ALIGNMENT;
    return base + offset;
  };
  const dsdt = place(encodeTable('DSDT', 2, encodeDsdtBody(options)));
  const fadt = place(encodeFadt(dsdt));
  const madt = place(encodeMadt(options.cpuCount));
  const { viot } = options;
  const others = viot === undefined ? [] : [place(encodeTable('VIOT', 0, encodeViotBody(viot)))];
  placed.push({ offset: 0, bytes: encodeRsdp(place(encodeXsdt(fadt, madt, ...others))) });
  const room = RESET_VECTOR_ADDRESS - ACPI_ADDRESS;
  if (end > room) {
    throw new VmConfigError(`ACPI tables of ${end} bytes, there is room for ${room}`);
  }
  const all = new Uint8Array(end);
  for (const { offset, bytes } of placed) all.set(bytes, offset);
  return all;
};
