/**
 * What a suspended vhost-user device takes along as plain data: what its driver sees of it, where its rings stand, what of
 * them was in flight, and what only the back end understands. Features and places of the rings are not in it: who restores
 * the device knows them of its driver. Source: vhost-user, Migrating back-end state.
 */

import {
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
} from '../../../protocol/vhost-user/features.ts';
import { hasFeature, VHOST_F_LOG_ALL, VIRTIO_F_RING_PACKED } from '../../../protocol/virtio/reserved-features.ts';
import type { VhostUserFrontend } from '../../frontend/frontend.ts';
import type { DeviceSnapshot, InflightSnapshot } from '../../frontend/snapshot.ts';
import { MAX_STATE_BYTES } from '../../frontend/state-channel.ts';
import type { Vring } from '../../frontend/vring.ts';
import { VmError } from '../errors.ts';
import { bytesOf, fieldsOf, integerOf, listOf, textOf } from '../state/codec.ts';
import type { DeviceProfile } from './profile.ts';
import type { DeviceState } from './virtio-device.ts';

/** A ring of the back end, and where it stands, as GET_VRING_BASE says it. */
export interface RingPosition {
  readonly index: number;
  readonly base: number;
}

export interface VhostUserState {
  /** `idle`: not activated. `failed`: activated in vain, or its back end is lost; only a reset helps. */
  readonly phase: 'idle' | 'running' | 'failed';
  readonly config: Uint8Array;
  readonly rings: readonly RingPosition[];
  readonly inflight?: InflightSnapshot | undefined;
  readonly backend?: Uint8Array | undefined;
}

const MAX_CONFIG_BYTES = 256;
const MAX_RINGS = 256;
const MAX_RING_SIZE = 32768;
const MAX_BASE = 0xffff_ffff;
const MAX_SPLIT_BASE = 0xffff;

/** @throws VmError - nobody would know which memory the device writes to, so it cannot go elsewhere while it runs */
export function checkLogged({ name }: DeviceProfile, frontend: VhostUserFrontend): void {
  const hasFile = frontend.hasProtocolFeature(VHOST_USER_PROTOCOL_F_LOG_SHMFD);
  if (hasFile && hasFeature(frontend.capabilities.features, VHOST_F_LOG_ALL)) return;
  const what = hasFile ? 'LOG_ALL' : 'LOG_SHMFD';
  throw new VmError(`${name}: its back end does not offer ${what}, so nobody can tell which memory it writes to`);
}

/** @throws VmError - the back end of a driver that accepted `features` has state, and nobody can ask it for that */
export function checkMovable({ name, needsState }: DeviceProfile, frontend: VhostUserFrontend, features: bigint): void {
  if (!needsState(features) || frontend.hasProtocolFeature(VHOST_USER_PROTOCOL_F_DEVICE_STATE)) return;
  throw new VmError(`${name}: its back end does not offer DEVICE_STATE, so what it knows of the guest cannot go along`);
}

/** The state of a device whose rings are stopped. */
export function runningState(config: Uint8Array, snapshot: DeviceSnapshot): VhostUserState {
  const { rings, inflight, deviceState } = snapshot;
  return {
    phase: 'running',
    config: config.slice(),
    rings: rings.map(({ index, base }) => ({ index, base })),
    inflight,
    backend: deviceState,
  };
}

/**
 * The snapshot that another back end gets: `features` and `vrings` are the driver's, as they were.
 * @throws RangeError - the state has other rings, or one that stands nowhere
 */
export function snapshotOf(state: VhostUserState, features: bigint, vrings: readonly Vring[]): DeviceSnapshot {
  const isPacked = hasFeature(features, VIRTIO_F_RING_PACKED);
  const rings = state.rings.map(({ index, base }) => {
    const vring = vrings.find((other) => other.index === index);
    if (vring === undefined) throw new RangeError(`its state has a ring ${index}, its driver has none`);
    if (!isPacked && base > MAX_SPLIT_BASE) {
      throw new RangeError(`ring ${index} stands at ${base}, a split ring ends at ${MAX_SPLIT_BASE}`);
    }
    const { size, descriptorTable, availRing, usedRing } = vring;
    return { index, size, base, descriptorTable, availRing, usedRing };
  });
  if (rings.length !== vrings.length) {
    throw new RangeError(`its state has ${rings.length} rings, its driver ${vrings.length}`);
  }
  const { inflight, backend } = state;
  return { features, protocolFeatures: 0n, config: new Uint8Array(), rings, inflight, deviceState: backend };
}

/** Reads what should be such a state of the device called `name`. @throws VmError - it is none */
export function parseVhostUserState(name: string, state: DeviceState): VhostUserState {
  const what = `state of ${name}`;
  const { phase, config, rings, inflight, backend } = fieldsOf(state, what);
  const text = textOf(phase, `${what}: phase`);
  if (text !== 'idle' && text !== 'running' && text !== 'failed')
    throw new VmError(`${what}: no such phase: ${text.slice(0, 40)}`);
  const positions = listOf(rings, `${what}: rings`, MAX_RINGS).map((ring, at) =>
    parseRing(ring, `${what}: ring ${at}`),
  );
  if (new Set(positions.map(({ index }) => index)).size !== positions.length) {
    throw new VmError(`${what}: a ring is there twice`);
  }
  return {
    phase: text,
    config: atMost(bytesOf(config, `${what}: config`), `${what}: config`, MAX_CONFIG_BYTES),
    rings: positions,
    inflight: inflight === undefined ? undefined : parseInflight(inflight, `${what}: inflight`),
    backend:
      backend === undefined
        ? undefined
        : atMost(bytesOf(backend, `${what}: backend`), `${what}: backend`, MAX_STATE_BYTES),
  };
}

function parseRing(value: unknown, what: string): RingPosition {
  const { index, base } = fieldsOf(value, what);
  return {
    index: integerOf(index, `${what}: index`, { maximum: MAX_RINGS - 1 }),
    base: integerOf(base, `${what}: base`, { maximum: MAX_BASE }),
  };
}

function parseInflight(value: unknown, what: string): InflightSnapshot {
  const { numQueues, queueSize, bytes } = fieldsOf(value, what);
  const region = atMost(bytesOf(bytes, `${what}: bytes`), `${what}: bytes`, MAX_STATE_BYTES);
  if (region.length === 0) throw new VmError(`${what}: bytes: none at all`);
  return {
    numQueues: integerOf(numQueues, `${what}: numQueues`, { minimum: 1, maximum: MAX_RINGS }),
    queueSize: integerOf(queueSize, `${what}: queueSize`, { minimum: 1, maximum: MAX_RING_SIZE }),
    bytes: region,
  };
}

function atMost(bytes: Uint8Array, what: string, most: number): Uint8Array {
  if (bytes.length <= most) return bytes;
  throw new VmError(`${what}: ${bytes.length} bytes, at most ${most} are possible`);
}
