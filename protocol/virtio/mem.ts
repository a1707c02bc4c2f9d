/** Numbers and layouts of the memory device. Source: VIRTIO 1.3, 5.15 Memory Device; linux/virtio_mem.h. */

/** node_id is a proximity domain of ACPI. */
export const VIRTIO_MEM_F_ACPI_PXM = 0;
/** The driver does not touch what is not plugged. */
export const VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE = 1;

/** Queues, 5.15.2. */
export const VIRTIO_MEM_GUEST_REQUEST_QUEUE = 0;

/** Configuration space, 5.15.4: byte offsets of little-endian fields. */
export const VIRTIO_MEM_CONFIG = {
  block_size: 0, // u64
  node_id: 8, // u16, then 6 bytes of padding
  addr: 16, // u64
  region_size: 24, // u64
  usable_region_size: 32, // u64
  plugged_size: 40, // u64
  requested_size: 48, // u64
} as const;
export const VIRTIO_MEM_CONFIG_BYTES = 56;

/** Requests, 5.15.6: type u16, 6 bytes of padding, and for all but UNPLUG_ALL a range of blocks. */
export const VIRTIO_MEM_REQ = {
  type: 0, // u16
  addr: 8, // u64
  nb_blocks: 16, // u16, then 6 bytes of padding
} as const;
export const VIRTIO_MEM_REQ_BYTES = 24;

export const VIRTIO_MEM_REQ_PLUG = 0;
export const VIRTIO_MEM_REQ_UNPLUG = 1;
export const VIRTIO_MEM_REQ_UNPLUG_ALL = 2;
export const VIRTIO_MEM_REQ_STATE = 3;

/** Responses: type u16, 6 bytes of padding, and for STATE the state. */
export const VIRTIO_MEM_RESP = {
  type: 0, // u16
  state: 8, // u16
} as const;
export const VIRTIO_MEM_RESP_BYTES = 10;

export const VIRTIO_MEM_RESP_ACK = 0;
export const VIRTIO_MEM_RESP_NACK = 1;
export const VIRTIO_MEM_RESP_BUSY = 2;
export const VIRTIO_MEM_RESP_ERROR = 3;

export const VIRTIO_MEM_STATE_PLUGGED = 0;
export const VIRTIO_MEM_STATE_UNPLUGGED = 1;
export const VIRTIO_MEM_STATE_MIXED = 2;
