/** vhost-user, Protocol features: the bit of each name, by hand. */

import { describe, expect, it } from 'vitest';
import * as features from '../../protocol/vhost-user/features.ts';

const BITS: [string, number][] = [
  ['MQ', 0],
  ['LOG_SHMFD', 1],
  ['RARP', 2],
  ['REPLY_ACK', 3],
  ['MTU', 4],
  ['BACKEND_REQ', 5],
  ['CROSS_ENDIAN', 6],
  ['CRYPTO_SESSION', 7],
  ['PAGEFAULT', 8],
  ['CONFIG', 9],
  ['BACKEND_SEND_FD', 10],
  ['HOST_NOTIFIER', 11],
  ['INFLIGHT_SHMFD', 12],
  ['RESET_DEVICE', 13],
  ['INBAND_NOTIFICATIONS', 14],
  ['CONFIGURE_MEM_SLOTS', 15],
  ['STATUS', 16],
  ['XEN_MMAP', 17],
  ['SHARED_OBJECT', 18],
  ['DEVICE_STATE', 19],
  ['GET_VRING_BASE_INFLIGHT', 20],
  ['GPA_ADDRESSES', 21],
  ['SHMEM', 22],
  ['GET_VRING_BASE_SKIP_DRAIN', 23],
];

describe('protocol features', () => {
  it.each(BITS)('%s is bit %i, and called so', (name, bit) => {
    const constants: Record<string, unknown> = features;

    expect(constants[`VHOST_USER_PROTOCOL_F_${name}`]).toBe(bit);
    expect(features.PROTOCOL_FEATURE_NAMES.get(bit)).toBe(name);
  });

  it('are these and no others', () => {
    const constants = Object.keys(features).filter((name) => name.startsWith('VHOST_USER_PROTOCOL_F_'));

    expect(constants).toHaveLength(BITS.length);
    expect(features.PROTOCOL_FEATURE_NAMES.size).toBe(BITS.length);
  });
});
