/**
 * The header of a packet of the socket device, read and written in units of 4 bytes. Source: VIRTIO 1.3, 5.10.6 Device
 * Operation.
 *
 *     words: src_cid low, high; dst_cid low, high; src_port; dst_port; len; type | op << 16; flags; buf_alloc; fwd_cnt
 */

import { VIRTIO_VSOCK_HDR } from '../../protocol/virtio/vsock.ts';

const SRC_CID = VIRTIO_VSOCK_HDR.src_cid / 4;
const DST_CID = VIRTIO_VSOCK_HDR.dst_cid / 4;
const SRC_PORT = VIRTIO_VSOCK_HDR.src_port / 4;
const DST_PORT = VIRTIO_VSOCK_HDR.dst_port / 4;
const LEN = VIRTIO_VSOCK_HDR.len / 4;
const TYPE_AND_OP = VIRTIO_VSOCK_HDR.type / 4;
const FLAGS = VIRTIO_VSOCK_HDR.flags / 4;
const BUF_ALLOC = VIRTIO_VSOCK_HDR.buf_alloc / 4;
const FWD_CNT = VIRTIO_VSOCK_HDR.fwd_cnt / 4;

/** Who talks to whom, seen from here; `type` is VIRTIO_VSOCK_TYPE_*. */
export interface VsockEnds {
  readonly localCid: number;
  readonly localPort: number;
  readonly remoteCid: number;
  readonly remotePort: number;
  readonly type: number;
}

/** One header as it was read. Refilled for each packet. */
export class VsockHeader {
  srcCid = 0;
  dstCid = 0;
  /** Whether an upper half of a CID, which is reserved, is not zero. */
  hasReservedCid = false;
  srcPort = 0;
  dstPort = 0;
  /** Bytes of payload. */
  length = 0;
  type = 0;
  op = 0;
  flags = 0;
  bufAlloc = 0;
  fwdCnt = 0;

  /** Reads every field once; `at` is an index into `words`. */
  read(words: Uint32Array, at: number): void {
    this.srcCid = words[at + SRC_CID]!;
    this.dstCid = words[at + DST_CID]!;
    this.hasReservedCid = (words[at + SRC_CID + 1]! | words[at + DST_CID + 1]!) !== 0;
    this.srcPort = words[at + SRC_PORT]!;
    this.dstPort = words[at + DST_PORT]!;
    this.length = words[at + LEN]!;
    const typeAndOp = words[at + TYPE_AND_OP]!;
    this.type = typeAndOp & 0xffff;
    this.op = typeAndOp >>> 16;
    this.flags = words[at + FLAGS]!;
    this.bufAlloc = words[at + BUF_ALLOC]!;
    this.fwdCnt = words[at + FWD_CNT]!;
  }
}

/** Writes the header of a packet from here; `at` is an index into `words`. */
export function writeVsockHeader(
  words: Uint32Array,
  at: number,
  ends: VsockEnds,
  op: number,
  flags: number,
  length: number,
  bufAlloc: number,
  fwdCnt: number,
): void {
  words[at + SRC_CID] = ends.localCid;
  words[at + SRC_CID + 1] = 0;
  words[at + DST_CID] = ends.remoteCid;
  words[at + DST_CID + 1] = 0;
  words[at + SRC_PORT] = ends.localPort;
  words[at + DST_PORT] = ends.remotePort;
  words[at + LEN] = length;
  words[at + TYPE_AND_OP] = ends.type | (op << 16);
  words[at + FLAGS] = flags;
  words[at + BUF_ALLOC] = bufAlloc;
  words[at + FWD_CNT] = fwdCnt;
}

/** Makes another packet of a header that was written: the operation `op` without payload. */
export function rewriteVsockOperation(words: Uint32Array, at: number, op: number): void {
  words[at + TYPE_AND_OP] = (words[at + TYPE_AND_OP]! & 0xffff) | (op << 16);
  words[at + LEN] = 0;
  words[at + FLAGS] = 0;
}
