/** Addresses as people write them on the command line. */

import { isIPv4, isIPv6 } from 'node:net';
import { InvalidArgumentError } from 'commander';

/** An address of the host's side: 4 or 16 bytes, and the bits that name the network. */
export interface InterfaceAddress {
  readonly bytes: Uint8Array;
  readonly prefix: number;
}

/** Six hexadecimal bytes with colons, for commander. A group address is no interface's. */
export function parseMac(text: string): Uint8Array {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text)) {
    throw new InvalidArgumentError('six hexadecimal bytes with colons are expected, like 52:54:00:12:34:56.');
  }
  const mac = Uint8Array.from(text.split(':'), (byte) => Number.parseInt(byte, 16));
  if (((mac[0] as number) & 1) !== 0) throw new InvalidArgumentError('this is a group address.');
  if (mac.every((byte) => byte === 0)) throw new InvalidArgumentError('this is no address.');
  return mac;
}

function splitPrefix(text: string, longest: number, example: string): { address: string; prefix: number } {
  const match = /^([^/]+)\/(\d{1,3})$/.exec(text);
  const prefix = Number(match?.[2]);
  if (match === null || prefix > longest) {
    throw new InvalidArgumentError(`an address and a prefix length up to ${longest} are expected, like ${example}.`);
  }
  return { address: match[1] as string, prefix };
}

/** ADDRESS/PREFIX of IPv4, for commander. */
export function parseIpv4(text: string): InterfaceAddress {
  const { address, prefix } = splitPrefix(text, 32, '192.0.2.1/24');
  if (!isIPv4(address)) throw new InvalidArgumentError(`${address} is no IPv4 address.`);
  return { bytes: Uint8Array.from(address.split('.'), Number), prefix };
}

/** ADDRESS/PREFIX of IPv6, for commander. */
export function parseIpv6(text: string): InterfaceAddress {
  const { address, prefix } = splitPrefix(text, 128, '2001:db8::1/64');
  if (!isIPv6(address) || address.includes('%')) throw new InvalidArgumentError(`${address} is no IPv6 address.`);
  // The URL parser writes every IPv6 address in hexadecimal groups, also one that ends like an IPv4 address.
  const host = new URL(`http://[${address}]/`).hostname.slice(1, -1);
  const [head = '', tail] = host.split('::');
  const groups = (part: string): number[] => (part === '' ? [] : part.split(':').map((g) => Number.parseInt(g, 16)));
  const front = groups(head);
  const back = groups(tail ?? '');
  const all = [...front, ...Array<number>(8 - front.length - back.length).fill(0), ...back];
  return { bytes: Uint8Array.from(all.flatMap((group) => [group >> 8, group & 0xff])), prefix };
}
