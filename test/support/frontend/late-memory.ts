/**
 * Guest memory whose pages are somewhere else yet: the front end's part of postcopy. What the memory held is kept aside, its
 * file is emptied, and each page is brought when the back end asks for it at its userfaultfd. Nothing here may touch the
 * mapping of a page that has not come: it would be there then, with zeros. Source: Linux, userfaultfd.rst.
 *
 *     struct uffd_msg    event u8 @0 (0x12 a page is waited for), address u64 @16; 32 bytes
 *     struct uffdio_copy dst u64 @0, src u64 @8, len u64 @16, mode u64 @24, copy u64 @32
 */

import { readSync } from 'node:fs';
import { checked, libc } from '../../../protocol/sys/libc.ts';
import type { OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import { allocatePinned } from '../../../protocol/sys/pinned.ts';
import { type Watch, watchReadable } from '../../../protocol/sys/readiness.ts';
import type { GuestRam } from './guest-ram.ts';

const PAGE = 4096;
const PUNCH_HOLE_KEEP_SIZE = 3;
const UFFD_EVENT_PAGEFAULT = 0x12;
const UFFDIO_COPY = 0xc028_aa03;
const UFFDIO_WAKE = 0x8010_aa02;

const event = allocatePinned(32);
const argument = allocatePinned(40);
const staging = allocatePinned(2 * PAGE);
const source = Math.ceil(staging.address / PAGE) * PAGE;

/** How a page is brought: into the back end's mapping, or into the file, with word of it. QEMU does the latter. */
export type How = 'copy' | 'wake';

export class LateMemory {
  /** Pages that were asked for, by number, in the order of asking. */
  readonly asked: number[] = [];
  /** Asked-for pages that wait until `bring`. */
  readonly waiting: number[] = [];
  readonly #ram: GuestRam;
  readonly #content: Uint8Array;
  readonly #how: How;
  readonly #come = new Set<number>();
  #holding = false;
  #userFault: OwnedFd | undefined;
  #watch: Watch | undefined;
  /** Where the back end has the memory's first byte. */
  #base = 0;

  #huge: { address: number; length: number } | undefined;

  /** Empties the memory from `start` to `end`: by default all of it. */
  constructor(ram: GuestRam, how: How = 'wake', start = 0, end = ram.length) {
    this.#ram = ram;
    this.#how = how;
    this.#content = ram.bytes.slice();
    for (let page = 0; page < ram.length / PAGE; page += 1) {
      if (page * PAGE < start || page * PAGE >= end) this.#come.add(page);
    }
    if (end > start) checked(libc.fallocate(ram.fd.fd, PUNCH_HOLE_KEEP_SIZE, start, end - start), 'fallocate');
  }

  /** Takes over the back end's userfaultfd and serves what is asked for there. */
  serve(userFault: OwnedFd): void {
    this.#userFault = userFault;
    this.#watch = watchReadable(userFault.fd, () => this.#onEvents(userFault));
  }

  /** What POSTCOPY's answer to a change of the memory says. */
  set base(address: number) {
    this.#base = address;
  }

  /** What is asked for is memory of pages as large as `length`, and filled with what is at `address` here. */
  bringHuge(address: number, length: number): void {
    this.#huge = { address, length };
  }

  /** From now on pages that are asked for wait. */
  hold(): void {
    this.#holding = true;
  }

  /** Brings everything that waits and serves again. */
  release(): void {
    this.#holding = false;
    for (const page of this.waiting.splice(0)) this.#bring(page);
  }

  /** Brings the pages that nobody asked for, as the source does by itself. */
  bringRest(): void {
    for (let page = 0; page < this.#ram.length / PAGE; page += 1) if (!this.#come.has(page)) this.#bring(page);
  }

  /** A u16 of the memory, 0 where the page has not come. */
  u16(offset: number): number {
    const bytes = new Uint8Array(2);
    readSync(this.#ram.fd.fd, bytes, 0, 2, offset);
    return new DataView(bytes.buffer).getUint16(0, true);
  }

  #onEvents(userFault: OwnedFd): void {
    while (libc.read(userFault.fd, event.address, 32) === 32) {
      if (event.data.getUint8(0) !== UFFD_EVENT_PAGEFAULT) throw new Error(`event ${event.data.getUint8(0)}`);
      const page = Math.floor((Number(event.data.getBigUint64(16, true)) - this.#base) / PAGE);
      this.asked.push(page);
      if (this.#holding) this.waiting.push(page);
      else if (this.#huge !== undefined) this.#copy(this.#huge.address, this.#huge.length, page * PAGE);
      else this.#bring(page);
    }
  }

  #bring(page: number): void {
    const first = !this.#come.has(page);
    this.#come.add(page);
    const at = page * PAGE;
    staging.bytes.set(this.#content.subarray(at, at + PAGE), source - staging.address);
    if (this.#how === 'copy' && first) {
      this.#copy(source, PAGE, at);
      return;
    }
    if (first) checked(libc.pwrite(this.#ram.fd.fd, source, PAGE, at), 'pwrite');
    argument.setU64(0, this.#base + at);
    argument.setU64(8, PAGE);
    this.#ioctl(UFFDIO_WAKE, 'UFFDIO_WAKE');
  }

  /** Into the back end's mapping, at a place in the memory, with whoever waits for it woken. */
  #copy(from: number, length: number, at: number): void {
    argument.bytes.fill(0);
    argument.setU64(0, this.#base + at);
    argument.setU64(8, from);
    argument.setU64(16, length);
    this.#ioctl(UFFDIO_COPY, 'UFFDIO_COPY');
  }

  #ioctl(request: number, name: string): void {
    checked(libc.ioctl((this.#userFault as OwnedFd).fd, request, argument.address), 'ioctl', name);
  }

  /** The front end's descriptor is gone. */
  close(): void {
    this.#watch?.close();
    this.#watch = undefined;
    this.#userFault?.close();
    this.#userFault = undefined;
  }
}
