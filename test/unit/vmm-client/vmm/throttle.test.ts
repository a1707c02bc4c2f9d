/** A guest that is held for a part of the time, with a clock of the test's own. */

import { setImmediate as nextTurn } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Throttle } from '../../../../vmm-client/vmm/throttle.ts';

/** When it was held and let go, in milliseconds. */
class Guest {
  readonly calls: string[] = [];
  holds: () => Promise<void> = async () => undefined;

  async hold(): Promise<void> {
    this.calls.push(`hold ${Date.now()}`);
    await this.holds();
  }
  run(): void {
    this.calls.push(`run ${Date.now()}`);
  }
}

describe('a throttle', () => {
  let guest: Guest;
  let throttle: Throttle;

  beforeEach(() => {
    vi.useFakeTimers({ now: 0, toFake: ['Date', 'setTimeout', 'clearTimeout'] });
    guest = new Guest();
    throttle = new Throttle(guest);
  });
  afterEach(() => vi.useRealTimers());

  const pass = async (ms: number): Promise<void> => {
    await vi.advanceTimersByTimeAsync(ms);
    await nextTurn();
  };

  it('leaves a guest alone before it is set', async () => {
    await pass(1000);
    await throttle.end();
    expect(guest.calls).toEqual([]);
  });

  it.each([
    [20, 2.5],
    [50, 10],
    [90, 90],
    [99, 990],
    [100, 990],
  ])('of %d lets it run for 10 ms at a time', async (percent, heldMs) => {
    throttle.set(percent);
    await pass(10);
    expect(guest.calls).toEqual(['hold 10']);
    await pass(Math.ceil(heldMs));
    expect(guest.calls.length).toBe(2);
    const ranAt = Number(guest.calls[1]?.slice('run '.length));
    expect(Math.abs(ranAt - 10 - heldMs)).toBeLessThanOrEqual(1);
    await throttle.end();
  });

  it('goes on with another percentage from the next time on', async () => {
    throttle.set(50);
    await pass(15);
    throttle.set(90);
    await pass(5 + 10 + 90);
    expect(guest.calls).toEqual(['hold 10', 'run 20', 'hold 30', 'run 120']);
    await throttle.end();
  });

  it('that has ended touches the guest no more, and can be set again', async () => {
    throttle.set(50);
    await pass(12);
    await throttle.end();
    await throttle.end();
    await pass(1000);
    expect(guest.calls).toEqual(['hold 10']);
    throttle.set(50);
    await pass(10);
    expect(guest.calls).toEqual(['hold 10', 'hold 1022']);
    await throttle.end();
  });

  it('ends when the guest is held, not before', async () => {
    let held: () => void = () => undefined;
    guest.holds = () =>
      new Promise((resolve) => {
        held = resolve;
      });
    throttle.set(50);
    await pass(10);
    let isOver = false;
    const over = throttle.end().then(() => {
      isOver = true;
    });
    await pass(100);
    expect(isOver).toBe(false);
    held();
    await over;
    expect(guest.calls).toEqual(['hold 10']);
  });

  it('is over with a guest that has ended', async () => {
    guest.holds = async () => {
      throw new Error('vCPU 0 has ended');
    };
    throttle.set(50);
    await pass(100);
    expect(guest.calls).toEqual(['hold 10']);
    await throttle.end();
  });
});
