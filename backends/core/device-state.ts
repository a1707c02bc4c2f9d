/**
 * Transfer of a device's state to and from another host, over a pipe that the front end gives us. It is small and taken
 * as a whole. Source: vhost-user, Migrating back-end state, SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE.
 */

import { SysError } from '../../protocol/sys/errors.ts';
import { isPollable, OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { readPiece, writePiece } from '../../protocol/sys/pipe-transfer.ts';
import { type Watch, watchReadable, watchWritable } from '../../protocol/sys/readiness.ts';
import type { Attachment } from './device.ts';
import type { Logger } from './logging.ts';
import { Refused } from './refused.ts';

// Directions, and the one phase there is.
const SAVE = 0;
const LOAD = 1;
const STOPPED = 0;

/** Reply: the front end's descriptor is used, and none of ours returned. */
const NO_DESCRIPTOR = 0x100n;
const DONE = 0n;
const FAILED = 1n;
/** A state that is longer is not one of ours. */
const MAX_STATE_BYTES = 64 * 1024;
/** Who asks whether a transfer succeeded has seen its end, or has made it: what is left takes no time. */
const CHECK_PATIENCE_MS = 3000;

export class DeviceState {
  readonly #attachment: Attachment;
  readonly #log: Logger;
  #fd: OwnedFd | undefined;
  #watch: Watch | undefined;
  #deadline: NodeJS.Timeout | undefined;
  /** Fulfilled with what CHECK_DEVICE_STATE answers. */
  #result: Promise<bigint> = Promise.resolve(DONE);
  #end: (result: bigint) => void = () => undefined;

  constructor(attachment: Attachment, log: Logger) {
    this.#attachment = attachment;
    this.#log = log;
  }

  /** SET_DEVICE_STATE_FD. Returns the reply. @throws Refused - direction, phase or descriptor are none */
  begin(direction: number, phase: number, fd: OwnedFd): bigint {
    if (phase !== STOPPED) throw new Refused(`phase ${phase} of a device state transfer: only 0 (stopped) is possible`);
    if (direction !== SAVE && direction !== LOAD) {
      throw new Refused(`direction ${direction} of a device state transfer: 0 (save) and 1 (load) are possible`);
    }
    if (!isPollable(fd.fd)) throw new Refused('device state goes through a pipe or a socket, not a file');
    this.close();
    this.#result = new Promise((resolve) => {
      this.#end = resolve;
    });
    this.#fd = new OwnedFd(fd.take());
    try {
      this.#watch = direction === SAVE ? this.#save(this.#fd.fd) : this.#load(this.#fd.fd);
    } catch (error) {
      this.#finish(FAILED);
      throw error;
    }
    return NO_DESCRIPTOR;
  }

  /** CHECK_DEVICE_STATE: waits for the end of the transfer, for a while. */
  check(): Promise<bigint> {
    if (this.#fd !== undefined) {
      this.#deadline = setTimeout(() => {
        this.#log.error(`device state: its end did not come within ${CHECK_PATIENCE_MS} ms`);
        this.#finish(FAILED);
      }, CHECK_PATIENCE_MS);
    }
    return this.#result;
  }

  #save(fd: number): Watch {
    let left = this.#attachment.exportState?.() ?? new Uint8Array(0);
    return watchWritable(fd, () =>
      this.#try(() => {
        if (left.length > 0) left = left.subarray(writePiece(fd, left));
        if (left.length === 0) this.#finish(DONE);
      }),
    );
  }

  #load(fd: number): Watch {
    const state = new Uint8Array(MAX_STATE_BYTES);
    let length = 0;
    return watchReadable(fd, () =>
      this.#try(() => {
        const piece = readPiece(fd);
        if (piece === undefined) return;
        if (piece.length === 0) {
          const complaint = this.#attachment.importState?.(state.subarray(0, length));
          if (complaint !== undefined) throw new Refused(complaint);
          this.#finish(DONE);
          return;
        }
        if (length + piece.length > MAX_STATE_BYTES) throw new Refused(`more than ${MAX_STATE_BYTES} bytes`);
        state.set(piece, length);
        length += piece.length;
      }),
    );
  }

  /** A step of a transfer: when it fails, CHECK_DEVICE_STATE says so. */
  #try(step: () => void): void {
    try {
      step();
    } catch (error) {
      if (!(error instanceof SysError) && !(error instanceof Refused)) throw error;
      this.#log.error(`device state: ${error.message}`);
      this.#finish(FAILED);
    }
  }

  /** Closing the descriptor is how the other end learns that the state is complete. */
  #finish(result: bigint): void {
    clearTimeout(this.#deadline);
    this.#watch?.close();
    this.#watch = undefined;
    this.#fd?.close();
    this.#fd = undefined;
    this.#end(result);
  }

  /** Ends a transfer that is under way. */
  close(): void {
    if (this.#fd !== undefined) this.#finish(FAILED);
  }
}
