/** What every daemon offers, whatever its device: the features of rings and transport, and of the protocol. */

import {
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_PAGEFAULT,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_STATUS,
} from '../../protocol/vhost-user/features.ts';
import {
  featureMask,
  VHOST_F_LOG_ALL,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
} from '../../protocol/virtio/reserved-features.ts';
import type { Device } from './device.ts';

const RING_FEATURES = featureMask(
  VIRTIO_F_VERSION_1,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_IN_ORDER,
  VHOST_F_LOG_ALL,
  VHOST_USER_F_PROTOCOL_FEATURES,
);

const PROTOCOL_FEATURES = featureMask(
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_STATUS,
);

/**
 * Virtio features of a daemon with this device. ACCESS_PLATFORM only where it is asked for: some front ends (User-mode
 * Linux) accept whatever is offered and then send no translations.
 */
export function offeredFeatures(device: Device, iommu: boolean): bigint {
  return device.features | RING_FEATURES | (iommu ? featureMask(VIRTIO_F_ACCESS_PLATFORM) : 0n);
}

/**
 * Protocol features of a daemon with this device: PAGEFAULT where pages of the guest's memory can be waited for, and
 * INBAND_NOTIFICATIONS only where it is asked for, because User-mode Linux uses it whenever it is offered, a message and
 * its answer for each kick.
 */
export function offeredProtocolFeatures(device: Device, pageFaults: boolean, inBand: boolean): bigint {
  const pageFault = pageFaults ? featureMask(VHOST_USER_PROTOCOL_F_PAGEFAULT) : 0n;
  const notifications = inBand ? featureMask(VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS) : 0n;
  return device.protocolFeatures | PROTOCOL_FEATURES | pageFault | notifications;
}
