import { describe, expect, it } from 'vitest';
import { AcpiPower } from '../../../../../vmm-client/vmm/legacy/acpi-power.ts';
import { I8042 } from '../../../../../vmm-client/vmm/legacy/i8042.ts';
import { parseI8042State } from '../../../../../vmm-client/vmm/legacy/pc-state.ts';

const events: string[] = [];
const onReset = () => events.push('reset');
const onShutdown = () => events.push('shutdown');

/** What the guest's write led to. */
function eventsOf(write: () => void): string[] {
  events.length = 0;
  write();
  return [...events];
}

describe('the keyboard controller', () => {
  const controller = new I8042(onReset);

  it('resets by command 0xfe at port 0x64', () => {
    expect(eventsOf(() => controller.write(4, 1, 0xfe))).toEqual(['reset']);
  });

  it.each([
    [0, 0xfe],
    [4, 0xaa],
    [4, 0xd1],
    [1, 0x03],
    [2, 0xfe],
  ])('does nothing at offset %i with 0x%s', (offset, value) => {
    expect(eventsOf(() => controller.write(offset, 1, value))).toEqual([]);
  });

  it('looks like none: a flush never ends, and a command need not be waited for', () => {
    expect(controller.read(4, 1)).toBe(0x01);
    expect(controller.read(0, 1)).toBe(0);
    expect(controller.read(4, 1)).toBe(0x01);
  });

  it('has a system control port whose timer is done, whose refresh toggles, and which keeps four bits', () => {
    controller.write(1, 1, 0xfd);
    const values = [controller.read(1, 1), controller.read(1, 1)];
    expect(values.map((value) => value & 0x2f)).toEqual([0x2d, 0x2d]);
    expect((values[0] as number) ^ (values[1] as number)).toBe(0x10);
  });

  it('goes on in another one, and not in what is none', () => {
    controller.write(1, 1, 0x05);
    const other = new I8042(onReset);
    other.restore(parseI8042State(controller.save()));
    expect(other.read(1, 1)).toBe(controller.read(1, 1));
    expect(() => parseI8042State({ systemControl: 0x20 })).toThrow(
      'i8042: systemControl: 32: not a whole number between 0 and 31',
    );
    expect(() => parseI8042State(null)).toThrow('i8042: null: not an object');
  });
});

describe('the ACPI registers', () => {
  const power = new AcpiPower({ onReset, onShutdown });

  it.each([
    ['RESET_VALUE', 0, 1, 1, ['reset']],
    ['another value', 0, 1, 2, []],
    ['SLP_EN with the type of S5', 1, 1, 0x34, ['shutdown']],
    ['the type of S5 without SLP_EN', 1, 1, 0x14, []],
    ['SLP_EN with another type', 1, 1, 0x20, []],
    ['WAK_STS', 2, 1, 0x80, []],
    ['two registers at once', 0, 2, 0x3400, ['shutdown']],
  ])('%s', (_, offset, size, value, expected) => {
    expect(eventsOf(() => power.write(offset, size, value))).toEqual(expected);
  });

  it('read as zero', () => {
    expect([power.read(0, 1), power.read(1, 1), power.read(2, 1), power.read(0, 2)]).toEqual([0, 0, 0, 0]);
  });
});
