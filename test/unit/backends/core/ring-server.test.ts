/**
 * Rings behind an IOMMU, with a device that ends requests when the test says so: what an invalidation waits for, and what
 * a ring that cannot be used leaves behind.
 */

import { describe, expect, it } from 'vitest';
import type { DataPath } from '../../../../backends/core/device.ts';
import type { Logger } from '../../../../backends/core/logging.ts';
import { Pump } from '../../../../backends/core/pump.ts';
import { LocalRingServer } from '../../../../backends/core/ring-server.ts';
import { REQUEST_RING } from '../../../../backends/core/ring-traits.ts';
import type { Vring } from '../../../../backends/core/vring.ts';
import { GuestMemory } from '../../../../protocol/memory/guest-memory.ts';
import { cleanupAfterEach } from '../../../support/cleanup.ts';
import { GuestRam } from '../../../support/frontend/guest-ram.ts';
import { RawRing } from '../../../support/frontend/raw-ring.ts';

const PAGE = 4096;
const READ_WRITE = 3;
const SIZE = 16;
const cleanup = cleanupAfterEach();
const silent = (): void => undefined;
const log = { info: silent, warn: silent, error: silent } as unknown as Logger;

/** A device that takes what there is and keeps it. */
class Keeper implements DataPath {
  readonly budget = SIZE;
  readonly mustPoll = false;
  readonly isFull = false;
  onCompletion = silent;
  readonly kept: { readonly vring: Vring; readonly head: number }[] = [];

  ringTraits = () => REQUEST_RING;
  ringChanged: (vring: Vring) => void = silent;
  arm = silent;
  shutDown = silent;
  serve = () => this;
  poll = () => 0;

  processQueue(vring: Vring): number {
    let taken = 0;
    for (; vring.pop(); taken += 1) {
      if (vring.chain.fault === 0) this.kept.push({ vring, head: vring.chain.head });
      else vring.push(vring.chain.head, 0);
    }
    return taken;
  }

  end(ring: number): void {
    const at = this.kept.findIndex(({ vring }) => vring.index === ring);
    const [{ vring, head }] = this.kept.splice(at, 1) as [(typeof this.kept)[number]];
    vring.push(head, 0);
    this.onCompletion();
  }
}

const open = async (rings: number, packed = false) => {
  const ram = new GuestRam(0x10_0000);
  cleanup.add(() => ram.close());
  const owner = new GuestMemory();
  cleanup.add(() => owner.clear());
  owner.add(
    { ...ram.region(), guestAddress: ram.guestAddress, size: ram.length, userAddress: ram.userAddress, mmapOffset: 0 },
    ram.fd,
  );
  const keeper = new Keeper();
  const misses: number[] = [];
  const events = { onMemoryFault: silent, onMissing: (iova: number) => void misses.push(iova), onSignal: silent };
  const server = new LocalRingServer(new Pump(keeper, { pollUs: 0, alwaysPoll: false }), keeper, rings, events, log);
  cleanup.add(() => server.close());
  await server.setFeatures({ packed, indirect: false, eventIdx: false, inOrder: false, translated: true });
  await server.setMemory(owner.regions.map((region) => region.share()));
  const map = (iova: number, userAddress: number, size: number): Promise<void> =>
    server.translate({
      kind: 'update',
      iova: BigInt(iova),
      size: BigInt(size),
      userAddress: BigInt(userAddress),
      permission: READ_WRITE,
    });
  return { ram, keeper, server, map, misses };
};

describe('an invalidation', () => {
  it('is done when no ring uses the range, also none that began while another one was waited for', async () => {
    const { ram, keeper, server, map, misses } = await open(2);
    await map(ram.userAddress, ram.userAddress, ram.length);
    const [shared, iova] = [ram.length - PAGE, 0x1000];
    await map(iova, ram.user(shared), PAGE);
    const rings = [0, 1].map((i) => new RawRing(ram, i, SIZE, 0x1000 + i * 0x2000));
    for (const ring of rings) {
      cleanup.add(() => ring.close());
      const { descriptor, used, available } = ring.addresses();
      const addresses = { descriptor: Number(descriptor), used: Number(used), available: Number(available) };
      await server.start(
        ring.index,
        { size: SIZE, base: 0, addresses, usedLog: undefined, inflight: undefined },
        undefined,
        false,
      );
      await server.enable(ring.index, true);
      ring.setChain(0, [{ address: iova, length: 512 }]);
    }
    const [first, second] = rings as [RawRing, RawRing];
    second.publish(0);
    await server.kick();
    expect(keeper.kept).toHaveLength(1);

    let isDone = false;
    const done = server.translate({ kind: 'invalidate', iova: BigInt(iova), size: BigInt(PAGE) }).then(() => {
      isDone = true;
    });
    await new Promise(setImmediate);
    expect(isDone).toBe(false);
    first.publish(0);
    await server.kick();
    keeper.end(1);
    await done;

    expect(keeper.kept).toEqual([]);
    expect(misses).toEqual([iova]);
    await map(iova, ram.user(shared), PAGE);
    expect(keeper.kept).toHaveLength(1);
    keeper.end(0);
  });
});

describe('a ring', () => {
  /** Two pages that are neighbours in I/O addresses only: the ring is mapped a second time. */
  const scattered = async (base: number) => {
    const rig = await open(1, true);
    const { ram, map, server } = rig;
    await map(0x1_0000, ram.user(0x8000), PAGE);
    await map(0x1_1000, ram.user(0x4000), PAGE);
    await map(0x2_0000, ram.user(0xa000), PAGE);
    const addresses = { descriptor: 0x1_0000, available: 0x2_0000, used: 0x2_0100 };
    const start = (): Promise<void> =>
      server.start(0, { size: 512, base, addresses, usedLog: undefined, inflight: undefined }, undefined, false);
    return { ...rig, start };
  };

  it('that begins beyond its end is let go of, as often as it is started', async () => {
    const { start } = await scattered(0x8000 + 600);
    // More often than there can be mappings.
    for (let i = 0; i < 2100; i += 1) await expect(start()).rejects.toThrow('beyond a ring');
  });

  it('that is still looked for has the past that the front end says', async () => {
    const past: boolean[] = [];
    for (const base of [0, 0x8000_8000, 0x8007_8007]) {
      const { server, keeper } = await open(1, true);
      keeper.ringChanged = (vring) => void past.push(vring.hasPast);
      const addresses = { descriptor: 0x1_0000, available: 0x2_0000, used: 0x2_0100 };
      const ring = { size: 16, base, addresses, usedLog: undefined, inflight: undefined };
      await server.start(0, ring, undefined, false);
      keeper.ringChanged = silent;
    }
    expect(past).toEqual([false, false, true]);
  });
});
