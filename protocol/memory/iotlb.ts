/**
 * Translations of I/O virtual addresses (IOVA), which a device behind an IOMMU finds in rings and descriptors, to guest
 * addresses. The front end sends them one by one, when the back end missed one, and takes them back when the guest
 * unmaps. A translation ends at a user address of the front end; the regions of guest memory turn that into a guest
 * address, anew for each lookup, so that no translation outlives a region. Source: vhost-user, IOMMU support.
 *
 * Entries lie in arrays sorted by IOVA and never overlap; neighbours that continue each other become one. Numbers are
 * exact below 2^53. What the front end says of addresses above that is cut off: no IOMMU has so many address bits, and
 * such an address is denied.
 */

import type { GuestMemory } from './guest-memory.ts';
import { MemoryError } from './memory-error.ts';

export const IOTLB_HIT = 0;
/** Not known: ask the front end. */
export const IOTLB_MISS = 1;
/** There is no such translation, or not for this access, or it leads out of guest memory. */
export const IOTLB_DENIED = 2;

/** Permission bits of an update: what the device may do. */
export const IOTLB_READ = 1;
export const IOTLB_WRITE = 2;

/** What one miss asks for. An IOMMU maps no smaller piece. */
export const IOTLB_PAGE_BYTES = 4096;
export const MAX_IOTLB_ENTRIES = 2048;
/** Denied pages that are remembered; each is asked for again when it was forgotten. */
export const MAX_IOTLB_DENIED = 256;
/** Pages that are asked for at once. */
export const MAX_MISSING_PAGES = 64;

/** Addresses from here on are not exact as numbers. */
const ADDRESS_LIMIT = 2 ** 53;

function clamp(address: bigint): number {
  return address < BigInt(ADDRESS_LIMIT) ? Number(address) : ADDRESS_LIMIT;
}

/** IOVA pages that a walk missed, each once, in a list that has an end: what did not fit is missed again later. */
export class MissingPages {
  count = 0;
  readonly #iova = new Float64Array(MAX_MISSING_PAGES);
  readonly #writable = new Uint8Array(MAX_MISSING_PAGES);

  get full(): boolean {
    return this.count === MAX_MISSING_PAGES;
  }

  /** Address of the first byte of a missing page, `index` below `count`. */
  iova(index: number): number {
    return this.#iova[index] as number;
  }

  /** Whether the page is to be written. */
  writable(index: number): boolean {
    return this.#writable[index] === 1;
  }

  /** Adds the page that holds `iova`. */
  note(iova: number, writable: boolean): void {
    const page = iova - (iova % IOTLB_PAGE_BYTES);
    const write = writable ? 1 : 0;
    for (let i = 0; i < this.count; i += 1) if (this.#iova[i] === page && this.#writable[i] === write) return;
    if (this.full) return;
    this.#iova[this.count] = page;
    this.#writable[this.count] = write;
    this.count += 1;
  }

  clear(): void {
    this.count = 0;
  }
}

export class Iotlb {
  /** What the last lookup that hit found: the guest address, and the bytes from there that are translated in one piece. */
  guest = 0;
  length = 0;

  readonly #memory: GuestMemory;
  #count = 0;
  // Two more than the limit: a new entry in the middle of an old one makes three of one before the oldest go.
  readonly #start = new Float64Array(MAX_IOTLB_ENTRIES + 2);
  readonly #end = new Float64Array(MAX_IOTLB_ENTRIES + 2);
  readonly #user = new Float64Array(MAX_IOTLB_ENTRIES + 2);
  readonly #permission = new Uint8Array(MAX_IOTLB_ENTRIES + 2);
  /** Which update an entry came with: the lowest is the oldest. */
  readonly #age = new Float64Array(MAX_IOTLB_ENTRIES + 2);
  #updates = 0;
  /** Denied pages by number, and which accesses: IOTLB_READ, IOTLB_WRITE. */
  readonly #denied = new Map<number, number>();

  /** The part of the entry that was hit last which lies in one region of the memory as it was then. */
  #hitStart = 0;
  #hitEnd = 0;
  #hitDelta = 0;
  #hitPermission = 0;
  #hitGeneration = -1;

  constructor(memory: GuestMemory) {
    this.#memory = memory;
  }

  /** Entries there are, at most MAX_IOTLB_ENTRIES. */
  get entries(): number {
    return this.#count;
  }

  /** Translates one address. IOTLB_HIT leaves the result in `guest` and `length`. */
  lookup(iova: number, writable: boolean): number {
    const need = writable ? IOTLB_WRITE : IOTLB_READ;
    if (
      iova >= this.#hitStart &&
      iova < this.#hitEnd &&
      (this.#hitPermission & need) !== 0 &&
      this.#hitGeneration === this.#memory.generation
    ) {
      this.guest = iova + this.#hitDelta;
      this.length = this.#hitEnd - iova;
      return IOTLB_HIT;
    }
    if (!(iova < ADDRESS_LIMIT)) return IOTLB_DENIED;
    const i = this.#firstEndingAfter(iova);
    if (i < this.#count && (this.#start[i] as number) <= iova && ((this.#permission[i] as number) & need) !== 0) {
      return this.#resolve(i, iova);
    }
    const denied = this.#denied.get(Math.floor(iova / IOTLB_PAGE_BYTES));
    return denied !== undefined && (denied & need) !== 0 ? IOTLB_DENIED : IOTLB_MISS;
  }

  #resolve(i: number, iova: number): number {
    const start = this.#start[i] as number;
    const user = (this.#user[i] as number) + (iova - start);
    const region = this.#memory.findUser(user);
    if (region === undefined) return IOTLB_DENIED;
    const inRegion = user - region.userStart;
    this.guest = region.start + inRegion;
    this.length = Math.min((this.#end[i] as number) - iova, region.end - this.guest);
    this.#hitStart = Math.max(start, iova - inRegion);
    this.#hitEnd = iova + this.length;
    this.#hitDelta = this.guest - iova;
    this.#hitPermission = this.#permission[i] as number;
    this.#hitGeneration = this.#memory.generation;
    return IOTLB_HIT;
  }

  /**
   * Looks at all of `length` bytes from `iova` on, and notes the pages to ask for. Returns IOTLB_HIT when everything is
   * translated, IOTLB_DENIED when a byte is denied (asking for the others is no use), IOTLB_MISS otherwise. `guest` and
   * `length` are left undefined.
   */
  collectMissing(iova: number, length: number, writable: boolean, missing: MissingPages): number {
    const end = iova + length;
    let result = IOTLB_HIT;
    let at = iova;
    while (at < end) {
      const found = this.lookup(at, writable);
      if (found === IOTLB_DENIED) return IOTLB_DENIED;
      if (found === IOTLB_HIT) {
        at += this.length;
        continue;
      }
      result = IOTLB_MISS;
      if (missing.full) break;
      missing.note(at, writable);
      at += IOTLB_PAGE_BYTES - (at % IOTLB_PAGE_BYTES);
    }
    return result;
  }

  /**
   * Takes a translation: `size` bytes from `iova` on are at `userAddress` of the front end. It replaces what was there.
   * When there are too many entries the oldest goes: it is missed again if it is wanted.
   * @throws MemoryError - size 0
   */
  update(iova: bigint, size: bigint, userAddress: bigint, permission: number): void {
    if (size === 0n) throw new MemoryError(`IOTLB update of 0 bytes at 0x${iova.toString(16)}`);
    const start = clamp(iova);
    const end = clamp(iova + size);
    if (start === end) return;
    this.#cut(start, end);
    this.#insert(this.#firstEndingAfter(start), start, end, clamp(userAddress), permission);
    this.#limit();
  }

  /** Forgets every translation in a range. Size 0 stands for 2^64, which a front end cannot say otherwise. */
  invalidate(iova: bigint, size: bigint): void {
    this.#cut(clamp(iova), size === 0n ? ADDRESS_LIMIT : clamp(iova + size));
    this.#limit();
  }

  clear(): void {
    this.#count = 0;
    this.#denied.clear();
    this.#forgetHit();
  }

  /** The front end said that there is no translation of this page for this access: DENIED from now on. */
  deny(iova: number, writable: boolean): void {
    const page = Math.floor(iova / IOTLB_PAGE_BYTES);
    const denied = this.#denied.get(page) ?? 0;
    this.#denied.delete(page);
    this.#denied.set(page, denied | (writable ? IOTLB_WRITE : IOTLB_READ));
    if (this.#denied.size <= MAX_IOTLB_DENIED) return;
    for (const oldest of this.#denied.keys()) {
      this.#denied.delete(oldest);
      break;
    }
  }

  /**
   * Forgets what was denied. The guest may map such a page at any time and no front end tells, so a denial is good for
   * the chain that met it and not longer.
   */
  forgetDenied(): void {
    this.#denied.clear();
  }

  #forgetHit(): void {
    this.#hitStart = 0;
    this.#hitEnd = 0;
  }

  /** Index of the first entry that ends behind `iova`; the number of entries when there is none. */
  #firstEndingAfter(iova: number): number {
    let low = 0;
    let high = this.#count;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#end[middle] as number) > iova) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /** Takes [start, end) out of all entries and denials, exactly. May leave one entry above the limit. */
  #cut(start: number, end: number): void {
    this.#forgetHit();
    for (const page of this.#denied.keys()) {
      const at = page * IOTLB_PAGE_BYTES;
      if (at < end && at + IOTLB_PAGE_BYTES > start) this.#denied.delete(page);
    }
    let first = this.#firstEndingAfter(start);
    if (first < this.#count && (this.#start[first] as number) < start) {
      const entryEnd = this.#end[first] as number;
      this.#end[first] = start;
      if (entryEnd > end) {
        this.#open(first + 1);
        const skipped = end - (this.#start[first] as number);
        this.#set(first + 1, end, entryEnd, (this.#user[first] as number) + skipped, this.#permission[first] as number);
        this.#age[first + 1] = this.#age[first] as number;
        return;
      }
      first += 1;
    }
    let last = first;
    while (last < this.#count && (this.#end[last] as number) <= end) last += 1;
    if (last < this.#count && (this.#start[last] as number) < end) {
      this.#user[last] = (this.#user[last] as number) + (end - (this.#start[last] as number));
      this.#start[last] = end;
    }
    this.#remove(first, last);
  }

  /** Puts an entry before index `at`, or lengthens the entries on either side when it continues them. */
  #insert(at: number, start: number, end: number, user: number, permission: number): void {
    this.#updates += 1;
    let place = at;
    if (this.#continues(at - 1, start, user, permission)) {
      place = at - 1;
      this.#end[place] = end;
    } else {
      this.#open(at);
      this.#set(at, start, end, user, permission);
    }
    this.#age[place] = this.#updates;
    const next = place + 1;
    if (next === this.#count || this.#permission[next] !== permission) return;
    if (this.#continues(place, this.#start[next] as number, this.#user[next] as number, permission)) {
      this.#end[place] = this.#end[next] as number;
      this.#remove(next, next + 1);
    }
  }

  /** Whether what begins at `start` goes on where the entry at index `i` ends. */
  #continues(i: number, start: number, user: number, permission: number): boolean {
    if (i < 0 || this.#end[i] !== start || this.#permission[i] !== permission) return false;
    return (this.#user[i] as number) + (start - (this.#start[i] as number)) === user;
  }

  #set(i: number, start: number, end: number, user: number, permission: number): void {
    this.#start[i] = start;
    this.#end[i] = end;
    this.#user[i] = user;
    this.#permission[i] = permission;
  }

  /** Makes room for an entry at an index. */
  #open(at: number): void {
    this.#shift(at, at + 1);
    this.#count += 1;
  }

  /** Takes the entries [from, to) out. */
  #remove(from: number, to: number): void {
    this.#shift(to, from);
    this.#count -= to - from;
  }

  /** Moves the entries from index `from` on to index `to`. */
  #shift(from: number, to: number): void {
    this.#start.copyWithin(to, from, this.#count);
    this.#end.copyWithin(to, from, this.#count);
    this.#user.copyWithin(to, from, this.#count);
    this.#permission.copyWithin(to, from, this.#count);
    this.#age.copyWithin(to, from, this.#count);
  }

  /** Lets the oldest entries go while there are too many. */
  #limit(): void {
    while (this.#count > MAX_IOTLB_ENTRIES) {
      let oldest = 0;
      for (let i = 1; i < this.#count; i += 1) {
        if ((this.#age[i] as number) < (this.#age[oldest] as number)) oldest = i;
      }
      this.#remove(oldest, oldest + 1);
    }
  }
}
