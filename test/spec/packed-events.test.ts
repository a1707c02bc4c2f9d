/** VIRTIO 1.3, 2.8.10 Driver and Device Event Suppression, and 2.8.14, its format: the device's side. */

import { describe, expect, it } from 'vitest';
import { createPair, offer, type Pair, popAll, returnBuffers } from './packed-pair.ts';

describe('2.8.10 driver event suppression', () => {
  it.each([
    [false, 0, true],
    [false, 1, false],
    [false, 2, true],
    [false, 3, true],
    [true, 0, true],
    [true, 1, false],
    [true, 3, true],
    [false, 0xfffc, true],
    [false, 0xfffd, false],
  ])('EVENT_IDX %s, flags %i: told is %s', (eventIdx, flags, told) => {
    const pair = createPair({ eventIdx });
    pair.driver.setDriverEvent(flags, 0x7fff);

    expect(returnBuffers(pair, 1)).toBe(told);
  });

  it('tells nothing when nothing was returned, and nothing twice', () => {
    const pair = createPair();
    expect(pair.device.needsNotification()).toBe(false);

    expect(returnBuffers(pair, 2)).toBe(true);

    expect(pair.device.needsNotification()).toBe(false);
  });

  // In a ring of 6: places 0 to 5 have wrap counter 1 (0x8000), places 6 to 11 are slots 0 to 5 with wrap counter 0.
  it.each([
    [0, 1, 1, 0x8000, true],
    [0, 1, 1, 0x8001, false],
    [0, 1, 1, 0x0000, false],
    [0, 1, 3, 0x8002, true],
    [0, 1, 3, 0x8003, false],
    [0, 2, 3, 0x8005, true],
    [0, 2, 3, 0x0000, false],
    [3, 1, 1, 0x8003, true],
    [3, 1, 1, 0x8002, false],
    [5, 1, 1, 0x8005, true],
    [5, 1, 1, 0x0000, false],
    [5, 2, 1, 0x0000, true],
    [5, 1, 4, 0x0002, true],
    [5, 1, 4, 0x8002, false],
    [11, 2, 1, 0x8000, true],
    [11, 2, 1, 0x0000, false],
    [0, 6, 1, 0x8005, true],
    [0, 6, 1, 0x0005, false],
    [2, 1, 1, 0x7fff, false],
  ])('EVENT_IDX: from %i, %i buffers of %i slots, event %i: told is %s', (start, count, slots, event, told) => {
    const pair = createPair({ eventIdx: true, size: 6, start });
    pair.driver.setDriverEvent(2, event);

    expect(returnBuffers(pair, count, slots)).toBe(told);
  });

  it('counts from the last time it looked, not from the last time it told', () => {
    const pair = createPair({ eventIdx: true });
    pair.driver.setDriverEvent(2, 0x8002);

    const told = [1, 1, 1, 1].map((count) => returnBuffers(pair, count));

    expect(told).toEqual([false, false, true, false]);
  });

  it('does not count what is staged and not published', () => {
    const pair = createPair({ eventIdx: true });
    pair.driver.setDriverEvent(2, 0x8001);
    offer(pair, 0);
    offer(pair, 1);
    const [first, second] = popAll(pair) as [number, number];
    pair.device.push(first, 0);
    pair.device.publish();
    pair.device.push(second, 0);

    expect(pair.device.needsNotification()).toBe(false);

    pair.device.publish();
    expect(pair.device.needsNotification()).toBe(true);
  });
});

describe('2.8.10 device event suppression', () => {
  const event = ({ driver }: Pair): [number, number] => [
    driver.ram.view.getUint16(driver.deviceEvent, true),
    driver.ram.view.getUint16(driver.deviceEvent + 2, true),
  ];

  it('without EVENT_IDX is disabled and enabled by flags', () => {
    const pair = createPair();

    pair.device.disableKicks();
    expect(event(pair)[1]).toBe(1);
    pair.device.enableKicks();
    expect(event(pair)[1]).toBe(0);
  });

  it.each([
    [0, 0x8000],
    [5, 0x8005],
    [6, 0x0000],
    [11, 0x0005],
  ])('with EVENT_IDX asks for the next descriptor: at place %i by %i', (start, asked) => {
    const pair = createPair({ eventIdx: true, size: 6, start });
    pair.device.disableKicks();
    expect(event(pair)[1]).toBe(1);

    expect(pair.device.enableKicks()).toBe(false);

    expect(event(pair)).toEqual([asked, 2]);
  });

  it.each([true, false])('looks again after asking: a chain that came meanwhile is told (EVENT_IDX %s)', (eventIdx) => {
    const pair = createPair({ eventIdx });
    pair.device.disableKicks();

    offer(pair, 3);

    expect(pair.device.enableKicks()).toBe(true);
    expect(popAll(pair)).toHaveLength(1);
  });

  it('asks for the chain after a place that was noted before', () => {
    const pair = createPair({ eventIdx: true });
    offer(pair, 0);
    offer(pair, 1, 2);
    const tokens = popAll(pair);
    const { position } = pair.device;
    for (const token of tokens.reverse()) pair.device.untake(token);

    expect(pair.device.enableKicks(position)).toBe(false);
    expect(event(pair)).toEqual([0x8003, 2]);
    offer(pair, 2);
    expect(pair.device.enableKicks(position)).toBe(true);
    expect(popAll(pair)).toHaveLength(3);
  });
});
