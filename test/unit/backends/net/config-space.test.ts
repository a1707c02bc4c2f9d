import { describe, expect, it } from 'vitest';
import {
  encodeNetConfig,
  hasSegmentation,
  type NetProfile,
  netFeatures,
  tapOffloads,
} from '../../../../backends/net/config-space.ts';
import { bits } from '../../../support/frontend/wire.ts';
import { dump, hex } from '../../../support/hex.ts';

const PROFILE: NetProfile = { mac: undefined, pairs: 1, mtu: 1500, speed: 0, controlQueue: false, uso: false };
const BASE = [0, 1, 3, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 63];
const CONTROL = [2, 17, 18, 19, 20, 21, 23];

describe('the feature bits', () => {
  it.each<[string, Partial<NetProfile>, number[]]>([
    ['nothing', {}, BASE],
    ['a MAC', { mac: hex('525400123456') }, [...BASE, 5]],
    ['UDP segmentation of the kernel', { uso: true }, [...BASE, 54, 55, 56]],
    ['several pairs', { pairs: 2 }, [...BASE, 21, 22]],
    ['a control queue', { controlQueue: true }, [...BASE, ...CONTROL]],
    ['a control queue and several pairs', { controlQueue: true, pairs: 127 }, [...BASE, ...CONTROL, 22]],
  ])('with %s', (_, more, features) => {
    expect(netFeatures({ ...PROFILE, ...more }).toString(2)).toBe(bits(...features).toString(2));
  });
});

describe('the configuration space', () => {
  it.each<[string, Partial<NetProfile>, number, string]>([
    ['of a plain device', {}, 1, '000000000000 0100 0100 dc05 ffffffff ff'],
    ['without a link', {}, 0, '000000000000 0000 0100 dc05 ffffffff ff'],
    ['that announces', {}, 3, '000000000000 0300 0100 dc05 ffffffff ff'],
    [
      'with everything',
      { mac: hex('525400123456'), pairs: 127, mtu: 65535, speed: 100_000 },
      1,
      '525400123456 0100 7f00 ffff a0860100 01',
    ],
  ])('%s', (_, more, status, bytes) => {
    expect(dump(encodeNetConfig({ ...PROFILE, ...more }, status))).toBe(dump(hex(bytes)));
  });
});

describe('the offloads that the TAP may leave to the guest', () => {
  // TUN_F_CSUM 1, TSO4 2, TSO6 4, TSO_ECN 8, UFO 16, USO4 32, USO6 64 (linux/if_tun.h).
  it.each<[string, number[], number]>([
    ['none', [], 0],
    ['the checksum', [1], 1],
    ['segmentation without the checksum: none', [7, 8, 9, 10, 54, 55], 0],
    ['TSO4', [1, 7], 1 | 2],
    ['TSO6 and ECN', [1, 8, 9], 1 | 4 | 8],
    ['UFO', [1, 10], 1 | 16],
    ['one half of USO: none', [1, 54], 1],
    ['the other half of USO: none', [1, 55], 1],
    ['USO', [1, 54, 55], 1 | 32 | 64],
    ['what the device takes is no matter', [0, 11, 12, 13, 14, 56], 0],
  ])('%s', (_, accepted, offloads) => {
    expect(tapOffloads(bits(...accepted))).toBe(offloads);
    expect(hasSegmentation(offloads)).toBe((offloads & 0x76) !== 0);
  });
});
