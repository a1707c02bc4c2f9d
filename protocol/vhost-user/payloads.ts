/**
 * The payload layouts of vhost-user messages: pure, strict in size and in reserved fields, native byte order (little
 * endian on every machine the suite runs on). Offsets are relative to the payload. Source: vhost-user, Message
 * Specification.
 *
 * Guest and user addresses and sizes are numbers: one above 2^53 - 1 is refused here, once. Masks are bigint.
 */

import { ProtocolError } from './errors.ts';

/** Payload bytes that any message may have. */
export const MAX_PAYLOAD_BYTES = 0x1000;
/** Front ends (QEMU, DPDK) send at most 256 bytes of configuration space at once. */
export const MAX_CONFIG_BYTES = 256;
/** Regions that SET_MEM_TABLE can carry. */
export const MAX_TABLE_REGIONS = 8;
export const VRING_FD_INDEX_MASK = 0xff;
/** Bit of a vring-fd payload: no descriptor is attached, poll instead. */
export const VRING_FD_NONE = 0x100;

export interface VringFd {
  readonly index: number;
  /** The message carries no descriptor. */
  readonly noFd: boolean;
}
export interface VringState {
  readonly index: number;
  readonly num: number;
}
export interface VringAddress {
  readonly index: number;
  readonly flags: number;
  readonly descriptor: number;
  readonly used: number;
  readonly available: number;
  /** Guest address of the used ring for dirty logging; any value when logging is off. */
  readonly log: bigint;
}
export interface MemoryRegion {
  readonly guestAddress: number;
  readonly size: number;
  readonly userAddress: number;
  readonly mmapOffset: number;
}
export interface LogArea {
  readonly size: number;
  readonly offset: number;
}
export interface Iotlb {
  readonly iova: bigint;
  readonly size: bigint;
  readonly userAddress: bigint;
  readonly permission: number;
  readonly type: number;
}
export interface ConfigSpace {
  readonly offset: number;
  readonly size: number;
  readonly flags: number;
  readonly data: Uint8Array;
}
export interface VringArea {
  readonly index: number;
  readonly noFd: boolean;
  readonly size: number;
  readonly offset: number;
}
export interface Inflight {
  readonly mmapSize: number;
  readonly mmapOffset: number;
  readonly numQueues: number;
  readonly queueSize: number;
}
export interface TransferState {
  readonly direction: number;
  readonly phase: number;
}
export interface MmapRequest {
  readonly shmid: number;
  readonly fdOffset: number;
  readonly shmOffset: number;
  readonly length: number;
  readonly flags: bigint;
}
export interface ShmemConfig {
  readonly sizes: readonly number[];
}

/** How one kind of payload is written and read. `decode` gets exactly the message's payload. */
export interface PayloadCodec<T> {
  readonly name: string;
  encode(value: T): Uint8Array;
  /** @throws ProtocolError - wrong size, reserved bits, or an address that no machine has */
  decode(bytes: Uint8Array): T;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function address(view: DataView, offset: number, what: string): number {
  const value = view.getBigUint64(offset, true);
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new ProtocolError(`${what} 0x${value.toString(16)} is above the limit of 2^53 - 1`);
  }
  return Number(value);
}

function fixed<T>(
  name: string,
  size: number,
  encode: (view: DataView, value: T) => void,
  decode: (view: DataView) => T,
): PayloadCodec<T> {
  return {
    name,
    encode(value) {
      const bytes = new Uint8Array(size);
      encode(viewOf(bytes), value);
      return bytes;
    },
    decode(bytes) {
      if (bytes.length !== size) {
        throw new ProtocolError(`payload (${name}) of ${bytes.length} bytes, ${size} expected`);
      }
      return decode(viewOf(bytes));
    },
  };
}

export const EMPTY = fixed<undefined>(
  'empty',
  0,
  () => undefined,
  () => undefined,
);

export const U64 = fixed<bigint>(
  'u64',
  8,
  (view, value) => view.setBigUint64(0, value, true),
  (view) => view.getBigUint64(0, true),
);

export const VRING_FD = fixed<VringFd>(
  'vring fd',
  8,
  (view, { index, noFd }) => view.setUint32(0, index | (noFd ? VRING_FD_NONE : 0), true),
  (view) => {
    const low = view.getUint32(0, true);
    if (low > (VRING_FD_NONE | VRING_FD_INDEX_MASK) || view.getUint32(4, true) !== 0) {
      throw new ProtocolError(`vring fd payload 0x${view.getBigUint64(0, true).toString(16)} has reserved bits set`);
    }
    return { index: low & VRING_FD_INDEX_MASK, noFd: (low & VRING_FD_NONE) !== 0 };
  },
);

export const VRING_STATE = fixed<VringState>(
  'vring state',
  8,
  (view, { index, num }) => {
    view.setUint32(0, index, true);
    view.setUint32(4, num, true);
  },
  (view) => ({ index: view.getUint32(0, true), num: view.getUint32(4, true) }),
);

export const VRING_ADDRESS = fixed<VringAddress>(
  'vring address',
  40,
  (view, value) => {
    view.setUint32(0, value.index, true);
    view.setUint32(4, value.flags, true);
    view.setBigUint64(8, BigInt(value.descriptor), true);
    view.setBigUint64(16, BigInt(value.used), true);
    view.setBigUint64(24, BigInt(value.available), true);
    view.setBigUint64(32, value.log, true);
  },
  (view) => ({
    index: view.getUint32(0, true),
    flags: view.getUint32(4, true),
    descriptor: address(view, 8, 'descriptor table address'),
    used: address(view, 16, 'used ring address'),
    available: address(view, 24, 'available ring address'),
    log: view.getBigUint64(32, true),
  }),
);

function putRegion(view: DataView, offset: number, region: MemoryRegion): void {
  view.setBigUint64(offset, BigInt(region.guestAddress), true);
  view.setBigUint64(offset + 8, BigInt(region.size), true);
  view.setBigUint64(offset + 16, BigInt(region.userAddress), true);
  view.setBigUint64(offset + 24, BigInt(region.mmapOffset), true);
}

function getRegion(view: DataView, offset: number): MemoryRegion {
  return {
    guestAddress: address(view, offset, 'region guest address'),
    size: address(view, offset + 8, 'region size'),
    userAddress: address(view, offset + 16, 'region user address'),
    mmapOffset: address(view, offset + 24, 'region mmap offset'),
  };
}

/** Up to 8 regions. User-mode Linux sends two region slots whatever the count is; trailing slots are ignored. */
export const MEMORY_TABLE: PayloadCodec<readonly MemoryRegion[]> = {
  name: 'memory table',
  encode(regions) {
    const bytes = new Uint8Array(8 + 32 * regions.length);
    const view = viewOf(bytes);
    view.setUint32(0, regions.length, true);
    regions.forEach((region, i) => {
      putRegion(view, 8 + 32 * i, region);
    });
    return bytes;
  },
  decode(bytes) {
    if (bytes.length < 8)
      throw new ProtocolError(`payload (memory table) of ${bytes.length} bytes, at least 8 expected`);
    const view = viewOf(bytes);
    const count = view.getUint32(0, true);
    if (count > MAX_TABLE_REGIONS) {
      throw new ProtocolError(`memory table of ${count} regions, at most ${MAX_TABLE_REGIONS} are possible`);
    }
    const slots = (bytes.length - 8) / 32;
    if (!Number.isInteger(slots) || slots < count || slots > MAX_TABLE_REGIONS) {
      throw new ProtocolError(`payload (memory table) of ${bytes.length} bytes for ${count} regions`);
    }
    return Array.from({ length: count }, (_, i) => getRegion(view, 8 + 32 * i));
  },
};

export const SINGLE_REGION = fixed<MemoryRegion>(
  'memory region',
  40,
  (view, region) => putRegion(view, 8, region),
  (view) => getRegion(view, 8),
);

export const LOG_AREA = fixed<LogArea>(
  'log',
  16,
  (view, { size, offset }) => {
    view.setBigUint64(0, BigInt(size), true);
    view.setBigUint64(8, BigInt(offset), true);
  },
  (view) => ({ size: address(view, 0, 'log size'), offset: address(view, 8, 'log offset') }),
);

/** Types of an IOTLB message. Source: linux/vhost_types.h. */
export const IOTLB_TYPE_MISS = 1;
export const IOTLB_TYPE_UPDATE = 2;
export const IOTLB_TYPE_INVALIDATE = 3;
export const IOTLB_TYPE_ACCESS_FAIL = 4;

export const IOTLB = fixed<Iotlb>(
  'iotlb',
  32,
  (view, value) => {
    view.setBigUint64(0, value.iova, true);
    view.setBigUint64(8, value.size, true);
    view.setBigUint64(16, value.userAddress, true);
    view.setUint8(24, value.permission);
    view.setUint8(25, value.type);
  },
  (view) => ({
    iova: view.getBigUint64(0, true),
    size: view.getBigUint64(8, true),
    userAddress: view.getBigUint64(16, true),
    permission: view.getUint8(24),
    type: view.getUint8(25),
  }),
);

/** `size` counts the data that follows; an empty payload is how a back end reports that GET_CONFIG failed. */
export const CONFIG_SPACE: PayloadCodec<ConfigSpace> = {
  name: 'config',
  encode({ offset, size, flags, data }) {
    const bytes = new Uint8Array(12 + data.length);
    const view = viewOf(bytes);
    view.setUint32(0, offset, true);
    view.setUint32(4, size, true);
    view.setUint32(8, flags, true);
    bytes.set(data, 12);
    return bytes;
  },
  decode(bytes) {
    if (bytes.length < 12) throw new ProtocolError(`payload (config) of ${bytes.length} bytes, at least 12 expected`);
    const view = viewOf(bytes);
    const size = view.getUint32(4, true);
    if (size > MAX_CONFIG_BYTES || bytes.length !== 12 + size) {
      throw new ProtocolError(
        `payload (config) of ${bytes.length} bytes says ${size} bytes of data, at most ${MAX_CONFIG_BYTES} are possible`,
      );
    }
    return { offset: view.getUint32(0, true), size, flags: view.getUint32(8, true), data: bytes.slice(12) };
  },
};

export const VRING_AREA = fixed<VringArea>(
  'vring area',
  24,
  (view, value) => {
    view.setUint32(0, value.index | (value.noFd ? VRING_FD_NONE : 0), true);
    view.setBigUint64(8, BigInt(value.size), true);
    view.setBigUint64(16, BigInt(value.offset), true);
  },
  (view) => ({
    ...VRING_FD.decode(new Uint8Array(view.buffer, view.byteOffset, 8)),
    size: address(view, 8, 'vring area size'),
    offset: address(view, 16, 'vring area offset'),
  }),
);

/** 20 bytes and 4 of padding, as a C compiler lays the struct out. */
export const INFLIGHT = fixed<Inflight>(
  'inflight',
  24,
  (view, value) => {
    view.setBigUint64(0, BigInt(value.mmapSize), true);
    view.setBigUint64(8, BigInt(value.mmapOffset), true);
    view.setUint16(16, value.numQueues, true);
    view.setUint16(18, value.queueSize, true);
  },
  (view) => ({
    mmapSize: address(view, 0, 'inflight mmap size'),
    mmapOffset: address(view, 8, 'inflight mmap offset'),
    numQueues: view.getUint16(16, true),
    queueSize: view.getUint16(18, true),
  }),
);

/** 16 bytes of UUID. */
export const SHARED_OBJECT = fixed<Uint8Array>(
  'shared object',
  16,
  (view, uuid) => new Uint8Array(view.buffer).set(uuid),
  (view) => new Uint8Array(view.buffer, view.byteOffset, 16).slice(),
);

export const TRANSFER_STATE = fixed<TransferState>(
  'transfer state',
  8,
  (view, { direction, phase }) => {
    view.setUint32(0, direction, true);
    view.setUint32(4, phase, true);
  },
  (view) => ({ direction: view.getUint32(0, true), phase: view.getUint32(4, true) }),
);

export const MMAP_REQUEST = fixed<MmapRequest>(
  'mmap request',
  40,
  (view, value) => {
    view.setUint8(0, value.shmid);
    view.setBigUint64(8, BigInt(value.fdOffset), true);
    view.setBigUint64(16, BigInt(value.shmOffset), true);
    view.setBigUint64(24, BigInt(value.length), true);
    view.setBigUint64(32, value.flags, true);
  },
  (view) => ({
    shmid: view.getUint8(0),
    fdOffset: address(view, 8, 'fd offset'),
    shmOffset: address(view, 16, 'shared memory offset'),
    length: address(view, 24, 'length'),
    flags: view.getBigUint64(32, true),
  }),
);

const SHMEM_REGIONS = 256;

export const SHMEM_CONFIG = fixed<ShmemConfig>(
  'shmem config',
  8 + 8 * SHMEM_REGIONS,
  (view, { sizes }) => {
    view.setUint32(0, sizes.length, true);
    sizes.forEach((size, i) => {
      view.setBigUint64(8 + 8 * i, BigInt(size), true);
    });
  },
  (view) => {
    const count = view.getUint32(0, true);
    if (count > SHMEM_REGIONS) throw new ProtocolError(`shmem config of ${count} regions, at most ${SHMEM_REGIONS}`);
    return { sizes: Array.from({ length: count }, (_, i) => address(view, 8 + 8 * i, 'shared memory size')) };
  },
);

/** Anything: for messages whose content only one implementation understands. */
export const OPAQUE: PayloadCodec<Uint8Array> = {
  name: 'opaque',
  encode: (bytes) => bytes,
  decode: (bytes) => bytes.slice(),
};
