import { describe, expect, it } from 'vitest';
import { nameKind, nameQueue } from '../../../../../vmm-client/vmm/queues/queue-names.ts';

const CTRL_VQ = 1n << 17n;
const MQ = 1n << 22n;

/** Names and roles of all queues, as `receive 0/buffers`. */
const names = (deviceId: number, features: bigint, count: number): string[] =>
  Array.from({ length: count }, (_, index) => {
    const { name, role } = nameQueue(deviceId, features, count, index);
    return `${name}/${role}`;
  });

describe('The queues of a device', () => {
  it('are what the standard says of each kind', () => {
    expect(names(2, 1n, 2)).toEqual(['request 0/requests', 'request 1/requests']);
    expect(names(19, 1n, 3)).toEqual(['receive/buffers', 'transmit/requests', 'event/buffers']);
    expect(names(26, 1n, 2)).toEqual(['high priority/requests', 'request 0/requests']);
    expect(names(23, 1n, 2)).toEqual(['request/requests', 'event/buffers']);
    expect(names(24, 1n, 1)).toEqual(['request/requests']);
    expect(names(99, 1n, 1)).toEqual(['queue 0/requests']);
  });

  it('of a network are pairs, and a control queue behind those that the driver took', () => {
    const pair = (n: number): string[] => [`receive ${n}/buffers`, `transmit ${n}/requests`];
    expect(names(1, 1n, 2)).toEqual(pair(0));
    expect(names(1, CTRL_VQ, 3)).toEqual([...pair(0), 'control/requests']);
    expect(names(1, CTRL_VQ | MQ, 5)).toEqual([...pair(0), ...pair(1), 'control/requests']);
    // Without MQ the control queue is the third, however many there could be (VIRTIO 1.3, 5.1.2).
    expect(names(1, CTRL_VQ, 5)[2]).toBe('control/requests');
    // Before a driver there is only the count.
    expect(names(1, 0n, 5)).toEqual([...pair(0), ...pair(1), 'control/requests']);
  });

  it('belong to devices with names', () => {
    expect([1, 2, 19, 23, 24, 26, 99].map(nameKind)).toEqual([
      'net',
      'disk',
      'vsock',
      'iommu',
      'mem',
      'fs',
      'device 99',
    ]);
  });
});
