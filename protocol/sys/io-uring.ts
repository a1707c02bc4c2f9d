/**
 * One io_uring instance, driven without an allocation per request. Entries are written in place into the submission
 * queue; `enter` hands them to the kernel; completions are read one at a time into `completedId` and `completedResult`.
 * Layouts: linux/io_uring.h. The ring belongs to the thread that made it (IORING_SETUP_SINGLE_ISSUER).
 *
 *     struct io_uring_sqe, as u32 words: 0 opcode u8 | flags u8 | ioprio u16, 1 fd, 2-3 off, 4-5 addr, 6 len,
 *     7 rw_flags, 8-9 user_data, 10 buf_index | personality, 11 splice_fd_in, 12-15 pad
 *     struct io_uring_cqe: 0-1 user_data, 2 res i32, 3 flags
 */

import { EAGAIN, EBUSY, EINTR, EINVAL, SysError } from './errors.ts';
import { lastErrno, libc, viewMemory } from './libc.ts';
import { OwnedFd } from './owned-fd.ts';
import { allocatePinned, mappedAddress } from './pinned.ts';

export const IORING_OP_NOP = 0;
export const IORING_OP_READV = 1;
export const IORING_OP_WRITEV = 2;
export const IORING_OP_FSYNC = 3;
export const IORING_OP_FALLOCATE = 17;
export const IORING_OP_READ = 22;
export const IORING_OP_WRITE = 23;
export const IORING_FSYNC_DATASYNC = 1;
export const RWF_DSYNC = 2;

const SYS_io_uring_setup = 425;
const SYS_io_uring_enter = 426;
const SYS_io_uring_register = 427;
const IORING_SETUP_IOPOLL = 1 << 0;
const IORING_SETUP_CQSIZE = 1 << 3;
const IORING_SETUP_COOP_TASKRUN = 1 << 8;
const IORING_SETUP_TASKRUN_FLAG = 1 << 9;
const IORING_SETUP_SINGLE_ISSUER = 1 << 12;
const IORING_FEAT_SINGLE_MMAP = 1 << 0;
const IORING_FEAT_NODROP = 1 << 1;
const IORING_OFF_SQES = 0x1000_0000;
const IORING_ENTER_GETEVENTS = 1;
const IORING_SQ_CQ_OVERFLOW = 2;
const IORING_SQ_TASKRUN = 4;
const IORING_REGISTER_FILES = 2;
const IORING_REGISTER_FILES_UPDATE = 6;
const IOSQE_FIXED_FILE = 1;
const PROT_READ_WRITE = 3;
const MAP_SHARED_POPULATE = 0x8001;
const PARAMS_BYTES = 120;
const SQE_WORDS = 16;
const TWO_32 = 0x1_0000_0000;

const params = allocatePinned(PARAMS_BYTES);

export interface IoUringOptions {
  /** Submission queue entries, a power of two. */
  readonly entries: number;
  /** Completion queue entries, a power of two: at least as many as requests can be in flight. */
  readonly completionEntries: number;
  /** Busy-poll the device for completions: O_DIRECT reads and writes only, and the ring's fd never becomes readable. */
  readonly iopoll?: boolean;
}

function setup(options: IoUringOptions): OwnedFd {
  const base = IORING_SETUP_CQSIZE | (options.iopoll === true ? IORING_SETUP_IOPOLL : 0);
  // Newest kernels first: one submitter (6.0), no inter-processor interrupts (5.19), plain. Not DEFER_TASKRUN: since 6.3
  // a completion that waits for us to enter does not make the ring's descriptor readable (seen on 6.18: never).
  const attempts = [
    base | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
    base | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
    base,
  ];
  let errno = 0;
  for (const flags of attempts) {
    params.bytes.fill(0);
    params.data.setUint32(8, flags, true);
    params.data.setUint32(4, options.completionEntries, true);
    const fd = libc.syscall(SYS_io_uring_setup, options.entries, params.address, 0, 0, 0, 0);
    if (fd !== -1) return new OwnedFd(fd);
    errno = lastErrno();
    if (errno !== EINVAL) break;
  }
  throw new SysError('io_uring_setup', errno);
}

export class IoUring {
  /** user_data of the completion that `reap` just read. */
  completedId = 0;
  /** Its result: bytes, or a negative errno. */
  completedResult = 0;

  readonly #owned: OwnedFd;
  readonly fd: number;
  readonly #iopoll: boolean;
  readonly #sq: Uint32Array;
  readonly #cq: Int32Array;
  readonly #sqes: Uint32Array;
  readonly #sqMask: number;
  readonly #cqMask: number;
  readonly #sqHeadWord: number;
  readonly #sqTailWord: number;
  readonly #sqFlagsWord: number;
  readonly #cqHeadWord: number;
  readonly #cqTailWord: number;
  readonly #cqesWord: number;
  readonly #rings: { address: number; length: number };
  readonly #sqesMapping: { address: number; length: number };
  #sqTail = 0;
  #cqHead = 0;
  /** The completion queue's tail when it was looked at last. */
  #cqTail = 0;
  #pending = 0;
  #inKernel = 0;

  /** @throws SysError - ENOSYS, EPERM: io_uring is not to be had here */
  constructor(options: IoUringOptions) {
    this.#owned = setup(options);
    this.fd = this.#owned.fd;
    this.#iopoll = options.iopoll === true;
    const p = params.data;
    const features = p.getUint32(20, true);
    if ((features & IORING_FEAT_SINGLE_MMAP) === 0 || (features & IORING_FEAT_NODROP) === 0) {
      this.#owned.close();
      throw new SysError('io_uring_setup', 38, 'without IORING_FEAT_SINGLE_MMAP and NODROP');
    }
    const sqEntries = p.getUint32(0, true);
    const cqEntries = p.getUint32(4, true);
    // io_sqring_offsets @40: head, tail, ring_mask, ring_entries, flags, dropped, array; io_cqring_offsets @80.
    const sqArray = p.getUint32(40 + 24, true);
    const cqes = p.getUint32(80 + 20, true);
    const ringBytes = Math.max(sqArray + sqEntries * 4, cqes + cqEntries * 16);
    const ringAddress = mappedAddress(
      libc.mmap(0, ringBytes, PROT_READ_WRITE, MAP_SHARED_POPULATE, this.fd, 0),
      'io_uring rings',
    );
    this.#rings = { address: ringAddress, length: ringBytes };
    const sqeBytes = sqEntries * SQE_WORDS * 4;
    const sqeAddress = mappedAddress(
      libc.mmap(0, sqeBytes, PROT_READ_WRITE, MAP_SHARED_POPULATE, this.fd, IORING_OFF_SQES),
      'io_uring entries',
    );
    this.#sqesMapping = { address: sqeAddress, length: sqeBytes };
    const ring = viewMemory(ringAddress, ringBytes & ~3);
    this.#sq = new Uint32Array(ring);
    this.#cq = new Int32Array(ring);
    this.#sqes = new Uint32Array(viewMemory(sqeAddress, sqeBytes));
    this.#sqMask = sqEntries - 1;
    this.#cqMask = cqEntries - 1;
    this.#sqHeadWord = p.getUint32(40, true) >> 2;
    this.#sqTailWord = p.getUint32(44, true) >> 2;
    this.#sqFlagsWord = p.getUint32(56, true) >> 2;
    this.#cqHeadWord = p.getUint32(80, true) >> 2;
    this.#cqTailWord = p.getUint32(84, true) >> 2;
    this.#cqesWord = cqes >> 2;
    // Entry i of the array always names sqe i: the indirection is never used.
    for (let i = 0; i < sqEntries; i += 1) this.#sq[(sqArray >> 2) + i] = i;
  }

  /** Entries that can be prepared before `enter` must be called. */
  get room(): number {
    return this.#sqMask + 1 - this.#pending;
  }

  /** Prepared entries that the kernel has not taken yet. */
  get pending(): number {
    return this.#pending;
  }

  /** Requests prepared or in the kernel whose completion was not read yet. */
  get inFlight(): number {
    return this.#pending + this.#inKernel;
  }

  /**
   * Registers descriptors, so that requests name them by index and no reference is taken per request.
   * @throws SysError - the kernel refused
   */
  registerFiles(fds: readonly number[]): void {
    const table = allocatePinned(fds.length * 4);
    fds.forEach((fd, i) => {
      table.data.setInt32(i * 4, fd, true);
    });
    const result = libc.syscall(SYS_io_uring_register, this.fd, IORING_REGISTER_FILES, table.address, fds.length, 0, 0);
    if (result === -1) throw new SysError('io_uring_register', lastErrno(), 'files');
  }

  /**
   * Puts another descriptor in the place of a registered one. No request on it is in flight.
   * @throws SysError - the kernel refused
   */
  replaceFile(index: number, fd: number): void {
    // io_uring_files_update: offset u32, reserved u32, pointer to the descriptors u64; the descriptor follows.
    params.data.setUint32(0, index, true);
    params.data.setUint32(4, 0, true);
    params.setU64(8, params.address + 16);
    params.data.setInt32(16, fd, true);
    const op = IORING_REGISTER_FILES_UPDATE;
    const result = libc.syscall(SYS_io_uring_register, this.fd, op, params.address, 1, 0, 0);
    if (result === -1) throw new SysError('io_uring_register', lastErrno(), 'file update');
  }

  /**
   * Prepares one request on a registered file. `address` and what it points to stay valid until the completion is read.
   * `id` comes back as `completedId`. The caller has checked `room`.
   * FALLOCATE: offset, address = length in bytes, length = mode. FSYNC: flags = IORING_FSYNC_*.
   */
  prepare(op: number, file: number, offset: number, address: number, length: number, flags: number, id: number): void {
    if (this.#pending > this.#sqMask) throw new Error('io_uring submission queue overflow');
    const sqes = this.#sqes;
    const at = (this.#sqTail & this.#sqMask) * SQE_WORDS;
    sqes[at] = op | (IOSQE_FIXED_FILE << 8);
    sqes[at + 1] = file;
    sqes[at + 2] = offset >>> 0;
    sqes[at + 3] = (offset / TWO_32) | 0;
    sqes[at + 4] = address >>> 0;
    sqes[at + 5] = (address / TWO_32) | 0;
    sqes[at + 6] = length;
    sqes[at + 7] = flags;
    sqes[at + 8] = id;
    sqes[at + 9] = 0;
    sqes[at + 10] = 0;
    sqes[at + 11] = 0;
    this.#sqTail = (this.#sqTail + 1) | 0;
    this.#pending += 1;
  }

  /**
   * Hands prepared entries to the kernel, and lets it run completions that wait for us. Calls the kernel only when
   * there is something to hand over or to fetch. What the kernel did not take stays prepared.
   * @throws SysError - the ring is broken (our mistake)
   */
  enter(): void {
    const sq = this.#sq;
    if (this.#pending > 0) {
      // Release: the entries above are visible before the new tail.
      Atomics.store(sq, this.#sqTailWord, this.#sqTail);
    } else if (this.#inKernel === 0) {
      return;
    } else if (!this.#iopoll) {
      const flags = Atomics.load(sq, this.#sqFlagsWord);
      if ((flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) === 0) return;
    }
    const taken = libc.syscall(SYS_io_uring_enter, this.fd, this.#pending, 0, IORING_ENTER_GETEVENTS, 0, 0);
    if (taken >= 0) {
      this.#pending -= taken;
      this.#inKernel += taken;
      return;
    }
    const errno = lastErrno();
    // EBUSY and EAGAIN: the kernel wants completions read, or memory; both pass. Entries it consumed before the error
    // are seen by its head index.
    if (errno !== EINTR && errno !== EAGAIN && errno !== EBUSY) throw new SysError('io_uring_enter', errno);
    const left = (this.#sqTail - Atomics.load(sq, this.#sqHeadWord)) | 0;
    this.#inKernel += this.#pending - left;
    this.#pending = left;
  }

  /** Reads the next completion into `completedId` and `completedResult`; false when there is none. */
  reap(): boolean {
    const cq = this.#cq;
    const head = this.#cqHead;
    if (this.#cqTail === head) {
      // Acquire: entries are read after the tail that announced them.
      this.#cqTail = Atomics.load(cq, this.#cqTailWord);
      if (this.#cqTail === head) return false;
    }
    const at = this.#cqesWord + (head & this.#cqMask) * 4;
    this.completedId = cq[at] as number;
    this.completedResult = cq[at + 2] as number;
    this.#cqHead = (head + 1) | 0;
    this.#inKernel -= 1;
    return true;
  }

  /** Gives the entries read so far back to the kernel. Call once after a run of `reap`. */
  endReap(): void {
    Atomics.store(this.#cq, this.#cqHeadWord, this.#cqHead);
  }

  /** Closes the ring. Nothing may be in flight. */
  close(): void {
    this.#owned.close();
    libc.munmap(this.#rings.address, this.#rings.length);
    libc.munmap(this.#sqesMapping.address, this.#sqesMapping.length);
  }
}
