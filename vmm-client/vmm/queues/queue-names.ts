/** What the queues of each kind of device are for. Source: VIRTIO 1.3, 5.1.2, 5.2.2, 5.10.2, 5.11.2, 5.13.2, 5.15.2 Virtqueues. */

import {
  VIRTIO_ID_BLOCK,
  VIRTIO_ID_FS,
  VIRTIO_ID_IOMMU,
  VIRTIO_ID_MEM,
  VIRTIO_ID_NET,
  VIRTIO_ID_VSOCK,
} from '../../../protocol/virtio/device-ids.ts';
import { VIRTIO_FS_FIRST_REQUEST_QUEUE } from '../../../protocol/virtio/fs.ts';
import { VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ } from '../../../protocol/virtio/net.ts';
import { hasFeature } from '../../../protocol/virtio/reserved-features.ts';
import { VIRTIO_VSOCK_EVENT_QUEUE, VIRTIO_VSOCK_RX_QUEUE } from '../../../protocol/virtio/vsock.ts';
import type { QueueRole } from './queue-report.ts';

export interface QueueName {
  readonly name: string;
  readonly role: QueueRole;
}

const KINDS: Readonly<Record<number, string>> = {
  [VIRTIO_ID_BLOCK]: 'disk',
  [VIRTIO_ID_NET]: 'net',
  [VIRTIO_ID_FS]: 'fs',
  [VIRTIO_ID_VSOCK]: 'vsock',
  [VIRTIO_ID_IOMMU]: 'iommu',
  [VIRTIO_ID_MEM]: 'mem',
};

/** What a device of that id is called: `disk`, or `device 99`. */
export function nameKind(deviceId: number): string {
  return KINDS[deviceId] ?? `device ${deviceId}`;
}

const requests = (name: string): QueueName => ({ name, role: 'requests' });
const buffers = (name: string): QueueName => ({ name, role: 'buffers' });

/** Queue `index` of `count`, of a device whose driver accepted `features`. */
export function nameQueue(deviceId: number, features: bigint, count: number, index: number): QueueName {
  switch (deviceId) {
    case VIRTIO_ID_BLOCK:
      return requests(`request ${index}`);
    case VIRTIO_ID_NET:
      return nameNetQueue(features, count, index);
    case VIRTIO_ID_VSOCK:
      if (index === VIRTIO_VSOCK_EVENT_QUEUE) return buffers('event');
      return index === VIRTIO_VSOCK_RX_QUEUE ? buffers('receive') : requests('transmit');
    case VIRTIO_ID_FS:
      return requests(
        index < VIRTIO_FS_FIRST_REQUEST_QUEUE ? 'high priority' : `request ${index - VIRTIO_FS_FIRST_REQUEST_QUEUE}`,
      );
    case VIRTIO_ID_IOMMU:
      return index === 1 ? buffers('event') : requests('request');
    case VIRTIO_ID_MEM:
      return requests('request');
    default:
      return requests(`queue ${index}`);
  }
}

/** The control queue comes behind the pairs; a driver without MQ has one pair. */
function nameNetQueue(features: bigint, count: number, index: number): QueueName {
  const pairs = hasFeature(features, VIRTIO_NET_F_MQ) ? count >> 1 : 1;
  const hasControl = hasFeature(features, VIRTIO_NET_F_CTRL_VQ) || (features === 0n && count % 2 === 1);
  const control = features === 0n ? count - 1 : 2 * pairs;
  if (hasControl && index === control) return requests('control');
  const pair = index >> 1;
  return index % 2 === 0 ? buffers(`receive ${pair}`) : requests(`transmit ${pair}`);
}
