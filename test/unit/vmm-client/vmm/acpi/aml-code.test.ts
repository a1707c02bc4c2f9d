import { describe, expect, it } from 'vitest';
import { integer } from '../../../../../vmm-client/vmm/acpi/aml.ts';
import {
  ifAnySet,
  LOCAL0,
  memoryRegion,
  method,
  named,
  notify,
  returnValue,
  store,
  wordFields,
} from '../../../../../vmm-client/vmm/acpi/aml-code.ts';

// What iasl makes of the ASL in the name of each row.
describe('terms as iasl compiles them', () => {
  it.each<[string, Uint8Array, string]>([
    [
      'OperationRegion (HPRG, SystemMemory, 0xd0100000, 0x18)',
      memoryRegion('HPRG', 0xd010_0000, 0x18),
      '5b8048505247000c000010d00a18',
    ],
    [
      'Field (HPRG, DWordAcc, NoLock, Preserve) { PRES, 32, ADDE, 32 }',
      wordFields('HPRG', 'PRES', 'ADDE'),
      '5b811048505247035052455320' + '4144444520',
    ],
    ['Method (_STA, 0, NotSerialized) {}', method('_STA', 0, false), '14065f53544100'],
    ['Method (_EVT, 1, Serialized) {}', method('_EVT', 1, true), '14065f45565409'],
    ['Local0 = ADDE', store(named('ADDE'), LOCAL0), '704144444560'],
    ['ACKA = Local0', store(LOCAL0, named('ACKA')), '706041434b41'],
    ['If (Local0 & 2) { Notify (S001, 1) }', ifAnySet(LOCAL0, 2, notify('S001', 1)), 'a00c7b600a0200865330303101'],
    ['Notify (S012, 3)', notify('S012', 3), '86533031320a03'],
    ['Return (0x0f)', returnValue(integer(0x0f)), 'a40a0f'],
  ])('%s', (_, bytes, expected) => {
    expect(Buffer.from(bytes).toString('hex')).toBe(expected);
  });
});
