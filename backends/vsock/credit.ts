/**
 * Flow control of one connection: counters of 32 bits that wrap around, and nothing else. Source: VIRTIO 1.3, 5.10.6.3
 * Buffer Space Management.
 *
 *     guest -> us   received - forwarded  bytes wait here, at most `bufAlloc`, which the guest knows with `forwarded`
 *     us -> guest   sent - peerForwarded  bytes wait there, at most `peerBufAlloc`
 */

/** What a guest's packet said of its buffer. */
export const CREDIT_SAME = 0;
/** There may be room where there was none. */
export const CREDIT_CHANGED = 1;
/** It forwarded what it was not sent. */
export const CREDIT_LIE = 2;

const HALF = 0x8000_0000;

export class Credit {
  /** Bytes we keep for the guest's data. */
  readonly bufAlloc: number;
  /** Bytes that came from the guest, and those of them that the host's side has. */
  received = 0;
  forwarded = 0;
  /** Bytes that went to the guest, and those of them that its program has. */
  sent = 0;
  peerForwarded = 0;
  peerBufAlloc = 0;
  /** `forwarded` as the guest knows it. */
  #told = 0;

  constructor(bufAlloc: number) {
    this.bufAlloc = bufAlloc;
  }

  /** Bytes that the guest takes now. */
  get room(): number {
    const waiting = (this.sent - this.peerForwarded) >>> 0;
    return waiting < this.peerBufAlloc ? this.peerBufAlloc - waiting : 0;
  }

  /** Notes bytes on their way to the guest, at most `room`. */
  spend(bytes: number): void {
    this.sent = (this.sent + bytes) >>> 0;
  }

  /**
   * Takes up what a packet of the guest says. A forward count that lies behind the one we know is an older packet's: the
   * guest's threads fill in and queue packets in any order.
   */
  update(bufAlloc: number, forwarded: number): number {
    const step = (forwarded - this.peerForwarded) >>> 0;
    if (step > (this.sent - this.peerForwarded) >>> 0) return step < HALF ? CREDIT_LIE : CREDIT_SAME;
    const changed = step !== 0 || bufAlloc !== this.peerBufAlloc;
    this.peerForwarded = forwarded;
    this.peerBufAlloc = bufAlloc;
    return changed ? CREDIT_CHANGED : CREDIT_SAME;
  }

  /** Notes bytes that came. False when they are more than the guest was allowed to send. */
  receive(bytes: number): boolean {
    const waiting = (this.received - this.forwarded) >>> 0;
    if (bytes > this.bufAlloc - waiting) return false;
    this.received = (this.received + bytes) >>> 0;
    return true;
  }

  /** Notes bytes that the host's side took. */
  forward(bytes: number): void {
    this.forwarded = (this.forwarded + bytes) >>> 0;
  }

  /** Notes that whatever waits was taken, or will never be. */
  forwardAll(): void {
    this.forwarded = this.received;
  }

  /** The guest knows so little of its room that it should be told. */
  get isStale(): boolean {
    return (this.forwarded - this.#told) >>> 0 >= this.bufAlloc >>> 2;
  }

  /** A packet to the guest says how far we are. */
  tell(): void {
    this.#told = this.forwarded;
  }
}
