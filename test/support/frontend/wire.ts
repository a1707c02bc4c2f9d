/**
 * vhost-user messages as bytes, written from the protocol's text with literal numbers and offsets: the tests' own idea
 * of the wire, which shares nothing with protocol/vhost-user. Any header field can be told a lie.
 *
 *     header: request u32 @0, flags u32 @4 (bits 0-1 version 1, bit 2 reply, bit 3 need_reply), size u32 @8; payload @12
 */

/** Front-end request numbers. Source: vhost-user, Front-end message types. */
export const REQUEST = {
  GET_FEATURES: 1,
  SET_FEATURES: 2,
  SET_OWNER: 3,
  RESET_OWNER: 4,
  SET_MEM_TABLE: 5,
  SET_LOG_BASE: 6,
  SET_LOG_FD: 7,
  SET_VRING_NUM: 8,
  SET_VRING_ADDR: 9,
  SET_VRING_BASE: 10,
  GET_VRING_BASE: 11,
  SET_VRING_KICK: 12,
  SET_VRING_CALL: 13,
  SET_VRING_ERR: 14,
  GET_PROTOCOL_FEATURES: 15,
  SET_PROTOCOL_FEATURES: 16,
  GET_QUEUE_NUM: 17,
  SET_VRING_ENABLE: 18,
  SEND_RARP: 19,
  NET_SET_MTU: 20,
  SET_BACKEND_REQ_FD: 21,
  IOTLB_MSG: 22,
  SET_VRING_ENDIAN: 23,
  GET_CONFIG: 24,
  SET_CONFIG: 25,
  POSTCOPY_ADVISE: 28,
  POSTCOPY_LISTEN: 29,
  POSTCOPY_END: 30,
  GET_INFLIGHT_FD: 31,
  SET_INFLIGHT_FD: 32,
  RESET_DEVICE: 34,
  VRING_KICK: 35,
  GET_MAX_MEM_SLOTS: 36,
  ADD_MEM_REG: 37,
  REM_MEM_REG: 38,
  SET_STATUS: 39,
  GET_STATUS: 40,
  SET_DEVICE_STATE_FD: 42,
  CHECK_DEVICE_STATE: 43,
  GET_VRING_BASE_SKIP_DRAIN: 45,
} as const;

/** Back-end request numbers. Source: vhost-user, Back-end message types. */
export const BACKEND_REQUEST = { IOTLB_MSG: 1, CONFIG_CHANGE_MSG: 2, VRING_CALL: 4, VRING_ERR: 5 } as const;

export const FLAGS = { VERSION: 1, REPLY: 4, NEED_REPLY: 8 } as const;

/** Feature bits. Source: VIRTIO 1.3, 5.2.3 and 6; vhost-user, Feature negotiation. */
export const FEATURE = {
  SIZE_MAX: 1,
  SEG_MAX: 2,
  RO: 5,
  BLK_SIZE: 6,
  FLUSH: 9,
  TOPOLOGY: 10,
  CONFIG_WCE: 11,
  MQ: 12,
  DISCARD: 13,
  WRITE_ZEROES: 14,
  LOG_ALL: 26,
  INDIRECT_DESC: 28,
  EVENT_IDX: 29,
  PROTOCOL_FEATURES: 30,
  VERSION_1: 32,
  ACCESS_PLATFORM: 33,
  RING_PACKED: 34,
  IN_ORDER: 35,
} as const;

/** Protocol feature bits. Source: vhost-user, Protocol features. */
export const PROTOCOL = {
  MQ: 0,
  LOG_SHMFD: 1,
  RARP: 2,
  REPLY_ACK: 3,
  MTU: 4,
  BACKEND_REQ: 5,
  CROSS_ENDIAN: 6,
  CRYPTO_SESSION: 7,
  PAGEFAULT: 8,
  CONFIG: 9,
  BACKEND_SEND_FD: 10,
  HOST_NOTIFIER: 11,
  INFLIGHT_SHMFD: 12,
  RESET_DEVICE: 13,
  INBAND_NOTIFICATIONS: 14,
  CONFIGURE_MEM_SLOTS: 15,
  STATUS: 16,
  XEN_MMAP: 17,
  SHARED_OBJECT: 18,
  DEVICE_STATE: 19,
  GET_VRING_BASE_INFLIGHT: 20,
  GPA_ADDRESSES: 21,
  SHMEM: 22,
  GET_VRING_BASE_SKIP_DRAIN: 23,
} as const;

/** A number with the given bits set. */
export const bits = (...numbers: number[]): bigint => numbers.reduce((mask, bit) => mask | (1n << BigInt(bit)), 0n);

export const hasBit = (mask: bigint, bit: number): boolean => ((mask >> BigInt(bit)) & 1n) === 1n;

interface HeaderLies {
  readonly flags?: number;
  /** What the header says; by default the payload's length. */
  readonly size?: number;
}

/** One message. */
export const message = (id: number, payload: Uint8Array = new Uint8Array(0), lies: HeaderLies = {}): Uint8Array => {
  const bytes = new Uint8Array(12 + payload.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, id, true);
  view.setUint32(4, lies.flags ?? FLAGS.VERSION, true);
  view.setUint32(8, lies.size ?? payload.length, true);
  bytes.set(payload, 12);
  return bytes;
};

const build = (length: number, fill: (view: DataView) => void): Uint8Array => {
  const bytes = new Uint8Array(length);
  fill(new DataView(bytes.buffer));
  return bytes;
};

const put64 = (view: DataView, offset: number, value: number | bigint): void =>
  view.setBigUint64(offset, BigInt.asUintN(64, BigInt(value)), true);

export const u64 = (value: number | bigint): Uint8Array => build(8, (view) => put64(view, 0, value));

/** u64 of SET_VRING_KICK, CALL and ERR: bits 0-7 the ring, bit 8 "no descriptor attached". */
export const vringFd = (index: number, noFd = false): Uint8Array => u64(index | (noFd ? 0x100 : 0));

export const vringState = (index: number, num: number): Uint8Array =>
  build(8, (view) => {
    view.setUint32(0, index, true);
    view.setUint32(4, num, true);
  });

export interface RingAddresses {
  readonly descriptor: number | bigint;
  readonly used: number | bigint;
  readonly available: number | bigint;
  readonly flags?: number;
  readonly log?: number | bigint;
}

/** index @0, flags @4, descriptor @8, used @16, available @24, log @32. */
export const vringAddress = (index: number, at: RingAddresses): Uint8Array =>
  build(40, (view) => {
    view.setUint32(0, index, true);
    view.setUint32(4, at.flags ?? 0, true);
    put64(view, 8, at.descriptor);
    put64(view, 16, at.used);
    put64(view, 24, at.available);
    put64(view, 32, at.log ?? 0);
  });

export interface RawRegion {
  readonly guestAddress: number | bigint;
  readonly size: number | bigint;
  readonly userAddress: number | bigint;
  readonly mmapOffset: number | bigint;
}

const putRegion = (view: DataView, at: number, region: RawRegion): void => {
  put64(view, at, region.guestAddress);
  put64(view, at + 8, region.size);
  put64(view, at + 16, region.userAddress);
  put64(view, at + 24, region.mmapOffset);
};

/** nregions u32 @0, padding u32 @4, region[i] @8+32*i. `count` may lie. */
export const memoryTable = (regions: readonly RawRegion[], count = regions.length): Uint8Array =>
  build(8 + 32 * regions.length, (view) => {
    view.setUint32(0, count, true);
    regions.forEach((region, i) => {
      putRegion(view, 8 + 32 * i, region);
    });
  });

/** padding u64 @0, region @8. */
export const singleRegion = (region: RawRegion): Uint8Array => build(40, (view) => putRegion(view, 8, region));

/** offset u32 @0, size u32 @4, flags u32 @8, data @12. `size` may lie. */
export const config = (offset: number, data: Uint8Array, flags = 0, size = data.length): Uint8Array => {
  const bytes = build(12 + data.length, (view) => {
    view.setUint32(0, offset, true);
    view.setUint32(4, size, true);
    view.setUint32(8, flags, true);
  });
  bytes.set(data, 12);
  return bytes;
};

export interface RawInflight {
  readonly mmapSize: number | bigint;
  readonly mmapOffset: number | bigint;
  readonly numQueues: number;
  readonly queueSize: number;
}

/** mmap_size u64 @0, mmap_offset u64 @8, num_queues u16 @16, queue_size u16 @18, 4 bytes of C padding. */
export const inflight = (area: RawInflight): Uint8Array =>
  build(24, (view) => {
    put64(view, 0, area.mmapSize);
    put64(view, 8, area.mmapOffset);
    view.setUint16(16, area.numQueues, true);
    view.setUint16(18, area.queueSize, true);
  });

export interface RawTranslation {
  readonly iova: number | bigint;
  readonly size: number | bigint;
  readonly userAddress: number | bigint;
  readonly permission: number;
  readonly type: number;
}

/** iova u64 @0, size u64 @8, user address u64 @16, permission u8 @24, type u8 @25, 6 bytes of C padding. */
export const iotlb = (translation: RawTranslation): Uint8Array =>
  build(32, (view) => {
    put64(view, 0, translation.iova);
    put64(view, 8, translation.size);
    put64(view, 16, translation.userAddress);
    view.setUint8(24, translation.permission);
    view.setUint8(25, translation.type);
  });

export const readU64 = (payload: Uint8Array): bigint => {
  if (payload.length !== 8) throw new Error(`a u64 of ${payload.length} bytes`);
  return new DataView(payload.buffer, payload.byteOffset, 8).getBigUint64(0, true);
};

export const readInflight = (payload: Uint8Array): RawInflight => {
  if (payload.length !== 24) throw new Error(`an inflight payload of ${payload.length} bytes`);
  const view = new DataView(payload.buffer, payload.byteOffset, 24);
  return {
    mmapSize: Number(view.getBigUint64(0, true)),
    mmapOffset: Number(view.getBigUint64(8, true)),
    numQueues: view.getUint16(16, true),
    queueSize: view.getUint16(18, true),
  };
};
