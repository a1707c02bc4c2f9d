/** Limits that the block device tells the driver, and keeps it to. */

/** Data buffers of one request: a queue of 128 entries, less header and status (what QEMU's export says too). */
export const SEG_MAX = 126;
/** Bytes of one data buffer. Larger ones are served: the standard lets the device only recommend. */
export const SIZE_MAX = 4 * 1024 * 1024;
/** Segments of one DISCARD or WRITE_ZEROES request. */
export const MAX_RANGES = 32;
/** 512-byte sectors of one such segment: 2 GiB. */
export const MAX_RANGE_SECTORS = 4 * 1024 * 1024;
/** Requests in flight in the whole daemon; further ones wait in their rings. */
export const MAX_REQUESTS = 1024;
/** Virtqueues: vhost-user numbers vrings with 8 bits in some messages. */
export const MAX_QUEUES = 128;
