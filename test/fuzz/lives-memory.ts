/**
 * Guest memory for `ring-lives.test.ts`, what a front end may share of it at one time, and zones for the buffers of
 * requests, one zone for one request at a time.
 */

import { GuestRam } from '../support/frontend/guest-ram.ts';

/** Rings. */
export const RINGS_AT = [0x1000, 0x2000];
export const LANES = RINGS_AT.length;
/** Indirect tables, one a request in flight. */
export const TABLES_AT = 0x4000;
export const TABLE_BYTES = 256;
export const TABLES_PER_LANE = 16;
/** Buffers, in zones of which one lies across the middle, at HALF. */
const ZONES_AT = 0x6040;
const ZONE_BYTES = 512;
const HALF = 0x8000;
const END = 0xa000;

export const ram = new GuestRam(END);
export const extra = new GuestRam(0x2000, 0x9000_0000, 0x7c00_0000_0000);

const LOW = { guestAddress: ram.guest(0), userAddress: ram.user(0), size: HALF, mmapOffset: 0 };
const HIGH = { guestAddress: ram.guest(HALF), userAddress: ram.user(HALF), size: END - HALF, mmapOffset: HALF };
const WHOLE = { ...LOW, size: END };
export const EXTRA = { guestAddress: extra.guest(0), userAddress: extra.user(0), size: extra.length, mmapOffset: 0 };

export type SharedTable = readonly (typeof LOW)[];

/** Tables that a front end may share. The last two are without the rings. */
export const SHARED_TABLES: readonly SharedTable[] = [
  [WHOLE],
  [LOW, HIGH],
  [WHOLE, EXTRA],
  [LOW, HIGH, EXTRA],
  [LOW],
  [LOW, EXTRA],
  [EXTRA],
  [HIGH],
];

export const EVERYTHING: SharedTable = [WHOLE, EXTRA];

/** Whether the rings are in it. */
export const hasRings = (table: SharedTable): boolean => table.includes(LOW) || table.includes(WHOLE);

/** Whether every byte of a range of guest memory is in it. */
export const isShared = (table: SharedTable, guest: number, length: number): boolean => {
  for (let at = guest; at < guest + length; ) {
    const region = table.find(({ guestAddress, size }) => at >= guestAddress && at < guestAddress + size);
    if (region === undefined) return false;
    at = region.guestAddress + region.size;
  }
  return true;
};

/** Our view of a range of guest memory, shared or not. */
export const hostBytes = (guest: number, length: number): Uint8Array => {
  const { bytes, guestAddress } = guest >= extra.guestAddress ? extra : ram;
  return bytes.subarray(guest - guestAddress, guest - guestAddress + length);
};

const ZONES_IN_RAM = Math.floor((END - ZONES_AT) / ZONE_BYTES);
const ZONES = ZONES_IN_RAM + extra.length / ZONE_BYTES;

/** Zones of one of the lanes. */
export const zonesOf = (lane: number): number[] =>
  Array.from({ length: ZONES }, (_, zone) => zone).filter((zone) => zone % LANES === lane);

/** Guest address of a zone. */
export const zoneAt = (zone: number): number =>
  zone < ZONES_IN_RAM ? ram.guest(ZONES_AT + zone * ZONE_BYTES) : extra.guest((zone - ZONES_IN_RAM) * ZONE_BYTES);
