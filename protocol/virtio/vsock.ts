/** Numbers and layouts of the socket device. Source: VIRTIO 1.3, 5.10 Socket Device; linux/virtio_vsock.h. */

/** Queues, 5.10.2. */
export const VIRTIO_VSOCK_RX_QUEUE = 0;
export const VIRTIO_VSOCK_TX_QUEUE = 1;
export const VIRTIO_VSOCK_EVENT_QUEUE = 2;
export const VIRTIO_VSOCK_QUEUES = 3;

/** Configuration space, 5.10.4: guest_cid u64 @0, whose upper half is zero. */
export const VIRTIO_VSOCK_CONFIG_BYTES = 8;

/** Context ids that a guest can have; 0, 1, 2 and 2^32 - 1 are reserved. */
export const VIRTIO_VSOCK_MIN_CID = 3;
export const VIRTIO_VSOCK_MAX_CID = 0xffff_fffe;

/** The host, for every guest. */
export const VIRTIO_VSOCK_HOST_CID = 2;

/** Device features, 5.10.3. */
export const VIRTIO_VSOCK_F_STREAM = 0;
export const VIRTIO_VSOCK_F_SEQPACKET = 1;
export const VIRTIO_VSOCK_F_NO_IMPLIED_STREAM = 2;

/**
 * struct virtio_vsock_hdr, 5.10.6: src_cid u64, dst_cid u64, src_port u32, dst_port u32, len u32, type u16, op u16,
 * flags u32, buf_alloc u32, fwd_cnt u32. Byte offsets.
 */
export const VIRTIO_VSOCK_HDR = {
  src_cid: 0,
  dst_cid: 8,
  src_port: 16,
  dst_port: 20,
  len: 24,
  type: 28,
  op: 30,
  flags: 32,
  buf_alloc: 36,
  fwd_cnt: 40,
} as const;
export const VIRTIO_VSOCK_HDR_BYTES = 44;

/** Types of sockets. */
export const VIRTIO_VSOCK_TYPE_STREAM = 1;
export const VIRTIO_VSOCK_TYPE_SEQPACKET = 2;

/** Operations. */
export const VIRTIO_VSOCK_OP_INVALID = 0;
export const VIRTIO_VSOCK_OP_REQUEST = 1;
export const VIRTIO_VSOCK_OP_RESPONSE = 2;
export const VIRTIO_VSOCK_OP_RST = 3;
export const VIRTIO_VSOCK_OP_SHUTDOWN = 4;
export const VIRTIO_VSOCK_OP_RW = 5;
export const VIRTIO_VSOCK_OP_CREDIT_UPDATE = 6;
export const VIRTIO_VSOCK_OP_CREDIT_REQUEST = 7;

/** Flags of SHUTDOWN: who sends it receives, or sends, no more. */
export const VIRTIO_VSOCK_SHUTDOWN_RCV = 1;
export const VIRTIO_VSOCK_SHUTDOWN_SEND = 2;

/** Flags of RW in a connection of packets: the end of a message, and of a record. */
export const VIRTIO_VSOCK_SEQ_EOM = 1;
export const VIRTIO_VSOCK_SEQ_EOR = 2;

/** Bytes of payload that a packet of Linux's has at most (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE). */
export const VIRTIO_VSOCK_MAX_PACKET_BYTES = 64 * 1024;

/** struct virtio_vsock_event: id u32. */
export const VIRTIO_VSOCK_EVENT_BYTES = 4;
export const VIRTIO_VSOCK_EVENT_TRANSPORT_RESET = 0;
