import { describe, expect, it } from 'vitest';
import { featureMask } from '../../../../protocol/virtio/reserved-features.ts';
import { decodeNetConfig, netConfigBytes } from '../../../../vmm-client/driver/net-config.ts';

const CONFIG = Buffer.from('525400123456' + '0100' + '0400' + '2823' + '10270000' + '01', 'hex');
/** MTU, MAC, STATUS, MQ, SPEED_DUPLEX. */
const ALL = featureMask(3, 5, 16, 22, 63);

describe('decodeNetConfig', () => {
  it('decodes all fields', () => {
    expect(decodeNetConfig(CONFIG, ALL)).toEqual({
      mac: Uint8Array.of(0x52, 0x54, 0, 0x12, 0x34, 0x56),
      linkUp: true,
      maxPairs: 4,
      mtu: 9000,
      speedMbps: 10_000,
      fullDuplex: true,
    });
  });

  it('reads no field whose feature is not offered', () => {
    expect(decodeNetConfig(new Uint8Array(), 0n)).toEqual({
      mac: undefined,
      linkUp: undefined,
      maxPairs: undefined,
      mtu: undefined,
      speedMbps: undefined,
      fullDuplex: undefined,
    });
  });

  it.each([
    [featureMask(5), 6],
    [featureMask(16), 8],
    [featureMask(5, 22), 10],
    [featureMask(3), 12],
    [featureMask(63), 17],
    [featureMask(0, 32), 0],
  ])('features %d need %d bytes', (features, bytes) => {
    expect(netConfigBytes(features)).toBe(bytes);
    if (bytes === 0) return;
    expect(() => decodeNetConfig(CONFIG.subarray(0, bytes - 1), features)).toThrow(
      `the configuration space has ${bytes - 1} bytes, the features offered need ${bytes}`,
    );
  });

  it('knows a link that is down, and speeds that are not known', () => {
    const config = Buffer.from(CONFIG);
    config.writeUInt16LE(2, 6);
    config.writeUInt32LE(0xffff_ffff, 12);
    config[16] = 0xff;
    expect(decodeNetConfig(config, ALL)).toMatchObject({ linkUp: false, speedMbps: undefined, fullDuplex: undefined });
  });

  it.each([
    [8, 0, 'max_virtqueue_pairs is 0'],
    [8, 0x8001, 'max_virtqueue_pairs is 32769'],
    [10, 67, 'an MTU of 67 bytes is below the least'],
  ])('refuses at %d a value of %d', (at, value, sentence) => {
    const config = Buffer.from(CONFIG);
    config.writeUInt16LE(value, at);
    expect(() => decodeNetConfig(config, ALL)).toThrow(sentence);
  });
});
