/**
 * Random register writes, as a hostile guest sends them: none throws, what is constant in the page stays, a queue reaches
 * the device only as the driver could have made it, and a reset always brings the device back to where it can be used.
 */

import fc from 'fast-check';
import { expect, it } from 'vitest';
import { createBench } from '../unit/vmm-client/vmm/virtio-mmio/fake-device.ts';

const REGISTERS = [
  0x00, 0x04, 0x08, 0x0c, 0x10, 0x14, 0x20, 0x24, 0x28, 0x30, 0x34, 0x38, 0x3c, 0x40, 0x44, 0x50, 0x60, 0x64, 0x70,
  0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0xac, 0xb0, 0xc0, 0xfc, 0x100, 0x104, 0x107, 0xffc,
];

const value = fc.oneof(
  fc.integer({ min: 0, max: 0xffff_ffff }),
  fc.constantFrom(0, 1, 2, 3, 4, 7, 8, 11, 15, 16, 64, 128, 256, 0x1000, 0x2000, 0x8000_0000, 0xffff_ffff),
);

const access = fc.oneof(
  { weight: 4, arbitrary: fc.record({ offset: fc.constantFrom(...REGISTERS), size: fc.constant(4), value }) },
  {
    weight: 1,
    arbitrary: fc.record({ offset: fc.integer({ min: 0, max: 4092 }), size: fc.constantFrom(1, 2, 4), value }),
  },
);
/** Steps of a driver that knows its way, so that random writes come at every stage. */
const step = fc.constantFrom('negotiate', 'queue', 'start', 'fail', 'change', 'lose');

type Step = { offset: number; size: number; value: number } | string;

it('survives any sequence of register writes', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.oneof({ weight: 5, arbitrary: access }, { weight: 1, arbitrary: step }), { maxLength: 60 }),
      async (steps: Step[]) => {
        const bench = createBench();
        const { device, driver, transport } = bench;
        try {
          for (const next of steps) {
            if (next === 'negotiate') await driver.negotiate().catch(() => undefined);
            else if (next === 'queue')
              await driver
                .setUpQueue({ index: 0, size: 16, table: 0x1000, avail: 0x2000, used: 0x3000 })
                .catch(() => undefined);
            else if (next === 'start') void driver.start();
            else if (next === 'fail') device.failure = device.failure === undefined ? new Error('failed') : undefined;
            else if (next === 'lose') device.listener?.needsReset(new Error('lost'));
            else if (next === 'change') {
              device.config = Uint8Array.from(device.config, (byte) => byte + 1);
              device.listener?.configChanged();
            } else if (typeof next !== 'string') void transport.write(next.offset, next.size, next.value);
            expect([driver.read(0), driver.read(4), driver.read(8)]).toEqual([0x74726976, 2, 2]);
            for (const queue of device.activation?.queues ?? []) {
              expect(queue.size).toBeLessThanOrEqual(device.queueSizes[queue.index] ?? 0);
              expect(queue.size & (queue.size - 1)).toBe(0);
              expect([queue.descriptorTable % 16, queue.availRing % 2, queue.usedRing % 4]).toEqual([0, 0, 0]);
            }
          }
          device.failure = undefined;
          await driver.reset();
          expect([driver.status, driver.interruptStatus]).toEqual([0, 0]);
          expect([...driver.config(0, 8)]).toEqual([...device.config]);
          await driver.negotiate();
          await driver.setUpQueue({ index: 1, size: 64, table: 0x1000, avail: 0x2000, used: 0x3000 });
          expect(await driver.start()).toBe(15);
          expect(device.activation?.queues).toMatchObject([{ index: 1, size: 64, descriptorTable: 0x1000 }]);
        } finally {
          bench.close();
        }
      },
    ),
    { numRuns: 500 },
  );
});
