/**
 * Networks. The back end says what it can do and, where it offers CONFIG, what it is; `mac` and `mtu` of the configuration
 * come before what it says. A control queue goes to the back end where it has a ring for it; there is none otherwise,
 * and nothing that needs one. Source: VIRTIO 1.3, 5.1 Network Device.
 */

import { VHOST_USER_PROTOCOL_F_CONFIG } from '../../../protocol/vhost-user/features.ts';
import { VIRTIO_ID_NET } from '../../../protocol/virtio/device-ids.ts';
import {
  ETHERNET_ADDRESS_BYTES,
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
  VIRTIO_NET_MAX_MTU,
  VIRTIO_NET_MIN_MTU,
} from '../../../protocol/virtio/net.ts';
import { featureMask, hasFeature } from '../../../protocol/virtio/reserved-features.ts';
import { decodeNetConfig, netConfigBytes } from '../../driver/net-config.ts';
import type { VhostUserFrontend } from '../../frontend/frontend.ts';
import type { NetConfig } from '../config.ts';
import { VmConfigError } from '../errors.ts';
import { attach, type DeviceOptions } from './attach.ts';
import { type DeviceProfile, queueCountOf, queueSizeOf, ringCount, withoutFeatures } from './profile.ts';
import type { VhostUserDevice } from './vhost-user-device.ts';

/** Rings and entries, as in Cloud Hypervisor. */
const DEFAULT_QUEUES = 2;
const DEFAULT_QUEUE_SIZE = 256;
const MAX_QUEUES = 254;
/** Bit of an address's first byte: of a group, not of one interface. Source: IEEE 802. */
const MULTICAST = 1;

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

interface Overrides {
  /** Six bytes. */
  readonly mac: Uint8Array | undefined;
  readonly mtu: number | undefined;
}

/** @throws VmConfigError, VmError - see `openDevice` */
export async function openNet(config: NetConfig, options: DeviceOptions): Promise<VhostUserDevice> {
  const name = `net ${config.id ?? config.vhost_socket ?? options.socket ?? ''}`.trim();
  const rings = queueCountOf(name, config.num_queues, DEFAULT_QUEUES, MAX_QUEUES);
  if (rings % 2 !== 0) throw new VmConfigError(`${name}: num_queues ${rings} is odd, each pair has two rings`);
  const queueSize = queueSizeOf(name, config.queue_size, DEFAULT_QUEUE_SIZE);
  const { mtu } = config;
  if (mtu !== undefined && !(Number.isInteger(mtu) && mtu >= VIRTIO_NET_MIN_MTU && mtu <= VIRTIO_NET_MAX_MTU)) {
    throw new VmConfigError(`${name}: mtu ${mtu} is not from ${VIRTIO_NET_MIN_MTU} to ${VIRTIO_NET_MAX_MTU}`);
  }
  const overrides = { mac: config.mac === undefined ? undefined : parseMac(name, config.mac), mtu };
  return attach(name, config.vhost_socket, options, (frontend) =>
    describeNet(frontend, name, rings / 2, queueSize, overrides),
  );
}

/** @throws VmConfigError - not six hexadecimal bytes, or an address of many */
function parseMac(name: string, text: string): Uint8Array {
  const mac = Uint8Array.from(text.split(':'), (byte) => Number.parseInt(byte, 16));
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text) || ((mac[0] ?? 1) & MULTICAST) !== 0) {
    throw new VmConfigError(`${name}: mac ${text} is not the address of one interface, such as 52:54:00:12:34:56`);
  }
  return mac;
}

async function describeNet(
  frontend: VhostUserFrontend,
  name: string,
  pairs: number,
  queueSize: number,
  overrides: Overrides,
): Promise<DeviceProfile> {
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
    throw new VmConfigError(`${name}: num_queues is ${2 * pairs}, its back end has ${rings}${why}`);
  }

  let features = withoutFeatures(theirs, ...NOT_CARRIED);
  if (!hasControl) features = withoutFeatures(features, ...NEED_CONTROL);
  if (!hasConfig) features = withoutFeatures(features, ...NEED_CONFIG);
  if (pairs === 1) features = withoutFeatures(features, VIRTIO_NET_F_MQ);
  if (overrides.mac !== undefined) features |= featureMask(VIRTIO_NET_F_MAC);
  if (overrides.mtu !== undefined) features |= featureMask(VIRTIO_NET_F_MTU);
  return {
    name,
    deviceId: VIRTIO_ID_NET,
    queueSizes: Array.from({ length: 2 * pairs + (hasControl ? 1 : 0) }, () => queueSize),
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
      return override(config, pairs, overrides);
    },
    isWritable: () => false,
  };
}

/** The pairs of the back end by its own account. @throws RangeError - not a number that it can have */
async function readPairs(frontend: VhostUserFrontend, hasConfig: boolean): Promise<number> {
  const { features } = frontend.capabilities;
  if (!hasConfig || !hasFeature(features, VIRTIO_NET_F_MQ)) return 1;
  return decodeNetConfig(await frontend.readConfig(0, netConfigBytes(features)), features).maxPairs ?? 1;
}

function override(config: Uint8Array, pairs: number, { mac, mtu }: Overrides): Uint8Array {
  const view = new DataView(config.buffer);
  if (mac !== undefined) config.set(mac.subarray(0, ETHERNET_ADDRESS_BYTES), VIRTIO_NET_CONFIG.mac);
  if (mtu !== undefined) view.setUint16(VIRTIO_NET_CONFIG.mtu, mtu, true);
  view.setUint16(VIRTIO_NET_CONFIG.max_virtqueue_pairs, pairs, true);
  return config;
}
