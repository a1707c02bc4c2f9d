/**
 * A device whose requests are done in memory: each names itself by a number in its first four bytes, brings a pattern and
 * wants one back. It takes requests as it is told, finishes them in any order, and dies in the middle when it is told to.
 */

import type { RingAttachment } from '../../backends/core/device.ts';
import type { RingTraits } from '../../backends/core/ring-traits.ts';
import type { Vring } from '../../backends/core/vring.ts';
import { LAST_SOFT_FAULT, NO_FAULT } from '../../protocol/virtqueue/faults.ts';

/** Byte `i` of what request `number` brings, or gets with `number` + 1. */
export const patternByte = (number: number, i: number): number => (number * 31 + i * 7 + (i >> 5)) & 0xff;

/** The device was killed: nothing of it goes on. */
export class Killed extends Error {}

/** A request that was taken and not finished. */
export interface Taken {
  readonly vring: Vring;
  readonly head: number;
  /** -1 of a chain that cannot be read. */
  readonly number: number;
  /** A byte of what it brings that is not of the pattern, or -1. */
  readonly wrongByte: number;
  /** Guest addresses and lengths to fill. */
  readonly writable: readonly [number, number][];
}

/** Memory as the front end shares it now. @throws Error - it does not share that */
export type GuestBytes = (guest: number, length: number) => Uint8Array;

export class MemoryDevice implements RingAttachment {
  readonly taken: Taken[] = [];
  /** Called for each chain that is popped. */
  onTake: (request: Taken) => void = () => undefined;
  /** Chains to take until it is killed. */
  fuse = Number.POSITIVE_INFINITY;
  readonly #bytes: GuestBytes;
  readonly #traits: RingTraits;

  constructor(bytes: GuestBytes, offersBuffers: boolean) {
    this.#bytes = bytes;
    this.#traits = { offersBuffers, runsDisabled: false };
  }

  ringTraits(): RingTraits {
    return this.#traits;
  }

  ringChanged(): void {}

  processQueue(vring: Vring, budget: number): number {
    let count = 0;
    while (count < budget && vring.pop()) {
      count += 1;
      const request = this.#read(vring);
      this.taken.push(request);
      this.onTake(request);
      this.fuse -= 1;
      if (this.fuse === 0) throw new Killed();
    }
    return count;
  }

  #read(vring: Vring): Taken {
    const { chain } = vring;
    const { head, fault } = chain;
    if (fault > LAST_SOFT_FAULT) throw new Error(`chain fault ${fault}`);
    if (fault !== NO_FAULT) return { vring, head, number: -1, wrongByte: -1, writable: [] };
    const bytes: number[] = [];
    const writable: [number, number][] = [];
    for (let i = 0; i < chain.segments; i += 1) {
      const [guest, length] = [chain.guest[i] as number, chain.length[i] as number];
      if (i < chain.readableSegments) bytes.push(...this.#bytes(guest, length));
      else writable.push([guest, length]);
    }
    const number =
      (bytes[0] ?? 0) + (bytes[1] ?? 0) * 0x100 + (bytes[2] ?? 0) * 0x1_0000 + (bytes[3] ?? 0) * 0x100_0000;
    const wrongByte = bytes.findIndex((byte, i) => i >= 4 && byte !== patternByte(number, i));
    return { vring, head, number, wrongByte, writable };
  }

  /** Fills what the request wants and gives it back. */
  finish(request: Taken): void {
    this.taken.splice(this.taken.indexOf(request), 1);
    let done = 0;
    for (const [guest, length] of request.writable) {
      const bytes = this.#bytes(guest, length);
      for (let i = 0; i < length; i += 1) bytes[i] = patternByte(request.number + 1, done + i);
      done += length;
    }
    request.vring.push(request.head, done);
  }

  /** Gives the request that was taken last back to its ring. */
  giveBack(request: Taken): void {
    this.taken.splice(this.taken.indexOf(request), 1);
    request.vring.unpop(request.head);
  }
}
