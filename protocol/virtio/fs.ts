/** Numbers and layouts of the file system device. Source: VIRTIO 1.3, 5.11 File System Device; linux/virtio_fs.h. */

/** There is a notification queue, index 1, before the request queues. */
export const VIRTIO_FS_F_NOTIFICATION = 0;

/** Queues, 5.11.2: the high priority queue, then the request queues where there is no notification queue. */
export const VIRTIO_FS_HIPRIO_QUEUE = 0;
export const VIRTIO_FS_FIRST_REQUEST_QUEUE = 1;

/** Configuration space, 5.11.4: byte offsets. */
export const VIRTIO_FS_CONFIG = {
  tag: 0, // u8[36], UTF-8, padded with zeros, without one where all are used
  num_request_queues: 36, // u32
} as const;

export const VIRTIO_FS_TAG_BYTES = 36;
/** Bytes up to and with num_request_queues; notify_buf_size, which follows, belongs to the notification queue. */
export const VIRTIO_FS_CONFIG_BYTES = 40;
