/** Memory of an imaginary guest: a memfd, mapped here, to be shared with the back end as one region. */

import { SharedMapping } from '../../../protocol/sys/mapping.ts';
import type { OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import { createMemfd, truncate } from './descriptors.ts';
import type { RawRegion } from './wire.ts';

export class GuestRam {
  readonly fd: OwnedFd;
  readonly length: number;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly words: Uint16Array;
  /** Where the guest sees it. Neither the offset in the file nor the user address equals it: mix-ups show. */
  readonly guestAddress: number;
  /** Where the front end claims to have mapped it: the address space of SET_VRING_ADDR. */
  readonly userAddress: number;
  readonly #mapping: SharedMapping;
  readonly #lead: number;

  /** `lead` bytes (whole pages) of the region come before what is seen here; they are never touched. */
  constructor(length: number, guestAddress = 0x4000_0000, userAddress = 0x7e00_0000_0000, lead = 0) {
    this.fd = createMemfd(lead + length);
    this.length = length;
    this.guestAddress = lead + guestAddress;
    this.userAddress = lead + userAddress;
    this.#lead = lead;
    this.#mapping = new SharedMapping(this.fd.fd, lead, length);
    const buffer = this.#mapping.view(0, length);
    this.bytes = new Uint8Array(buffer);
    this.view = new DataView(buffer);
    this.words = new Uint16Array(buffer);
  }

  /** Offset in the memory to guest address. */
  guest(offset: number): number {
    return this.guestAddress + offset;
  }

  /** Offset in the memory to user address. */
  user(offset: number): number {
    return this.userAddress + offset;
  }

  region(): Record<keyof RawRegion, number> {
    const lead = this.#lead;
    return {
      guestAddress: this.guestAddress - lead,
      size: lead + this.length,
      userAddress: this.userAddress - lead,
      mmapOffset: 0,
    };
  }

  /** Takes pages away from everybody who has mapped them. */
  truncate(length: number): void {
    truncate(this.fd, length);
  }

  close(): void {
    this.#mapping.retire();
    this.fd.close();
  }
}
