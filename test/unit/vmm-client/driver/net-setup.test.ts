import { describe, expect, it } from 'vitest';
import { featureMask } from '../../../../protocol/virtio/reserved-features.ts';
import { decodeNetConfig } from '../../../../vmm-client/driver/net-config.ts';
import { planNet, wantedFeatures } from '../../../../vmm-client/driver/net-setup.ts';

const NO_CONFIG = decodeNetConfig(new Uint8Array(), 0n);
const VERSION_1 = featureMask(32);
const withPairs = (maxPairs: number) => ({ ...NO_CONFIG, maxPairs });

describe('the features that are accepted', () => {
  it('are those of a driver that does without offloads', () => {
    // MTU, MAC, MRG_RXBUF, STATUS, INDIRECT_DESC, EVENT_IDX, PROTOCOL_FEATURES, VERSION_1, SPEED_DUPLEX
    expect(wantedFeatures(NO_CONFIG, undefined, {})).toBe(featureMask(3, 5, 15, 16, 28, 29, 30, 32, 63));
  });

  it('have CTRL_VQ and MQ with several pairs, and offloads on request', () => {
    const more = wantedFeatures(withPairs(4), 8, { pairs: 2, offloads: featureMask(0, 11) });
    expect(more ^ wantedFeatures(NO_CONFIG, undefined, {})).toBe(featureMask(0, 11, 17, 22));
  });
});

describe('the plan', () => {
  it('numbers the queues of pairs', () => {
    const plan = planNet(withPairs(4), VERSION_1 | featureMask(17, 22), 8, { pairs: 3 });
    expect(plan.receive.map(({ index }) => index)).toEqual([0, 2, 4]);
    expect(plan.transmit.map(({ index }) => index)).toEqual([1, 3, 5]);
    expect(plan.control).toBeUndefined();
  });

  it.each([
    ['behind all pairs where GET_QUEUE_NUM counts it', 9, undefined, 8],
    ['not where it does not', 8, undefined, undefined],
    ['not where pairs are counted', 4, undefined, undefined],
    ['on request', 8, true, 8],
    ['not where it is refused', 9, false, undefined],
  ])('has a control queue %s', (_what, queueCount, wish, index) => {
    const options = { pairs: 2, ...(wish !== undefined && { controlQueue: wish }) };
    expect(planNet(withPairs(4), VERSION_1 | featureMask(17, 22), queueCount, options).control).toBe(index);
  });

  it('has the control queue behind the first pair without MQ', () => {
    expect(planNet(NO_CONFIG, VERSION_1 | featureMask(17), 3, { controlQueue: true }).control).toBe(2);
  });

  it.each([
    ['no offloads, MTU not told', 0n, {}, [12 + 1514 + 4, 1514 + 4]],
    ['no offloads, MTU wanted', 0n, { mtu: 9000 }, [12 + 9014 + 4, 9014 + 4]],
    ['MRG_RXBUF', featureMask(15), {}, [2048, 1514 + 4]],
    ['GUEST_TSO4', featureMask(1, 7), {}, [12 + 65558, 1514 + 4]],
    ['GUEST_TSO4 and MRG_RXBUF', featureMask(1, 7, 15), {}, [4096, 1514 + 4]],
    ['HOST_TSO4', featureMask(0, 11, 15), {}, [2048, 65558]],
  ])('has buffers for packets of %s', (_what, features, options, [bufferBytes, maxPacketBytes]) => {
    const plan = planNet(NO_CONFIG, VERSION_1 | features, undefined, options);
    expect([plan.receive[0]?.bufferBytes, plan.transmit[0]?.maxPacketBytes]).toEqual([bufferBytes, maxPacketBytes]);
  });

  it.each([
    [0n, 2, {}, 'the device does not offer VERSION_1'],
    [VERSION_1, 8, { pairs: 2 }, '2 queue pairs are wanted, the device has 1 (it does not offer MQ)'],
    [VERSION_1 | featureMask(22), 8, { pairs: 5 }, '5 queue pairs are wanted, the device has 4'],
    [VERSION_1 | featureMask(22), 2, { pairs: 3 }, '3 queue pairs are wanted, the device has 2'],
    [VERSION_1, 2, { controlQueue: true }, 'the device does not offer CTRL_VQ'],
  ])('refuses features %d, %d queues, %j', (features, queueCount, options, sentence) => {
    expect(() => planNet(withPairs(4), features, queueCount, options)).toThrow(sentence);
  });
});
