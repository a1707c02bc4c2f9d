import { describe, expect, it } from 'vitest';
import { checkConfig } from '../../../../vmm-client/vmm/check-config.ts';
import { parseConfig } from '../../../../vmm-client/vmm/parse-config.ts';

const payload = { kernel: '/k' };
const everything = {
  payload: { kernel: '/k', initramfs: '/i', cmdline: 'c' },
  cpus: { boot_vcpus: 2, max_vcpus: 2, hide: ['cx16'] },
  memory: {
    size: 2 ** 29,
    shared: true,
    hugepages: false,
    file: '/dev/shm',
    hotplug_size: 2 ** 21,
    hotplugged_size: 0,
  },
  disks: [
    { path: '/d', id: 'd', readonly: true, direct: true, serial: 's', num_queues: 1, queue_size: 128, iommu: true },
    { vhost_socket: '/b', vhost_user: true },
  ],
  net: [{ tap: 't', mac: '52:54:00:12:34:56', mtu: 1500 }],
  fs: [{ tag: 't', socket: '/f' }],
  vsock: { cid: 3, socket: '/v' },
  serial: { mode: 'File', file: '/s' },
  console: { mode: 'Off' },
} as const;

describe('a configuration from elsewhere', () => {
  it('is what was saved', () => {
    const config = checkConfig(everything);
    expect(parseConfig(JSON.parse(JSON.stringify(config)))).toEqual(config);
  });

  it.each<[string, unknown]>([
    ['the configuration is not an object', undefined],
    ['the configuration is not an object', []],
    ['payload is missing', {}],
    ['payload is not an object', { payload: null }],
    ['payload.kernel is missing', { payload: {} }],
    ['payload.kernel is not a string', { payload: { kernel: 7 } }],
    ['disk: there is no such field', { payload, disk: [] }],
    ['toString: there is no such field', { payload, toString: 1 }],
    ['cpus.boot_vcpus is not a number', { payload, cpus: { boot_vcpus: '1', max_vcpus: 1 } }],
    ['cpus.hide[1] is not a string', { payload, cpus: { boot_vcpus: 1, max_vcpus: 1, hide: ['a', {}] } }],
    ['memory.size is missing', { payload, memory: {} }],
    ['memory.shared is not true or false', { payload, memory: { size: 2 ** 29, shared: 1 } }],
    ['disks is not a list', { payload, disks: {} }],
    ['disks[0] is not an object', { payload, disks: ['/d'] }],
    ['disks[0].iommu is not true or false', { payload, disks: [{ path: '/d', iommu: 1 }] }],
    ['net[0].mac is not a string', { payload, net: [{ tap: 't', mac: [] }] }],
    ['vsock.cid is not a number', { payload, vsock: { cid: null, socket: '/v' } }],
    ['serial.mode is not one of Off, Null, Tty, File', { payload, serial: { mode: 'Pty' } }],
    // What the types let through is judged as any configuration.
    ['memory.size: NaN is not a whole number', { payload, memory: { size: Number.NaN } }],
    ['disks[0].queue_size: 100 is not a power of two', { payload, disks: [{ path: '/d', queue_size: 100 }] }],
  ])('is refused: %s', (sentence, value) => {
    expect(() => parseConfig(value)).toThrow(expect.objectContaining({ code: 'VM_CONFIG', message: sentence }));
  });

  it('is refused with a __proto__', () => {
    expect(() => parseConfig(JSON.parse('{"payload":{"kernel":"/k"},"__proto__":{}}'))).toThrow(
      '__proto__: there is no such field',
    );
  });
});
