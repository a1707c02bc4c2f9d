import { describe, expect, it } from 'vitest';
import { RingMeter } from '../../../../../vmm-client/vmm/queues/ring-meter.ts';

/** Looks every 5 ms at what `indexes` says for each look; returns the meter after the last. */
const watch = (
  size: number,
  looks: number,
  indexes: (look: number) => readonly [available: number, used: number],
): RingMeter => {
  const [available, used] = indexes(0);
  const meter = new RingMeter(size, 1000, available, used);
  for (let look = 1; look <= looks; look += 1) {
    const [nextAvailable, nextUsed] = indexes(look);
    meter.look(1000 + 5 * look, nextAvailable & 0xffff, nextUsed & 0xffff);
  }
  return meter;
};

describe('The figures of a ring', () => {
  it('are rate, what is in flight, and by Little the latency', () => {
    // 50 used in 5 ms are 10,000 a second; 20 in flight at that rate wait 2 ms.
    const figures = watch(128, 200, (look) => [50 * look + 20, 50 * look]).figures();
    expect(figures.rate).toBeCloseTo(10_000, 6);
    expect(figures.inFlight).toBe(20);
    expect(figures.meanInFlight).toBeCloseTo(20, 6);
    expect(figures.latencyMs).toBeCloseTo(2, 6);
    expect(figures).toMatchObject({ used: 10_000, waitingMs: 0, exact: true, windowMs: 1000 });
  });

  it('survive indexes that go round', () => {
    // From 65,000 on: the used index passes 65,536 after 11 looks.
    const figures = watch(256, 200, (look) => [65_000 + 50 * look + 100, 65_000 + 50 * look]).figures();
    expect(figures).toMatchObject({ inFlight: 100, used: 10_000, exact: true });
    expect(figures.rate).toBeCloseTo(10_000, 6);
  });

  it('are over the last second only', () => {
    // A thousand a second for two seconds, then nothing for two.
    const figures = watch(64, 800, (look) => [5 * Math.min(look, 400), 5 * Math.min(look, 400)]).figures();
    expect(figures).toMatchObject({ rate: 0, inFlight: 0, latencyMs: undefined, waitingMs: 0, used: 2000 });
    const soon = watch(64, 500, (look) => [5 * Math.min(look, 400), 5 * Math.min(look, 400)]).figures();
    expect(soon.rate).toBeGreaterThan(400);
    expect(soon.rate).toBeLessThan(600);
  });

  it('tell for how long something waits and nothing is used', () => {
    const figures = watch(64, 300, (look) => [look < 80 ? look : 96, Math.min(look, 80)]).figures();
    expect(figures).toMatchObject({ inFlight: 16, rate: 0, waitingMs: 1100 });
    // One that is used ends it.
    expect(watch(64, 300, (look) => [116, look < 299 ? 100 : 101]).figures().waitingMs).toBe(5);
    // What became available just now has not waited since the queue was last used.
    expect(watch(64, 300, (look) => [look < 290 ? 100 : 101, 100]).figures().waitingMs).toBe(50);
  });

  it('are not exact when the driver says more than a ring can hold', () => {
    const figures = watch(64, 100, () => [65, 0]).figures();
    expect(figures).toMatchObject({ inFlight: 64, exact: false });
    // A driver that takes chains back is as wrong: 65,535 are in flight by that.
    expect(watch(64, 100, () => [99, 100]).figures()).toMatchObject({ inFlight: 64, exact: false });
  });

  it('are exact again a second after the driver came to its senses', () => {
    expect(watch(64, 250, (look) => [look < 20 ? 500 : 0, 0]).figures()).toMatchObject({ inFlight: 0, exact: true });
  });

  it('are not exact after a gap in which the fastest queue could have gone round', () => {
    const fast = new RingMeter(256, 0, 0, 0);
    let used = 0;
    for (let nowMs = 5; nowMs <= 500; nowMs += 5) {
      used += 1500;
      fast.look(nowMs, used & 0xffff, used & 0xffff);
    }
    expect(fast.figures()).toMatchObject({ exact: true });
    fast.look(530, used & 0xffff, used & 0xffff);
    expect(fast.figures()).toMatchObject({ exact: false });

    // One that is slow does not become so fast all at once.
    const slow = watch(256, 100, (look) => [look, look]);
    slow.look(1600, 110, 110);
    expect(slow.figures()).toMatchObject({ exact: true });
    slow.look(2100, 120, 120);
    expect(slow.figures()).toMatchObject({ exact: false });
  });

  it('begin with what is there at the first look', () => {
    const figures = new RingMeter(64, 0, 10, 7).figures();
    expect(figures).toEqual({
      inFlight: 3,
      meanInFlight: 3,
      rate: 0,
      latencyMs: undefined,
      waitingMs: 0,
      used: 0,
      exact: true,
      windowMs: 0,
    });
  });
});
