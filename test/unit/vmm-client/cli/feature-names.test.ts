import { describe, expect, it } from 'vitest';
import { featureMask } from '../../../../protocol/virtio/reserved-features.ts';
import { featureNames, guessDevice } from '../../../../vmm-client/cli/feature-names.ts';

describe('featureNames', () => {
  it('names device and ring bits, and numbers what has no name', () => {
    expect(featureNames(featureMask(6, 9, 18, 29, 32, 45), 'blk')).toEqual([
      'BLK_SIZE',
      'FLUSH',
      'bit 18',
      'EVENT_IDX',
      'VERSION_1',
      'bit 45',
    ]);
  });
});

it('names bits of network devices that no table of the standard has', () => {
  expect(featureNames(featureMask(0, 6, 15, 63), 'net')).toEqual(['CSUM', 'GSO', 'MRG_RXBUF', 'SPEED_DUPLEX']);
});

describe('guessDevice', () => {
  it.each([
    ['qemu-storage-daemon', 0x1_7500_7e46n, 60, 'blk'],
    ['a block device that answers 256 bytes', 0x1_7000_7e46n, 256, 'blk'],
    ['a block device with lifetime and zones', featureMask(2, 6, 9, 15, 16, 17, 32), 96, 'blk'],
    ['Open vSwitch with DPDK, no configuration', featureMask(0, 1, 7, 8, 11, 12, 15, 17, 18, 21, 22, 32), 0, 'net'],
    ['a network device with a MAC', featureMask(0, 1, 5, 11, 16, 32), 12, 'net'],
    ['DPDK', 0xd_7c66_e7cbn, 0, 'net'],
    ['vhost-user-net without options', 0x81c0_0001_7001_ff8bn, 256, 'net'],
    ['a network device with offloads for the guest alone', featureMask(0, 1, 7, 15, 16, 32), 256, 'net'],
    ['a network device that has only what block devices have too', featureMask(5, 11, 15, 16, 32), 256, 'net'],
    ['a network device with bits of late', featureMask(1, 54, 55, 32), 256, 'net'],
    ['passt', featureMask(15, 30, 32), 0, 'net'],
    ['a socket device', featureMask(1, 28, 29, 30, 32), 8, 'vsock'],
    ['a socket device that reads zeroes beyond its fields', featureMask(0, 1, 2, 28, 29, 30, 32), 256, 'vsock'],
    ['a file system', featureMask(28, 29, 30, 32), 40, 'unknown'],
  ])('of %s', (_name, features, configLength, device) => {
    expect(guessDevice(features, configLength)).toBe(device);
  });
});
