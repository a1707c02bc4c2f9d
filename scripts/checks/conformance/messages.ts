/** The messages of vhost-user in the conformance tables: what is special, why some are refused, and what proves it. */

import type { BACKEND, FRONTEND } from '../../../protocol/vhost-user/messages.ts';
import type { Entry } from './entry.ts';
import { ANY_ORDER, BEHIND_IOMMU, CONFIG_CHANGE, CRASH, IN_BAND, LOGGED, NEGOTIATED, NEGOTIATION } from './proofs.ts';

const HAND_OVER = 'unit/vmm-client/vmm/devices/vhost-user-device: DRIVER_OK > hands everything over, in order';
const RING = 'unit/vmm-client/frontend/frontend: handing over > sends a ring in order, enabled last, and kicks once';
const TAKING_BACK = 'unit/vmm-client/frontend/frontend: taking back > disables and stops rings, then resets the device';
const NOT_OFFERED = `${ANY_ORDER} > %s that were not offered are refused`;
const FRONT_END_LOG = 'unit/vmm-client/frontend/dirty-logging: dirty logging';

const POSTCOPY = 'integration/postcopy: messages of postcopy';

export const FRONTEND_MESSAGES: Readonly<Record<keyof typeof FRONTEND, Entry>> = {
  GET_FEATURES: { proof: [NEGOTIATED], used: [NEGOTIATION] },
  SET_FEATURES: {
    remark:
      'bits that were not offered are refused; without PROTOCOL_FEATURES all rings are enabled; refused while a ring is started, but for LOG_ALL',
    proof: [
      NOT_OFFERED,
      'integration/net-ring-states: the rings of a network device > one pair of rings > are enabled at once for a front end that does not negotiate PROTOCOL_FEATURES',
    ],
    used: [HAND_OVER],
  },
  SET_OWNER: {
    remark: 'changes nothing',
    proof: [`${ANY_ORDER} > without need_reply a success is not answered`],
    used: [NEGOTIATION],
  },
  RESET_OWNER: {
    remark: 'stops and disables the rings; the rest stays',
    proof: [`${ANY_ORDER} > RESET_DEVICE and RESET_OWNER stop the rings and keep the connection`],
  },
  SET_MEM_TABLE: {
    remark: 'up to 8 regions; started rings are drained, and looked for in the new memory',
    proof: [
      'integration/memory-faults: a region is refused > %s',
      'integration/memory-faults: a region is taken > twice from one file, with a request across both',
      'integration/ring-setup: memory taken away from a started ring > by a new SET_MEM_TABLE without it leaves the daemon and the connection alive',
    ],
    used: [
      HAND_OVER,
      'unit/vmm-client/frontend/frontend: handing over > sends memory as a table, and single regions beyond its eight',
    ],
  },
  SET_LOG_BASE: {
    remark: 'the log must reach to the end of the memory, before the memory does; used while LOG_ALL is on',
    proof: [
      LOGGED,
      'integration/conformance-core: the dirty log > that %s is refused',
      'integration/dirty-log-growth: memory that comes while %s logs what it writes > is refused where it lies beyond the log, and taken when there is a larger one',
    ],
    used: [`${FRONT_END_LOG} > begins with the log, then features and the places of used rings`],
  },
  SET_LOG_FD: {
    remark: 'never signalled: the log says it all',
    proof: ['integration/conformance-core: the dirty log > may come with a descriptor, which is let go of'],
    used: [`${FRONT_END_LOG} > takes what the back end marked, and goes on until it ends`],
  },
  SET_VRING_NUM: {
    remark: 'split: powers of two up to 32768; packed: any number up to that; refused on a started ring',
    proof: [
      'integration/ring-setup: a ring is refused > of %i entries',
      'integration/ring-setup: a started ring > does not let its %s be changed, and goes on',
      'integration/packed-rings: a packed ring > of %i slots is served',
      'integration/packed-rings: a packed ring > of %i slots is refused',
    ],
    used: [RING],
  },
  SET_VRING_ADDR: {
    remark: 'on a started ring it is drained and placed again; of the flags the log counts',
    proof: [
      'integration/ring-setup: a ring is refused > %s',
      'integration/ring-setup: SET_VRING_ADDR on a started ring > moves it: requests are taken from the new place',
    ],
    used: [RING],
  },
  SET_VRING_BASE: {
    remark: 'packed: both places with their wrap counters; refused on a started ring',
    proof: [
      'integration/ring-setup: a ring is refused > with a base of %i',
      'integration/packed-rings: the base of a packed ring > names both places with their wrap counters, and is where the ring goes on',
    ],
    used: [RING],
  },
  GET_VRING_BASE: {
    remark: 'stops the ring; waits for what is in flight',
    proof: [
      'integration/ring-setup: a started ring > stopped by GET_VRING_BASE takes nothing more, and goes on where it was when started again',
      'integration/crash-recovery: an orderly stop of a %s ring under write load > by GET_VRING_BASE waits for every request that was taken',
      `${ANY_ORDER} > GET_VRING_BASE of a ring that never was started gives the base that was set`,
    ],
    used: [TAKING_BACK],
  },
  SET_VRING_KICK: {
    remark: 'starts the ring; an eventfd, a pipe or a socket; without a descriptor the ring is polled',
    proof: [
      'integration/notifications: kicks > never come when the front end gave no descriptor: the ring is polled',
      'integration/notifications: a kick descriptor > that is a pipe%s works, again and again',
      'integration/notifications: a kick descriptor > that is a socket works',
      'integration/notifications: a kick descriptor > that is %s is refused, for kick, call and err',
    ],
    used: [RING],
  },
  SET_VRING_CALL: {
    remark: 'an eventfd, a pipe or a socket; a started ring may get another one, or none',
    proof: [
      'integration/notifications: a call descriptor > given to a started ring is signalled, in case the one before missed something',
      'integration/notifications: a call descriptor > taken away (bit 8) keeps the ring served without calls',
    ],
    used: [RING],
  },
  SET_VRING_ERR: {
    remark: 'signalled when a ring is broken',
    proof: ['integration/packed-ring-faults: a chain > without an end breaks its ring and no other'],
    used: [RING],
  },
  GET_PROTOCOL_FEATURES: { proof: [NEGOTIATED], used: [NEGOTIATION] },
  SET_PROTOCOL_FEATURES: {
    remark:
      'bits that were not offered are refused; INBAND_NOTIFICATIONS without BACKEND_REQ and REPLY_ACK ends the connection',
    proof: [NOT_OFFERED, 'integration/conformance-core: notifications in band > need %s'],
    used: [NEGOTIATION],
  },
  GET_QUEUE_NUM: {
    remark:
      'rings, not pairs: `--num-queues`; twice `--num-queue-pairs`, and one more with `--ctrl-vq`; 3 of a socket device ([ADR 0013](adr/0013-get-queue-num-counts-rings.md))',
    proof: ['integration/conformance: vhost-user-$name > has the rings that its options say'],
    used: [NEGOTIATION],
  },
  SET_VRING_ENABLE: {
    remark: 'before SET_FEATURES too, as QEMU sends it',
    proof: [
      'integration/ring-setup: a started ring > that is disabled takes nothing, and what waited when it is enabled',
      `${ANY_ORDER} > SET_VRING_ENABLE may come before SET_FEATURES, as QEMU sends it`,
    ],
    used: [RING],
  },
  SEND_RARP: {
    remark:
      'a RARP packet of that address goes out; a driver that took GUEST_ANNOUNCE and our control queue is asked to announce itself as well',
    why: 'blk, vsock: no network',
    proof: [
      'integration/net-configuration: a network device > a front end > that sends SEND_RARP %s has its address announced, as RFC 903 says',
      'integration/net-control-queue: the control queue without a TAP > lets the driver announce itself after SEND_RARP, and takes its acknowledgement',
    ],
    used: ['unit/vmm-client/frontend/device-status: announces an address'],
  },
  NET_SET_MTU: {
    remark: 'refused below 68 and above the MTU of the TAP, which it does not change',
    why: 'blk, vsock: no network',
    proof: ['integration/net-configuration: a network device > a front end > that says the MTU is %i is told: %s'],
  },
  SET_BACKEND_REQ_FD: {
    remark: 'a connected stream socket; a new one takes the place of the one before',
    proof: [
      'integration/connections: the back-end channel > is refused when it is %s',
      'integration/connections: the back-end channel > whose other end is closed, or that was replaced, is let go of',
    ],
    used: [
      'unit/vmm-client/frontend/frontend: the request channel > delivers changes of the configuration and acknowledges them',
    ],
  },
  IOTLB_MSG: {
    remark:
      'updates and invalidations; answered without need_reply too, as QEMU expects; without ACCESS_PLATFORM they change nothing',
    proof: [
      BEHIND_IOMMU,
      'integration/conformance-core: behind an IOMMU > an invalidation is answered when nothing of it is in use',
      'integration/iommu: mappings that change while requests run > are not used any more when the unmapping was answered',
    ],
    used: [
      'unit/vmm-client/frontend/iommu: behind an IOMMU > a miss is answered by the mapping, then acknowledged',
      'unit/vmm-client/frontend/iommu: behind an IOMMU > the end of a mapping is an invalidation that is waited for',
    ],
  },
  SET_VRING_ENDIAN: { why: 'little endian only: CROSS_ENDIAN is not offered' },
  GET_CONFIG: {
    remark:
      "up to 256 bytes; beyond the device's own (block 96 bytes, network 17, sockets 8) zeros; a bad range is answered by an empty payload",
    proof: [
      'integration/configuration: the configuration space > may be read at any offset and length up to 256 bytes, zero beyond its end',
      'integration/configuration: the configuration space > read at %i for %i bytes is refused by an empty payload',
    ],
    used: [
      'unit/vmm-client/frontend/frontend: a peer that does wrong > by refusing to read the configuration is told so, and goes on',
    ],
  },
  SET_CONFIG: {
    remark:
      "block: the byte `writeback`; for a migration the whole space, of which that byte is taken. Network, sockets: nothing is writable; a migration's is accepted and changes nothing",
    proof: [
      'integration/configuration: the configuration space > refuses a write to %s',
      'integration/configuration: the configuration space > takes a whole migrated space, of which only writeback counts',
      'integration/net-configuration: a network device > a front end > may not write %s of the configuration space',
    ],
    used: [
      'integration/vmm-device: a disk > has its cache mode written by a driver that accepted CONFIG_WCE, and only then',
    ],
  },
  CREATE_CRYPTO_SESSION: { why: 'for crypto devices' },
  CLOSE_CRYPTO_SESSION: { why: 'for crypto devices' },
  POSTCOPY_ADVISE: {
    hostDependent: true,
    remark: 'where PAGEFAULT is offered, and when it was negotiated',
    proof: [
      `${POSTCOPY} > that were not negotiated are refused`,
      `${POSTCOPY} > ADVISE and LISTEN twice are answered twice, and pages are asked for at the last userfaultfd`,
    ],
  },
  POSTCOPY_LISTEN: {
    hostDependent: true,
    remark: 'the same; after ADVISE, before there is memory',
    proof: [
      `${POSTCOPY} > %s is refused`,
      `${POSTCOPY} > LISTEN when there is memory is refused, and the memory is as it was`,
    ],
  },
  POSTCOPY_END: {
    hostDependent: true,
    remark: 'the same; after ADVISE',
    proof: [`${POSTCOPY} > %s is refused`, `${POSTCOPY} > END without LISTEN ends it, and it can begin again`],
  },
  GET_INFLIGHT_FD: {
    remark: 'a memfd with room for the rings that are asked for, split or packed as negotiated',
    proof: ['integration/memory-faults: an in-flight region > %s is neither made nor taken'],
    used: [HAND_OVER],
  },
  SET_INFLIGHT_FD: {
    remark: 'refused while a ring is started',
    proof: [
      `${CRASH} > of a split ring, with %s as the base`,
      `${CRASH} > of a packed ring, with %s as the base`,
      'integration/memory-faults: an in-flight region > %s is refused',
    ],
    used: [
      'unit/vmm-client/frontend/frontend: a back end that comes back > gets everything again, in order, and the in-flight region before the rings',
    ],
  },
  GPU_SET_SOCKET: { why: 'for GPUs' },
  RESET_DEVICE: {
    remark: "drains, stops and disables the rings; forgets the device's features, the cache mode, filters and offloads",
    proof: [
      `${ANY_ORDER} > RESET_DEVICE and RESET_OWNER stop the rings and keep the connection`,
      'integration/net-configuration: a network device > a front end > that resets the device by %s stops its rings, and may start them again',
    ],
    used: [TAKING_BACK],
  },
  VRING_KICK: {
    remark: 'starts the ring, then kicks it; refused unless INBAND_NOTIFICATIONS was negotiated',
    proof: [IN_BAND, 'integration/conformance-core: notifications in band > that were not negotiated are refused'],
    used: [
      'unit/vmm-client/frontend/inband: notifications in band > carry what the driver writes to its kick descriptor',
    ],
  },
  GET_MAX_MEM_SLOTS: {
    remark: '509',
    proof: [
      'integration/memory-faults: a region is refused > that adds a 510th one, and REM_MEM_REG of one that is not there',
    ],
    used: ['unit/vmm-client/frontend/frontend: handing over > refuses more regions than the back end has slots'],
  },
  ADD_MEM_REG: {
    remark: 'the same region again is fine: QEMU 7.2 says it once for each pair of queues',
    proof: [
      'integration/memory-faults: a region is taken > among 508 others, with rings and requests in it',
      'integration/memory-faults: a region is refused > that overlaps another %s',
      'integration/memory-faults: a region is refused > unless it is the same one again, as QEMU 7.2 says it for each pair of queues',
    ],
    used: ['unit/vmm-client/frontend/frontend: handing over > adds and removes single regions'],
  },
  REM_MEM_REG: {
    remark: 'drains the rings first',
    proof: [
      'integration/ring-setup: memory taken away from a started ring > by REM_MEM_REG leaves the ring out of service until ADD_MEM_REG brings it back',
      'integration/memory-changes: requests in flight to a region are done before its removal is answered',
    ],
    used: ['unit/vmm-client/frontend/frontend: handing over > adds and removes single regions'],
  },
  SET_STATUS: {
    remark: '8 bits, kept as they are; 0 resets the device as RESET_DEVICE does',
    proof: [
      'integration/net-configuration: a network device > a front end > is told its device status again, of 8 bits',
      'integration/net-configuration: a network device > a front end > that resets the device by %s stops its rings, and may start them again',
    ],
    used: ['unit/vmm-client/frontend/device-status: the device status > is 0 after a reset, and begins anew'],
  },
  GET_STATUS: {
    proof: [
      'integration/net-configuration: a network device > a front end > is told its device status again, of 8 bits',
    ],
    used: [
      'unit/vmm-client/frontend/device-status: the device status > says FEATURES_OK, sees whether it stays, and DRIVER_OK after all rings',
    ],
  },
  GET_SHARED_OBJECT: { why: 'no objects to share: for GPUs and cameras' },
  SET_DEVICE_STATE_FD: {
    remark: 'a pipe or a socket, while all rings are stopped',
    why: 'blk: no state beyond rings and configuration space',
    proof: [
      'integration/device-state: a network device > takes the filters, queues and addresses that the driver chose along',
      'integration/device-state: a socket device > tells the driver that its connections are gone',
      'integration/device-state: a network device > refuses states that are none, and runs on',
      'integration/device-state: a socket device > refuses states that are none, and runs on',
    ],
    used: [
      'unit/vmm-client/frontend/device-state: saving device state > reads our channel to its end, then asks whether it was all',
      'unit/vmm-client/frontend/device-state: loading device state > writes all of it and closes the channel',
    ],
  },
  CHECK_DEVICE_STATE: {
    remark: 'waits for the end of the transfer',
    why: 'blk: no state beyond rings and configuration space',
    proof: [
      'integration/device-state: a network device > takes the filters, queues and addresses that the driver chose along',
      'integration/device-state: a socket device > tells the driver that its connections are gone',
      'integration/device-state: a network device > refuses states that are none, and runs on',
      'integration/device-state: a socket device > refuses states that are none, and runs on',
    ],
    used: [
      'unit/vmm-client/frontend/device-state: loading device state > fails where the back end does not understand it',
    ],
  },
  GET_SHMEM_CONFIG: { why: 'no shared memory regions: for file systems and GPUs' },
  GET_VRING_BASE_SKIP_DRAIN: {
    why: 'a ring is stopped when nothing of it is in flight; peers disagree about the bits that it belongs to',
  },
};

/** An entry of a message that the back end sends. */
export interface BackendEntry extends Entry {
  /** What a device's code has if it makes the core send the message; without, every device does. */
  readonly cause?: string;
}

export const BACKEND_MESSAGES: Readonly<Record<keyof typeof BACKEND, BackendEntry>> = {
  IOTLB_MSG: {
    remark: 'misses, when ACCESS_PLATFORM was negotiated; asks for an answer with REPLY_ACK',
    proof: [BEHIND_IOMMU],
    used: [
      'unit/vmm-client/frontend/iommu: behind an IOMMU > a miss is answered by the mapping, then acknowledged',
      'unit/vmm-client/frontend/iommu: behind an IOMMU > an access that failed is noted',
    ],
  },
  CONFIG_CHANGE_MSG: {
    cause: 'onConfigChange()',
    remark:
      'when CONFIG was negotiated; asks for no answer. Block: SIGHUP found another size. Network: the link or the MTU of the TAP changed, the driver is asked to announce itself',
    why: 'vsock: the configuration does not change',
    proof: [
      CONFIG_CHANGE,
      'integration/net-link: the link > goes down and up with the interface; what is sent meanwhile is dropped',
    ],
    used: [
      'unit/vmm-client/frontend/frontend: the request channel > delivers changes of the configuration and acknowledges them',
    ],
  },
  VRING_HOST_NOTIFIER_MSG: { why: 'no doorbells of hardware to map' },
  VRING_CALL: {
    remark: 'when INBAND_NOTIFICATIONS was negotiated and the ring has no call descriptor',
    proof: [IN_BAND],
    used: [
      'unit/vmm-client/frontend/inband: notifications in band > write calls and errors to the descriptors of the driver',
    ],
  },
  VRING_ERR: {
    remark: 'when INBAND_NOTIFICATIONS was negotiated, the ring has no err descriptor and is broken',
    proof: ['integration/conformance-core: notifications in band > tell of a ring that is broken'],
    used: [
      'unit/vmm-client/frontend/inband: notifications in band > write calls and errors to the descriptors of the driver',
    ],
  },
  SHARED_OBJECT_ADD: { why: 'no objects to share' },
  SHARED_OBJECT_REMOVE: { why: 'no objects to share' },
  SHARED_OBJECT_LOOKUP: { why: 'no objects to share' },
  SHMEM_MAP: { why: 'no shared memory regions' },
  SHMEM_UNMAP: { why: 'no shared memory regions' },
};
