/** RAM of a machine as it is filled. */

import { expect, it } from 'vitest';
import { GuestRam } from '../../../../../vmm-client/vmm/guest-ram.ts';
import { RamAccess } from '../../../../../vmm-client/vmm/migration/ram-access.ts';
import { cleanupAfterEach } from '../../../../support/cleanup.ts';

const cleanup = cleanupAfterEach();
const PAGE = 4096;
const PIECE = 0x40_0000_0000;

const allocate = (): { ram: GuestRam; memory: RamAccess } => {
  const ram = GuestRam.allocate({ size: 64 * PAGE }, 2 ** 46, [{ start: PIECE, length: 32 * PAGE }]);
  cleanup.add(() => ram.close());
  return { ram, memory: new RamAccess(ram) };
};

const pages = (count: number, value: number): Buffer => Buffer.alloc(count * PAGE, value);

it.each([
  ['the first pages', 0],
  ['the last pages', 60 * PAGE],
  ['pages of a piece that was added', PIECE + 28 * PAGE],
])('has %s where they were written, once and again', (_what, guestAddress) => {
  const { memory } = allocate();
  const all = { guestAddress, length: 4 * PAGE };

  memory.write(guestAddress, pages(4, 1));
  expect(memory.bytes(all).equals(pages(4, 1))).toBe(true);

  memory.write(guestAddress + PAGE, pages(2, 2));
  expect(memory.bytes(all).equals(Buffer.concat([pages(1, 1), pages(2, 2), pages(1, 1)]))).toBe(true);
});

it('has pages of which only the first was there before', () => {
  const { memory } = allocate();

  memory.write(3 * PAGE, pages(1, 1));
  memory.write(3 * PAGE, pages(5, 2));
  memory.write(2 * PAGE, pages(8, 3));

  expect(memory.bytes({ guestAddress: 2 * PAGE, length: 8 * PAGE }).equals(pages(8, 3))).toBe(true);
});

it('gives memory of the host only to what is written', () => {
  const { ram, memory } = allocate();

  memory.write(8 * PAGE, pages(2, 1));
  memory.write(PIECE + PAGE, pages(1, 1));

  expect(ram.nextData(0)).toEqual({ start: 8 * PAGE, length: 2 * PAGE });
  expect(ram.nextData(10 * PAGE)).toEqual({ start: PIECE + PAGE, length: PAGE });
});

it('writes nothing beyond its ranges', () => {
  const { ram, memory } = allocate();

  expect(() => memory.write(63 * PAGE, pages(2, 1))).toThrow(/no view of 8192 bytes/);
  expect(() => memory.write(PIECE - PAGE, pages(1, 1))).toThrow(/no view of 4096 bytes/);
  expect(ram.nextData(0)).toBeUndefined();
});
