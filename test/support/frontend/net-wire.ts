/**
 * Numbers and layouts of the network device, written from VIRTIO 1.3, 5.1 with literal bits and offsets, and frames to
 * send through it.
 *
 *     header: flags u8 @0, gso_type u8 @1, hdr_len u16 @2, gso_size u16 @4, csum_start u16 @6, csum_offset u16 @8,
 *             num_buffers u16 @10 (with VERSION_1 or MRG_RXBUF)
 */

/** Feature bits, 5.1.3. */
export const NET_FEATURE = {
  CSUM: 0,
  GUEST_CSUM: 1,
  CTRL_GUEST_OFFLOADS: 2,
  MTU: 3,
  MAC: 5,
  GUEST_TSO4: 7,
  GUEST_TSO6: 8,
  GUEST_ECN: 9,
  GUEST_UFO: 10,
  HOST_TSO4: 11,
  HOST_TSO6: 12,
  HOST_ECN: 13,
  HOST_UFO: 14,
  MRG_RXBUF: 15,
  STATUS: 16,
  CTRL_VQ: 17,
  CTRL_RX: 18,
  CTRL_VLAN: 19,
  CTRL_RX_EXTRA: 20,
  GUEST_ANNOUNCE: 21,
  MQ: 22,
  CTRL_MAC_ADDR: 23,
  GUEST_USO4: 54,
  GUEST_USO6: 55,
  HOST_USO: 56,
  SPEED_DUPLEX: 63,
} as const;

export const GSO = { NONE: 0, TCPV4: 1, UDP: 3, TCPV6: 4, UDP_L4: 5, ECN: 0x80 } as const;
export const NEEDS_CSUM = 1;
export const DATA_VALID = 2;

export interface NetHeader {
  readonly flags: number;
  readonly gsoType: number;
  readonly hdrLen: number;
  readonly gsoSize: number;
  readonly csumStart: number;
  readonly csumOffset: number;
  readonly numBuffers: number;
}

/** A header of 12 bytes, or 10 for a legacy driver. */
export const netHeader = (fields: Partial<NetHeader> = {}, length: 10 | 12 = 12): Uint8Array => {
  const bytes = new Uint8Array(12);
  const view = new DataView(bytes.buffer);
  view.setUint8(0, fields.flags ?? 0);
  view.setUint8(1, fields.gsoType ?? 0);
  view.setUint16(2, fields.hdrLen ?? 0, true);
  view.setUint16(4, fields.gsoSize ?? 0, true);
  view.setUint16(6, fields.csumStart ?? 0, true);
  view.setUint16(8, fields.csumOffset ?? 0, true);
  view.setUint16(10, fields.numBuffers ?? 0, true);
  return bytes.subarray(0, length);
};

export const readNetHeader = (bytes: Uint8Array): NetHeader => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return {
    flags: view.getUint8(0),
    gsoType: view.getUint8(1),
    hdrLen: view.getUint16(2, true),
    gsoSize: view.getUint16(4, true),
    csumStart: view.getUint16(6, true),
    csumOffset: view.getUint16(8, true),
    numBuffers: bytes.length >= 12 ? view.getUint16(10, true) : 0,
  };
};

/** IEEE 802 Local Experimental Ethertype 1: nobody but us uses it. */
export const ETHERTYPE_TEST = 0x88b5;

/** A frame of our Ethertype between two made-up addresses; its content follows from `seed`. */
export const testFrame = (seed: number, length = 60): Uint8Array => {
  const bytes = new Uint8Array(length);
  bytes.set([0x02, 0, 0, 0, 0, 0x01, 0x02, 0, 0, 0, 0, 0x02, 0x88, 0xb5]);
  // xorshift32
  let state = (seed * 2654435761 + 1) >>> 0 || 1;
  for (let i = 14; i < length; i += 1) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    bytes[i] = state & 0xff;
  }
  if (length >= 18) new DataView(bytes.buffer).setUint32(14, seed);
  return bytes;
};

/** The seed of a frame of 18 bytes or more. */
export const seedOf = (frame: Uint8Array): number =>
  new DataView(frame.buffer, frame.byteOffset, frame.length).getUint32(14);

const onesComplementSum = (bytes: Uint8Array, start: number, end: number): number => {
  let sum = 0;
  for (let i = start; i < end; i += 2) sum += ((bytes[i] ?? 0) << 8) | (i + 1 < end ? (bytes[i + 1] ?? 0) : 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return sum;
};

/** What belongs into a checksum field over this range, in which the field itself counts as it is. */
export const internetChecksum = (bytes: Uint8Array, start: number, end = bytes.length): number =>
  ~onesComplementSum(bytes, start, end) & 0xffff;

const IP_AT = 14;
const TRANSPORT_AT = 34;

/** An IPv4 frame whose transport checksum field holds the sum of the pseudo header only, as NEEDS_CSUM wants it. */
const ipv4Frame = (protocol: number, checksumOffset: number, segment: Uint8Array): Uint8Array => {
  const bytes = new Uint8Array(TRANSPORT_AT + segment.length);
  const view = new DataView(bytes.buffer);
  bytes.set([0x02, 0, 0, 0, 0, 0x01, 0x02, 0, 0, 0, 0, 0x02, 0x08, 0x00]);
  bytes.set([0x45, 0], IP_AT);
  view.setUint16(IP_AT + 2, 20 + segment.length);
  bytes.set([0x12, 0x34, 0x40, 0x00, 64, protocol], IP_AT + 4);
  bytes.set([198, 51, 100, 2, 198, 51, 100, 1], IP_AT + 12);
  view.setUint16(IP_AT + 10, internetChecksum(bytes, IP_AT, TRANSPORT_AT));
  bytes.set(segment, TRANSPORT_AT);
  const pseudo = new Uint8Array(12);
  pseudo.set(bytes.subarray(IP_AT + 12, IP_AT + 20));
  new DataView(pseudo.buffer).setUint16(8, protocol);
  new DataView(pseudo.buffer).setUint16(10, segment.length);
  view.setUint16(TRANSPORT_AT + checksumOffset, ~internetChecksum(pseudo, 0) & 0xffff);
  return bytes;
};

/** A TCP segment of IPv4 with `payloadBytes` bytes of data. csum_start is 34, csum_offset 16, its headers are 54 bytes. */
export const tcpFrame = (seed: number, payloadBytes: number): Uint8Array => {
  const segment = new Uint8Array(20 + payloadBytes);
  const view = new DataView(segment.buffer);
  view.setUint16(0, 1000);
  view.setUint16(2, 2000);
  view.setUint32(4, seed);
  segment[12] = 5 << 4;
  segment[13] = 0x10;
  view.setUint16(14, 0xffff);
  segment.set(testFrame(seed, payloadBytes + 18).subarray(18), 20);
  return ipv4Frame(6, 16, segment);
};

/** A UDP datagram of IPv4. csum_start is 34, csum_offset 6, its headers are 42 bytes. */
export const udpFrame = (seed: number, payloadBytes: number): Uint8Array => {
  const segment = new Uint8Array(8 + payloadBytes);
  const view = new DataView(segment.buffer);
  view.setUint16(0, 1000);
  view.setUint16(2, 2000);
  view.setUint16(4, segment.length);
  segment.set(testFrame(seed, payloadBytes + 18).subarray(18), 8);
  return ipv4Frame(17, 6, segment);
};
