import { describe, expect, it } from 'vitest';
import { Bus, type BusDevice } from '../../../../vmm-client/vmm/bus.ts';

/** Answers reads with what it was asked, and keeps what is written. */
class Recorder implements BusDevice {
  readonly writes: [number, number, number][] = [];
  read(offset: number, size: number): number {
    return offset * 0x100 + size;
  }
  write(offset: number, size: number, value: number): void {
    this.writes.push([offset, size, value]);
  }
}

describe('Bus', () => {
  it('gives a device offsets from its own start', () => {
    const bus = new Bus();
    const device = new Recorder();
    bus.add(0x1000, 0x100, device);
    expect(bus.read(0x1020, 4)).toBe(0x2004);
    void bus.write(0x10fc, 4, 7);
    expect(device.writes).toEqual([[0xfc, 4, 7]]);
  });

  it('keeps neighbours apart', () => {
    const bus = new Bus();
    const [first, second] = [new Recorder(), new Recorder()];
    bus.add(0x1100, 0x100, second);
    bus.add(0x1000, 0x100, first);
    void bus.write(0x10ff, 1, 1);
    void bus.write(0x1100, 1, 2);
    expect(first.writes).toEqual([[0xff, 1, 1]]);
    expect(second.writes).toEqual([[0, 1, 2]]);
  });

  it.each([
    [0xfff, 1, 0xff],
    [0xffe, 4, 0xffff_ffff],
    [0x10fe, 4, 0xffff_ffff],
    [0x1100, 2, 0xffff],
    [0xffff_ffff_f000, 4, 0xffff_ffff],
  ])('has nobody at 0x%s for %i bytes', (address, size, ones) => {
    const bus = new Bus();
    const device = new Recorder();
    bus.add(0x1000, 0x100, device);
    expect(bus.read(address, size)).toBe(ones);
    expect(bus.write(address, size, 1)).toBeUndefined();
    expect(device.writes).toEqual([]);
  });

  it.each([
    [0x0f80, 0x100],
    [0x1080, 0x10],
    [0x10ff, 1],
  ])('refuses a second device at 0x%s', (start, length) => {
    const bus = new Bus();
    bus.add(0x1000, 0x100, new Recorder());
    expect(() => bus.add(start, length, new Recorder())).toThrow(RangeError);
  });
});
