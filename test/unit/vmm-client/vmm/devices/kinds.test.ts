import { describe, expect, it } from 'vitest';
import { IoMappings } from '../../../../../vmm-client/frontend/io-mappings.ts';
import type { DiskConfig, FsConfig, NetConfig, VsockConfig } from '../../../../../vmm-client/vmm/config.ts';
import { VmConfigError, VmError } from '../../../../../vmm-client/vmm/errors.ts';
import { DeviceBench, mask, PROTOCOL, PROTOCOL_WITHOUT_CONFIG } from './bench.ts';
import { checkedDisk, checkedFs, checkedNet, checkedVsock } from './checked.ts';

const bench = new DeviceBench();

const disk =
  (config: DiskConfig = {}) =>
  (socket: string) =>
    ({ kind: 'disk', config: checkedDisk({ id: 'd', vhost_socket: socket, ...config }) }) as const;
const net =
  (config: NetConfig = {}) =>
  (socket: string) =>
    ({ kind: 'net', config: checkedNet({ id: 'n', vhost_socket: socket, ...config }) }) as const;
const fs =
  (config: Partial<FsConfig> = {}) =>
  (socket: string) =>
    ({ kind: 'fs', config: checkedFs({ id: 'f', socket, tag: 'share', ...config }) }) as const;
const vsock =
  (config: Partial<VsockConfig> = {}) =>
  (socket: string) =>
    ({ kind: 'vsock', config: checkedVsock({ id: 'v', socket, cid: 3, ...config }) }) as const;

/** 96 bytes: 2048 sectors, 4 queues. */
const BLK_CONFIG = new Uint8Array(96);
new DataView(BLK_CONFIG.buffer).setUint32(0, 2048, true);
new DataView(BLK_CONFIG.buffer).setUint16(34, 4, true);

const BLK = { features: mask(9, 12, 28, 29, 30, 32), protocolFeatures: PROTOCOL, config: BLK_CONFIG };

describe('features', () => {
  it("that this VMM does not carry are not the guest's", async () => {
    const all = (1n << 64n) - 1n;
    const device = await bench.open({ ...BLK, features: all & ~mask(20, 17, 15) }, disk());
    const carried = mask(28, 29, 32, 35, 36);
    expect(device.features & ~((1n << 24n) - 1n) & ((1n << 50n) - 1n)).toBe(carried);
    expect(device.features >> 50n).toBe((1n << 14n) - 1n);
  });

  it('are those of an IOMMU and of packed rings where the device is to have them', async () => {
    const features = (1n << 64n) - 1n;
    const packed = await bench.open({ ...BLK, features }, disk({ packed: true }));
    expect(packed.features & mask(33, 34)).toBe(mask(34));
    const translated = await bench.open({ ...BLK, features }, disk(), { iommu: new IoMappings() });
    expect(translated.features & mask(33, 34)).toBe(mask(33));
  });

  it.each([
    ['ACCESS_PLATFORM', mask(34), PROTOCOL, false],
    ['BACKEND_REQ', mask(33, 34), PROTOCOL & ~mask(5), false],
    ['RING_PACKED', mask(33), PROTOCOL, true],
    ['INFLIGHT_SHMFD', mask(33, 34), PROTOCOL & ~mask(12), true],
  ])('that it needs for that are missed: %s', async (what, offered, protocolFeatures, packed) => {
    const script = { ...BLK, features: BLK.features | offered, protocolFeatures };
    const opened = bench.open(script, disk({ packed }), packed ? {} : { iommu: new IoMappings() });
    await expect(opened).rejects.toThrow(
      new RegExp(`^disk d: back end at ${bench.socket}: the back end does not offer ${what}, `),
    );
  });

  it('without VERSION_1 are none', async () => {
    const error = await bench.complaint({ ...BLK, features: mask(9, 30) }, disk());
    expect(error).toBeInstanceOf(VmError);
    expect(error.message).toBe(
      `disk d: back end at ${bench.socket}: the back end does not offer VERSION_1, which virtio-mmio devices have`,
    );
  });
});

describe('a socket', () => {
  it('at which nobody listens is named', async () => {
    const error = await bench
      .open(BLK, () => ({ kind: 'disk', config: checkedDisk({ id: 'd', vhost_socket: '/nowhere/at/all' }) }))
      .catch((reason) => reason);
    expect(error).toBeInstanceOf(VmError);
    expect(error.message).toBe(
      'disk d: back end at /nowhere/at/all: connect /nowhere/at/all: no such file or directory (ENOENT)',
    );
  });

  it('comes from the options where the VMM started the back end', async () => {
    const path = { kind: 'disk', config: checkedDisk({ id: 'd', path: '/disk' }) } as const;
    const device = await bench.open(BLK, () => path, { socket: bench.socket });
    expect(device.deviceId).toBe(2);
  });

  it('is needed', async () => {
    const error = await bench.complaint(BLK, () => ({ kind: 'disk', config: checkedDisk({ id: 'd', path: '/disk' }) }));
    expect(error).toBeInstanceOf(VmConfigError);
  });
});

describe('a back end that goes away while it is asked what it has', () => {
  const questions = ['GET_FEATURES', 'GET_PROTOCOL_FEATURES', 'GET_QUEUE_NUM', 'SET_OWNER', 'GET_CONFIG'];
  const scripts = questions.flatMap((message) => [{ dieAt: [message] }, { dieAfter: [message] }]);
  it.each(scripts)('is not waited for: %o', async (script) => {
    const error = await bench.complaint({ ...BLK, ...script }, disk());
    expect(error).toBeInstanceOf(VmError);
    expect(error.message).toMatch(/^disk d: back end at .*(closed the connection|cannot be sent)/);
  });
});

describe('a disk', () => {
  it('has 1 queue of 128 by default, and says so in its configuration', async () => {
    const device = await bench.open(BLK, disk());
    expect([device.deviceId, device.queueSizes]).toEqual([2, [128]]);
    expect(device.features & mask(12)).toBe(0n);
    expect(device.config.length).toBe(96);
    expect(new DataView(device.config.buffer).getUint16(34, true)).toBe(1);
    expect(new DataView(device.config.buffer).getUint32(0, true)).toBe(2048);
  });

  it('has the queues that are configured', async () => {
    const device = await bench.open(BLK, disk({ num_queues: 3, queue_size: 256 }));
    expect(device.queueSizes).toEqual([256, 256, 256]);
    expect(device.features & mask(12)).toBe(mask(12));
    expect(new DataView(device.config.buffer).getUint16(34, true)).toBe(3);
  });

  it('has the configuration of an older back end', async () => {
    const device = await bench.open({ ...BLK, config: BLK_CONFIG.subarray(0, 60) }, disk());
    expect(device.config.length).toBe(60);
  });

  it.each([
    [
      'more queues than GET_QUEUE_NUM',
      { queueCount: 2n },
      { num_queues: 3 },
      'disk d: num_queues is 3, its back end has 2',
    ],
    ['more queues than its configuration says', {}, { num_queues: 5 }, 'disk d: num_queues is 5, its back end has 4'],
    ['0 queues', { queueCount: 0n }, {}, 'the back end says it has no queues'],
    ['0 queues in its configuration', { config: new Uint8Array(96) }, {}, 'num_queues is 0'],
    ['a configuration that is too short', { config: new Uint8Array(8) }, {}, '8 bytes'],
    ['no configuration', { config: new Uint8Array(0) }, {}, 'refuses to read 8 bytes of configuration at 0'],
    ['no CONFIG', { protocolFeatures: mask(0, 3) }, {}, 'does not offer CONFIG'],
    ['an end in GET_CONFIG', { dieAt: ['GET_CONFIG'] }, {}, 'closed the connection instead of answering GET_CONFIG'],
    ['an end in the negotiation', { dieAt: ['GET_FEATURES'] }, {}, 'instead of answering GET_FEATURES'],
    ['no answer', { ignore: ['GET_FEATURES'] }, {}, 'did not answer GET_FEATURES within 500 ms'],
    ['another answer', { mislabel: ['GET_CONFIG'] }, {}, 'the answer to GET_CONFIG was expected'],
  ])('is not opened with %s', async (_, script, config, message) => {
    const error = await bench.complaint({ ...BLK, ...script }, disk(config));
    expect(error.message).toContain(message);
    expect(error.message).toContain('disk d');
    expect(['VM', 'VM_CONFIG']).toContain((error as VmError).code);
  });
});

/** mac 02:00:00:00:00:01, status 1, 2 pairs, mtu 9000. */
const NET_CONFIG = Uint8Array.from([2, 0, 0, 0, 0, 1, 1, 0, 2, 0, 0x28, 0x23, 0, 0, 0, 0, 0]);
/** CSUM, MTU, MAC, MRG_RXBUF, STATUS, CTRL_VQ, CTRL_RX, GUEST_ANNOUNCE, MQ. */
const NET_FEATURES = mask(0, 3, 5, 15, 16, 17, 18, 21, 22, 30, 32);
const NET = { features: NET_FEATURES, protocolFeatures: PROTOCOL, config: NET_CONFIG, queueCount: 5n };

describe('a network', () => {
  it('has two queues of 256 by default, and a control queue where the back end serves one', async () => {
    const device = await bench.open(NET, net());
    expect([device.deviceId, device.queueSizes]).toEqual([1, [256, 256, 256]]);
    expect(device.features).toBe(mask(0, 3, 5, 15, 16, 17, 18, 21, 32));
    expect([...device.config.subarray(0, 12)]).toEqual([2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0x28, 0x23]);
  });

  it('has several pairs and a control queue behind them', async () => {
    const device = await bench.open(NET, net({ num_queues: 4 }));
    expect(device.queueSizes.length).toBe(5);
    expect(device.features & mask(22)).toBe(mask(22));
    expect(device.config[8]).toBe(2);
  });

  it('has no control queue, and nothing that needs one, where GET_QUEUE_NUM does not count it', async () => {
    const device = await bench.open({ ...NET, queueCount: 4n }, net());
    expect(device.queueSizes.length).toBe(2);
    expect(device.features).toBe(mask(0, 3, 5, 15, 16, 32));
  });

  it('has the configured address and MTU', async () => {
    const device = await bench.open(
      { ...NET, features: mask(15, 30, 32) },
      net({ mac: '52:54:00:AB:cd:ef', mtu: 1400 }),
    );
    expect(device.features).toBe(mask(3, 5, 15, 32));
    expect([...device.config.subarray(0, 6)]).toEqual([0x52, 0x54, 0, 0xab, 0xcd, 0xef]);
    expect([...device.config.subarray(10, 12)]).toEqual([0x78, 0x05]);
  });

  it('has a configuration of the VMM where the back end has none', async () => {
    const device = await bench.open(
      { ...NET, protocolFeatures: PROTOCOL_WITHOUT_CONFIG, queueCount: 128n },
      net({ mac: '52:54:00:00:00:02' }),
    );
    expect(device.features).toBe(mask(0, 5, 15, 32));
    expect(device.queueSizes.length).toBe(2);
    expect([...device.config.subarray(0, 6)]).toEqual([0x52, 0x54, 0, 0, 0, 2]);
  });

  it.each([
    ['more pairs than there are', {}, { num_queues: 6 }, 'num_queues is 6, its back end has 4'],
    [
      'pairs without a control queue',
      { queueCount: 4n },
      { num_queues: 4 },
      'its back end has 2, and no control queue',
    ],
    ['no queues', { queueCount: 0n }, {}, 'says it has no queues'],
    ['a configuration too short', { config: new Uint8Array(6) }, {}, 'refuses to read 12 bytes of configuration'],
    ['no pairs', { config: new Uint8Array(12) }, {}, 'max_virtqueue_pairs is 0'],
  ])('is not opened with %s', async (_, script, config, message) => {
    const error = await bench.complaint({ ...NET, ...script }, net(config));
    expect(error.message).toContain(message);
    expect(error.message).toContain('net n');
  });
});

describe('a socket device', () => {
  const CID_3 = Uint8Array.from([3, 0, 0, 0, 0, 0, 0, 0]);
  const VSOCK = { features: mask(0, 30, 32), protocolFeatures: PROTOCOL, config: CID_3, queueCount: 3n };

  it('has three queues of 256 and the configured context id', async () => {
    const device = await bench.open(VSOCK, vsock());
    expect([device.deviceId, device.queueSizes, [...device.config]]).toEqual([19, [256, 256, 256], [...CID_3]]);
  });

  it('has its configuration from the VMM where the back end has none', async () => {
    const script = { ...VSOCK, protocolFeatures: PROTOCOL_WITHOUT_CONFIG };
    const device = await bench.open(script, vsock({ cid: 0x1234_5678 }));
    expect([...device.config]).toEqual([0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0]);
  });

  it.each([
    ['another context id', {}, { cid: 4 }, 'cid is 4, its back end serves cid 3'],
    ['one queue', { queueCount: 1n }, {}, 'says it has 1 queue, a socket device has 2'],
  ])('is not opened with %s', async (_, script, config, message) => {
    const error = await bench.complaint({ ...VSOCK, ...script }, vsock(config));
    expect(error.message).toContain(message);
  });
});

describe('a file system', () => {
  const FS = { features: mask(0, 30, 32), protocolFeatures: PROTOCOL_WITHOUT_CONFIG, queueCount: 2n };

  it('has a queue of high priority and request queues of 1024, its tag, and no notification queue', async () => {
    const device = await bench.open(FS, fs());
    expect([device.deviceId, device.queueSizes]).toEqual([26, [1024, 1024]]);
    expect(device.features).toBe(mask(32));
    const config = new Uint8Array(40);
    config.set(Buffer.from('share'));
    config[36] = 1;
    expect([...device.config]).toEqual([...config]);
  });

  it.each([
    ['more request queues than there are', { num_queues: 2 }, 'num_queues is 2, its back end has 1 request queues'],
    ['no tag', { tag: '' }, 'tag is empty'],
    ['a tag of more than 36 bytes', { tag: 'ü'.repeat(19) }, 'tag is 38 bytes long'],
  ])('is not opened with %s', async (_, config, message) => {
    const error = await bench.complaint(FS, fs(config));
    expect(error).toBeInstanceOf(VmConfigError);
    expect(error.message).toContain(message);
  });
});
