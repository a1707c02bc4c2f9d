/**
 * Sockets between host and guest. The event queue is there for migration, so that back ends have two or three rings; it is
 * handed over where the back end has a ring for it. Source: VIRTIO 1.3, 5.10 Socket Device.
 */

import { VHOST_USER_PROTOCOL_F_CONFIG } from '../../../protocol/vhost-user/features.ts';
import { VIRTIO_ID_VSOCK } from '../../../protocol/virtio/device-ids.ts';
import {
  VIRTIO_VSOCK_CONFIG_BYTES,
  VIRTIO_VSOCK_EVENT_QUEUE,
  VIRTIO_VSOCK_QUEUES,
} from '../../../protocol/virtio/vsock.ts';
import type { VhostUserFrontend } from '../../frontend/frontend.ts';
import type { CheckedVsock } from '../check-config.ts';
import { VmConfigError } from '../errors.ts';
import { attach, type DeviceOptions } from './attach.ts';
import { checkFields, type DeviceProfile, ringCount } from './profile.ts';
import type { VhostUserDevice } from './vhost-user-device.ts';

/** @throws VmConfigError, VmError - see `openDevice` */
export async function openVsock(config: CheckedVsock, options: DeviceOptions): Promise<VhostUserDevice> {
  const name = `vsock ${config.id}`;
  return attach(name, config.socket, options, (frontend) => describeVsock(frontend, name, config));
}

function describeVsock(frontend: VhostUserFrontend, name: string, { cid, queue_size }: CheckedVsock): DeviceProfile {
  // Without MQ nothing is said of rings: the two that carry data are what every back end has.
  const rings = frontend.capabilities.queueCount === undefined ? VIRTIO_VSOCK_EVENT_QUEUE : ringCount(frontend);
  if (rings < VIRTIO_VSOCK_EVENT_QUEUE) {
    throw new RangeError(`the back end says it has ${rings} queue, a socket device has ${VIRTIO_VSOCK_EVENT_QUEUE}`);
  }
  return {
    name,
    deviceId: VIRTIO_ID_VSOCK,
    queueSizes: Array.from({ length: VIRTIO_VSOCK_QUEUES }, () => queue_size),
    features: frontend.capabilities.features,
    isServed: (queue) => queue < rings,
    ringOf: (queue) => queue,
    readConfig: (from) => readCid(from, name, cid),
    isWritable: () => false,
    // Connections do not go along, and the driver hears that from the back end.
    needsState: () => true,
    checkMove: (before, now) => checkFields(before, now, [[{ name: 'guest_cid', offset: 0, bytes: 8 }, 'same']]),
  };
}

/** The guest's context id: as the back end says it, where it does. @throws VmConfigError - it is another one */
async function readCid(frontend: VhostUserFrontend, name: string, cid: number): Promise<Uint8Array> {
  const config = new Uint8Array(VIRTIO_VSOCK_CONFIG_BYTES);
  new DataView(config.buffer).setUint32(0, cid, true);
  if (!frontend.hasProtocolFeature(VHOST_USER_PROTOCOL_F_CONFIG)) return config;
  const told = await frontend.readConfig(0, VIRTIO_VSOCK_CONFIG_BYTES);
  const toldCid = new DataView(told.buffer, told.byteOffset).getBigUint64(0, true);
  if (toldCid !== BigInt(cid)) throw new VmConfigError(`${name}: cid is ${cid}, its back end serves cid ${toldCid}`);
  return config;
}
