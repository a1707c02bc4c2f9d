/** Numbers and layouts of the IOMMU device. Source: VIRTIO 1.3, 5.13 IOMMU Device; linux/virtio_iommu.h. */

/** Queues, 5.13.2. */
export const VIRTIO_IOMMU_REQUEST_QUEUE = 0;
export const VIRTIO_IOMMU_EVENT_QUEUE = 1;

/** Device features, 5.13.3. */
export const VIRTIO_IOMMU_F_INPUT_RANGE = 0;
export const VIRTIO_IOMMU_F_DOMAIN_RANGE = 1;
export const VIRTIO_IOMMU_F_MAP_UNMAP = 2;
export const VIRTIO_IOMMU_F_BYPASS = 3;
export const VIRTIO_IOMMU_F_PROBE = 4;
export const VIRTIO_IOMMU_F_MMIO = 5;
export const VIRTIO_IOMMU_F_BYPASS_CONFIG = 6;

/** Configuration space, 5.13.4: byte offsets of little-endian fields. Ends of ranges are inclusive. */
export const VIRTIO_IOMMU_CONFIG = {
  page_size_mask: 0, // u64
  input_range_start: 8, // u64
  input_range_end: 16, // u64
  domain_range_start: 24, // u32
  domain_range_end: 28, // u32
  probe_size: 32, // u32
  bypass: 36, // u8, and 3 reserved bytes
} as const;
export const VIRTIO_IOMMU_CONFIG_BYTES = 40;

/** Types of requests, 5.13.6: the first byte; 3 reserved ones follow. */
export const VIRTIO_IOMMU_T_ATTACH = 1;
export const VIRTIO_IOMMU_T_DETACH = 2;
export const VIRTIO_IOMMU_T_MAP = 3;
export const VIRTIO_IOMMU_T_UNMAP = 4;
export const VIRTIO_IOMMU_T_PROBE = 5;

/** The end of each answer: status u8 and 3 reserved bytes. */
export const VIRTIO_IOMMU_TAIL_BYTES = 4;
export const VIRTIO_IOMMU_S_OK = 0;
export const VIRTIO_IOMMU_S_IOERR = 1;
export const VIRTIO_IOMMU_S_UNSUPP = 2;
export const VIRTIO_IOMMU_S_DEVERR = 3;
export const VIRTIO_IOMMU_S_INVAL = 4;
export const VIRTIO_IOMMU_S_RANGE = 5;
export const VIRTIO_IOMMU_S_NOENT = 6;
export const VIRTIO_IOMMU_S_FAULT = 7;
export const VIRTIO_IOMMU_S_NOMEM = 8;

/** Device-readable parts of requests: byte offsets of little-endian fields, and how long each is. Ends are inclusive. */
export const VIRTIO_IOMMU_REQ_ATTACH = { domain: 4, endpoint: 8, flags: 12, reserved: 16 } as const;
export const VIRTIO_IOMMU_REQ_ATTACH_BYTES = 20;
export const VIRTIO_IOMMU_REQ_DETACH = { domain: 4, endpoint: 8 } as const;
export const VIRTIO_IOMMU_REQ_DETACH_BYTES = 20;
export const VIRTIO_IOMMU_REQ_MAP = { domain: 4, virt_start: 8, virt_end: 16, phys_start: 24, flags: 32 } as const;
export const VIRTIO_IOMMU_REQ_MAP_BYTES = 36;
export const VIRTIO_IOMMU_REQ_UNMAP = { domain: 4, virt_start: 8, virt_end: 16 } as const;
export const VIRTIO_IOMMU_REQ_UNMAP_BYTES = 28;
export const VIRTIO_IOMMU_REQ_PROBE = { endpoint: 4 } as const;
export const VIRTIO_IOMMU_REQ_PROBE_BYTES = 72;

export const VIRTIO_IOMMU_ATTACH_F_BYPASS = 1;
export const VIRTIO_IOMMU_MAP_F_READ = 1;
export const VIRTIO_IOMMU_MAP_F_WRITE = 2;
export const VIRTIO_IOMMU_MAP_F_MMIO = 4;

/** Fault reports on the event queue, 5.13.6.9: byte offsets of little-endian fields. */
export const VIRTIO_IOMMU_FAULT = { reason: 0, flags: 4, endpoint: 8, address: 16 } as const;
export const VIRTIO_IOMMU_FAULT_BYTES = 24;
/** The endpoint is attached to no domain. */
export const VIRTIO_IOMMU_FAULT_R_DOMAIN = 1;
/** Its domain does not map the address, or not for that. */
export const VIRTIO_IOMMU_FAULT_R_MAPPING = 2;
export const VIRTIO_IOMMU_FAULT_F_READ = 1;
export const VIRTIO_IOMMU_FAULT_F_WRITE = 2;
export const VIRTIO_IOMMU_FAULT_F_ADDRESS = 0x100;
