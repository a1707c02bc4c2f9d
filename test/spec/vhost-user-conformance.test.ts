/** What must never be offered, whatever a daemon can do. Source: vhost-user, Protocol features; VIRTIO 1.3, 2.2, 6. */

import { describe, expect, it } from 'vitest';
import { blkFeatures } from '../../backends/blk/config-space.ts';
import type { Device } from '../../backends/core/device.ts';
import { offeredFeatures, offeredProtocolFeatures } from '../../backends/core/offered.ts';
import { netFeatures } from '../../backends/net/config-space.ts';
import { isTypeNegotiated, VSOCK_FEATURES } from '../../backends/vsock/config-space.ts';
import { wantedBlkFeatures } from '../../vmm-client/driver/blk-setup.ts';
import { decodeNetConfig } from '../../vmm-client/driver/net-config.ts';
import { wantedFeatures } from '../../vmm-client/driver/net-setup.ts';
import { wantedVsockFeatures } from '../../vmm-client/driver/vsock-setup.ts';

const bitsOf = (mask: bigint): number[] => [...Array(64).keys()].filter((bit) => ((mask >> BigInt(bit)) & 1n) === 1n);

const bits = (...numbers: number[]): bigint => numbers.reduce((mask, bit) => mask | (1n << BigInt(bit)), 0n);

/** All that a device may offer for itself. Source: VIRTIO 1.3, 2.2. */
const isDeviceBit = (bit: number): boolean => bit <= 23 || bit >= 50;

const GEOMETRY = { numQueues: 4, blockSize: 4096, physicalBlock: 4096 };
const NETWORK = { mac: new Uint8Array(6), pairs: 4, mtu: 1500, speed: 1000, controlQueue: true, uso: true };

const DEVICES: [string, bigint][] = [
  ['block device', blkFeatures({ ...GEOMETRY, readOnly: false })],
  ['read-only block device', blkFeatures({ ...GEOMETRY, readOnly: true })],
  ['network device', netFeatures(NETWORK)],
  ['socket device', VSOCK_FEATURES],
];

describe.each(DEVICES)('a %s', (_, features) => {
  const device = { features, protocolFeatures: 0n } as Device;

  it('has no bits of ring and transport of its own', () => {
    expect(bitsOf(features).filter((bit) => !isDeviceBit(bit))).toEqual([]);
  });

  it.each([
    ['without an IOMMU', false, [26, 28, 29, 30, 32, 34, 35]],
    ['with an IOMMU', true, [26, 28, 29, 30, 32, 33, 34, 35]],
  ])('offers these bits of ring and transport %s', (_name, iommu, expected) => {
    expect(bitsOf(offeredFeatures(device, iommu)).filter((bit) => !isDeviceBit(bit))).toEqual(expected);
  });

  it('offers no protocol feature whose number means something else to another peer', () => {
    expect(bitsOf(offeredProtocolFeatures(device, true, true)).filter((bit) => bit >= 20)).toEqual([]);
  });
});

const ANY_RING = { packed: true, inOrder: true };
/** CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6: taken where somebody asks for them. */
const OFFLOADS = [0, 1, 7, 8, 11, 12];
const PAIRS = decodeNetConfig(new Uint8Array(17), 0n);

describe.each([
  ['block device', wantedBlkFeatures(ANY_RING), [1, 2, 5, 6, 9, 10, 11, 12, 13, 14, 28, 29, 30, 32, 34, 35]],
  [
    'network device',
    wantedFeatures(PAIRS, 5, { ...ANY_RING, pairs: 2, controlQueue: true, offloads: bits(...OFFLOADS) }),
    [0, 1, 3, 5, 7, 8, 11, 12, 15, 16, 17, 22, 28, 29, 30, 32, 34, 35, 63],
  ],
  ['socket device', wantedVsockFeatures(ANY_RING), [0, 1, 2, 29, 30, 32, 34, 35]],
])('a driver of a %s', (_, wanted, expected) => {
  it('takes these bits and no others', () => {
    expect(bitsOf(wanted)).toEqual(expected);
  });
});

describe('streams of the socket device', () => {
  const STREAM = 1;

  it('are implied unless the driver says otherwise', () => {
    expect(isTypeNegotiated(bits(), STREAM)).toBe(true);
    expect(isTypeNegotiated(bits(1), STREAM)).toBe(true);
    expect(isTypeNegotiated(bits(2), STREAM)).toBe(false);
    expect(isTypeNegotiated(bits(1, 2), STREAM)).toBe(false);
    expect(isTypeNegotiated(bits(0, 2), STREAM)).toBe(true);
  });
});
