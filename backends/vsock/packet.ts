/** The header of a packet, read once from guest memory or written there. Source: VIRTIO 1.3, 5.10.6 Device Operation. */

import type { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { VIRTIO_VSOCK_HDR, VIRTIO_VSOCK_HDR_BYTES } from '../../protocol/virtio/vsock.ts';
import type { DescriptorChain } from '../../protocol/virtqueue/chain.ts';

const TWO_32 = 0x1_0000_0000;

/** Where headers that lie in several buffers are put together. */
const scratch = new DataView(new ArrayBuffer(VIRTIO_VSOCK_HDR_BYTES));
const scratchBytes = new Uint8Array(scratch.buffer);

/** One header. An instance is refilled for every packet. */
export class PacketHeader {
  /** Whatever the guest wrote: not exact above 2^53. */
  srcCid = 0;
  dstCid = 0;
  srcPort = 0;
  dstPort = 0;
  /** Bytes of payload. */
  len = 0;
  type = 0;
  op = 0;
  flags = 0;
  bufAlloc = 0;
  fwdCnt = 0;

  decode(view: DataView, at: number): void {
    const { src_cid, dst_cid, src_port, dst_port, len, type, op, flags, buf_alloc, fwd_cnt } = VIRTIO_VSOCK_HDR;
    this.srcCid = view.getUint32(at + src_cid, true) + view.getUint32(at + src_cid + 4, true) * TWO_32;
    this.dstCid = view.getUint32(at + dst_cid, true) + view.getUint32(at + dst_cid + 4, true) * TWO_32;
    this.srcPort = view.getUint32(at + src_port, true);
    this.dstPort = view.getUint32(at + dst_port, true);
    this.len = view.getUint32(at + len, true);
    this.type = view.getUint16(at + type, true);
    this.op = view.getUint16(at + op, true);
    this.flags = view.getUint32(at + flags, true);
    this.bufAlloc = view.getUint32(at + buf_alloc, true);
    this.fwdCnt = view.getUint32(at + fwd_cnt, true);
  }

  encode(view: DataView, at: number): void {
    const { src_cid, dst_cid, src_port, dst_port, len, type, op, flags, buf_alloc, fwd_cnt } = VIRTIO_VSOCK_HDR;
    view.setUint32(at + src_cid, this.srcCid, true);
    view.setUint32(at + src_cid + 4, Math.floor(this.srcCid / TWO_32), true);
    view.setUint32(at + dst_cid, this.dstCid, true);
    view.setUint32(at + dst_cid + 4, Math.floor(this.dstCid / TWO_32), true);
    view.setUint32(at + src_port, this.srcPort, true);
    view.setUint32(at + dst_port, this.dstPort, true);
    view.setUint32(at + len, this.len, true);
    view.setUint16(at + type, this.type, true);
    view.setUint16(at + op, this.op, true);
    view.setUint32(at + flags, this.flags, true);
    view.setUint32(at + buf_alloc, this.bufAlloc, true);
    view.setUint32(at + fwd_cnt, this.fwdCnt, true);
  }

  /** Reads the header at the start of a chain's readable part, of 44 bytes at least. */
  readFrom(chain: DescriptorChain, memory: GuestMemory): void {
    if ((chain.length[0] as number) >= VIRTIO_VSOCK_HDR_BYTES) {
      memory.locate(chain.guest[0] as number, VIRTIO_VSOCK_HDR_BYTES);
      this.decode(memory.view, memory.offset);
      return;
    }
    let done = 0;
    for (let i = 0; done < VIRTIO_VSOCK_HDR_BYTES; i += 1) {
      const part = Math.min(chain.length[i] as number, VIRTIO_VSOCK_HDR_BYTES - done);
      memory.copyOut(chain.guest[i] as number, scratchBytes.subarray(done, done + part));
      done += part;
    }
    this.decode(scratch, 0);
  }

  /** Writes the header to the start of a chain's writable part, of 44 bytes at least. */
  writeTo(chain: DescriptorChain, memory: GuestMemory): void {
    let i = chain.readableSegments;
    if ((chain.length[i] as number) >= VIRTIO_VSOCK_HDR_BYTES) {
      this.writeAt(chain.guest[i] as number, memory);
      return;
    }
    this.encode(scratch, 0);
    for (let done = 0; done < VIRTIO_VSOCK_HDR_BYTES; i += 1) {
      const part = Math.min(chain.length[i] as number, VIRTIO_VSOCK_HDR_BYTES - done);
      memory.copyIn(chain.guest[i] as number, scratchBytes.subarray(done, done + part));
      done += part;
    }
  }

  /** Writes the header to 44 bytes at a guest address that are in one region. */
  writeAt(guestAddress: number, memory: GuestMemory): void {
    memory.locate(guestAddress, VIRTIO_VSOCK_HDR_BYTES);
    this.encode(memory.view, memory.offset);
  }
}
