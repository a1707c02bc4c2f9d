import { describe, expect, it } from 'vitest';
import { type AcpiOptions, encodeAcpiTables } from '../../../../../vmm-client/vmm/acpi/tables.ts';
import { VmConfigError } from '../../../../../vmm-client/vmm/errors.ts';

const BASE = 0xe_0000;
const NO_DEVICES: AcpiOptions = { cpuCount: 1, hasSerial: false };

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

  // What iasl -oa makes of the ASL of the first and last slot; numbers below 256 are then one byte shorter.
  const FIRST_SLOT =
    '5b824e0853303030' + // Device (S000) {
    '085f4849440d414350493030303400' + //   Name (_HID, "ACPI0004")
    '085f55494400' + //   Name (_UID, Zero)
    '14145f53544100a00b7b5052455301' +
    '00a40a0fa400' + //   Method (_STA) { If (PRES & One) { Return (0x0f) } Return (Zero) }
    '140c5f454a3001' +
    '7000454a4354' + //   Method (_EJ0, 1) { EJCT = Zero }
    '5b824f0442303030' + //   Device (B000) {
    '085f41445200' + //     Name (_ADR, Zero)
    '5b82410456303030' + //     Device (V000) {
    '085f4849440d4c4e524f3030303500' + //       Name (_HID, "LNRO0005")
    '085f55494400' + //       Name (_UID, Zero)
    '085f43434101' + //       Name (_CCA, One)
    '085f435253111a0a17' + //       Name (_CRS, ResourceTemplate () {
    '86090001000000d000100000' + //         Memory32Fixed (ReadWrite, 0xd0000000, 0x1000)
    '890600030105000000' + //         Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {5}
    '7900';
  const LAST_SLOT =
    '5b82450953303132' +
    '085f4849440d414350493030303400' +
    '085f5549440a12' +
    '14185f53544100a00f7b505245530c0000040000a40a0fa400' +
    '140d5f454a3001700a12454a4354' +
    '5b82400542303132' +
    '085f41445200' +
    '5b82420456303132' +
    '085f4849440d4c4e524f3030303500' +
    '085f5549440a12' +
    '085f43434101' +
    '085f435253111a0a17' +
    '86090001002001d000100000' +
    '890600030117000000' +
    '7900';
  const REGISTERS =
    '5b8048505247000c000010d00a20' + // OperationRegion (HPRG, SystemMemory, 0xd0100000, 0x20)
    '5b812e4850524703' + // Field (HPRG, DWordAcc, NoLock, Preserve) {
    '5052455320414444452052454d5620' + //   PRES, 32, ADDE, 32, REMV, 32,
    '41434b412041434b5220454a435420' + //  ACKA, 32, ACKR, 32, EJCT, 32,
    '42544e532041434b4220'; //             BTNS, 32, ACKB, 32 }

  it('DSDT: the registers of hotplug, then nineteen slots with a virtio-mmio device each', () => {
    const dsdt = Buffer.from(tablesOf(NO_DEVICES).dsdt.slice(36)).toString('hex');

    expect(dsdt.indexOf(REGISTERS + FIRST_SLOT)).toBe(2 * 8);
    expect(dsdt).toContain(LAST_SLOT);
    expect(dsdt.split('085f4849440d414350493030303400')).toHaveLength(1 + 19);
    expect(dsdt.split('085f4849440d4c4e524f3030303500')).toHaveLength(1 + 19);
  });

  it('DSDT: an event device that acknowledges and then notifies every slot', () => {
    const dsdt = Buffer.from(tablesOf(NO_DEVICES).dsdt.slice(36)).toString('hex');
    const at = dsdt.indexOf('4745445f085f484944');

    // Name (_HID, "ACPI0013"), _UID, Name (_CRS, ResourceTemplate () { Interrupt (... Edge, ActiveHigh ...) {3} })
    const head = '4745445f085f4849440d414350493030313300085f55494400085f435253110e0a0b8906000301030000007900';
    expect(dsdt.slice(at, at + head.length)).toBe(head);
    const method = dsdt.slice(at + head.length);
    expect(method.slice(6, 16)).toBe('5f45565409'); // Method (_EVT, 1, Serialized)
    // Local0 = ADDE; ACKA = Local0; If (Local0 & One) { Notify (S000, One) }; ... If (Local0 & 0x40000) { Notify (S012, One) }
    const added = '704144444560706041434b41a00b7b600100865330303001a00c7b600a0200865330303101';
    expect(method.slice(16, 16 + added.length)).toBe(added);
    // Local0 = REMV; ACKR = Local0; If (Local0 & One) { Notify (S000, 0x03) }; ...
    const removing = '7052454d5660706041434b52a00c7b60010086533030300a03a00d7b600a020086533030310a03';
    expect(method).toContain(`a00f7b600c0000040000865330313201${removing}`);
    // Local0 = BTNS; ACKB = Local0; If (Local0 & One) { Notify (PWRB, 0x80) }
    const button = '7042544e5360706041434b42a00c7b60010086505752420a80';
    const end = '085c5f53355f1207040a05000000';
    expect(method.endsWith(`a0107b600c000004000086533031320a03${button}${end}`)).toBe(true);
    // Device (PWRB) { Name (_HID, "PNP0C0C") }
    expect(dsdt).toContain('5b8213505752425f4849440d504e503043304300'.replace('425f', '42085f'));
  });

  it('DSDT: the serial port behind the slots, and soft off', () => {
    const dsdt = Buffer.from(tablesOf({ ...NO_DEVICES, hasSerial: true }).dsdt.slice(36)).toString('hex');
    const serial =
      '5b8235434f4d31' +
      '085f4849440d504e503035303100' +
      '085f55494400' +
      '085f43525311160a13' +
      '4701f803f8030108' +
      '890600030104000000' +
      '7900';
    expect(dsdt.endsWith(`${serial}085c5f53355f1207040a05000000`)).toBe(true);
    expect(Buffer.from(tablesOf(NO_DEVICES).dsdt).toString('hex')).not.toContain('434f4d31');
  });

  it('that do not fit are refused', () => {
    expect(() => encodeAcpiTables(BASE, { ...NO_DEVICES, cpuCount: 20_000 })).toThrow(VmConfigError);
  });
});
