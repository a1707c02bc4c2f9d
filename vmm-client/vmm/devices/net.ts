/**
 * Networks. The back end says what it can do and, where it offers CONFIG, what it is; `mac` and `mtu` of the configuration
 * come before what it says. A control queue goes to the back end where it has a ring for it; there is none otherwise,
 * and nothing that needs one. Source: VIRTIO 1.3, 5.1 Network Device.
 */

import { VHOST_USER_PROTOCOL_F_CONFIG } from '../../../protocol/vhost-user/features.ts';
import { VIRTIO_ID_NET } from '../../../protocol/virtio/device-ids.ts';
import {
  VIRTIO_NET_CONFIG,
  VIRTIO_NET_CONFIG_BYTES,
  VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
  VIRTIO_NET_F_CTRL_MAC_ADDR,
  VIRTIO_NET_F_CTRL_RX,
  VIRTIO_NET_F_CTRL_RX_EXTRA,
  VIRTIO_NET_F_CTRL_VLAN,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_DEVICE_STATS,
  VIRTIO_NET_F_GUEST_ANNOUNCE,
  VIRTIO_NET_F_HASH_REPORT,
  VIRTIO_NET_F_HASH_TUNNEL,
  VIRTIO_NET_F_MAC,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_MTU,
  VIRTIO_NET_F_NOTF_COAL,
  VIRTIO_NET_F_RSS,
  VIRTIO_NET_F_SPEED_DUPLEX,
  VIRTIO_NET_F_STANDBY,
  VIRTIO_NET_F_STATUS,
  VIRTIO_NET_F_VQ_NOTF_COAL,
} from '../../../protocol/virtio/net.ts';
import { featureMask, hasFeature } from '../../../protocol/virtio/reserved-features.ts';
import { decodeNetConfig, netConfigBytes } from '../../driver/net-config.ts';
import type { VhostUserFrontend } from '../../frontend/frontend.ts';
import type { CheckedNet } from '../check-config.ts';
import { VmConfigError } from '../errors.ts';
import { attach, type DeviceOptions } from './attach.ts';
import { checkFields, type DeviceProfile, ringCount, withoutFeatures } from './profile.ts';
import type { VhostUserDevice } from './vhost-user-device.ts';

/** These need a control queue (5.1.3.1). */
const NEED_CONTROL = [
  VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_CTRL_RX,
  VIRTIO_NET_F_CTRL_VLAN,
  VIRTIO_NET_F_CTRL_RX_EXTRA,
  VIRTIO_NET_F_GUEST_ANNOUNCE,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_CTRL_MAC_ADDR,
  VIRTIO_NET_F_VQ_NOTF_COAL,
  VIRTIO_NET_F_NOTF_COAL,
] as const;
/** These need fields of the configuration space that nobody filled. */
const NEED_CONFIG = [VIRTIO_NET_F_MTU, VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_SPEED_DUPLEX] as const;
/** These need fields behind the ones known here, or a second device. */
const NOT_CARRIED = [
  VIRTIO_NET_F_DEVICE_STATS,
  VIRTIO_NET_F_HASH_TUNNEL,
  VIRTIO_NET_F_HASH_REPORT,
  VIRTIO_NET_F_RSS,
  VIRTIO_NET_F_STANDBY,
] as const;

/** @throws VmConfigError, VmError - see `openDevice` */
export async function openNet(config: CheckedNet, options: DeviceOptions): Promise<VhostUserDevice> {
  const name = `net ${config.id}`;
  return attach(name, config.vhost_socket, options, (frontend) => describeNet(frontend, name, config));
}

async function describeNet(
  frontend: VhostUserFrontend,
  name: string,
  { num_queues, queue_size, mac, mtu }: CheckedNet,
): Promise<DeviceProfile> {
  const pairs = num_queues / 2;
  const theirs = frontend.capabilities.features;
  const hasConfig = frontend.hasProtocolFeature(VHOST_USER_PROTOCOL_F_CONFIG);
  const theirPairs = await readPairs(frontend, hasConfig);
  const count = frontend.capabilities.queueCount === undefined ? 2 : ringCount(frontend);
  const hasControl = hasFeature(theirs, VIRTIO_NET_F_CTRL_VQ) && hasConfig && count === 2 * theirPairs + 1;
  // The count is of rings or of pairs.
  const available = hasControl && hasFeature(theirs, VIRTIO_NET_F_MQ) ? Math.min(theirPairs, count) : 1;
  if (pairs > available) {
    const why = hasControl ? '' : ', and no control queue for more';
    const rings = 2 * available;
    throw new VmConfigError(`${name}: num_queues is ${num_queues}, its back end has ${rings}${why}`);
  }

  let features = withoutFeatures(theirs, ...NOT_CARRIED);
  if (!hasControl) features = withoutFeatures(features, ...NEED_CONTROL);
  if (!hasConfig) features = withoutFeatures(features, ...NEED_CONFIG);
  if (pairs === 1) features = withoutFeatures(features, VIRTIO_NET_F_MQ);
  if (mac !== undefined) features |= featureMask(VIRTIO_NET_F_MAC);
  if (mtu !== undefined) features |= featureMask(VIRTIO_NET_F_MTU);
  return {
    name,
    deviceId: VIRTIO_ID_NET,
    queueSizes: Array.from({ length: 2 * pairs + (hasControl ? 1 : 0) }, () => queue_size),
    features,
    isServed: () => true,
    ringOf: (queue, accepted) =>
      hasControl && queue === 2 * pairs && hasFeature(accepted, VIRTIO_NET_F_MQ) ? 2 * theirPairs : queue,
    readConfig: async (from) => {
      const config = new Uint8Array(VIRTIO_NET_CONFIG_BYTES);
      const length = hasConfig ? netConfigBytes(theirs) : 0;
      if (length > 0) {
        const told = await from.readConfig(0, length);
        decodeNetConfig(told, theirs);
        config.set(told);
      }
      return override(config, pairs, mac, mtu);
    },
    isWritable: () => false,
    // What it was told by the control queue.
    needsState: (accepted) => hasFeature(accepted, VIRTIO_NET_F_CTRL_VQ),
    checkMove,
    stationOf: (config, accepted) => {
      const { mac: at } = VIRTIO_NET_CONFIG;
      return hasFeature(accepted, VIRTIO_NET_F_MAC) ? config.slice(at, at + 6) : undefined;
    },
  };
}

/** The address of an interface is the back end's, unless the driver set it. @throws RangeError - see DeviceProfile */
function checkMove(before: Uint8Array, now: Uint8Array, accepted: bigint): void {
  const at = VIRTIO_NET_CONFIG;
  const [was, is] = [before, now].map((config) => Buffer.from(config.subarray(at.mac, at.mac + 6)).toString('hex'));
  if (hasFeature(accepted, VIRTIO_NET_F_MAC) && !hasFeature(accepted, VIRTIO_NET_F_CTRL_MAC_ADDR) && was !== is) {
    throw new RangeError(`mac was ${was}, the back end here has ${is}`);
  }
  const pairs = { name: 'max_virtqueue_pairs', offset: at.max_virtqueue_pairs, bytes: 2 } as const;
  const mtu = { name: 'mtu', offset: at.mtu, bytes: 2 } as const;
  const hasMtu = hasFeature(accepted, VIRTIO_NET_F_MTU);
  checkFields(before, now, [[pairs, 'same'], ...(hasMtu ? ([[mtu, 'same']] as const) : [])]);
}

/** The pairs of the back end by its own account. @throws RangeError - not a number that it can have */
async function readPairs(frontend: VhostUserFrontend, hasConfig: boolean): Promise<number> {
  const { features } = frontend.capabilities;
  if (!hasConfig || !hasFeature(features, VIRTIO_NET_F_MQ)) return 1;
  return decodeNetConfig(await frontend.readConfig(0, netConfigBytes(features)), features).maxPairs ?? 1;
}

function override(config: Uint8Array, pairs: number, mac: string | undefined, mtu: number | undefined): Uint8Array {
  const view = new DataView(config.buffer);
  if (mac !== undefined) config.set(Buffer.from(mac.replaceAll(':', ''), 'hex'), VIRTIO_NET_CONFIG.mac);
  if (mtu !== undefined) view.setUint16(VIRTIO_NET_CONFIG.mtu, mtu, true);
  view.setUint16(VIRTIO_NET_CONFIG.max_virtqueue_pairs, pairs, true);
  return config;
}
