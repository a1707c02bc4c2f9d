import { describe, expect, it } from 'vitest';
import {
  inOptionWords,
  parseApiSocket,
  parseConsole,
  parseCpus,
  parseDisk,
  parseFs,
  parseMemory,
  parseNet,
  parseSerial,
  parseVsock,
  toVmConfig,
} from '../../../../vmm-client/cli/vm-options.ts';

describe('options of a machine', () => {
  it.each<[(text: string) => unknown, string, unknown]>([
    [parseCpus, '4', { boot_vcpus: 4, max_vcpus: 4 }],
    [parseCpus, 'boot=2', { boot_vcpus: 2, max_vcpus: 2 }],
    [parseCpus, 'boot=2,max=4', { boot_vcpus: 2, max_vcpus: 4 }],
    [parseCpus, '1,hide=cx16+xsave', { boot_vcpus: 1, max_vcpus: 1, hide: ['cx16', 'xsave'] }],
    [parseMemory, '512M', { size: 512 << 20 }],
    [parseMemory, 'size=100G', { size: 100 * 2 ** 30 }],
    [
      parseMemory,
      'size=1024M,hugepages=on,shared=true,file=/dev/shm',
      { size: 2 ** 30, hugepages: true, shared: true, file: '/dev/shm' },
    ],
    [
      parseMemory,
      'size=1G,hotplug_size=3G,hotplugged_size=512M,hotplug_method=virtio-mem',
      { size: 2 ** 30, hotplug_size: 3 * 2 ** 30, hotplugged_size: 2 ** 29 },
    ],
    [parseDisk, 'path=disk.img', { path: 'disk.img' }],
    [parseDisk, 'path=disk.img,iommu=on', { path: 'disk.img', iommu: true }],
    [parseNet, 'tap=t,iommu=off', { tap: 't', iommu: false }],
    [parseVsock, 'cid=3,socket=s,iommu=on', { cid: 3, socket: 's', iommu: true }],
    [parseFs, 'tag=t,socket=s,iommu=true', { tag: 't', socket: 's', iommu: true }],
    [parseDisk, 'path="a,b=c.img",readonly=on', { path: 'a,b=c.img', readonly: true }],
    [
      parseDisk,
      'vhost_user=true,socket=/var/tmp/vhost.1,num_queues=4,queue_size=128',
      { vhost_user: true, vhost_socket: '/var/tmp/vhost.1', num_queues: 4, queue_size: 128 },
    ],
    [
      parseDisk,
      'path=/dev/vg/a,direct=off,serial=s 1,id=root',
      { path: '/dev/vg/a', direct: false, serial: 's 1', id: 'root' },
    ],
    [parseNet, 'tap=vm1,mac=52:54:00:12:34:56,mtu=9000', { tap: 'vm1', mac: '52:54:00:12:34:56', mtu: 9000 }],
    [parseNet, 'socket=n.sock,vhost_user=on,vhost_mode=client', { vhost_socket: 'n.sock', vhost_user: true }],
    [parseVsock, 'cid=3,socket=v.sock', { cid: 3, socket: 'v.sock' }],
    [parseFs, 'tag=home,socket=f.sock,queue_size=512', { tag: 'home', socket: 'f.sock', queue_size: 512 }],
    [parseSerial, 'tty', { mode: 'Tty' }],
    [parseSerial, 'off', { mode: 'Off' }],
    [parseSerial, 'null', { mode: 'Null' }],
    [parseSerial, 'file=a,b.log', { mode: 'File', file: 'a,b.log' }],
    [parseConsole, 'off', { mode: 'Off' }],
    [parseApiSocket, '/run/a.sock', '/run/a.sock'],
    [parseApiSocket, 'path=/run/a.sock', '/run/a.sock'],
  ])('%o takes %s', (parse, text, expected) => {
    expect(parse(text)).toEqual(expected);
  });

  it.each<[(text: string) => unknown, string, string]>([
    [parseCpus, 'four', "boot: 'four' is not a whole number"],
    [parseCpus, 'boot=1,topology=1:1:1:1', "there is no field 'topology'; there are boot, max, hide"],
    [parseMemory, 'shared=on', "the field 'size' is missing"],
    [parseMemory, 'size=1G,hugepages=yes', "hugepages: 'yes' is neither on (true) nor off (false)"],
    [parseMemory, 'size=1G,hotplug_size=lots', "hotplug_size: 'lots' is not a size in bytes"],
    [parseMemory, 'size=1G,hotplug_method=acpi', "hotplug_method: 'acpi' is not possible; possible is virtio-mem"],
    [parseDisk, 'path=a,iommu=1', "iommu: '1' is neither on (true) nor off (false)"],
    [parseDisk, 'disk.img', "there is no field 'disk.img'; there are path"],
    [parseDisk, 'path=', "the field 'path' has no value"],
    [parseDisk, 'path', "the field 'path' has no value"],
    [parseDisk, 'path=a,path=b', "the field 'path' is there twice"],
    [parseDisk, 'path=a,', "there is no field ''"],
    [parseDisk, 'path="a', 'a double quote has no end'],
    [parseDisk, 'path=a,constructor=1', "there is no field 'constructor'"],
    [parseDisk, 'path=a,num_queues=-1', "num_queues: '-1' is not a whole number"],
    [parseNet, 'socket=s,vhost_mode=server', "vhost_mode: 'server' is not possible; possible is client"],
    [parseVsock, 'socket=s', "the field 'cid' is missing"],
    [parseVsock, 'cid=3', "the field 'socket' is missing"],
    [parseFs, 'socket=s', "the field 'tag' is missing"],
    [parseSerial, 'file=', "'file=' is none of tty, off, null and file=<path>"],
    [parseConsole, 'pty', "'pty' is not possible"],
    [parseApiSocket, 'fd=3', "there is no field 'fd'; there are path"],
  ])('%o refuses %s in one sentence', (parse, text, sentence) => {
    expect(() => parse(text)).toThrow(
      expect.objectContaining({ code: 'USAGE', message: expect.stringContaining(sentence) }),
    );
  });

  it('make a configuration that has what was given and nothing else', () => {
    const serial = { mode: 'Tty' } as const;
    const console = { mode: 'Off' } as const;
    expect(toVmConfig({ kernel: 'k', serial, console })).toEqual({ payload: { kernel: 'k' }, serial, console });
    expect(
      toVmConfig({
        kernel: 'k',
        initramfs: 'i',
        cmdline: 'c',
        cpus: { boot_vcpus: 1, max_vcpus: 1 },
        memory: { size: 1 },
        disk: [{ path: 'd' }],
        net: [{ tap: 't' }],
        fs: [{ tag: 'f', socket: 's' }],
        vsock: { cid: 3, socket: 'v' },
        serial,
        console,
      }),
    ).toEqual({
      payload: { kernel: 'k', initramfs: 'i', cmdline: 'c' },
      cpus: { boot_vcpus: 1, max_vcpus: 1 },
      memory: { size: 1 },
      disks: [{ path: 'd' }],
      net: [{ tap: 't' }],
      fs: [{ tag: 'f', socket: 's' }],
      vsock: { cid: 3, socket: 'v' },
      serial,
      console,
    });
  });

  it.each([
    ['disks[1].queue_size: 100 is odd', '--disk [1]: queue_size: 100 is odd'],
    ['disks[0]: exactly one of path and vhost_socket', '--disk [0]: exactly one of path and socket'],
    ['net[2].id: "a" is the id of disks[0] already', '--net [2]: id: "a" is the id of disks[0] already'],
    ['payload.cmdline is too long', '--cmdline is too long'],
    ['cpus.boot_vcpus: 0 is below the minimum of 1', '--cpus: boot: 0 is below the minimum of 1'],
    ['something else', 'something else'],
  ])('%s is told as %s', (sentence, expected) => {
    expect(inOptionWords(sentence)).toBe(expected);
  });
});
