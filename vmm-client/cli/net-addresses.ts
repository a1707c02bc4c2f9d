/** MAC and IPv4 addresses as people write them. Pure. */

import { ETHERNET_ADDRESS_BYTES } from '../../protocol/virtio/net.ts';
import { UsageError } from './quantity.ts';

/** An address and the network that it is in. */
export interface Ipv4Prefix {
  readonly ip: number;
  /** Bits of the network, 0 to 32. */
  readonly length: number;
}

/** Six bytes of one station, from `52:54:00:12:34:56`. @throws UsageError */
export function parseMac(text: string): Uint8Array {
  const parts = text.split(/[:-]/);
  const bytes = Uint8Array.from(parts, (part) => Number.parseInt(part, 16));
  if (parts.length !== ETHERNET_ADDRESS_BYTES || !parts.every((part) => /^[0-9a-f]{1,2}$/i.test(part))) {
    throw new UsageError(`'${text}' is not a MAC address such as 52:54:00:12:34:56`);
  }
  if ((bytes[0]! & 1) !== 0) throw new UsageError(`'${text}' is the MAC address of a group, not of one station`);
  return bytes;
}

export function formatMac(mac: Uint8Array): string {
  return Array.from(mac, (byte) => byte.toString(16).padStart(2, '0')).join(':');
}

/** A number of 32 bits from `192.0.2.1`. @throws UsageError */
export function parseIpv4(text: string): number {
  const parts = text.split('.');
  if (parts.length !== 4 || !parts.every((part) => /^(0|[1-9]\d{0,2})$/.test(part) && Number(part) <= 255)) {
    throw new UsageError(`'${text}' is not an IPv4 address such as 192.0.2.1`);
  }
  return parts.reduce((ip, part) => ip * 256 + Number(part), 0);
}

/** An address with its network, from `192.0.2.2/24`. @throws UsageError */
export function parseIpv4Prefix(text: string): Ipv4Prefix {
  const [address = '', length = '', ...surplus] = text.split('/');
  if (surplus.length > 0 || !/^\d{1,2}$/.test(length) || Number(length) > 32) {
    throw new UsageError(`'${text}' is not an IPv4 address with the length of its prefix such as 192.0.2.2/24`);
  }
  return { ip: parseIpv4(address), length: Number(length) };
}

export function formatIpv4(ip: number): string {
  return [24, 16, 8, 0].map((shift) => (ip >>> shift) & 0xff).join('.');
}

/** Whether `ip` is in the network of `prefix`. */
export function isInNetwork(ip: number, prefix: Ipv4Prefix): boolean {
  const shift = 2 ** (32 - prefix.length);
  return Math.floor(ip / shift) === Math.floor(prefix.ip / shift);
}
