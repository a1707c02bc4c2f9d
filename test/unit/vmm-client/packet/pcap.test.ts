import { describe, expect, it } from 'vitest';
import { encodePcapHeader, writePcapRecord } from '../../../../vmm-client/packet/pcap.ts';

describe('capture files', () => {
  it('begin with magic, version 2.4, length and link type', () => {
    expect(encodePcapHeader().toString('hex')).toBe(
      '4d3cb2a1' + '0200' + '0400' + '00000000' + '00000000' + '00000400' + '01000000',
    );
  });

  it('have a record for each packet, with nanoseconds', () => {
    const target = Buffer.alloc(32, 0xee);
    const end = writePcapRecord(target, 4, Uint8Array.of(1, 2, 3), 1_700_000_000_123.5);
    expect(target.subarray(0, end).toString('hex')).toBe(
      'eeeeeeee' + '00f15365' + 'e0755c07' + '03000000' + '03000000' + '010203',
    );
    expect(target[end]).toBe(0xee);
  });

  it('never have a whole second of nanoseconds', () => {
    const target = Buffer.alloc(32);
    writePcapRecord(target, 0, new Uint8Array(), 1999.999_999_9);
    expect([target.readUInt32LE(0), target.readUInt32LE(4)]).toEqual([1, 999_999_999]);
  });
});
