/**
 * The bytes of one connection under way in both directions, and how many more there may be. Counters are 32 bits wide and
 * wrap around; only differences count. Source: VIRTIO 1.3, 5.10.6.3 Buffer Space Management.
 *
 *     may be sent:  peer's buf_alloc - (tx_cnt - peer's fwd_cnt)
 */

import type { VsockHeader } from './vsock-header.ts';

export class VsockCredit {
  /** Bytes of the own buffer: what goes out as buf_alloc. */
  readonly bufAlloc: number;
  #txCnt = 0;
  #peerFwdCnt = 0;
  #peerBufAlloc = 0;
  #rxCnt = 0;
  #fwdCnt = 0;
  #toldFwdCnt = 0;

  constructor(bufAlloc: number) {
    this.bufAlloc = bufAlloc;
  }

  /** Bytes read: what goes out as fwd_cnt. */
  get fwdCnt(): number {
    return this.#fwdCnt;
  }

  /** Bytes of the other side's buffer altogether. */
  get peerBufAlloc(): number {
    return this.#peerBufAlloc;
  }

  /** Bytes sent that the other side has not read. */
  get unread(): number {
    return (this.#txCnt - this.#peerFwdCnt) >>> 0;
  }

  /** Bytes that the other side has room for. A buffer can have become smaller than what is in it. */
  get available(): number {
    return Math.max(0, this.#peerBufAlloc - this.unread);
  }

  /** Notes what a packet of the other side says of its buffer. Returns false when it has read more than it was sent. */
  update({ bufAlloc, fwdCnt }: Pick<VsockHeader, 'bufAlloc' | 'fwdCnt'>): boolean {
    if ((fwdCnt - this.#peerFwdCnt) >>> 0 > this.unread) return false;
    this.#peerFwdCnt = fwdCnt;
    this.#peerBufAlloc = bufAlloc;
    return true;
  }

  noteSent(length: number): void {
    this.#txCnt = (this.#txCnt + length) >>> 0;
  }

  /** Bytes have come. Returns false when there was no room for them. */
  noteReceived(length: number): boolean {
    if (length > this.bufAlloc - ((this.#rxCnt - this.#fwdCnt) >>> 0)) return false;
    this.#rxCnt = (this.#rxCnt + length) >>> 0;
    return true;
  }

  /** Bytes were read. */
  noteRead(length: number): void {
    this.#fwdCnt = (this.#fwdCnt + length) >>> 0;
  }

  /** A packet with `fwdCnt` is on its way. */
  noteTold(): void {
    this.#toldFwdCnt = this.#fwdCnt;
  }

  /** Whether the other side is to be told what was read, before it has used up more than half of the buffer. */
  get isUpdateDue(): boolean {
    const believed = (this.#rxCnt - this.#toldFwdCnt) >>> 0;
    return this.#fwdCnt !== this.#toldFwdCnt && believed > this.bufAlloc / 2;
  }
}
