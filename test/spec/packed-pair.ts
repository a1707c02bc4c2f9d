/** A driver of the tests and the product's device at the two ends of one packed ring, in shared memory. */

import { afterEach } from 'vitest';
import { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { RingPlace } from '../../protocol/memory/ring-view.ts';
import { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import { PackedQueue } from '../../protocol/virtqueue/packed-queue.ts';
import { GuestRam } from '../support/frontend/guest-ram.ts';
import { AVAIL, RawPackedRing, USED } from '../support/frontend/raw-packed-ring.ts';
import { NEXT, type RawDescriptor, WRITE } from '../support/frontend/raw-virtqueue.ts';

export const FEATURES = { packed: true, indirect: true, eventIdx: false, inOrder: false };
const RING_AT = 0x1000;
export const TABLE_AT = 0x10_0000;

const open: { close(): void }[] = [];

export interface Pair {
  readonly driver: RawPackedRing;
  readonly device: PackedQueue;
  readonly chain: DescriptorChain;
}

interface PairOptions {
  readonly size?: number;
  readonly eventIdx?: boolean;
  readonly indirect?: boolean;
  /** Where both sides stand, in slots over two laps. */
  readonly start?: number;
}

export const createMemory = (length: number): { ram: GuestRam; memory: GuestMemory } => {
  const ram = new GuestRam(length);
  const memory = new GuestMemory();
  open.push(ram, { close: () => memory.clear() });
  memory.add({ guestAddress: ram.guest(0), userAddress: ram.user(0), size: length, mmapOffset: 0 }, ram.fd);
  return { ram, memory };
};

const addressesOf = (driver: RawPackedRing) => ({
  descriptor: driver.ram.user(driver.ringAt),
  available: driver.ram.user(driver.driverEvent),
  used: driver.ram.user(driver.deviceEvent),
});

export const createPair = ({ size = 8, eventIdx = false, indirect = true, start = 0 }: PairOptions = {}): Pair => {
  const { ram, memory } = createMemory(0x20_0000);
  const driver = new RawPackedRing(ram, 0, size, RING_AT);
  open.push(driver);
  const options = { ...FEATURES, size, addresses: addressesOf(driver), eventIdx, indirect };
  const device = new PackedQueue(new RingPlace(memory).view, options);
  // What both sides left behind on their way there.
  for (let slot = 0; slot < size; slot += 1) {
    if (slot < start !== slot < start - size) driver.setFlags(slot, AVAIL | USED);
  }
  driver.standAt(driver.baseAt(start));
  device.seek(driver.baseAt(start));
  return { driver, device, chain: new DescriptorChain(memory, size) };
};

afterEach(() => {
  for (const closable of open.splice(0).reverse()) closable.close();
});

export const buffer = ({ driver }: Pair, offset = 0x8_0000, length = 16, flags = WRITE): RawDescriptor => ({
  address: driver.ram.guest(offset),
  length,
  flags,
});

/** Makes a chain of `slots` writable buffers available under an ID. */
export const offer = (pair: Pair, id: number, slots = 1): void => {
  pair.driver.place(
    id,
    Array.from({ length: slots }, (_, i) => ({ ...buffer(pair), flags: WRITE | (i + 1 < slots ? NEXT : 0) })),
  );
};

/** Takes everything that is available; returns tokens. */
export const popAll = ({ device, chain }: Pair): number[] => {
  const tokens: number[] = [];
  for (let result = device.pop(chain); result === 1; result = device.pop(chain)) tokens.push(chain.head);
  return tokens;
};

export const takeUsed = ({ driver }: Pair): number[] => {
  const ids: number[] = [];
  while (driver.waiting > 0) ids.push(driver.next().id);
  return ids;
};

/** Returns `count` buffers of `slots` slots, one publication, and says whether the driver is to be told. */
export const returnBuffers = (pair: Pair, count: number, slots = 1): boolean => {
  for (let id = 0; id < count; id += 1) {
    offer(pair, id, slots);
    for (const token of popAll(pair)) pair.device.push(token, 0);
  }
  pair.device.publish();
  takeUsed(pair);
  return pair.device.needsNotification();
};
