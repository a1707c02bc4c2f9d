import { describe, expect, it } from 'vitest';
import {
  formatIpv4,
  formatMac,
  isInNetwork,
  parseIpv4,
  parseIpv4Prefix,
  parseMac,
} from '../../../../vmm-client/cli/net-addresses.ts';

describe('MAC addresses', () => {
  it.each(['52:54:00:12:34:56', '52-54-0-12-34-56'])('are read from %s', (text) => {
    expect(formatMac(parseMac(text))).toBe('52:54:00:12:34:56');
  });

  it.each([
    ['52:54:00:12:34', 'is not a MAC address'],
    ['52:54:00:12:34:567', 'is not a MAC address'],
    ['52:54:00:12:34:5g', 'is not a MAC address'],
    ['', 'is not a MAC address'],
    ['ff:ff:ff:ff:ff:ff', 'is the MAC address of a group'],
  ])('are not %j', (text, sentence) => {
    expect(() => parseMac(text)).toThrow(sentence);
  });
});

describe('IPv4 addresses', () => {
  it.each([
    ['0.0.0.0', 0],
    ['192.0.2.1', 0xc0000201],
    ['255.255.255.255', 0xffffffff],
  ])('%s is a number, and back', (text, ip) => {
    expect([parseIpv4(text), formatIpv4(ip)]).toEqual([ip, text]);
  });

  it.each(['192.0.2', '192.0.2.256', '192.0.2.01', '192.0.2.1.1', '192.0.2.-1', 'host', ''])('are not %j', (text) => {
    expect(() => parseIpv4(text)).toThrow('is not an IPv4 address');
  });

  it.each(['192.0.2.2', '192.0.2.2/33', '192.0.2.2/', '192.0.2.2/24/1', '/24'])('have no prefix in %j', (text) => {
    expect(() => parseIpv4Prefix(text)).toThrow('is not an IPv4 address');
  });

  it.each([
    ['192.0.2.2/24', '192.0.2.255', true],
    ['192.0.2.2/24', '192.0.3.2', false],
    ['192.0.2.2/0', '10.0.0.1', true],
    ['192.0.2.2/32', '192.0.2.3', false],
    ['240.0.0.1/4', '255.0.0.1', true],
  ])('of the network of %s are found: %s', (prefix, ip, isIn) => {
    expect(isInNetwork(parseIpv4(ip), parseIpv4Prefix(prefix))).toBe(isIn);
  });
});
