/** Feature negotiation 32 bits at a time. Source: VIRTIO 1.3, 2.2 Feature Bits, 4.2.2 MMIO Device Register Layout. */

const WORD_BITS = 32n;
/** Words of 32 bits that a mask has here; what a driver accepts beyond is not offered. */
const WORDS = 2;

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
    return this.#beyond || (this.#accepted & ~this.#offered) !== 0n ? undefined : this.#accepted;
  }

  reset(): void {
    this.#accepted = 0n;
    this.#beyond = false;
    this.offeredSelector = 0;
    this.acceptedSelector = 0;
  }
}
