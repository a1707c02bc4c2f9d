/** Virtio device ids. Source: VIRTIO 1.3, 5 Device Types. */

export const VIRTIO_ID_NET = 1;
export const VIRTIO_ID_BLOCK = 2;
export const VIRTIO_ID_VSOCK = 19;
export const VIRTIO_ID_IOMMU = 23;
export const VIRTIO_ID_MEM = 24;
export const VIRTIO_ID_FS = 26;
