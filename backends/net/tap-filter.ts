/**
 * The packet filter of a TAP, which is one for all its queues. No filter may be attached while a queue comes into use or
 * goes out of it: one that goes takes the filter with it, where nobody can take it away, and one that comes does not come
 * (tun_attach of the kernel returns after it gave the queue its filter). A TAP that outlived another process can have one
 * whose program is gone. Source: drivers/net/tun.c.
 */

import { EBADFD, SysError } from '../../protocol/sys/errors.ts';
import { setPacketFilter } from '../../protocol/sys/tap.ts';
import type { Logger } from '../core/logging.ts';

function areEqual(a: Uint8Array | undefined, b: Uint8Array | undefined): boolean {
  return a === b || (a !== undefined && b !== undefined && Buffer.compare(a, b) === 0);
}

export class TapFilter {
  readonly #log: Logger;
  /** What is attached; false when that is not known. */
  #current: Uint8Array | undefined | false = false;
  #complained = false;

  constructor(log: Logger) {
    this.#log = log;
  }

  /** The TAP is another one. */
  forget(): void {
    this.#current = false;
  }

  /**
   * Attaches a program by a queue that is in use; undefined lets everything pass.
   * @throws SysError - EBADFD: the TAP was deleted
   */
  set(fd: number, program: Uint8Array | undefined): void {
    if (this.#current !== false && areEqual(program, this.#current)) return;
    this.#current = undefined;
    try {
      // First without: the kernel limits the memory that both take together.
      setPacketFilter(fd, undefined);
      if (program !== undefined) setPacketFilter(fd, program);
      this.#current = program;
    } catch (error) {
      if (!(error instanceof SysError) || error.errno === EBADFD) throw error;
      // The device may pass more than the driver asks for; a macvtap has no filter.
      if (program === undefined || this.#complained) return;
      this.#complained = true;
      this.#log.warn(`the guest gets packets that it did not ask for: ${error.message}`);
    }
  }
}
