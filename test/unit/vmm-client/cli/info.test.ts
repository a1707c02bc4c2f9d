import { describe, expect, it } from 'vitest';
import { featureMask } from '../../../../protocol/virtio/reserved-features.ts';
import { type BackendInfo, infoToJson, renderInfo } from '../../../../vmm-client/cli/info.ts';

/** MTU, MAC, STATUS, MQ, VERSION_1, SPEED_DUPLEX. */
const NET: BackendInfo = {
  socket: 'net.sock',
  device: 'net',
  deviceIsGuess: true,
  features: featureMask(3, 5, 16, 22, 32, 63),
  protocolFeatures: featureMask(0, 9),
  queues: 8,
  memorySlots: 509,
  config: Buffer.from('525400123456' + '0100' + '0400' + '2823' + '10270000' + '01' + '000000', 'hex'),
};

describe('what info says of a network device', () => {
  it('has the fields of its configuration space', () => {
    const text = renderInfo(NET);
    expect(text).toContain('MTU MAC STATUS MQ VERSION_1 SPEED_DUPLEX');
    expect(text.slice(text.indexOf('Configuration'))).toBe(
      [
        'Configuration      20 bytes',
        '  mac              52:54:00:12:34:56',
        '  status           link up',
        '  queue pairs      up to 4',
        '  mtu              9000 bytes',
        '  speed            10,000 Mbit/s',
        '  duplex           full',
      ].join('\n'),
    );
  });

  it('has the same for programs', () => {
    expect(infoToJson(NET).config).toMatchObject({
      net: { mac: '52:54:00:12:34:56', linkUp: true, maxPairs: 4, mtu: 9000, speedMbps: 10_000, fullDuplex: true },
    });
  });

  it('has no field whose feature is not offered', () => {
    expect(infoToJson({ ...NET, features: featureMask(5, 32) }).config).toEqual({
      bytes: Buffer.from(NET.config).toString('hex'),
      net: { mac: '52:54:00:12:34:56' },
    });
  });

  it('is enough without a configuration space', () => {
    expect(renderInfo({ ...NET, config: new Uint8Array() })).toMatch(/Configuration +none$/);
  });
});
