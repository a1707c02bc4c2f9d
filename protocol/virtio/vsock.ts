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
