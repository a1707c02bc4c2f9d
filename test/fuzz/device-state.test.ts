/**
 * States of devices that came from a hostile peer: valid ones in which anything was put in the place of anything. Each is
 * refused by a VmError or taken up, the device gets no queue that a driver could not have made, and a reset always brings it
 * back to where it can be used.
 */

import fc from 'fast-check';
import { expect, it } from 'vitest';
import { parseVhostUserState, snapshotOf } from '../../vmm-client/vmm/devices/vhost-user-state.ts';
import { VmError } from '../../vmm-client/vmm/errors.ts';
import { createBench, FEATURES } from '../unit/vmm-client/vmm/virtio-mmio/fake-device.ts';

const junk = fc.oneof(
  fc.integer(),
  fc.double(),
  fc.bigInt(),
  fc.constantFrom(0, 1, 3, 15, 16, 64, 79, 128, 0x1000, 0xffff_ffff, 2 ** 53, -1, 0n, 1n << 32n, 1n << 63n, 1n << 64n),
  fc.boolean(),
  fc.string(),
  fc.constantFrom(null, undefined, [], {}, '__proto__', 'length'),
  fc.uint8Array({ maxLength: 5000 }),
);

interface Change {
  readonly place: number;
  readonly value: unknown;
}
const changes = fc.array(fc.record({ place: fc.nat(200), value: junk }), { minLength: 1, maxLength: 3 });

/** Every place in a value at which something is: its holder and key. */
function* placesIn(holder: Record<string, unknown>): Generator<[Record<string, unknown>, string]> {
  for (const [key, value] of Object.entries(holder)) {
    yield [holder, key];
    const isHolder = typeof value === 'object' && value !== null && !(value instanceof Uint8Array);
    if (isHolder) yield* placesIn(value as Record<string, unknown>);
  }
}

const spoil = (state: Record<string, unknown>, edits: readonly Change[]): unknown => {
  for (const { place, value } of edits) {
    const places = [...placesIn(state)];
    const [holder, key] = places[place % Math.max(1, places.length)] ?? [state, 'registers'];
    holder[key] = value;
  }
  return state;
};

/** At which step of its way the driver is: nothing, negotiated, with a queue, running. */
const stages = ['negotiate', 'queue', 'start'] as const;

it('of a transport are refused or taken up', async () => {
  await fc.assert(
    fc.asyncProperty(fc.nat(stages.length), changes, async (stage, edits) => {
      const source = createBench();
      if (stage > 0) await source.driver.negotiate(1n << 29n);
      if (stage > 1) {
        await source.driver.setUpQueue({ index: 1, size: 16, table: 0x1000, avail: 0x2000, used: 0x3000 });
      }
      if (stage > 2) await source.driver.start();
      const state = structuredClone(await source.transport.suspend());
      source.close();
      const { device, driver, transport, close } = createBench();
      try {
        const failure = await transport.restore(spoil(state as never, edits)).catch((error: unknown) => error);
        if (failure !== undefined) {
          expect(failure).toBeInstanceOf(VmError);
          expect((failure as Error).message.length).toBeLessThan(300);
        }
        expect([driver.read(0), driver.read(4), driver.read(8)]).toEqual([0x74726976, 2, 2]);
        if (device.activation !== undefined) expect(device.activation.features & ~FEATURES).toBe(0n);
        for (const queue of device.activation?.queues ?? []) {
          expect(queue.size).toBeGreaterThan(0);
          expect(queue.size).toBeLessThanOrEqual(device.queueSizes[queue.index] ?? 0);
          expect([queue.descriptorTable % 16, queue.availRing % 2, queue.usedRing % 4]).toEqual([0, 0, 0]);
        }
        await driver.reset();
        expect([driver.status, driver.interruptStatus]).toEqual([0, 0]);
        expect([...driver.config(0, 8)]).toEqual([...device.config]);
        await driver.negotiate();
        await driver.setUpQueue({ index: 1, size: 64, table: 0x1000, avail: 0x2000, used: 0x3000 });
        expect(await driver.start()).toBe(15);
      } finally {
        close();
      }
    }),
    { numRuns: 1500 },
  );
});

it('of a vhost-user device are refused or understood', () => {
  const vring = { index: 0, size: 64, descriptorTable: 0, availRing: 0, usedRing: 0 };
  const rest = { kick: undefined, call: undefined, error: undefined, resume: () => 0, notify: () => undefined };
  fc.assert(
    fc.property(changes, fc.boolean(), (edits, isPacked) => {
      const state = {
        phase: 'running',
        config: new Uint8Array(60),
        rings: [{ index: 0, base: 7 }],
        inflight: { numQueues: 1, queueSize: 64, bytes: new Uint8Array(2048) },
        backend: new Uint8Array(8),
      };
      const features = (1n << 32n) | (isPacked ? 1n << 34n : 0n);
      try {
        const parsed = parseVhostUserState('disk d', spoil(state, edits));
        expect(['idle', 'running', 'failed']).toContain(parsed.phase);
        const { rings, inflight } = snapshotOf(parsed, features, [{ ...vring, ...rest }]);
        expect(rings).toMatchObject([{ index: 0, size: 64 }]);
        expect(rings[0]?.base).toBeLessThanOrEqual(isPacked ? 0xffff_ffff : 0xffff);
        if (inflight !== undefined) expect(inflight.bytes.length).toBeGreaterThan(0);
      } catch (error) {
        expect(error instanceof VmError || error instanceof RangeError).toBe(true);
      }
    }),
    { numRuns: 3000 },
  );
});
