import { describe, expect, it } from 'vitest';
import { encodeAcpiTables } from '../../../../../vmm-client/vmm/acpi/tables.ts';
import { encodeViotBody } from '../../../../../vmm-client/vmm/acpi/viot.ts';

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

describe('VIOT', () => {
  it('has the IOMMU first, and a node for each endpoint that leads to it', () => {
    const endpoints = [
      { id: 0, address: 0xd000_0000 },
      { id: 17, address: 0xd001_1000 },
    ];
    expect(hex(encodeViotBody({ iommu: 0xd001_2000, endpoints }))).toBe(
      // Three nodes, the first of them 48 bytes from the start of the table.
      '0300' +
        '3000' +
        '0000000000000000' +
        '04001000' +
        '00000000' +
        '002001d000000000' +
        '02001800' +
        '00000000' +
        '000000d000000000' +
        '3000' +
        '000000000000' +
        '02001800' +
        '11000000' +
        '001001d000000000' +
        '3000' +
        '000000000000',
    );
  });

  it('is the last table of the XSDT, of revision 0, and only there with an IOMMU', () => {
    const base = 0xe_0000;
    const tables = (viot?: Parameters<typeof encodeViotBody>[0]): string[] => {
      const all = Buffer.from(encodeAcpiTables(base, { cpuCount: 1, hasSerial: false, viot }));
      const xsdt = Number(all.readBigUInt64LE(24)) - base;
      const count = (all.readUInt32LE(xsdt + 4) - 36) / 8;
      return Array.from({ length: count }, (_, n) => {
        const at = Number(all.readBigUInt64LE(xsdt + 36 + 8 * n)) - base;
        const table = all.subarray(at, at + all.readUInt32LE(at + 4));
        const sum = table.reduce((total, byte) => (total + byte) & 0xff, 0);
        return `${table.toString('latin1', 0, 4)} ${table[8]} ${table.length} ${sum}`;
      });
    };
    expect(tables().map((line) => line.slice(0, 4))).toEqual(['FACP', 'APIC']);
    expect(tables({ iommu: 0xd001_2000, endpoints: [{ id: 3, address: 0xd000_3000 }] }).at(-1)).toBe('VIOT 0 88 0');
  });
});
