import { describe, expect, it } from 'vitest';
import {
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
} from '../../../../../vmm-client/vmm/acpi/aml.ts';

const hexOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

// What iasl makes of the ASL in the name of each row.
describe('terms as iasl compiles them', () => {
  it.each<[string, Uint8Array, string]>([
    ['Zero', integer(0), '00'],
    ['One', integer(1), '01'],
    ['0xff', integer(0xff), '0aff'],
    ['0x100', integer(0x100), '0b0001'],
    ['0x10000', integer(0x1_0000), '0c00000100'],
    ['0xfec00000', integer(0xfec0_0000), '0c0000c0fe'],
    ['"PNP0501"', string('PNP0501'), '0d504e503035303100'],
    ['Name (_UID, 2)', name('_UID', integer(2)), '085f5549440a02'],
    ['Name (\\_S5, Package () {5, 0})', name('\\_S5', packageOf(integer(5), integer(0))), '085c5f53355f1205020a0500'],
    ['Scope (\\_SB) {}', scope('\\_SB'), '10065c5f53425f'],
    ['Device (COM1) {}', device('COM1'), '5b8205434f4d31'],
    ['ResourceTemplate () {}', resourceTemplate(), '11050a027900'],
    ['Memory32Fixed', memory32Fixed(0xd000_1000, 0x1000), '86090001001000d000100000'],
    ['Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {17}', edgeInterrupt(17), '890600030111000000'],
    ['IO (Decode16, 0x3f8, 0x3f8, 1, 8)', ioPorts(0x3f8, 8), '4701f803f8030108'],
  ])('%s', (_, bytes, expected) => {
    expect(hexOf(bytes)).toBe(expected);
  });

  // ACPI 6.5, 20.2.4: one byte up to 63, then 12, 20 and 28 bits, low nibble first.
  it.each([
    [62 - 5, '103f'],
    [63 - 5, '104104'],
    [4093 - 5, '104fff'],
    [4094 - 5, '10810001'],
    [0xf_fffc - 5, '108fffff'],
    [0xf_fffd - 5, '10c1000001'],
  ])('a scope with %i bytes of terms', (length, expected) => {
    expect(hexOf(scope('\\_SB', new Uint8Array(length))).slice(0, expected.length)).toBe(expected);
  });
});
