/** The pump's rounds, over rings and a data path that are made up. */

import { describe, expect, it } from 'vitest';
import type { DataPath } from '../../../../backends/core/device.ts';
import { Pump } from '../../../../backends/core/pump.ts';
import type { Vring } from '../../../../backends/core/vring.ts';

const ROUNDS = 30;

describe('rings that always have requests, on a device that takes one at a time', () => {
  it.each([1, 2, 3, 5])('%i of them have their turn one after the other', async (rings) => {
    const served = Array.from({ length: rings }, () => 0);
    let left = 0;
    let isBusy = false;
    const path: DataPath = {
      budget: 16,
      mustPoll: false,
      isFull: false,
      onCompletion: () => undefined,
      arm: () => undefined,
      shutDown: () => undefined,
      serve: () => {
        throw new Error('nobody connects');
      },
      poll: () => {
        const ended = isBusy ? 1 : 0;
        isBusy = false;
        return ended;
      },
    };
    const ring = (index: number): Vring => {
      const processQueue = (): number => {
        if (isBusy || left === 0) return 0;
        isBusy = true;
        left -= 1;
        served[index] = (served[index] as number) + 1;
        return 1;
      };
      const nothing = (): void => undefined;
      return {
        runnable: true,
        polled: false,
        offersBuffers: false,
        offers: () => true,
        flush: nothing,
        tell: nothing,
        disableKicks: nothing,
        enableKicks: () => left > 0,
        host: { attachment: { processQueue }, memoryFaulted: false },
      } as unknown as Vring;
    };
    const pump = new Pump(path, { pollUs: 0, alwaysPoll: false });

    for (let i = 0; i < rings; i += 1) pump.add(ring(i));
    left = ROUNDS;
    pump.wake();
    while (left > 0) await new Promise(setImmediate);

    expect(served).toEqual(served.map(() => ROUNDS / rings));
  });
});
