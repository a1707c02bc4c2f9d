/**
 * The TAP as one driver wants it: the header in front of packets, the offloads, the filter, the queues that are in use.
 * The TAP may be deleted under our hands: what fails then is tried again when it is back.
 */

import { EBADFD, SysError } from '../../protocol/sys/errors.ts';
import { allocatePinned } from '../../protocol/sys/pinned.ts';
import { readPacket, setOffloads, setQueueAttached, setVnetHeaderBytes, writePacket } from '../../protocol/sys/tap.ts';
import { VIRTIO_NET_HDR_BYTES } from '../../protocol/virtio/net.ts';
import type { Logger } from '../core/logging.ts';
import type { Tap } from './tap.ts';
import { TapFilter } from './tap-filter.ts';

/** Packets that were queued for an earlier driver and are thrown away, at most. */
const MAX_PURGED = 65_536;
const SCRATCH_BYTES = 128 * 1024;

export class TapPort {
  readonly #tap: Tap;
  readonly #log: Logger;
  readonly #filter: TapFilter;
  #program: Uint8Array | undefined;
  /** TUN_F_ bits. */
  #offloads = 0;
  #headerBytes = VIRTIO_NET_HDR_BYTES;
  readonly #scratch = allocatePinned(SCRATCH_BYTES);
  readonly #iovec = allocatePinned(16);

  constructor(tap: Tap, log: Logger) {
    this.#tap = tap;
    this.#log = log;
    this.#filter = new TapFilter(log);
  }

  /** The TAP is another one, with nothing set. */
  renew(): void {
    this.#filter.forget();
    this.#configure();
    this.setFilter(this.#program);
  }

  /**
   * Sets the length of the header and what the driver takes (TUN_F_ bits). Returns whether packets that wait in the TAP may
   * be such that the driver does not understand them.
   */
  configure(offloads: number, headerBytes: number): boolean {
    if (offloads === this.#offloads && headerBytes === this.#headerBytes) return false;
    const lacks = (this.#offloads & ~offloads) !== 0 || headerBytes !== this.#headerBytes;
    this.#offloads = offloads;
    this.#headerBytes = headerBytes;
    this.#configure();
    return lacks;
  }

  #configure(): void {
    const [first] = this.#tap.fds;
    if (first === undefined) return;
    this.#attempt(() => {
      for (const fd of this.#tap.fds) setVnetHeaderBytes(fd, this.#headerBytes);
      if (setOffloads(first, this.#offloads)) return;
      this.#log.warn(`${this.#tap.name} does not take the offloads 0x${this.#offloads.toString(16)}: it gets none`);
      setOffloads(first, 0);
    });
  }

  /** What the kernel lets pass, as a BPF program; undefined for everything. */
  setFilter(program: Uint8Array | undefined): void {
    this.#program = program;
    this.#applyFilter(program);
  }

  #applyFilter(program: Uint8Array | undefined): void {
    const [first] = this.#tap.fds;
    if (first !== undefined) this.#attempt(() => this.#filter.set(first, program));
  }

  /** Lets the TAP put packets into a queue, or no longer. The filter is away meanwhile, see TapFilter. False: it failed. */
  setAttached(fds: readonly number[], attached: boolean): boolean {
    this.#applyFilter(undefined);
    let done = true;
    for (const fd of fds) done = this.#attempt(() => setQueueAttached(fd, attached)) && done;
    this.#applyFilter(this.#program);
    return done;
  }

  /** Throws away what waits in the TAP. */
  purge(): void {
    this.#iovec.setU64(0, this.#scratch.address);
    this.#iovec.setU64(8, SCRATCH_BYTES);
    for (const fd of this.#tap.fds) {
      for (let i = 0; i < MAX_PURGED && readPacket(fd, this.#iovec.address, 1) >= 0; i += 1);
    }
  }

  /** Sends a frame of our own. Returns 0, or a negative errno. */
  send(frame: Uint8Array): number {
    const [first] = this.#tap.fds;
    if (first === undefined) return -EBADFD;
    this.#scratch.bytes.fill(0, 0, this.#headerBytes);
    this.#scratch.bytes.set(frame, this.#headerBytes);
    this.#iovec.setU64(0, this.#scratch.address);
    this.#iovec.setU64(8, this.#headerBytes + frame.length);
    return Math.min(0, writePacket(first, this.#iovec.address, 1));
  }

  /** False when it failed. */
  #attempt(act: () => void): boolean {
    try {
      act();
      return true;
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      // Not at once: we may be in the middle of something.
      if (error.errno === EBADFD) setImmediate(() => this.#tap.check());
      else this.#log.error(error.message);
      return false;
    }
  }
}
