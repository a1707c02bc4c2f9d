/** Numbers and layouts of the network device. Source: VIRTIO 1.3, 5.1 Network Device; linux/virtio_net.h. */

// Feature bits, 5.1.3. GUEST: what the driver takes from the device; HOST: what the device takes from the driver.
export const VIRTIO_NET_F_CSUM = 0;
export const VIRTIO_NET_F_GUEST_CSUM = 1;
export const VIRTIO_NET_F_CTRL_GUEST_OFFLOADS = 2;
export const VIRTIO_NET_F_MTU = 3;
export const VIRTIO_NET_F_MAC = 5;
/** Legacy: any segmentation, both ways. */
export const VIRTIO_NET_F_GSO = 6;
export const VIRTIO_NET_F_GUEST_TSO4 = 7;
export const VIRTIO_NET_F_GUEST_TSO6 = 8;
export const VIRTIO_NET_F_GUEST_ECN = 9;
export const VIRTIO_NET_F_GUEST_UFO = 10;
export const VIRTIO_NET_F_HOST_TSO4 = 11;
export const VIRTIO_NET_F_HOST_TSO6 = 12;
export const VIRTIO_NET_F_HOST_ECN = 13;
export const VIRTIO_NET_F_HOST_UFO = 14;
export const VIRTIO_NET_F_MRG_RXBUF = 15;
export const VIRTIO_NET_F_STATUS = 16;
export const VIRTIO_NET_F_CTRL_VQ = 17;
export const VIRTIO_NET_F_CTRL_RX = 18;
export const VIRTIO_NET_F_CTRL_VLAN = 19;
export const VIRTIO_NET_F_CTRL_RX_EXTRA = 20;
export const VIRTIO_NET_F_GUEST_ANNOUNCE = 21;
export const VIRTIO_NET_F_MQ = 22;
export const VIRTIO_NET_F_CTRL_MAC_ADDR = 23;
export const VIRTIO_NET_F_DEVICE_STATS = 50;
export const VIRTIO_NET_F_HASH_TUNNEL = 51;
export const VIRTIO_NET_F_VQ_NOTF_COAL = 52;
export const VIRTIO_NET_F_NOTF_COAL = 53;
export const VIRTIO_NET_F_GUEST_USO4 = 54;
export const VIRTIO_NET_F_GUEST_USO6 = 55;
export const VIRTIO_NET_F_HOST_USO = 56;
export const VIRTIO_NET_F_HASH_REPORT = 57;
export const VIRTIO_NET_F_GUEST_HDRLEN = 59;
export const VIRTIO_NET_F_RSS = 60;
export const VIRTIO_NET_F_RSC_EXT = 61;
export const VIRTIO_NET_F_STANDBY = 62;
export const VIRTIO_NET_F_SPEED_DUPLEX = 63;

/** Configuration space, 5.1.4: byte offsets of little-endian fields. */
export const VIRTIO_NET_CONFIG = {
  mac: 0, // u8[6]
  status: 6, // u16
  max_virtqueue_pairs: 8, // u16
  mtu: 10, // u16
  speed: 12, // u32, Mbit/s
  duplex: 16, // u8
} as const;

/** Bytes of the configuration space up to and with duplex; what follows belongs to RSS. */
export const VIRTIO_NET_CONFIG_BYTES = 17;

// status
export const VIRTIO_NET_S_LINK_UP = 1;
export const VIRTIO_NET_S_ANNOUNCE = 2;

export const VIRTIO_NET_SPEED_UNKNOWN = 0xffff_ffff;
export const VIRTIO_NET_DUPLEX_FULL = 1;
export const VIRTIO_NET_DUPLEX_UNKNOWN = 0xff;

export const VIRTIO_NET_MIN_MTU = 68;
export const VIRTIO_NET_MAX_MTU = 65535;
export const VIRTIO_NET_MAX_PAIRS = 0x8000;
export const ETHERNET_ADDRESS_BYTES = 6;
export const ETHERNET_HEADER_BYTES = 14;

/** Packet header, 5.1.6: byte offsets of little-endian fields. */
export const VIRTIO_NET_HDR = {
  flags: 0, // u8
  gso_type: 1, // u8
  hdr_len: 2, // u16
  gso_size: 4, // u16
  csum_start: 6, // u16
  csum_offset: 8, // u16
  num_buffers: 10, // u16, absent from the legacy header
} as const;

/** Bytes of the header with VERSION_1 or MRG_RXBUF. */
export const VIRTIO_NET_HDR_BYTES = 12;
/** Bytes of the header of a legacy driver without MRG_RXBUF. */
export const VIRTIO_NET_LEGACY_HDR_BYTES = 10;

export const VIRTIO_NET_HDR_F_NEEDS_CSUM = 1;
export const VIRTIO_NET_HDR_F_DATA_VALID = 2;
export const VIRTIO_NET_HDR_GSO_NONE = 0;
export const VIRTIO_NET_HDR_GSO_TCPV4 = 1;
export const VIRTIO_NET_HDR_GSO_UDP = 3;
export const VIRTIO_NET_HDR_GSO_TCPV6 = 4;
export const VIRTIO_NET_HDR_GSO_UDP_L4 = 5;
export const VIRTIO_NET_HDR_GSO_ECN = 0x80;

/** The largest packet of either direction without its header: 5.1.6.3.1, 65550 bytes, and two VLAN tags. */
export const VIRTIO_NET_MAX_PACKET_BYTES = 65550 + 8;

// Control queue, 5.1.6.5: class u8, command u8, data, then the device writes ack u8.
export const VIRTIO_NET_OK = 0;
export const VIRTIO_NET_ERR = 1;
export const VIRTIO_NET_CTRL_RX = 0;
export const VIRTIO_NET_CTRL_RX_PROMISC = 0;
export const VIRTIO_NET_CTRL_RX_ALLMULTI = 1;
export const VIRTIO_NET_CTRL_RX_ALLUNI = 2;
export const VIRTIO_NET_CTRL_RX_NOMULTI = 3;
export const VIRTIO_NET_CTRL_RX_NOUNI = 4;
export const VIRTIO_NET_CTRL_RX_NOBCAST = 5;
export const VIRTIO_NET_CTRL_MAC = 1;
export const VIRTIO_NET_CTRL_MAC_TABLE_SET = 0;
export const VIRTIO_NET_CTRL_MAC_ADDR_SET = 1;
export const VIRTIO_NET_CTRL_VLAN = 2;
export const VIRTIO_NET_CTRL_VLAN_ADD = 0;
export const VIRTIO_NET_CTRL_VLAN_DEL = 1;
export const VIRTIO_NET_CTRL_ANNOUNCE = 3;
export const VIRTIO_NET_CTRL_ANNOUNCE_ACK = 0;
export const VIRTIO_NET_CTRL_MQ = 4;
export const VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET = 0;
export const VIRTIO_NET_CTRL_GUEST_OFFLOADS = 5;
export const VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET = 0;

/** Index of the receive queue of a pair, counted from 0. */
export function receiveQueueOf(pair: number): number {
  return 2 * pair;
}

/** Index of the transmit queue of a pair, counted from 0. */
export function transmitQueueOf(pair: number): number {
  return 2 * pair + 1;
}

/** Names of the device's feature bits, for people. */
export const VIRTIO_NET_FEATURE_NAMES: ReadonlyMap<number, string> = new Map([
  [VIRTIO_NET_F_CSUM, 'CSUM'],
  [VIRTIO_NET_F_GUEST_CSUM, 'GUEST_CSUM'],
  [VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, 'CTRL_GUEST_OFFLOADS'],
  [VIRTIO_NET_F_MTU, 'MTU'],
  [VIRTIO_NET_F_MAC, 'MAC'],
  [VIRTIO_NET_F_GSO, 'GSO'],
  [VIRTIO_NET_F_GUEST_TSO4, 'GUEST_TSO4'],
  [VIRTIO_NET_F_GUEST_TSO6, 'GUEST_TSO6'],
  [VIRTIO_NET_F_GUEST_ECN, 'GUEST_ECN'],
  [VIRTIO_NET_F_GUEST_UFO, 'GUEST_UFO'],
  [VIRTIO_NET_F_HOST_TSO4, 'HOST_TSO4'],
  [VIRTIO_NET_F_HOST_TSO6, 'HOST_TSO6'],
  [VIRTIO_NET_F_HOST_ECN, 'HOST_ECN'],
  [VIRTIO_NET_F_HOST_UFO, 'HOST_UFO'],
  [VIRTIO_NET_F_MRG_RXBUF, 'MRG_RXBUF'],
  [VIRTIO_NET_F_STATUS, 'STATUS'],
  [VIRTIO_NET_F_CTRL_VQ, 'CTRL_VQ'],
  [VIRTIO_NET_F_CTRL_RX, 'CTRL_RX'],
  [VIRTIO_NET_F_CTRL_VLAN, 'CTRL_VLAN'],
  [VIRTIO_NET_F_CTRL_RX_EXTRA, 'CTRL_RX_EXTRA'],
  [VIRTIO_NET_F_GUEST_ANNOUNCE, 'GUEST_ANNOUNCE'],
  [VIRTIO_NET_F_MQ, 'MQ'],
  [VIRTIO_NET_F_CTRL_MAC_ADDR, 'CTRL_MAC_ADDR'],
  [VIRTIO_NET_F_DEVICE_STATS, 'DEVICE_STATS'],
  [VIRTIO_NET_F_HASH_TUNNEL, 'HASH_TUNNEL'],
  [VIRTIO_NET_F_VQ_NOTF_COAL, 'VQ_NOTF_COAL'],
  [VIRTIO_NET_F_NOTF_COAL, 'NOTF_COAL'],
  [VIRTIO_NET_F_GUEST_USO4, 'GUEST_USO4'],
  [VIRTIO_NET_F_GUEST_USO6, 'GUEST_USO6'],
  [VIRTIO_NET_F_HOST_USO, 'HOST_USO'],
  [VIRTIO_NET_F_HASH_REPORT, 'HASH_REPORT'],
  [VIRTIO_NET_F_GUEST_HDRLEN, 'GUEST_HDRLEN'],
  [VIRTIO_NET_F_RSS, 'RSS'],
  [VIRTIO_NET_F_RSC_EXT, 'RSC_EXT'],
  [VIRTIO_NET_F_STANDBY, 'STANDBY'],
  [VIRTIO_NET_F_SPEED_DUPLEX, 'SPEED_DUPLEX'],
]);
