/**
 * One block request from its chain to its status byte: parse -> (execute.ts) -> finish. Parsing reads the header and
 * segments of the guest once, checks the copies, and leaves host addresses for the kernel; data never passes through
 * JavaScript. Source: VIRTIO 1.3, 5.2.6 Device Operation.
 *
 *     readable: header 16 bytes (type u32, reserved u32, sector u64), data of OUT, segments of DISCARD and WRITE_ZEROES
 *     writable: data of IN and GET_ID, then the status byte, the last byte of all
 *
 * How these parts are cut into descriptors is the driver's choice.
 */

import type { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { allocatePinned, type PinnedMemory } from '../../protocol/sys/pinned.ts';
import {
  VIRTIO_BLK_HEADER_BYTES,
  VIRTIO_BLK_ID_BYTES,
  VIRTIO_BLK_S_IOERR,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_S_UNSUPP,
  VIRTIO_BLK_SECTOR_BYTES,
  VIRTIO_BLK_SEGMENT_BYTES,
  VIRTIO_BLK_SEGMENT_F_UNMAP,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_GET_ID,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_WRITE_ZEROES,
} from '../../protocol/virtio/blk.ts';
import type { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import { NO_FAULT } from '../../protocol/virtqueue/faults.ts';
import type { Vring } from '../core/vring.ts';
import { MAX_RANGE_SECTORS, MAX_RANGES } from './limits.ts';

/** What the host has to do for a request. */
export const IO_READ = 1;
export const IO_WRITE = 2;
export const IO_SYNC = 3;
export const IO_ALLOCATE = 4;
/** Block devices only: TRIM. */
export const IO_DISCARD = 5;

/** What `parseBlkRequest` found. */
export const PARSED_READ = 1;
export const PARSED_WRITE = 2;
export const PARSED_FLUSH = 3;
export const PARSED_DISCARD = 4;
export const PARSED_WRITE_ZEROES = 5;
/** Nothing to execute: `status` is known. */
export const PARSED_DONE = 6;

const IOVEC_BYTES = 16;
const FIRST_IOVECS = 128;
const UIO_MAXIOV = 1024;
const TWO_32 = 0x1_0000_0000;
const NO_VIEW = new DataView(new ArrayBuffer(1));

/** What a request is checked against: the state of one attachment. */
export interface BlkPolicy {
  /** Bytes. */
  readonly capacityBytes: number;
  readonly readOnly: boolean;
  readonly discard: boolean;
  readonly writeZeroes: boolean;
  /** 20 bytes. */
  readonly serial: Uint8Array;
}

/** One request in flight. Instances are pooled and refilled; `id` is the place in the pool. */
export class BlkRequest {
  readonly id: number;
  vring: Vring | undefined = undefined;
  head = 0;
  /** One of PARSED_*. */
  what = PARSED_DONE;
  status = VIRTIO_BLK_S_OK;
  /** Bytes written to the guest's buffers, the status byte not counted. */
  written = 0;
  hasStatus = false;
  statusView: DataView = NO_VIEW;
  statusOffset = 0;

  // The operation the engine executes now.
  kind = 0;
  file = 0;
  /** Byte offset in the file. */
  offset = 0;
  /** Bytes left to transfer. */
  length = 0;
  /** Host address, when there is one buffer. */
  address = 0;
  /** Buffers; with more than one they are in the iovecs from `firstIovec`. */
  buffers = 0;
  firstIovec = 0;
  /** RWF_ flags of reads and writes, FALLOC_FL_ mode of allocations. */
  flags = 0;
  /** A completed write must be on stable storage. */
  durable = false;
  /** Must run alone: an unaligned write beside O_DIRECT. */
  exclusive = false;

  // Ranges of DISCARD and WRITE_ZEROES, in bytes.
  readonly rangeOffset = new Float64Array(MAX_RANGES);
  readonly rangeLength = new Float64Array(MAX_RANGES);
  ranges = 0;
  range = 0;
  unmap = false;

  iovecs: PinnedMemory | undefined = undefined;

  constructor(id: number) {
    this.id = id;
  }

  /** Address of the iovec array at the current position. */
  get iovecAddress(): number {
    return (this.iovecs as PinnedMemory).address + this.firstIovec * IOVEC_BYTES;
  }

  setIovec(index: number, address: number, length: number): void {
    const { data } = this.iovecs as PinnedMemory;
    const at = index * IOVEC_BYTES;
    data.setUint32(at, address >>> 0, true);
    data.setUint32(at + 4, (address / TWO_32) | 0, true);
    data.setUint32(at + 8, length, true);
    data.setUint32(at + 12, 0, true);
  }

  #iovecAt(index: number): { address: number; length: number } {
    const { data } = this.iovecs as PinnedMemory;
    const at = index * IOVEC_BYTES;
    return {
      address: data.getUint32(at, true) + data.getUint32(at + 4, true) * TWO_32,
      length: data.getUint32(at + 8, true),
    };
  }

  /** Whether every buffer starts at a multiple of `memoryAlign` and has a multiple of `lengthAlign` bytes. */
  buffersAreAligned(memoryAlign: number, lengthAlign: number): boolean {
    if (this.buffers === 1) return this.address % memoryAlign === 0;
    for (let i = this.firstIovec; i < this.firstIovec + this.buffers; i += 1) {
      const { address, length } = this.#iovecAt(i);
      if (address % memoryAlign !== 0 || length % lengthAlign !== 0) return false;
    }
    return true;
  }

  /** Drops the first `bytes` of what the iovecs describe, fewer than all. */
  dropIovecs(bytes: number): void {
    let left = bytes;
    for (;;) {
      const { address, length } = this.#iovecAt(this.firstIovec);
      if (left < length) {
        this.setIovec(this.firstIovec, address + left, length - left);
        break;
      }
      left -= length;
      this.firstIovec += 1;
      this.buffers -= 1;
    }
    if (this.buffers > 1) return;
    const last = this.#iovecAt(this.firstIovec);
    this.address = last.address;
  }

  /** Where BLKDISCARD finds the current range: { offset u64, length u64 }. */
  discardRange(): number {
    this.reserveIovecs(1);
    const range = this.iovecs as PinnedMemory;
    range.setU64(0, this.offset);
    range.setU64(8, this.length);
    return range.address;
  }

  /** Makes room for `count` iovecs. Grows rarely, never shrinks. */
  reserveIovecs(count: number): void {
    if (this.iovecs !== undefined && this.iovecs.length >= count * IOVEC_BYTES) return;
    let room = FIRST_IOVECS;
    while (room < count) room *= 2;
    this.iovecs = allocatePinned(room * IOVEC_BYTES);
  }
}

// One header, or one segment, at a time.
const scratch = new DataView(new ArrayBuffer(Math.max(VIRTIO_BLK_HEADER_BYTES, MAX_RANGES * VIRTIO_BLK_SEGMENT_BYTES)));
const scratchBytes = new Uint8Array(scratch.buffer);

/** Copies readable bytes of a chain from `skip` on, however they are cut. False when there are fewer. */
function gather(chain: DescriptorChain, memory: GuestMemory, skip: number, target: Uint8Array): boolean {
  let at = 0;
  let passed = 0;
  for (let i = 0; i < chain.readableSegments && at < target.length; i += 1) {
    const length = chain.length[i] as number;
    const from = Math.max(0, skip - passed);
    passed += length;
    if (from >= length) continue;
    const step = Math.min(length - from, target.length - at);
    memory.copyOut((chain.guest[i] as number) + from, target.subarray(at, at + step));
    at += step;
  }
  return at === target.length;
}

/** Copies bytes into the writable part of a chain. The caller has checked that they fit. */
function scatter(chain: DescriptorChain, memory: GuestMemory, source: Uint8Array): void {
  let at = 0;
  for (let i = chain.readableSegments; i < chain.segments && at < source.length; i += 1) {
    const step = Math.min(chain.length[i] as number, source.length - at);
    memory.copyIn(chain.guest[i] as number, source.subarray(at, at + step));
    at += step;
  }
}

function done(request: BlkRequest, status: number): number {
  request.status = status;
  request.what = PARSED_DONE;
  return PARSED_DONE;
}

/**
 * Fills a request from the chain just popped. Returns one of PARSED_*; after PARSED_DONE only `finishBlkRequest` is due.
 * Whatever the chain holds, the request knows its head and, if there is one, its status byte.
 */
export function parseBlkRequest(
  request: BlkRequest,
  vring: Vring,
  chain: DescriptorChain,
  memory: GuestMemory,
  policy: BlkPolicy,
): number {
  request.vring = vring;
  request.head = chain.head;
  request.length = 0;
  request.written = 0;
  request.exclusive = false;
  request.status = VIRTIO_BLK_S_OK;
  request.hasStatus = chain.lastWritable >= 0 && memory.locate(chain.lastWritable, 1);
  if (request.hasStatus) {
    request.statusView = memory.view;
    request.statusOffset = memory.offset;
  }
  if (chain.fault !== NO_FAULT) {
    vring.noteChainFault(chain.fault);
    return done(request, VIRTIO_BLK_S_IOERR);
  }
  if (!request.hasStatus || chain.readableBytes < VIRTIO_BLK_HEADER_BYTES) return done(request, VIRTIO_BLK_S_IOERR);

  let header: DataView = scratch;
  let at = 0;
  if ((chain.length[0] as number) >= VIRTIO_BLK_HEADER_BYTES) {
    memory.locate(chain.guest[0] as number, VIRTIO_BLK_HEADER_BYTES);
    header = memory.view;
    at = memory.offset;
  } else {
    gather(chain, memory, 0, scratchBytes.subarray(0, VIRTIO_BLK_HEADER_BYTES));
  }
  const type = header.getUint32(at, true);
  const sector = header.getUint32(at + 8, true) + header.getUint32(at + 12, true) * TWO_32;

  switch (type) {
    case VIRTIO_BLK_T_IN:
      return parseTransfer(request, chain, policy, sector, chain.writableBytes - 1, PARSED_READ);
    case VIRTIO_BLK_T_OUT:
      if (policy.readOnly) return done(request, VIRTIO_BLK_S_IOERR);
      return parseTransfer(request, chain, policy, sector, chain.readableBytes - VIRTIO_BLK_HEADER_BYTES, PARSED_WRITE);
    case VIRTIO_BLK_T_FLUSH:
      request.what = PARSED_FLUSH;
      return PARSED_FLUSH;
    case VIRTIO_BLK_T_GET_ID:
      request.written = Math.min(VIRTIO_BLK_ID_BYTES, chain.writableBytes - 1);
      scatter(chain, memory, policy.serial.subarray(0, request.written));
      return done(request, VIRTIO_BLK_S_OK);
    case VIRTIO_BLK_T_DISCARD:
      if (!policy.discard) return done(request, VIRTIO_BLK_S_UNSUPP);
      return parseRanges(request, chain, memory, policy, PARSED_DISCARD);
    case VIRTIO_BLK_T_WRITE_ZEROES:
      if (!policy.writeZeroes) return done(request, VIRTIO_BLK_S_UNSUPP);
      return parseRanges(request, chain, memory, policy, PARSED_WRITE_ZEROES);
    default:
      return done(request, VIRTIO_BLK_S_UNSUPP);
  }
}

function parseTransfer(
  request: BlkRequest,
  chain: DescriptorChain,
  policy: BlkPolicy,
  sector: number,
  lengthBytes: number,
  what: number,
): number {
  // A sector of 2^53 or more loses its low bits here, but is beyond every capacity all the same.
  const offset = sector * VIRTIO_BLK_SECTOR_BYTES;
  if (lengthBytes === 0 || lengthBytes % VIRTIO_BLK_SECTOR_BYTES !== 0) return done(request, VIRTIO_BLK_S_IOERR);
  if (lengthBytes > policy.capacityBytes || offset > policy.capacityBytes - lengthBytes) {
    return done(request, VIRTIO_BLK_S_IOERR);
  }
  request.what = what;
  request.offset = offset;
  request.length = lengthBytes;
  // More buffers than the kernel takes in one call: our seg_max is far below.
  if (chain.segments > UIO_MAXIOV) return done(request, VIRTIO_BLK_S_IOERR);
  if (what === PARSED_READ) collectBuffers(request, chain, chain.readableSegments, chain.segments, 0, lengthBytes);
  else collectBuffers(request, chain, 0, chain.readableSegments, VIRTIO_BLK_HEADER_BYTES, lengthBytes);
  return what;
}

/** Notes the buffers of segments [from, to) after `skip` bytes, `total` bytes in all. */
function collectBuffers(
  request: BlkRequest,
  chain: DescriptorChain,
  from: number,
  to: number,
  skip: number,
  total: number,
): void {
  let first = from;
  let lead = skip;
  while (lead >= (chain.length[first] as number)) {
    lead -= chain.length[first] as number;
    first += 1;
  }
  request.firstIovec = 0;
  if ((chain.length[first] as number) - lead >= total) {
    request.buffers = 1;
    request.address = (chain.address[first] as number) + lead;
    return;
  }
  request.reserveIovecs(to - first);
  let left = total;
  let count = 0;
  for (let i = first; left > 0; i += 1) {
    const length = Math.min((chain.length[i] as number) - lead, left);
    request.setIovec(count, (chain.address[i] as number) + lead, length);
    lead = 0;
    left -= length;
    count += 1;
  }
  request.buffers = count;
}

function parseRanges(
  request: BlkRequest,
  chain: DescriptorChain,
  memory: GuestMemory,
  policy: BlkPolicy,
  what: number,
): number {
  if (policy.readOnly) return done(request, VIRTIO_BLK_S_IOERR);
  const bytes = chain.readableBytes - VIRTIO_BLK_HEADER_BYTES;
  const count = bytes / VIRTIO_BLK_SEGMENT_BYTES;
  if (count === 0 || !Number.isInteger(count) || count > MAX_RANGES) return done(request, VIRTIO_BLK_S_IOERR);
  gather(chain, memory, VIRTIO_BLK_HEADER_BYTES, scratchBytes.subarray(0, bytes));
  request.unmap = false;
  for (let i = 0; i < count; i += 1) {
    const at = i * VIRTIO_BLK_SEGMENT_BYTES;
    const sector = scratch.getUint32(at, true) + scratch.getUint32(at + 4, true) * TWO_32;
    const sectors = scratch.getUint32(at + 8, true);
    const flags = scratch.getUint32(at + 12, true);
    if ((flags & ~VIRTIO_BLK_SEGMENT_F_UNMAP) !== 0) return done(request, VIRTIO_BLK_S_UNSUPP);
    if (flags !== 0 && what === PARSED_DISCARD) return done(request, VIRTIO_BLK_S_UNSUPP);
    if (sectors > MAX_RANGE_SECTORS) return done(request, VIRTIO_BLK_S_IOERR);
    const offset = sector * VIRTIO_BLK_SECTOR_BYTES;
    const length = sectors * VIRTIO_BLK_SECTOR_BYTES;
    if (length > policy.capacityBytes || offset > policy.capacityBytes - length) {
      return done(request, VIRTIO_BLK_S_IOERR);
    }
    request.rangeOffset[i] = offset;
    request.rangeLength[i] = length;
    // One flag for the request: deallocating is allowed only when every segment allows it.
    request.unmap = (i === 0 || request.unmap) && flags !== 0;
  }
  request.ranges = count;
  request.range = 0;
  request.what = what;
  return what;
}

/** Writes the status byte and stages the used entry. A chain without a status byte goes back with length 0. */
export function finishBlkRequest(request: BlkRequest): void {
  const vring = request.vring as Vring;
  if (request.hasStatus) {
    request.statusView.setUint8(request.statusOffset, request.status);
    vring.push(request.head, request.written + 1);
  } else {
    vring.push(request.head, 0);
  }
  request.vring = undefined;
  request.statusView = NO_VIEW;
}
