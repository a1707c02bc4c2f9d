/** Feature negotiation 32 bits at a time. Source: VIRTIO 1.3, 2.2 Feature Bits, 4.2.2 MMIO Device Register Layout. */

import { bigintOf, fieldsOf, flagOf, integerOf } from '../state/codec.ts';

const WORD_BITS = 32n;
/** Words of 32 bits that a mask has here; what a driver accepts beyond is not offered. */
const WORDS = 2;
const MAX_WORD = 0xffff_ffff;

/** The registers as plain data. */
export interface FeatureState {
  readonly accepted: bigint;
  /** Whether the driver accepted bits that no mask here has. */
  readonly beyond: boolean;
  readonly offeredSelector: number;
  readonly acceptedSelector: number;
}

export class FeatureRegisters {
  readonly #offered: bigint;
  #accepted = 0n;
  #beyond = false;
  /** Which 32 bits the driver reads, and which it writes. */
  offeredSelector = 0;
  acceptedSelector = 0;

  constructor(offered: bigint) {
    this.#offered = offered;
  }

  /** The selected 32 bits of what is offered. */
  get offeredWord(): number {
    if (this.offeredSelector >= WORDS) return 0;
    return Number((this.#offered >> (WORD_BITS * BigInt(this.offeredSelector))) & 0xffff_ffffn);
  }

  /** The driver accepts these of the selected 32 bits. */
  accept(word: number): void {
    if (this.acceptedSelector >= WORDS) {
      this.#beyond ||= word !== 0;
      return;
    }
    const shift = WORD_BITS * BigInt(this.acceptedSelector);
    this.#accepted = (this.#accepted & ~(0xffff_ffffn << shift)) | (BigInt(word) << shift);
  }

  /** What the driver accepted; undefined where some of it is not offered. */
  get accepted(): bigint | undefined {
    return this.#beyond || this.missing !== 0n ? undefined : this.#accepted;
  }

  /** What the driver accepted and is not offered. */
  get missing(): bigint {
    return this.#accepted & ~this.#offered;
  }

  reset(): void {
    this.#accepted = 0n;
    this.#beyond = false;
    this.offeredSelector = 0;
    this.acceptedSelector = 0;
  }

  save(): FeatureState {
    const { offeredSelector, acceptedSelector } = this;
    return { accepted: this.#accepted, beyond: this.#beyond, offeredSelector, acceptedSelector };
  }

  /** Takes over what `save` returned, elsewhere. @throws VmError - this is something else */
  load(state: unknown, what: string): void {
    const { accepted, beyond, offeredSelector, acceptedSelector } = fieldsOf(state, what);
    this.#accepted = bigintOf(accepted, `${what}: accepted`);
    this.#beyond = flagOf(beyond, `${what}: beyond`);
    this.offeredSelector = integerOf(offeredSelector, `${what}: offeredSelector`, { maximum: MAX_WORD });
    this.acceptedSelector = integerOf(acceptedSelector, `${what}: acceptedSelector`, { maximum: MAX_WORD });
  }
}
