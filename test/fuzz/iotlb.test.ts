/** Iotlb against a map of pages, which knows no ranges and forgets nothing. */

import fc from 'fast-check';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { IOTLB_HIT, IOTLB_MISS, Iotlb } from '../../protocol/memory/iotlb.ts';
import { createMemfd } from '../support/frontend/descriptors.ts';

const PAGE = 4096;
const PAGES = 64;
const USER = 0x7f00_0000_0000;
const RUNS = 3000;

const memory = new GuestMemory();

beforeAll(() => {
  const fd = createMemfd(PAGES * PAGE);
  memory.add({ guestAddress: 0, size: PAGES * PAGE, userAddress: USER, mmapOffset: 0 }, fd);
  fd.close();
});

afterAll(() => memory.clear());

type Step =
  | { readonly kind: 'update'; page: number; pages: number; user: number; permission: number }
  | { readonly kind: 'invalidate'; page: number; pages: number }
  | { readonly kind: 'look'; page: number };

const page = fc.nat(PAGES - 1);
const pages = fc.integer({ min: 1, max: PAGES });
const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({
    kind: fc.constant('update' as const),
    page,
    pages: fc.integer({ min: 1, max: 12 }),
    user: fc.nat(PAGES - 13),
    permission: fc.integer({ min: 1, max: 3 }),
  }),
  fc.record({ kind: fc.constant('invalidate' as const), page, pages }),
  fc.record({ kind: fc.constant('look' as const), page }),
);

interface Translated {
  readonly guestPage: number;
  readonly permission: number;
}

it('translates every page as a map of pages does, whatever was said before', () => {
  const property = fc.property(fc.array(step, { minLength: 1, maxLength: 60, size: 'max' }), (steps) => {
    const iotlb = new Iotlb(memory);
    const model = new Map<number, Translated>();
    for (const s of steps) {
      if (s.kind === 'look') iotlb.lookup(s.page * PAGE, true);
      if (s.kind === 'invalidate') {
        iotlb.invalidate(BigInt(s.page * PAGE), BigInt(s.pages * PAGE));
        for (let i = 0; i < s.pages; i += 1) model.delete(s.page + i);
      }
      if (s.kind === 'update') {
        const user = BigInt(USER + s.user * PAGE);
        iotlb.update(BigInt(s.page * PAGE), BigInt(s.pages * PAGE), user, s.permission);
        for (let i = 0; i < s.pages; i += 1) {
          model.set(s.page + i, { guestPage: s.user + i, permission: s.permission });
        }
      }
      check(iotlb, model);
    }
  });
  fc.assert(property, { numRuns: RUNS });
});

function check(iotlb: Iotlb, model: ReadonlyMap<number, Translated>): void {
  for (let at = 0; at < PAGES + 12; at += 1) {
    for (const writable of [false, true]) {
      const known = model.get(at);
      const hit = known !== undefined && (known.permission & (writable ? 2 : 1)) !== 0;
      const result = iotlb.lookup(at * PAGE + 17, writable);
      if (result !== (hit ? IOTLB_HIT : IOTLB_MISS)) expect.fail(`page ${at}, writable ${writable}: ${result}`);
      if (!hit) continue;
      if (iotlb.guest !== known.guestPage * PAGE + 17) expect.fail(`page ${at} is at 0x${iotlb.guest.toString(16)}`);
      const last = Math.floor((at * PAGE + 17 + iotlb.length - 1) / PAGE);
      if ((iotlb.length + 17) % PAGE !== 0) expect.fail(`page ${at} ends in the middle`);
      for (let i = at; i <= last; i += 1) {
        const other = model.get(i);
        if (other?.guestPage !== known.guestPage + i - at || other.permission !== known.permission) {
          expect.fail(`page ${at}: ${iotlb.length} bytes are too many`);
        }
      }
    }
  }
}
