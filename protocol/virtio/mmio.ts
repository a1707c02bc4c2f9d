/**
 * Registers of a virtio device in memory, as byte offsets from its start. Control registers are 32 bits wide and aligned;
 * R read, W write. Source: VIRTIO 1.3, 4.2.2 MMIO Device Register Layout; linux/virtio_mmio.h.
 */

export const VIRTIO_MMIO = {
  magic_value: 0x000, // R
  version: 0x004, // R
  device_id: 0x008, // R
  vendor_id: 0x00c, // R
  device_features: 0x010, // R, 32 bits of the mask that the next register selects
  device_features_sel: 0x014, // W
  driver_features: 0x020, // W
  driver_features_sel: 0x024, // W
  queue_sel: 0x030, // W, what the queue registers below speak of
  queue_num_max: 0x034, // R, entries; 0: there is no such queue
  queue_num: 0x038, // W
  queue_ready: 0x044, // RW
  queue_notify: 0x050, // W, queue index
  interrupt_status: 0x060, // R
  interrupt_ack: 0x064, // W
  status: 0x070, // RW
  queue_desc_low: 0x080, // W
  queue_desc_high: 0x084, // W
  queue_driver_low: 0x090, // W, available ring
  queue_driver_high: 0x094, // W
  queue_device_low: 0x0a0, // W, used ring
  queue_device_high: 0x0a4, // W
  shm_sel: 0x0ac, // W
  shm_len_low: 0x0b0, // R
  shm_len_high: 0x0b4, // R
  shm_base_low: 0x0b8, // R
  shm_base_high: 0x0bc, // R
  queue_reset: 0x0c0, // RW, with RING_RESET only
  config_generation: 0x0fc, // R
  config: 0x100, // RW, 8, 16 or 32 bits wide
} as const;

/** "virt", little endian. */
export const VIRTIO_MMIO_MAGIC = 0x74726976;
export const VIRTIO_MMIO_VERSION = 2;

/** Bits of interrupt_status and interrupt_ack. */
export const VIRTIO_MMIO_INT_VRING = 1;
export const VIRTIO_MMIO_INT_CONFIG = 2;
