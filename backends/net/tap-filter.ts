/**
 * The packet filter of a TAP, which is one for all its queues. The kernel keeps what was attached last in two places: in
 * each queue that is in use, and as the address of the program, which it reads again when a queue comes into use. So a
 * queue that comes back may bring an older program with it, and a TAP that outlived another process its address.
 */

import { EBADFD, SysError } from '../../protocol/sys/errors.ts';
import { setPacketFilter } from '../../protocol/sys/tap.ts';
import type { Logger } from '../core/logging.ts';

function areEqual(a: Uint8Array | undefined, b: Uint8Array | undefined): boolean {
  return a === b || (a !== undefined && b !== undefined && Buffer.compare(a, b) === 0);
}

export class TapFilter {
  readonly #log: Logger;
  #current: Uint8Array | undefined;
  #complained = false;

  constructor(log: Logger) {
    this.#log = log;
  }

  /**
   * Attaches a program by a queue that is in use; undefined lets everything pass.
   * @throws SysError - EBADFD: the TAP was deleted
   */
  set(fd: number, program: Uint8Array | undefined): void {
    if (!areEqual(program, this.#current)) this.renew(fd, program);
  }

  /** The same after other queues came into use. @throws SysError - EBADFD: the TAP was deleted */
  renew(fd: number, program: Uint8Array | undefined): void {
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
