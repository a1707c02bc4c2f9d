/**
 * Packets of the socket device, VIRTIO 1.3, 5.10.6, with literal offsets:
 *
 *     src_cid u64 @0, dst_cid u64 @8, src_port u32 @16, dst_port u32 @20, len u32 @24, type u16 @28, op u16 @30,
 *     flags u32 @32, buf_alloc u32 @36, fwd_cnt u32 @40; 44 bytes
 */

export const HEADER_BYTES = 44;

export const OP = {
  INVALID: 0,
  REQUEST: 1,
  RESPONSE: 2,
  RST: 3,
  SHUTDOWN: 4,
  RW: 5,
  CREDIT_UPDATE: 6,
  CREDIT_REQUEST: 7,
} as const;

export const STREAM = 1;
export const SEQPACKET = 2;
/** Flags of SHUTDOWN. */
export const RCV = 1;
export const SEND = 2;
/** Flags of RW. */
export const EOM = 1;
export const EOR = 2;
/** Device features. */
export const F_STREAM = 0;
export const F_SEQPACKET = 1;
export const F_NO_IMPLIED_STREAM = 2;

export interface VsockPacket {
  readonly srcCid: number | bigint;
  readonly dstCid: number | bigint;
  readonly srcPort: number;
  readonly dstPort: number;
  readonly len: number;
  readonly type: number;
  readonly op: number;
  readonly flags: number;
  readonly bufAlloc: number;
  readonly fwdCnt: number;
  readonly payload: Uint8Array;
}

/** Fields of a packet that its sender says. */
export type PacketFieldsOf = Partial<Omit<VsockPacket, 'payload'>>;

export const encodeHeader = (packet: Omit<VsockPacket, 'payload'>): Uint8Array => {
  const bytes = new Uint8Array(44);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, BigInt(packet.srcCid), true);
  view.setBigUint64(8, BigInt(packet.dstCid), true);
  view.setUint32(16, packet.srcPort, true);
  view.setUint32(20, packet.dstPort, true);
  view.setUint32(24, packet.len, true);
  view.setUint16(28, packet.type, true);
  view.setUint16(30, packet.op, true);
  view.setUint32(32, packet.flags, true);
  view.setUint32(36, packet.bufAlloc, true);
  view.setUint32(40, packet.fwdCnt, true);
  return bytes;
};

/** A packet of `length` bytes, header and payload. @throws Error - the payload is not what the header says */
export const decodePacket = (bytes: Uint8Array): VsockPacket => {
  if (bytes.length < 44) throw new Error(`a packet of ${bytes.length} bytes`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, 44);
  const len = view.getUint32(24, true);
  if (len !== bytes.length - 44) throw new Error(`a packet of ${bytes.length} bytes says that its payload has ${len}`);
  return {
    srcCid: Number(view.getBigUint64(0, true)),
    dstCid: Number(view.getBigUint64(8, true)),
    srcPort: view.getUint32(16, true),
    dstPort: view.getUint32(20, true),
    len,
    type: view.getUint16(28, true),
    op: view.getUint16(30, true),
    flags: view.getUint32(32, true),
    bufAlloc: view.getUint32(36, true),
    fwdCnt: view.getUint32(40, true),
    payload: bytes.slice(44),
  };
};
