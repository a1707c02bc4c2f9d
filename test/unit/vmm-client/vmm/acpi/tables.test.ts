import { describe, expect, it } from 'vitest';
import { type AcpiOptions, encodeAcpiTables } from '../../../../../vmm-client/vmm/acpi/tables.ts';
import { VmConfigError } from '../../../../../vmm-client/vmm/errors.ts';

const BASE = 0xe_0000;
const NO_DEVICES: AcpiOptions = { cpuCount: 1, devices: [], hasSerial: false };

const sum = (bytes: Uint8Array): number => bytes.reduce((total, byte) => (total + byte) & 0xff, 0);
const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString('latin1');

/** Follows the pointers from the RSDP, as a guest does. */
const tablesOf = (options: AcpiOptions) => {
  const all = encodeAcpiTables(BASE, options);
  const view = new DataView(all.buffer);
  const tableAt = (address: number): Uint8Array => {
    const offset = address - BASE;
    return all.slice(offset, offset + view.getUint32(offset + 4, true));
  };
  const u64 = (bytes: Uint8Array, offset: number): number =>
    Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(offset, true));
  const rsdp = all.slice(0, 36);
  const xsdt = tableAt(u64(rsdp, 24));
  const fadt = tableAt(u64(xsdt, 36));
  return { rsdp, xsdt, fadt, madt: tableAt(u64(xsdt, 44)), dsdt: tableAt(u64(fadt, 140)) };
};

describe('the tables', () => {
  it('are found from the RSDP, each with its signature, revision and a sum of zero', () => {
    const { rsdp, ...tables } = tablesOf({ ...NO_DEVICES, cpuCount: 3, hasSerial: true });

    expect(text(rsdp.slice(0, 8))).toBe('RSD PTR ');
    expect([rsdp[15], sum(rsdp.slice(0, 20)), sum(rsdp)]).toEqual([2, 0, 0]);
    const seen = Object.values(tables).map((table) => [text(table.slice(0, 4)), table[8], sum(table)]);
    expect(seen).toEqual([
      ['XSDT', 1, 0],
      ['FACP', 6, 0],
      ['APIC', 5, 0],
      ['DSDT', 2, 0],
    ]);
    expect(tables.xsdt.length).toBe(52);
  });

  it('FADT: hardware-reduced, reset and sleep registers at ports 0x600 to 0x602', () => {
    const { fadt } = tablesOf(NO_DEVICES);
    const view = new DataView(fadt.buffer);

    expect(fadt.length).toBe(276);
    expect(view.getUint32(112, true)).toBe(0x10_0431);
    expect(view.getUint16(109, true)).toBe(0x24);
    expect([view.getUint32(40, true), Number(view.getBigUint64(140, true))]).toEqual([0xe_0040, 0xe_0040]);
    const registers = [116, 244, 256].map((at) => Buffer.from(fadt.slice(at, at + 12)).toString('hex'));
    expect(registers).toEqual(['010800010006000000000000', '010800010106000000000000', '010800010206000000000000']);
    expect([fadt[128], fadt[131]]).toEqual([1, 5]);
  });

  it('MADT: a local APIC for each processor, then the I/O APIC', () => {
    const { madt } = tablesOf({ ...NO_DEVICES, cpuCount: 2 });

    expect(Buffer.from(madt.slice(36)).toString('hex')).toBe(
      '0000e0fe00000000' + '0008000001000000' + '0008010101000000' + '010c00000000c0fe00000000',
    );
  });

  it('MADT: 254 processors', () => {
    const { madt } = tablesOf({ ...NO_DEVICES, cpuCount: 254 });

    expect(madt.length).toBe(44 + 254 * 8 + 12);
    expect([...madt.slice(44 + 253 * 8, 44 + 254 * 8)]).toEqual([0, 8, 253, 253, 1, 0, 0, 0]);
  });

  it('DSDT: a virtio-mmio device, the serial port and soft off', () => {
    const devices = [{ address: 0xd000_0000, gsi: 5 }];
    const { dsdt } = tablesOf({ cpuCount: 1, devices, hasSerial: true });

    const virtio =
      '5b82410456303030' + // Device (V000)
      '085f4849440d4c4e524f3030303500' + // Name (_HID, "LNRO0005")
      '085f55494400' + // Name (_UID, Zero)
      '085f43434101' + // Name (_CCA, One)
      '085f435253111a0a17' + // Name (_CRS, ResourceTemplate () {
      '86090001000000d000100000' + //   Memory32Fixed (ReadWrite, 0xd0000000, 0x1000)
      '890600030105000000' + //   Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {5}
      '7900'; // })
    const serial =
      '5b8235434f4d31' +
      '085f4849440d504e503035303100' +
      '085f55494400' +
      '085f43525311160a13' +
      '4701f803f8030108' +
      '890600030104000000' +
      '7900';
    const off = '085c5f53355f1207040a05000000';
    expect(Buffer.from(dsdt.slice(36)).toString('hex')).toBe(`1041085c5f53425f${virtio}${serial}${off}`);
  });

  it('DSDT: without serial port and devices there is soft off alone', () => {
    const { dsdt } = tablesOf(NO_DEVICES);

    expect(Buffer.from(dsdt.slice(36)).toString('hex')).toBe('10065c5f53425f' + '085c5f53355f1207040a05000000');
  });

  it('that do not fit are refused', () => {
    const devices = Array.from({ length: 4000 }, (_, index) => ({ address: 0xd000_0000 + index * 4096, gsi: 5 }));

    expect(() => encodeAcpiTables(BASE, { ...NO_DEVICES, devices })).toThrow(VmConfigError);
  });
});
