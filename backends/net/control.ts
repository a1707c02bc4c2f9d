/**
 * The control queue: each chain is one command, which is done and answered at once. Source: VIRTIO 1.3, 5.1.6.5 Control
 * Virtqueue.
 *
 *     readable: class u8, command u8, data
 *     writable: ack u8, result (of commands that are not served here)
 *
 * How these parts are cut into descriptors is the driver's choice. Of fixed data only what is needed is looked at, of
 * addresses the length must be right, as QEMU has it.
 */

import type { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import {
  ETHERNET_ADDRESS_BYTES,
  VIRTIO_NET_CTRL_ANNOUNCE,
  VIRTIO_NET_CTRL_ANNOUNCE_ACK,
  VIRTIO_NET_CTRL_GUEST_OFFLOADS,
  VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET,
  VIRTIO_NET_CTRL_MAC,
  VIRTIO_NET_CTRL_MAC_ADDR_SET,
  VIRTIO_NET_CTRL_MAC_TABLE_SET,
  VIRTIO_NET_CTRL_MQ,
  VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
  VIRTIO_NET_CTRL_RX,
  VIRTIO_NET_CTRL_RX_ALLMULTI,
  VIRTIO_NET_CTRL_RX_ALLUNI,
  VIRTIO_NET_CTRL_RX_NOBCAST,
  VIRTIO_NET_CTRL_RX_NOMULTI,
  VIRTIO_NET_CTRL_RX_NOUNI,
  VIRTIO_NET_CTRL_RX_PROMISC,
  VIRTIO_NET_CTRL_VLAN,
  VIRTIO_NET_CTRL_VLAN_ADD,
  VIRTIO_NET_CTRL_VLAN_DEL,
  VIRTIO_NET_ERR,
  VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
  VIRTIO_NET_F_CTRL_MAC_ADDR,
  VIRTIO_NET_F_CTRL_RX,
  VIRTIO_NET_F_CTRL_RX_EXTRA,
  VIRTIO_NET_F_CTRL_VLAN,
  VIRTIO_NET_F_GUEST_ANNOUNCE,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_OK,
} from '../../protocol/virtio/net.ts';
import type { DescriptorChain } from '../../protocol/virtqueue/chain.ts';
import { NO_FAULT } from '../../protocol/virtqueue/faults.ts';
import type { Vring } from '../core/vring.ts';
import { MAX_TABLE_ADDRESSES, MAX_VLANS, type ReceiveMode } from './receive-filter.ts';

/** What a well-formed command of a negotiated feature says. */
export type ControlCommand =
  | { readonly kind: 'mode'; readonly mode: ReceiveMode; readonly on: boolean }
  /** Addresses of 6 bytes; undefined when they are too many. */
  | {
      readonly kind: 'tables';
      readonly unicast: readonly Uint8Array[] | undefined;
      readonly multicast: readonly Uint8Array[] | undefined;
    }
  | { readonly kind: 'address'; readonly mac: Uint8Array }
  | { readonly kind: 'vlan'; readonly id: number; readonly passes: boolean }
  /** From now on the driver uses the first `count` pairs of queues. */
  | { readonly kind: 'pairs'; readonly count: number }
  /** From now on the driver takes what these feature bits say. */
  | { readonly kind: 'offloads'; readonly features: bigint }
  | { readonly kind: 'announced' };

/** What commands change. */
export interface Controlled {
  hasNegotiated(feature: number): boolean;
  /** False when it cannot be done, and nothing was. */
  perform(command: ControlCommand): boolean;
}

/** Serves up to `budget` commands of the ring. Returns how many there were. */
export function processControlQueue(vring: Vring, budget: number, controlled: Controlled): number {
  let taken = 0;
  while (taken < budget && vring.pop()) {
    taken += 1;
    const { chain } = vring;
    if (chain.fault !== NO_FAULT) vring.noteChainFault(chain.fault);
    const done = chain.fault === NO_FAULT && chain.writableBytes > 0 && runCommand(vring, controlled);
    const answered = writeAck(chain, vring.host.memory, done ? VIRTIO_NET_OK : VIRTIO_NET_ERR);
    vring.push(chain.head, answered ? 1 : 0);
  }
  return taken;
}

/** The ack is the first byte of the writable part; after a fault only one that is all of it is certain. */
function writeAck(chain: DescriptorChain, memory: GuestMemory, ack: number): boolean {
  if (chain.writableBytes === 0) return false;
  const sound = chain.fault === NO_FAULT;
  if (!sound && (chain.writableBytes > 1 || chain.lastWritable < 0)) return false;
  const address = sound ? (chain.guest[chain.readableSegments] as number) : chain.lastWritable;
  if (!memory.locate(address, 1)) return false;
  memory.view.setUint8(memory.offset, ack);
  return true;
}

/** The readable part of a chain, each byte of which is read once at most. */
class CommandReader {
  /** Bytes that were not read yet. */
  left: number;
  readonly #chain: DescriptorChain;
  readonly #memory: GuestMemory;
  #segment = 0;
  #offset = 0;

  constructor(chain: DescriptorChain, memory: GuestMemory) {
    this.#chain = chain;
    this.#memory = memory;
    this.left = chain.readableBytes;
  }

  /** Goes over the next `bytes` bytes, at most `left`, telling of each piece. */
  #advance(bytes: number, each: (guest: number, done: number, length: number) => void): void {
    const { guest, length } = this.#chain;
    let done = 0;
    while (done < bytes) {
      const step = Math.min((length[this.#segment] as number) - this.#offset, bytes - done);
      each((guest[this.#segment] as number) + this.#offset, done, step);
      done += step;
      this.#offset += step;
      if (this.#offset < (length[this.#segment] as number)) continue;
      this.#segment += 1;
      this.#offset = 0;
    }
    this.left -= bytes;
  }

  /** The next `bytes` bytes, or undefined when there are fewer. */
  take(bytes: number): DataView | undefined {
    if (bytes > this.left) return undefined;
    const target = new Uint8Array(bytes);
    this.#advance(bytes, (guest, done, length) => this.#memory.copyOut(guest, target.subarray(done, done + length)));
    return new DataView(target.buffer);
  }

  skip(bytes: number): void {
    this.#advance(bytes, () => undefined);
  }
}

/** Does what the command says. False when it cannot be done, and nothing was. */
function runCommand(vring: Vring, controlled: Controlled): boolean {
  const reader = new CommandReader(vring.chain, vring.host.memory);
  const header = reader.take(2);
  if (header === undefined) return false;
  const command = header.getUint8(1);
  switch (header.getUint8(0)) {
    case VIRTIO_NET_CTRL_RX:
      return setMode(controlled, command, reader);
    case VIRTIO_NET_CTRL_MAC:
      if (command === VIRTIO_NET_CTRL_MAC_TABLE_SET) return setAddressTables(controlled, reader);
      return command === VIRTIO_NET_CTRL_MAC_ADDR_SET && setAddress(controlled, reader);
    case VIRTIO_NET_CTRL_VLAN:
      return setVlan(controlled, command, reader);
    case VIRTIO_NET_CTRL_ANNOUNCE:
      if (command !== VIRTIO_NET_CTRL_ANNOUNCE_ACK) return false;
      if (!controlled.hasNegotiated(VIRTIO_NET_F_GUEST_ANNOUNCE)) return false;
      return controlled.perform({ kind: 'announced' });
    case VIRTIO_NET_CTRL_MQ: {
      if (command !== VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET || !controlled.hasNegotiated(VIRTIO_NET_F_MQ)) return false;
      const count = reader.take(2)?.getUint16(0, true);
      return count !== undefined && controlled.perform({ kind: 'pairs', count });
    }
    case VIRTIO_NET_CTRL_GUEST_OFFLOADS: {
      if (command !== VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) return false;
      if (!controlled.hasNegotiated(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)) return false;
      const features = reader.take(8)?.getBigUint64(0, true);
      return features !== undefined && controlled.perform({ kind: 'offloads', features });
    }
    default:
      return false;
  }
}

const MODES: ReadonlyMap<number, readonly [mode: ReceiveMode, feature: number]> = new Map([
  [VIRTIO_NET_CTRL_RX_PROMISC, ['promiscuous', VIRTIO_NET_F_CTRL_RX]],
  [VIRTIO_NET_CTRL_RX_ALLMULTI, ['allMulticast', VIRTIO_NET_F_CTRL_RX]],
  [VIRTIO_NET_CTRL_RX_ALLUNI, ['allUnicast', VIRTIO_NET_F_CTRL_RX_EXTRA]],
  [VIRTIO_NET_CTRL_RX_NOMULTI, ['noMulticast', VIRTIO_NET_F_CTRL_RX_EXTRA]],
  [VIRTIO_NET_CTRL_RX_NOUNI, ['noUnicast', VIRTIO_NET_F_CTRL_RX_EXTRA]],
  [VIRTIO_NET_CTRL_RX_NOBCAST, ['noBroadcast', VIRTIO_NET_F_CTRL_RX_EXTRA]],
]);

function setMode(controlled: Controlled, command: number, reader: CommandReader): boolean {
  const [mode, feature] = MODES.get(command) ?? [];
  if (mode === undefined || feature === undefined || !controlled.hasNegotiated(feature)) return false;
  const on = reader.take(1)?.getUint8(0);
  if (on === undefined || on > 1) return false;
  return controlled.perform({ kind: 'mode', mode, on: on === 1 });
}

/** A table: entries le32, then 6 bytes each. Undefined when it is cut short; 'many' when it is too long to be kept. */
function takeAddresses(reader: CommandReader): Uint8Array[] | 'many' | undefined {
  const count = reader.take(4)?.getUint32(0, true);
  if (count === undefined) return undefined;
  const bytes = count * ETHERNET_ADDRESS_BYTES;
  if (bytes > reader.left) return undefined;
  if (count > MAX_TABLE_ADDRESSES) {
    reader.skip(bytes);
    return 'many';
  }
  const { buffer } = reader.take(bytes) as DataView;
  return Array.from({ length: count }, (_, i) => new Uint8Array(buffer, i * ETHERNET_ADDRESS_BYTES, 6));
}

function setAddressTables(controlled: Controlled, reader: CommandReader): boolean {
  if (!controlled.hasNegotiated(VIRTIO_NET_F_CTRL_RX)) return false;
  const unicast = takeAddresses(reader);
  const multicast = takeAddresses(reader);
  if (unicast === undefined || multicast === undefined || reader.left > 0) return false;
  return controlled.perform({
    kind: 'tables',
    unicast: unicast === 'many' ? undefined : unicast,
    multicast: multicast === 'many' ? undefined : multicast,
  });
}

function setAddress(controlled: Controlled, reader: CommandReader): boolean {
  if (!controlled.hasNegotiated(VIRTIO_NET_F_CTRL_MAC_ADDR) || reader.left !== ETHERNET_ADDRESS_BYTES) return false;
  const { buffer } = reader.take(ETHERNET_ADDRESS_BYTES) as DataView;
  return controlled.perform({ kind: 'address', mac: new Uint8Array(buffer) });
}

function setVlan(controlled: Controlled, command: number, reader: CommandReader): boolean {
  if (command !== VIRTIO_NET_CTRL_VLAN_ADD && command !== VIRTIO_NET_CTRL_VLAN_DEL) return false;
  if (!controlled.hasNegotiated(VIRTIO_NET_F_CTRL_VLAN)) return false;
  const id = reader.take(2)?.getUint16(0, true);
  if (id === undefined || id >= MAX_VLANS) return false;
  return controlled.perform({ kind: 'vlan', id, passes: command === VIRTIO_NET_CTRL_VLAN_ADD });
}
