/**
 * What a driver chose and will not say again on another host, as bytes for a migration. Little-endian:
 *
 *     magic u32, version u16, flags u16
 *     features u64         those of the device that the driver accepted
 *     offloads u64         GUEST_ feature bits of what it takes now
 *     pairs u16            that it uses; 0 when it was not asked on our control queue
 *     modes u8             a bit each of RECEIVE_MODES
 *     unicast u8, multicast u8    addresses in the tables
 *     reserved u8
 *     address u8[6]        its own; 0 when it is not known
 *     u8[6] for each address of the tables, unicast first
 *     u32[128]             VLANs that pass, when they are filtered: bit id % 32 of word id / 32
 *
 * Whoever sends it is not trusted: what is not exactly of this form is refused.
 */

import { ETHERNET_ADDRESS_BYTES } from '../../protocol/virtio/net.ts';
import { GUEST_OFFLOADS } from './config-space.ts';
import { MAX_TABLE_ADDRESSES, RECEIVE_MODES, ReceiveFilter } from './receive-filter.ts';

/** "RNET". */
const MAGIC = 0x5445_4e52;
const VERSION = 1;

const AT = {
  magic: 0,
  version: 4,
  flags: 6,
  features: 8,
  offloads: 16,
  pairs: 24,
  modes: 26,
  unicast: 27,
  multicast: 28,
  reserved: 29,
  address: 30,
} as const;
const FIXED_BYTES = 36;

// Flags.
const ANNOUNCES = 1;
const HAS_ADDRESS = 2;
/** The table is too long to be kept: any address of its kind passes. */
const MANY_UNICAST = 4;
const MANY_MULTICAST = 8;
const FILTERS_VLANS = 16;
const ALL_FLAGS = 31;

export interface DriverChoices {
  /** Feature bits of the device that the driver accepted. */
  readonly features: bigint;
  /** GUEST_ feature bits of what it takes. */
  readonly offloads: bigint;
  /** Pairs that it uses; 0 when it was not asked on our control queue. */
  readonly pairs: number;
  readonly filter: ReceiveFilter;
  /** It is to tell the network where it is, and did not yet. */
  readonly announces: boolean;
}

function flag(condition: boolean, bit: number): number {
  return condition ? bit : 0;
}

export function encodeDriverChoices({ features, offloads, pairs, filter, announces }: DriverChoices): Uint8Array {
  const { mac, unicast, multicast, vlans } = filter;
  const addresses = [...(unicast ?? []), ...(multicast ?? [])];
  const vlansAt = FIXED_BYTES + ETHERNET_ADDRESS_BYTES * addresses.length;
  const bytes = new Uint8Array(vlansAt + (filter.filtersVlans ? vlans.byteLength : 0));
  const data = new DataView(bytes.buffer);
  data.setUint32(AT.magic, MAGIC, true);
  data.setUint16(AT.version, VERSION, true);
  const flags =
    flag(announces, ANNOUNCES) |
    flag(mac !== undefined, HAS_ADDRESS) |
    flag(unicast === undefined, MANY_UNICAST) |
    flag(multicast === undefined, MANY_MULTICAST) |
    flag(filter.filtersVlans, FILTERS_VLANS);
  data.setUint16(AT.flags, flags, true);
  data.setBigUint64(AT.features, features, true);
  data.setBigUint64(AT.offloads, offloads, true);
  data.setUint16(AT.pairs, pairs, true);
  bytes[AT.modes] = RECEIVE_MODES.reduce((modes, mode, bit) => modes | flag(filter[mode], 1 << bit), 0);
  bytes[AT.unicast] = unicast?.length ?? 0;
  bytes[AT.multicast] = multicast?.length ?? 0;
  if (mac !== undefined) bytes.set(mac, AT.address);
  addresses.forEach((address, i) => {
    bytes.set(address, FIXED_BYTES + ETHERNET_ADDRESS_BYTES * i);
  });
  if (!filter.filtersVlans) return bytes;
  vlans.forEach((word, i) => {
    data.setUint32(vlansAt + 4 * i, word, true);
  });
  return bytes;
}

/** Returns a sentence when these are no choices. */
export function decodeDriverChoices(bytes: Uint8Array): DriverChoices | string {
  if (bytes.length < FIXED_BYTES) return `${bytes.length} bytes, at least ${FIXED_BYTES} are needed`;
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (data.getUint32(AT.magic, true) !== MAGIC) return 'this is no state of a network device';
  const version = data.getUint16(AT.version, true);
  if (version !== VERSION) return `version ${version}, ${VERSION} is known`;
  const flags = data.getUint16(AT.flags, true);
  const modes = data.getUint8(AT.modes);
  const reserved = data.getUint8(AT.reserved);
  if ((flags & ~ALL_FLAGS) !== 0 || modes >= 1 << RECEIVE_MODES.length || reserved !== 0) return 'unknown bits are set';
  const features = data.getBigUint64(AT.features, true);
  const offloads = data.getBigUint64(AT.offloads, true);
  if ((offloads & ~(features & GUEST_OFFLOADS)) !== 0n) return 'offloads that the driver did not negotiate';
  const filter = decodeFilter(bytes, flags, modes);
  if (typeof filter === 'string') return filter;
  return { features, offloads, pairs: data.getUint16(AT.pairs, true), filter, announces: (flags & ANNOUNCES) !== 0 };
}

function decodeFilter(bytes: Uint8Array, flags: number, modes: number): ReceiveFilter | string {
  const unicast = bytes[AT.unicast] as number;
  const multicast = bytes[AT.multicast] as number;
  if (unicast > MAX_TABLE_ADDRESSES || multicast > MAX_TABLE_ADDRESSES) {
    return `tables of ${unicast} and ${multicast} addresses, at most ${MAX_TABLE_ADDRESSES} are possible`;
  }
  const hasMany = flag(unicast > 0, MANY_UNICAST) | flag(multicast > 0, MANY_MULTICAST);
  if ((flags & hasMany) !== 0) return 'a table that is too long to be kept was kept';
  const address = (at: number): Uint8Array => bytes.slice(at, at + ETHERNET_ADDRESS_BYTES);
  const mac = (flags & HAS_ADDRESS) === 0 ? undefined : address(AT.address);
  if (mac === undefined && address(AT.address).some((byte) => byte !== 0)) return 'an address that is not known';
  const filtersVlans = (flags & FILTERS_VLANS) !== 0;
  const filter = new ReceiveFilter(mac, filtersVlans);
  const vlansAt = FIXED_BYTES + ETHERNET_ADDRESS_BYTES * (unicast + multicast);
  const length = vlansAt + (filtersVlans ? filter.vlans.byteLength : 0);
  if (bytes.length !== length) return `${bytes.length} bytes, ${length} are expected`;
  RECEIVE_MODES.forEach((mode, bit) => {
    filter[mode] = (modes & (1 << bit)) !== 0;
  });
  const table = Array.from({ length: unicast + multicast }, (_, i) =>
    address(FIXED_BYTES + ETHERNET_ADDRESS_BYTES * i),
  );
  filter.unicast = (flags & MANY_UNICAST) === 0 ? table.slice(0, unicast) : undefined;
  filter.multicast = (flags & MANY_MULTICAST) === 0 ? table.slice(unicast) : undefined;
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (filtersVlans)
    filter.vlans.forEach((_, i) => {
      filter.vlans[i] = data.getUint32(vlansAt + 4 * i, true);
    });
  return filter;
}
