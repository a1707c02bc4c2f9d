/** The bits of protocol, ring and transport in the conformance tables: what is special, why not, and what proves them. */

import type { Entries } from './entry.ts';
import { ANY_ORDER, BEHIND_IOMMU, CONFIG_CHANGE, CRASH, IN_BAND, LOGGED, NEGOTIATION } from './proofs.ts';

/** Bits that virtio names and nothing here uses. */
export const UNNAMED_RING_FEATURES: ReadonlyMap<number, string> = new Map([[41, 'ADMIN_VQ']]);

const RING_FEATURES_OF_DRIVERS =
  'unit/vmm-client/driver/ring-features: rings of a $device driver > are what was negotiated';

const RENUMBERED = 'peers disagree about its meaning (bits 20 to 23 were numbered anew)';

export const PROTOCOL_FEATURES: Entries = {
  MQ: {
    proof: ['integration/conformance: vhost-user-$name > has the rings that its options say'],
    used: [NEGOTIATION],
  },
  LOG_SHMFD: { proof: [LOGGED], used: ['unit/vmm-client/frontend/dirty-logging: dirty logging > needs %s'] },
  RARP: {
    why: 'blk, vsock: no network',
    proof: [
      'integration/net-configuration: a network device > a front end > that sends SEND_RARP %s has its address announced, as RFC 903 says',
    ],
    used: ['unit/vmm-client/frontend/device-status: announces nothing where the back end cannot'],
  },
  REPLY_ACK: {
    remark: 'only acknowledgements depend on it',
    proof: [
      `${ANY_ORDER} > need_reply without REPLY_ACK negotiated is not answered`,
      `${ANY_ORDER} > without need_reply a success is not answered`,
    ],
    used: [NEGOTIATION],
  },
  MTU: {
    why: 'blk, vsock: no network',
    proof: ['integration/net-configuration: a network device > a front end > that says the MTU is %i is told: %s'],
  },
  BACKEND_REQ: {
    proof: [
      'integration/connections: the back-end channel > whose other end is closed, or that was replaced, is let go of',
      CONFIG_CHANGE,
    ],
    used: [
      'unit/vmm-client/frontend/frontend: the request channel > delivers changes of the configuration and acknowledges them',
    ],
  },
  CROSS_ENDIAN: { why: 'little endian only, as VERSION_1 has it' },
  CRYPTO_SESSION: { why: 'for crypto devices' },
  PAGEFAULT: {
    hostDependent: true,
    remark: 'where the daemon may have a userfaultfd: as root, or with `vm.unprivileged_userfaultfd`',
    proof: [
      'integration/postcopy: memory that comes late > is offered by a daemon that may have a userfaultfd',
      'integration/postcopy: memory that comes late > is waited for by rings and requests (%s, served %s)',
    ],
  },
  CONFIG: {
    proof: [
      'integration/configuration: the configuration space > says capacity, limits, block size and queues',
      CONFIG_CHANGE,
    ],
    used: [
      'unit/vmm-client/vmm/devices/kinds: a disk > has 1 queue of 128 by default, and says so in its configuration',
    ],
  },
  BACKEND_SEND_FD: { why: 'nothing that the back end sends has a descriptor' },
  HOST_NOTIFIER: { why: 'no doorbells of hardware to map' },
  INFLIGHT_SHMFD: {
    proof: [`${CRASH} > of a split ring, with %s as the base`, `${CRASH} > of a packed ring, with %s as the base`],
    used: [
      'unit/vmm-client/frontend/frontend: a back end that comes back > gets everything again, in order, and the in-flight region before the rings',
    ],
  },
  RESET_DEVICE: {
    proof: [`${ANY_ORDER} > RESET_DEVICE and RESET_OWNER stop the rings and keep the connection`],
    used: ['unit/vmm-client/frontend/frontend: taking back > disables and stops rings, then resets the device'],
  },
  INBAND_NOTIFICATIONS: {
    remark: 'with BACKEND_REQ and REPLY_ACK only',
    proof: [IN_BAND, 'integration/inband-notifications: a socket device carries data both ways'],
    used: [
      'unit/vmm-client/frontend/inband: notifications in band > start a ring by a kick that is a message, and give no descriptors',
    ],
  },
  CONFIGURE_MEM_SLOTS: {
    proof: ['integration/memory-faults: a region is taken > among 508 others, with rings and requests in it'],
    used: ['unit/vmm-client/frontend/frontend: handing over > adds and removes single regions'],
  },
  STATUS: {
    proof: [
      'integration/net-configuration: a network device > a front end > is told its device status again, of 8 bits',
    ],
    used: [
      'unit/vmm-client/frontend/device-status: the device status > says FEATURES_OK, sees whether it stays, and DRIVER_OK after all rings',
    ],
  },
  XEN_MMAP: { why: 'not for Xen: memory comes as files' },
  SHARED_OBJECT: { why: 'no objects to share: for GPUs and cameras' },
  DEVICE_STATE: {
    why: 'blk: no state beyond rings and configuration space',
    proof: [
      'integration/device-state: a network device > takes the filters, queues and addresses that the driver chose along',
      'integration/device-state: a socket device > tells the driver that its connections are gone',
      'integration/device-state: a network device > refuses states that are none, and runs on',
      'integration/device-state: a socket device > refuses states that are none, and runs on',
    ],
    used: [
      'unit/vmm-client/frontend/migration: a device that is suspended > is described by what another back end needs',
    ],
  },
  GET_VRING_BASE_INFLIGHT: { why: `a ring is stopped when nothing of it is in flight; ${RENUMBERED}` },
  GPA_ADDRESSES: { why: 'addresses are those of the front end; the bit is SHMEM to other peers' },
  SHMEM: { why: `no shared memory regions; ${RENUMBERED}` },
  GET_VRING_BASE_SKIP_DRAIN: { why: `a ring is stopped when nothing of it is in flight; ${RENUMBERED}` },
};

export const RING_FEATURES: Entries = {
  NOTIFY_ON_EMPTY: { why: 'legacy' },
  LOG_ALL: {
    remark: 'for a log that was given; never for a driver',
    proof: [LOGGED],
    used: [
      'unit/vmm-client/frontend/dirty-logging: dirty logging > begins with the log, then features and the places of used rings',
    ],
  },
  ANY_LAYOUT: { why: 'legacy; how a request is cut into buffers never matters here' },
  INDIRECT_DESC: {
    proof: [
      'integration/packed-rings: a packed ring > of %i slots is served with indirect tables',
      'integration/chain-faults: in a %s ring a chain that cannot be walked > because INDIRECT_DESC was not negotiated is returned with length 0',
      'integration/net-transmit: transmitting > a packet arrives as it is, > in an indirect table of %i buffers',
    ],
    used: [
      'unit/vmm-client/driver/split-virtqueue: chains > take one descriptor and a table with INDIRECT',
      'unit/vmm-client/driver/packed-virtqueue: chains > take one descriptor and a table with INDIRECT',
    ],
  },
  EVENT_IDX: {
    proof: [
      'integration/lost-notifications: %s',
      'integration/net-lost-notifications: a network device > %s > receives every packet %s',
      'integration/packed-ring-faults: event suppression of a packed ring > with flags %i and slot %i does not keep requests from being served',
    ],
    used: [
      'unit/vmm-client/driver/split-virtqueue: notifications > with EVENT_IDX: $pushed chains from $before, event $event',
      'unit/vmm-client/driver/packed-virtqueue: kicks > with EVENT_IDX: $pushed chains from place $before, event $slot $wrap',
    ],
  },
  PROTOCOL_FEATURES: {
    proof: [
      'integration/net-ring-states: the rings of a network device > one pair of rings > are enabled at once for a front end that does not negotiate PROTOCOL_FEATURES',
    ],
    used: ['unit/vmm-client/frontend/frontend: negotiation > does without protocol features'],
  },
  VERSION_1: {
    remark: 'a driver that does not accept it is served alike; its packets have headers of 10 bytes',
    proof: [
      'integration/net-transmit: transmitting > a legacy driver > without VERSION_1 and mergeable buffers has headers of 10 bytes, both ways',
      'integration/ring-setup: a started ring > that never gets features is served like one of a driver that accepted none',
    ],
    used: ['unit/vmm-client/driver/vsock-driver: the driver > refuses a device with %s'],
  },
  ACCESS_PLATFORM: {
    remark:
      'where it is asked for: User-mode Linux accepts it and sends no translations ([ADR 0021](adr/0021-iommu.md))',
    proof: [
      BEHIND_IOMMU,
      'integration/iommu: a disk behind an IOMMU with %s > reads and writes through what it asks for, and asks once',
      'integration/iommu: a disk behind an IOMMU with %s > is denied what is not mapped, and only that',
    ],
    used: [
      'unit/vmm-client/frontend/iommu: behind an IOMMU > the device gets ACCESS_PLATFORM, rings by IOVA, and regions by guest address',
    ],
  },
  RING_PACKED: {
    proof: [
      'integration/packed-rings: a packed ring > carries chains of any length over its end, hundreds of laps',
      'integration/packed-rings: a packed ring > echoes buffer IDs, whatever they are, also one for two buffers',
      'fuzz/ring-operations: are seen alike by driver, device and model (told by %s, in order %s)',
    ],
    used: [
      RING_FEATURES_OF_DRIVERS,
      'unit/vmm-client/driver/virtqueue-model: a driver of a %s ring > gives, gets back and tells what a model says',
    ],
  },
  IN_ORDER: {
    proof: [
      'integration/in-order: a disk that is read %s > returns requests of a %s ring in order, if that was negotiated',
      `${CRASH} > of a packed ring in order`,
    ],
    used: [
      RING_FEATURES_OF_DRIVERS,
      'unit/vmm-client/driver/split-virtqueue: in order > one used entry stands for a batch, whose other chains were written as a whole',
      'unit/vmm-client/driver/packed-virtqueue: in order > one used descriptor stands for a batch, whose other buffers were written as a whole',
    ],
  },
  ORDER_PLATFORM: { why: 'for devices whose accesses need stronger barriers than those between processors' },
  SR_IOV: { why: 'for PCI functions' },
  NOTIFICATION_DATA: { why: 'a kick descriptor carries no data' },
  NOTIF_CONFIG_DATA: { why: 'a kick descriptor carries no data' },
  RING_RESET: { why: 'vhost-user has no message for the reset of one queue' },
  ADMIN_VQ: { why: 'for groups of PCI functions' },
};
