/** The feature bits of the devices in the conformance tables: what is special, why not, and what proves them. */

import type { Entries } from './entry.ts';

const SPACE = 'integration/configuration: the configuration space > says capacity, limits, block size and queues';
const CACHE_MODE = 'integration/configuration: the cache mode > %s';
const DISCARDS = 'integration/configuration: a disk > discards, and writes zeroes with and without unmapping';
const BLK_REQUESTS = 'unit/vmm-client/driver/blk-queue: requests';
const BLK_DRIVER = 'unit/vmm-client/driver/blk-config: decodeBlkConfig > reads no field whose feature is not offered';

export const BLK_FEATURES: Entries = {
  SIZE_MAX: {
    remark: '4 MiB; larger buffers are served',
    proof: [SPACE, 'integration/blk-hostile-requests: a transfer > of the whole disk in one buffer is answered'],
    used: [`${BLK_REQUESTS} > are a header, data in segments, and a status byte`],
  },
  SEG_MAX: {
    remark: '126; more are served, up to 1024 descriptors in an indirect table',
    proof: [
      SPACE,
      'integration/blk-hostile-requests: a transfer > of 1000 one-sector buffers, far more than seg_max, is answered',
    ],
    used: [`${BLK_REQUESTS} > are a header, data in segments, and a status byte`],
  },
  GEOMETRY: {
    why: 'no cylinders',
    used: ['unit/vmm-client/driver/blk-config: decodeBlkConfig > decodes what qemu-storage-daemon sends'],
  },
  RO: {
    remark: 'also when the file may not be written',
    proof: [
      'integration/configuration: a read-only device > refuses to %s',
      'integration/configuration: a read-only device > refuses a write also to a driver that did not accept RO',
      'integration/disk-faults: a file on a read-only file system > makes the device read-only, and the log says so',
    ],
    used: [BLK_DRIVER],
  },
  BLK_SIZE: {
    remark: '512 or 4096',
    proof: [SPACE, 'interop/uml: User-mode Linux > shows the logical block size'],
    used: [BLK_DRIVER],
  },
  FLUSH: {
    proof: [
      'integration/blk-hostile-requests: a flush > %s succeeds and touches no data',
      'integration/blk-hostile-requests: a flush > that was not negotiated is answered',
      CACHE_MODE,
    ],
    used: [BLK_DRIVER],
  },
  TOPOLOGY: { remark: 'physical block size; no optimal size', proof: [SPACE], used: [BLK_DRIVER] },
  CONFIG_WCE: {
    proof: [CACHE_MODE, 'integration/configuration: the configuration space > lets writeback be written with flags %i'],
    used: [
      'integration/vmm-device: a disk > has its cache mode written by a driver that accepted CONFIG_WCE, and only then',
    ],
  },
  MQ: {
    remark: 'with `--num-queues=1` too',
    proof: ['integration/good-client: a correct client > uses two queues side by side'],
    used: ['unit/vmm-client/vmm/devices/kinds: a disk > has the queues that are configured'],
  },
  DISCARD: {
    remark: '32 ranges of 2 GiB',
    proof: [DISCARDS, 'integration/blk-hostile-requests: %s > that was not negotiated gets UNSUPP'],
    used: [`${BLK_REQUESTS} > carry a segment when they discard`],
  },
  WRITE_ZEROES: {
    remark: '32 ranges of 2 GiB, may unmap',
    proof: [DISCARDS, 'integration/blk-hostile-requests: %s > that was not negotiated gets UNSUPP'],
    used: [`${BLK_REQUESTS} > carry a segment when they discard`],
  },
  LIFETIME: { why: 'files do not wear' },
  SECURE_ERASE: { why: 'file systems do not promise it' },
  ZONED: { why: 'for zoned storage' },
};

const NET_OPTION = 'integration/net-configuration: a network device > an option > (%s) is what the front end sees';
const OFFLOADS =
  'integration/net-receive-large: receiving what one buffer cannot hold > offloads > that the driver takes let a segment of 60 KB through in one packet';
const NO_OFFLOADS =
  'integration/net-receive-large: receiving what one buffer cannot hold > offloads > that it does not take are done for it: segments with checksums, of the MTU at most';
const SEGMENTED =
  'integration/net-transmit: transmitting > a packet to be segmented > %s arrives whole, with what the header says';
const TAP_OFFLOADS = 'unit/backends/net/config-space: the offloads that the TAP may leave to the guest > %s';
const OFFERS = 'unit/backends/net/config-space: the feature bits > with %s';
const CONTROL = 'integration/net-control-queue: the control queue of a TAP';
const OFFLOADS_ON_REQUEST =
  'unit/vmm-client/driver/net-setup: the features that are accepted > have CTRL_VQ and MQ with several pairs, and offloads on request';
const NET_DRIVER =
  'unit/vmm-client/driver/net-setup: the features that are accepted > are those of a driver that does without offloads';
const SPREAD = 'the TAP spreads packets by flow';
const WITHOUT_CSUM = 'without effect if the driver does not take GUEST_CSUM';

export const NET_FEATURES: Entries = {
  CSUM: {
    proof: [
      'integration/net-transmit: transmitting > a checksum that is left to us > is that of %s on a socket that takes no offload',
    ],
    used: [OFFLOADS_ON_REQUEST],
  },
  GUEST_CSUM: { proof: [OFFLOADS, NO_OFFLOADS], used: [OFFLOADS_ON_REQUEST] },
  CTRL_GUEST_OFFLOADS: { proof: [`${CONTROL} > sets the offloads of the TAP, with %i threads`] },
  MTU: { remark: '`--mtu`, or that of the TAP at the start', proof: [NET_OPTION], used: [NET_DRIVER] },
  MAC: { proof: [NET_OPTION], used: [NET_DRIVER] },
  GSO: { why: 'left over from drafts' },
  GUEST_TSO4: { remark: WITHOUT_CSUM, proof: [OFFLOADS, NO_OFFLOADS, TAP_OFFLOADS], used: [OFFLOADS_ON_REQUEST] },
  GUEST_TSO6: { remark: WITHOUT_CSUM, proof: [TAP_OFFLOADS], used: [OFFLOADS_ON_REQUEST] },
  GUEST_ECN: { remark: WITHOUT_CSUM, proof: [TAP_OFFLOADS] },
  GUEST_UFO: { remark: WITHOUT_CSUM, proof: [TAP_OFFLOADS] },
  HOST_TSO4: { proof: [SEGMENTED], used: [OFFLOADS_ON_REQUEST] },
  HOST_TSO6: { proof: [SEGMENTED], used: [OFFLOADS_ON_REQUEST] },
  HOST_ECN: { proof: [OFFERS] },
  HOST_UFO: { proof: [OFFERS] },
  MRG_RXBUF: {
    proof: [
      'integration/net-receive-large: receiving what one buffer cannot hold > a packet larger than a mergeable buffer > lies in as many buffers of %s as it takes',
    ],
    used: [NET_DRIVER],
  },
  STATUS: {
    remark: 'the link of the TAP',
    proof: ['integration/net-link: the link > goes down and up with the carrier'],
    used: [NET_DRIVER],
  },
  CTRL_VQ: {
    proof: [
      'integration/net-control-queue: the control queue without a TAP > answers each wrong command by ERR, and serves on',
    ],
    used: ['unit/vmm-client/driver/net-driver: the driver > sends commands by the control queue and takes the answers'],
  },
  CTRL_RX: { proof: [`${CONTROL} > filters by address and mode as the driver says`] },
  CTRL_VLAN: { proof: [`${CONTROL} > filters by a VLAN tag %s`] },
  CTRL_RX_EXTRA: { proof: ['unit/backends/net/control: a command > RX %i turns %s on and off'] },
  GUEST_ANNOUNCE: {
    remark: 'with several queue pairs, for front ends that serve the control queue',
    proof: [
      'integration/net-control-queue: the control queue without a TAP > lets the driver announce itself after SEND_RARP, and takes its acknowledgement',
    ],
  },
  MQ: {
    proof: [
      `${CONTROL} > uses as many pairs as the driver says, with %i threads`,
      'integration/net-ring-states: the rings of a network device > two pairs of rings on %i threads > share what comes, and each packet comes once',
    ],
    used: [OFFLOADS_ON_REQUEST],
  },
  CTRL_MAC_ADDR: { proof: [`${CONTROL} > follows the address that the driver sets`] },
  DEVICE_STATS: { why: 'no counters for the driver' },
  HASH_TUNNEL: { why: SPREAD },
  VQ_NOTF_COAL: { why: 'no timers for notifications' },
  NOTF_COAL: { why: 'no timers for notifications' },
  GUEST_USO4: {
    remark: 'where the kernel of the host knows it; together with GUEST_USO6 only',
    proof: [TAP_OFFLOADS, OFFERS],
  },
  GUEST_USO6: {
    remark: 'where the kernel of the host knows it; together with GUEST_USO4 only',
    proof: [TAP_OFFLOADS, OFFERS],
  },
  HOST_USO: { remark: 'where the kernel of the host knows it', proof: [OFFERS] },
  HASH_REPORT: { why: SPREAD },
  GUEST_HDRLEN: { why: 'what drivers say of header lengths is not relied on' },
  RSS: { why: SPREAD },
  RSC_EXT: { why: 'the TAP does not count the segments that it joins' },
  STANDBY: { why: 'front ends offer it by themselves' },
  SPEED_DUPLEX: { remark: '`--speed`, unknown by default', proof: [NET_OPTION], used: [NET_DRIVER] },
};

export const VSOCK_FEATURES: Entries = {
  STREAM: {
    proof: ['integration/vsock-streams: a stream > goes from host to guest, after CONNECT and OK'],
    used: ['unit/vmm-client/driver/vsock-driver: the driver > connects, writes, reads and closes'],
  },
  SEQPACKET: {
    proof: [
      'integration/vsock-seqpacket: a connection of packets > keeps messages of the guest apart',
      'integration/vsock-seqpacket: a connection of packets > is refused to a driver that did not negotiate it',
    ],
    used: ['unit/vmm-client/driver/vsock-driver: the driver > has no SEQPACKET where it is not offered'],
  },
  NO_IMPLIED_STREAM: {
    remark: 'a driver without it, and without STREAM, may use streams all the same',
    proof: ['spec/vhost-user-conformance: streams of the socket device > are implied unless the driver says otherwise'],
    used: ['unit/vmm-client/driver/vsock-driver: the driver > refuses a device with %s'],
  },
};
