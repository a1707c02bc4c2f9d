import { describe, expect, it } from 'vitest';
import { featureMask } from '../../../../protocol/virtio/reserved-features.ts';
import { decodeBlkConfig } from '../../../../vmm-client/driver/blk-config.ts';
import { planQueues, wantedBlkFeatures } from '../../../../vmm-client/driver/blk-setup.ts';
import { decodeNetConfig } from '../../../../vmm-client/driver/net-config.ts';
import { planNet, wantedFeatures } from '../../../../vmm-client/driver/net-setup.ts';
import { planVsock, wantedVsockFeatures } from '../../../../vmm-client/driver/vsock-setup.ts';

const VERSION_1 = featureMask(32);
const RINGS = featureMask(34, 35);
const BLK_CONFIG = decodeBlkConfig(new Uint8Array(96), 0n);
const NET_CONFIG = decodeNetConfig(new Uint8Array(), 0n);

interface Wishes {
  readonly packed?: boolean;
  readonly inOrder?: boolean;
  readonly queueSize?: number;
}

describe.each([
  {
    device: 'blk',
    wanted: (wishes: Wishes) => wantedBlkFeatures(wishes),
    plan: (features: bigint, wishes: Wishes) => planQueues(BLK_CONFIG, features, undefined, wishes).queues,
  },
  {
    device: 'net',
    wanted: (wishes: Wishes) => wantedFeatures(NET_CONFIG, undefined, wishes),
    plan: (features: bigint, wishes: Wishes) => planNet(NET_CONFIG, features, undefined, wishes).transmit,
  },
  {
    device: 'vsock',
    wanted: (wishes: Wishes) => wantedVsockFeatures(wishes),
    plan: (features: bigint, wishes: Wishes) => {
      const { receive, transmit, ring } = planVsock(features, undefined, wishes);
      return [receive, transmit, ring];
    },
  },
])('rings of a $device driver', ({ wanted, plan }) => {
  it('are split and out of order unless asked', () => {
    expect(wanted({}) & RINGS).toBe(0n);
    expect(wanted({ packed: true }) & RINGS).toBe(featureMask(34));
    expect(wanted({ inOrder: true }) & RINGS).toBe(featureMask(35));
  });

  it('are what was negotiated', () => {
    for (const ring of plan(VERSION_1, {})) expect(ring).toMatchObject({ packed: false, inOrder: false });
    for (const ring of plan(VERSION_1 | featureMask(34), { packed: true, queueSize: 100 })) {
      expect(ring).toMatchObject({ packed: true, inOrder: false });
    }
    for (const ring of plan(VERSION_1 | featureMask(29, 35), { inOrder: true })) {
      expect(ring).toMatchObject({ packed: false, inOrder: true, eventIdx: true });
    }
  });

  it('are refused in a sentence where the device does not offer them', () => {
    const both = { packed: true, inOrder: true };
    expect(() => plan(VERSION_1 | featureMask(35), both)).toThrow(
      'packed rings are wanted, the device does not offer RING_PACKED',
    );
    expect(() => plan(VERSION_1 | featureMask(34), both)).toThrow(
      'buffers are wanted back in order, the device does not offer IN_ORDER',
    );
  });
});
