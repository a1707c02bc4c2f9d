/**
 * Every message of the protocol, with its payloads, its descriptors and when it is answered. Source: vhost-user,
 * Front-end message types and Back-end message types.
 */

import {
  CONFIG_SPACE,
  EMPTY,
  INFLIGHT,
  IOTLB,
  LOG_AREA,
  MEMORY_TABLE,
  MMAP_REQUEST,
  OPAQUE,
  type PayloadCodec,
  SHARED_OBJECT,
  SHMEM_CONFIG,
  SINGLE_REGION,
  TRANSFER_STATE,
  U64,
  VRING_ADDRESS,
  VRING_AREA,
  VRING_FD,
  VRING_STATE,
} from './payloads.ts';

/** Message header: request u32 @0, flags u32 @4, payload size u32 @8. */
export const HEADER_BYTES = 12;
export const VERSION_MASK = 3;
export const VERSION = 1;
export const FLAG_REPLY = 4;
export const FLAG_NEED_REPLY = 8;

/** How many descriptors a request carries: a range, or one per memory region in the payload. */
export interface FdRule {
  readonly min: number;
  readonly max: number;
}

const NO_FD: FdRule = { min: 0, max: 0 };
const ONE_FD: FdRule = { min: 1, max: 1 };
/** With or without a descriptor, as bit 8 of the payload says. */
const MAYBE_FD: FdRule = { min: 0, max: 1 };
const REGION_FDS: FdRule = { min: 0, max: 8 };

/** One message: what it is called, carries and is answered with. `reply` undefined: only acknowledged when asked to. */
export interface MessageType<Request = unknown, Reply = unknown> {
  readonly id: number;
  readonly name: string;
  readonly request: PayloadCodec<Request>;
  readonly fds: FdRule;
  readonly reply: PayloadCodec<Reply> | undefined;
}

function message<Q, R = never>(
  id: number,
  name: string,
  request: PayloadCodec<Q>,
  fds: FdRule = NO_FD,
  reply?: PayloadCodec<R>,
): MessageType<Q, R> {
  return { id, name, request, fds, reply };
}

/** Requests of the front end. */
export const FRONTEND = {
  GET_FEATURES: message(1, 'GET_FEATURES', EMPTY, NO_FD, U64),
  SET_FEATURES: message(2, 'SET_FEATURES', U64),
  SET_OWNER: message(3, 'SET_OWNER', EMPTY),
  RESET_OWNER: message(4, 'RESET_OWNER', EMPTY),
  SET_MEM_TABLE: message(5, 'SET_MEM_TABLE', MEMORY_TABLE, REGION_FDS),
  SET_LOG_BASE: message(6, 'SET_LOG_BASE', LOG_AREA, ONE_FD, U64),
  SET_LOG_FD: message(7, 'SET_LOG_FD', EMPTY, ONE_FD),
  SET_VRING_NUM: message(8, 'SET_VRING_NUM', VRING_STATE),
  SET_VRING_ADDR: message(9, 'SET_VRING_ADDR', VRING_ADDRESS),
  SET_VRING_BASE: message(10, 'SET_VRING_BASE', VRING_STATE),
  GET_VRING_BASE: message(11, 'GET_VRING_BASE', VRING_STATE, NO_FD, VRING_STATE),
  SET_VRING_KICK: message(12, 'SET_VRING_KICK', VRING_FD, MAYBE_FD),
  SET_VRING_CALL: message(13, 'SET_VRING_CALL', VRING_FD, MAYBE_FD),
  SET_VRING_ERR: message(14, 'SET_VRING_ERR', VRING_FD, MAYBE_FD),
  GET_PROTOCOL_FEATURES: message(15, 'GET_PROTOCOL_FEATURES', EMPTY, NO_FD, U64),
  SET_PROTOCOL_FEATURES: message(16, 'SET_PROTOCOL_FEATURES', U64),
  GET_QUEUE_NUM: message(17, 'GET_QUEUE_NUM', EMPTY, NO_FD, U64),
  SET_VRING_ENABLE: message(18, 'SET_VRING_ENABLE', VRING_STATE),
  SEND_RARP: message(19, 'SEND_RARP', U64),
  NET_SET_MTU: message(20, 'NET_SET_MTU', U64),
  SET_BACKEND_REQ_FD: message(21, 'SET_BACKEND_REQ_FD', EMPTY, ONE_FD),
  IOTLB_MSG: message(22, 'IOTLB_MSG', IOTLB, NO_FD, U64),
  SET_VRING_ENDIAN: message(23, 'SET_VRING_ENDIAN', VRING_STATE),
  GET_CONFIG: message(24, 'GET_CONFIG', CONFIG_SPACE, NO_FD, CONFIG_SPACE),
  SET_CONFIG: message(25, 'SET_CONFIG', CONFIG_SPACE),
  CREATE_CRYPTO_SESSION: message(26, 'CREATE_CRYPTO_SESSION', OPAQUE, NO_FD, OPAQUE),
  CLOSE_CRYPTO_SESSION: message(27, 'CLOSE_CRYPTO_SESSION', U64),
  /** The reply is a userfaultfd and no payload: QEMU refuses one of any other size than 0. */
  POSTCOPY_ADVISE: message(28, 'POSTCOPY_ADVISE', EMPTY, NO_FD, EMPTY),
  POSTCOPY_LISTEN: message(29, 'POSTCOPY_LISTEN', EMPTY),
  POSTCOPY_END: message(30, 'POSTCOPY_END', EMPTY, NO_FD, U64),
  GET_INFLIGHT_FD: message(31, 'GET_INFLIGHT_FD', INFLIGHT, NO_FD, INFLIGHT),
  SET_INFLIGHT_FD: message(32, 'SET_INFLIGHT_FD', INFLIGHT, ONE_FD),
  GPU_SET_SOCKET: message(33, 'GPU_SET_SOCKET', EMPTY, ONE_FD),
  RESET_DEVICE: message(34, 'RESET_DEVICE', EMPTY),
  VRING_KICK: message(35, 'VRING_KICK', VRING_STATE),
  GET_MAX_MEM_SLOTS: message(36, 'GET_MAX_MEM_SLOTS', EMPTY, NO_FD, U64),
  ADD_MEM_REG: message(37, 'ADD_MEM_REG', SINGLE_REGION, ONE_FD),
  REM_MEM_REG: message(38, 'REM_MEM_REG', SINGLE_REGION, MAYBE_FD),
  SET_STATUS: message(39, 'SET_STATUS', U64),
  GET_STATUS: message(40, 'GET_STATUS', EMPTY, NO_FD, U64),
  GET_SHARED_OBJECT: message(41, 'GET_SHARED_OBJECT', SHARED_OBJECT, NO_FD, U64),
  SET_DEVICE_STATE_FD: message(42, 'SET_DEVICE_STATE_FD', TRANSFER_STATE, ONE_FD, U64),
  CHECK_DEVICE_STATE: message(43, 'CHECK_DEVICE_STATE', EMPTY, NO_FD, U64),
  GET_SHMEM_CONFIG: message(44, 'GET_SHMEM_CONFIG', EMPTY, NO_FD, SHMEM_CONFIG),
  GET_VRING_BASE_SKIP_DRAIN: message(45, 'GET_VRING_BASE_SKIP_DRAIN', VRING_STATE, NO_FD, VRING_STATE),
} as const;

/** Requests of the back end, over the socket of SET_BACKEND_REQ_FD. */
export const BACKEND = {
  IOTLB_MSG: message(1, 'BACKEND_IOTLB_MSG', IOTLB),
  CONFIG_CHANGE_MSG: message(2, 'BACKEND_CONFIG_CHANGE_MSG', EMPTY),
  VRING_HOST_NOTIFIER_MSG: message(3, 'BACKEND_VRING_HOST_NOTIFIER_MSG', VRING_AREA, MAYBE_FD),
  VRING_CALL: message(4, 'BACKEND_VRING_CALL', VRING_STATE),
  VRING_ERR: message(5, 'BACKEND_VRING_ERR', VRING_STATE),
  SHARED_OBJECT_ADD: message(6, 'BACKEND_SHARED_OBJECT_ADD', SHARED_OBJECT),
  SHARED_OBJECT_REMOVE: message(7, 'BACKEND_SHARED_OBJECT_REMOVE', SHARED_OBJECT),
  SHARED_OBJECT_LOOKUP: message(8, 'BACKEND_SHARED_OBJECT_LOOKUP', SHARED_OBJECT, NO_FD, U64),
  SHMEM_MAP: message(9, 'BACKEND_SHMEM_MAP', MMAP_REQUEST, ONE_FD),
  SHMEM_UNMAP: message(10, 'BACKEND_SHMEM_UNMAP', MMAP_REQUEST),
} as const;

export type FrontendMessage = (typeof FRONTEND)[keyof typeof FRONTEND];
export type BackendMessage = (typeof BACKEND)[keyof typeof BACKEND];

/** Front-end messages by number. */
export const FRONTEND_BY_ID: ReadonlyMap<number, MessageType> = new Map(
  Object.values(FRONTEND).map((type) => [type.id, type as MessageType]),
);

/** Back-end messages by number. */
export const BACKEND_BY_ID: ReadonlyMap<number, MessageType> = new Map(
  Object.values(BACKEND).map((type) => [type.id, type as MessageType]),
);
