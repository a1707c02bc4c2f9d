import { InvalidArgumentError } from 'commander';
import { describe, expect, it } from 'vitest';
import { parseIpv4, parseIpv6, parseMac } from '../../../../backends/net/addresses.ts';
import { dump } from '../../../support/hex.ts';

describe('an Ethernet address', () => {
  it.each([
    ['52:54:00:12:34:56', '525400123456'],
    ['02:aB:Cd:ef:FF:00', '02abcdefff00'],
    ['00:00:00:00:00:01', '000000000001'],
  ])('%s is %s', (text, bytes) => {
    expect(dump(parseMac(text))).toBe(bytes);
  });

  it.each([
    '',
    '52:54:00:12:34',
    '52:54:00:12:34:56:78',
    '52-54-00-12-34-56',
    '525400123456',
    '5254.0012.3456',
    '52:54:00:12:34:5',
    '52:54:00:12:34:5g',
    ' 52:54:00:12:34:56',
    '52:54:00:12:34:56\n',
    '00:00:00:00:00:00',
    'ff:ff:ff:ff:ff:ff',
    '01:00:5e:00:00:01',
  ])('%j is refused', (text) => {
    expect(() => parseMac(text)).toThrow(InvalidArgumentError);
  });
});

describe('an IPv4 address', () => {
  it.each([
    ['192.0.2.1/24', 'c0000201', 24],
    ['10.255.0.1/8', '0aff0001', 8],
    ['198.51.100.7/32', 'c6336407', 32],
    ['0.0.0.0/0', '00000000', 0],
  ])('%s is %s of %i bits', (text, bytes, prefix) => {
    const parsed = parseIpv4(text);

    expect(dump(parsed.bytes)).toBe(bytes);
    expect(parsed.prefix).toBe(prefix);
  });

  it.each([
    '',
    '/24',
    '192.0.2.1',
    '192.0.2.1/',
    '192.0.2.1/33',
    '192.0.2.1/-1',
    '192.0.2.1/24/8',
    '192.0.2.1/255.255.255.0',
    '192.0.2/24',
    '192.0.2.256/24',
    '192.0.2.01/24',
    '0x7f.1/8',
    ' 192.0.2.1/24',
    '2001:db8::1/64',
    'host/24',
  ])('%j is refused', (text) => {
    expect(() => parseIpv4(text)).toThrow(InvalidArgumentError);
  });
});

describe('an IPv6 address', () => {
  it.each([
    ['2001:db8::1/64', '20010db8000000000000000000000001', 64],
    ['::/0', '00000000000000000000000000000000', 0],
    ['::1/128', '00000000000000000000000000000001', 128],
    ['fe80::/10', 'fe800000000000000000000000000000', 10],
    ['1:2:3:4:5:6:7:8/48', '00010002000300040005000600070008', 48],
    ['1:2:3:4:5:6:7::/48', '00010002000300040005000600070000', 48],
    ['::2:3:4:5:6:7:8/48', '00000002000300040005000600070008', 48],
    ['2001:DB8:0:0:1::9/64', '20010db8000000000001000000000009', 64],
    ['::ffff:192.0.2.1/96', '00000000000000000000ffffc0000201', 96],
    ['64:ff9b::198.51.100.7/96', '0064ff9b0000000000000000c6336407', 96],
  ])('%s is %s of %i bits', (text, bytes, prefix) => {
    const parsed = parseIpv6(text);

    expect(dump(parsed.bytes)).toBe(bytes);
    expect(parsed.prefix).toBe(prefix);
  });

  it.each([
    '',
    '::1',
    '::1/129',
    '::1/x',
    ':::1/64',
    '1::2::3/64',
    '1:2:3:4:5:6:7:8:9/64',
    '12345::/64',
    'fe80::1%eth0/64',
    '[::1]/64',
    '192.0.2.1/24',
    '::ffff:192.0.2.256/96',
  ])('%j is refused', (text) => {
    expect(() => parseIpv6(text)).toThrow(InvalidArgumentError);
  });
});
