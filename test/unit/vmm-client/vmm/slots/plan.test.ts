import { describe, expect, it } from 'vitest';
import { checkConfig } from '../../../../../vmm-client/vmm/check-config.ts';
import {
  isBehindIommu,
  type PlannedDevice,
  placeDevices,
  planDevices,
} from '../../../../../vmm-client/vmm/slots/plan.ts';

const config = checkConfig({
  payload: { kernel: '/kernel' },
  disks: [
    { path: '/a', serial: 's' },
    { vhost_socket: '/b', iommu: true },
  ],
  net: [{ tap: 'vm0' }, { vhost_socket: '/c' }],
  fs: [{ tag: 't', socket: '/d' }],
  vsock: { cid: 3, socket: '/e' },
});
const local: PlannedDevice = {
  kind: 'mem',
  id: '__mem',
  slot: 17,
  open: () => {
    throw new Error('not opened here');
  },
};

describe('devices of a configuration', () => {
  it('are in the order of their slots, with a daemon for those that have no socket', () => {
    const planned = planDevices(config);
    expect(planned.map(({ kind, id, daemon }) => [kind, id, daemon?.program])).toEqual([
      ['disk', '_disk0', 'vhost-user-blk'],
      ['disk', '_disk1', undefined],
      ['net', '_net2', 'vhost-user-net'],
      ['net', '_net3', undefined],
      ['fs', '_fs4', undefined],
      ['vsock', '_vsock5', undefined],
    ]);
    expect(planned.map(isBehindIommu)).toEqual([false, true, false, false, false, false]);
    expect(isBehindIommu(local)).toBe(false);
  });

  it('that come from elsewhere have disks whose lock comes later', () => {
    expect(planDevices(config, true)[0]?.daemon?.args).toEqual([
      '--blk-file=/a',
      '--num-queues=1',
      '--serial=s',
      '--incoming',
    ]);
    expect(planDevices(config, false)[0]?.daemon?.args).not.toContain('--incoming');
  });

  it('are placed where the guest knows them', () => {
    const all: PlannedDevice[] = [...planDevices(config), local];
    const slots = new Map(all.map(({ id }, n) => [id, id === '__mem' ? 17 : 10 - n]));
    expect(placeDevices(all, slots).map(({ slot }) => slot)).toEqual([10, 9, 8, 7, 6, 5, 17]);
  });

  it('without a place are refused, and the own ones of the machine in another', () => {
    expect(() => placeDevices(planDevices(config), new Map())).toThrow(expect.objectContaining({ code: 'VM' }));
    expect(() => placeDevices([local], new Map([['__mem', 3]]))).toThrow(/__mem.* slot 3.* 17/);
  });
});
