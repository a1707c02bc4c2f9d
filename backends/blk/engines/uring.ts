/**
 * The io_uring engine: requests name guest memory in place, files are registered, completions are read from the ring.
 *
 * Writes into the page cache do not go through the ring as a rule: ext4 and others let io_uring do them only in its one
 * worker thread per file, at a third of the speed of a plain pwrite from here. They are written inline, in `poll`; when a
 * batch of them took long (the kernel throttles writers, or commits its journal) the ring gets them for a while, so that
 * reads and other queues are not held up. With --iopoll the ring for reads and writes is a busy-polled one, and what that
 * cannot do goes through a second ring.
 */

import { EAGAIN, EINTR, SysError } from '../../../protocol/sys/errors.ts';
import {
  IORING_FSYNC_DATASYNC,
  IORING_OP_FALLOCATE,
  IORING_OP_FSYNC,
  IORING_OP_READ,
  IORING_OP_READV,
  IORING_OP_WRITE,
  IORING_OP_WRITEV,
  IoUring,
} from '../../../protocol/sys/io-uring.ts';
import { allocatePinned } from '../../../protocol/sys/pinned.ts';
import { type Watch, watchReadable } from '../../../protocol/sys/readiness.ts';
import { discardLater, pwriteNow, pwritevNow } from '../../../protocol/sys/storage.ts';
import { MAX_REQUESTS } from '../limits.ts';
import { type BlkRequest, IO_ALLOCATE, IO_DISCARD, IO_READ, IO_SYNC, IO_WRITE } from '../request.ts';
import { BUFFERED_FILE, type Complete, type Engine, MAIN_FILE } from './engine.ts';

/** Larger writes are not worth holding everything else up for. */
const MAX_INLINE_BYTES = 256 * 1024;
const PROBE_BYTES = 4096;
/** A batch of inline writes that took longer is taken for throttling. */
const STALL_MS = 2;
/** How long the ring gets the writes then. */
const STALL_PENALTY_MS = 100;

export interface UringOptions {
  /** Descriptors of MAIN_FILE and BUFFERED_FILE. */
  readonly files: readonly [main: number, buffered: number];
  /** MAIN_FILE was opened with O_DIRECT. */
  readonly direct: boolean;
  readonly iopoll: boolean;
}

export class UringEngine implements Engine {
  readonly name = 'io_uring';
  onCompletion: () => void = () => undefined;
  readonly #complete: Complete;
  readonly #requests: readonly BlkRequest[];
  readonly #ring: IoUring;
  /** For operations that a busy-polled ring cannot do; the same ring without --iopoll. */
  readonly #plainRing: IoUring;
  readonly #watch: Watch;
  readonly #files: readonly [number, number];
  readonly #direct: boolean;
  readonly #iopoll: boolean;
  #inline: BlkRequest[] = [];
  #written: BlkRequest[] = [];
  #discarded: { request: BlkRequest; result: number }[] = [];
  #inlineAgainAt = 0;

  /** @throws SysError - io_uring is not to be had, or not busy-polled */
  constructor(options: UringOptions, requests: readonly BlkRequest[], complete: Complete) {
    this.#files = options.files;
    this.#direct = options.direct;
    this.#iopoll = options.iopoll;
    this.#requests = requests;
    this.#complete = complete;
    // A request has one operation at a time, so neither queue can overflow.
    const sizes = { entries: MAX_REQUESTS, completionEntries: 2 * MAX_REQUESTS };
    this.#plainRing = new IoUring(sizes);
    this.#plainRing.registerFiles(options.files);
    this.#watch = watchReadable(this.#plainRing.fd, () => this.onCompletion());
    this.#ring = options.iopoll ? new IoUring({ ...sizes, iopoll: true }) : this.#plainRing;
    if (!options.iopoll) return;
    this.#ring.registerFiles(options.files);
    this.#probePolling();
  }

  /** One read: a device without poll queues refuses it. @throws SysError - EOPNOTSUPP */
  #probePolling(): void {
    const page = allocatePinned(2 * PROBE_BYTES);
    const aligned = Math.ceil(page.address / PROBE_BYTES) * PROBE_BYTES;
    this.#ring.prepare(IORING_OP_READ, MAIN_FILE, 0, aligned, PROBE_BYTES, 0, 0);
    do this.#ring.enter();
    while (!this.#ring.reap());
    this.#ring.endReap();
    if (this.#ring.completedResult < 0)
      throw new SysError('read', -this.#ring.completedResult, 'with IORING_SETUP_IOPOLL');
  }

  get mustPoll(): boolean {
    return this.#plainRing.pending > 0 || (this.#iopoll && this.#ring.inFlight > 0) || this.#inline.length > 0;
  }

  submit(request: BlkRequest): void {
    const { kind } = request;
    if (kind === IO_WRITE && this.#isInline(request)) {
      this.#inline.push(request);
      return;
    }
    if (kind === IO_DISCARD) {
      discardLater(this.#files[request.file] as number, request.discardRange(), (result) => {
        this.#discarded.push({ request, result });
        this.onCompletion();
      });
      return;
    }
    const data = kind === IO_READ || kind === IO_WRITE;
    const ring = data && request.file !== BUFFERED_FILE ? this.#ring : this.#plainRing;
    this.#prepare(ring, request);
  }

  #isInline(request: BlkRequest): boolean {
    if (request.flags !== 0 || request.length > MAX_INLINE_BYTES) return false;
    return !this.#direct || request.file === BUFFERED_FILE;
  }

  #prepare(ring: IoUring, request: BlkRequest): void {
    const { file, offset, length, flags, id } = request;
    switch (request.kind) {
      case IO_READ:
        if (request.buffers === 1) ring.prepare(IORING_OP_READ, file, offset, request.address, length, flags, id);
        else ring.prepare(IORING_OP_READV, file, offset, request.iovecAddress, request.buffers, flags, id);
        return;
      case IO_WRITE:
        if (request.buffers === 1) ring.prepare(IORING_OP_WRITE, file, offset, request.address, length, flags, id);
        else ring.prepare(IORING_OP_WRITEV, file, offset, request.iovecAddress, request.buffers, flags, id);
        return;
      case IO_SYNC:
        ring.prepare(IORING_OP_FSYNC, file, 0, 0, 0, IORING_FSYNC_DATASYNC, id);
        return;
      case IO_ALLOCATE:
        ring.prepare(IORING_OP_FALLOCATE, file, offset, length, flags, 0, id);
        return;
    }
  }

  poll(): number {
    let ended = this.#inline.length > 0 ? this.#writeInline() : 0;
    ended += this.#reap(this.#plainRing);
    if (this.#iopoll) ended += this.#reap(this.#ring);
    if (this.#discarded.length > 0) ended += this.#reapDiscards();
    return ended;
  }

  #reapDiscards(): number {
    const discarded = this.#discarded;
    this.#discarded = [];
    for (const { request, result } of discarded) this.#complete(request, result);
    return discarded.length;
  }

  #reap(ring: IoUring): number {
    if (ring.inFlight === 0) return 0;
    ring.enter();
    let ended = 0;
    while (ring.reap()) {
      ended += 1;
      this.#complete(this.#requests[ring.completedId] as BlkRequest, ring.completedResult);
    }
    if (ended > 0) ring.endReap();
    return ended;
  }

  #writeInline(): number {
    const writes = this.#inline;
    // What completing them submits is for the next round.
    this.#inline = this.#written;
    this.#written = writes;
    const start = performance.now();
    if (start < this.#inlineAgainAt) {
      for (const request of writes) this.#prepare(this.#plainRing, request);
      writes.length = 0;
      return 0;
    }
    let ended = 0;
    for (let i = 0; i < writes.length; i += 1) {
      const request = writes[i] as BlkRequest;
      const fd = this.#files[request.file] as number;
      const result =
        request.buffers === 1
          ? pwriteNow(fd, request.address, request.length, request.offset)
          : pwritevNow(fd, request.iovecAddress, request.buffers, request.offset);
      if (result === -EINTR || result === -EAGAIN) {
        this.#inline.push(request);
        continue;
      }
      ended += 1;
      this.#complete(request, result);
    }
    writes.length = 0;
    const end = performance.now();
    if (end - start > STALL_MS) this.#inlineAgainAt = end + STALL_PENALTY_MS;
    return ended;
  }

  close(): void {
    this.#watch.close();
    if (this.#iopoll) this.#ring.close();
    this.#plainRing.close();
  }
}
