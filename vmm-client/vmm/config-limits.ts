/**
 * The limits and defaults of a configuration, and what is said of a value that is beyond them. They are here and nowhere
 * else; the JSON schemas of the API take them from here.
 */

import { VIRTIO_NET_MAX_MTU, VIRTIO_NET_MIN_MTU } from '../../protocol/virtio/net.ts';
import { VIRTQ_MAX_SIZE } from '../../protocol/virtio/split-ring.ts';
import { VIRTIO_VSOCK_MAX_CID, VIRTIO_VSOCK_MIN_CID } from '../../protocol/virtio/vsock.ts';
import { VmConfigError } from './errors.ts';
import { HIGH_RAM_ADDRESS, MAX_VCPUS } from './layout.ts';

/** Blocks in which memory is added and taken away: the guest's huge pages. */
export const HOTPLUG_BLOCK_BYTES = 2 * 1024 * 1024;

export interface Range {
  readonly minimum: number;
  readonly maximum: number;
}

/** Ranges of numbers; both ends are possible. */
export const LIMITS = {
  vcpus: { minimum: 1, maximum: MAX_VCPUS },
  /** Something above 1 MiB, where the kernel goes; half of what 46 bits of address reach (Cloud Hypervisor's default). */
  memoryBytes: { minimum: 2 * HIGH_RAM_ADDRESS, maximum: 2 ** 45 },
  hotplugBytes: { minimum: 0, maximum: 2 ** 45 },
  /** vhost-user names a queue in one byte (VHOST_USER_SET_VRING_KICK, bits 0-7). */
  queues: { minimum: 1, maximum: 256 },
  /** The high-priority queue of a file system is one more. */
  fsQueues: { minimum: 1, maximum: 255 },
  /** Receive and transmit rings of network devices: whole pairs, and room for the control queue. */
  netQueues: { minimum: 2, maximum: 254 },
  /** Entries; a power of two (VIRTIO 1.3, 2.7), and the smallest that holds a request of three descriptors. */
  queueSize: { minimum: 4, maximum: VIRTQ_MAX_SIZE },
  mtu: { minimum: VIRTIO_NET_MIN_MTU, maximum: VIRTIO_NET_MAX_MTU },
  cid: { minimum: VIRTIO_VSOCK_MIN_CID, maximum: VIRTIO_VSOCK_MAX_CID },
  /** Below 1 ms no round ends; a guest that stands still for a minute is not alive. */
  downtimeMs: { minimum: 1, maximum: 60_000 },
  /** Of a whole migration: a week. */
  migrationTimeoutS: { minimum: 1, maximum: 604_800 },
} as const satisfies Readonly<Record<string, Range>>;

/** How a device may be called: ids are keys of the counters and go into names of sockets. */
export const ID_PATTERN = '^[A-Za-z0-9_.:-]{1,64}$';

/** Defaults of Cloud Hypervisor, but for `shared`, `console` and the queue of vsock, whose size it fixes at 256. */
export const DEFAULTS = {
  vcpus: 1,
  memoryBytes: 512 * 1024 * 1024,
  disk: { num_queues: 1, queue_size: 128 },
  net: { num_queues: 2, queue_size: 256 },
  fs: { num_queues: 1, queue_size: 1024 },
  vsock: { queue_size: 256 },
  downtimeMs: 300,
} as const;

/** What is wrong about a number outside of its range. */
export function describeRange(path: string, value: number, { minimum, maximum }: Range): string | undefined {
  if (!Number.isInteger(value)) return `${path}: ${value} is not a whole number`;
  if (value < minimum) return `${path}: ${value} is below the minimum of ${minimum}`;
  return value > maximum ? `${path}: ${value} is above the maximum of ${maximum}` : undefined;
}

export function fail(sentence: string): never {
  throw new VmConfigError(sentence);
}

/** @throws VmConfigError */
export function checkRange(path: string, value: number, range: Range): void {
  const sentence = describeRange(path, value, range);
  if (sentence !== undefined) fail(sentence);
}

/** @throws VmConfigError - the kernel would end the string elsewhere than we do, or there is none */
export function checkText(path: string, value: string | undefined): void {
  if (value === undefined) return;
  if (value === '') fail(`${path} is empty`);
  if (value.includes('\0')) fail(`${path} contains a zero byte`);
}

/** @throws VmConfigError */
export function checkBytes(path: string, value: string | undefined, maximum: number): void {
  const length = Buffer.byteLength(value ?? '');
  if (length > maximum) fail(`${path} is ${length} bytes long, at most ${maximum} are possible`);
}
