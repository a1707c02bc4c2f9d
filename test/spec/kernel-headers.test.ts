/**
 * The numbers in protocol/virtio against the kernel's own headers, where they are installed (Debian: linux-libc-dev).
 * A constant that only one side has is no error: Debian 12's headers are older than VIRTIO 1.3.
 */

import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import * as tap from '../../protocol/sys/tap.ts';
import * as blk from '../../protocol/virtio/blk.ts';
import * as ids from '../../protocol/virtio/device-ids.ts';
import * as status from '../../protocol/virtio/device-status.ts';
import * as fs from '../../protocol/virtio/fs.ts';
import * as iommu from '../../protocol/virtio/iommu.ts';
import * as mem from '../../protocol/virtio/mem.ts';
import * as mmio from '../../protocol/virtio/mmio.ts';
import * as net from '../../protocol/virtio/net.ts';
import * as reserved from '../../protocol/virtio/reserved-features.ts';
import * as ring from '../../protocol/virtio/split-ring.ts';

const INCLUDE = '/usr/include/linux';
const installed = existsSync(`${INCLUDE}/virtio_blk.h`);
if (!installed) process.stderr.write('skipped: kernel headers: linux-libc-dev is not installed\n');

/** `#define NAME number` of a header, comments behind the number aside. */
const readDefines = (header: string): Map<string, number> => {
  const text = readFileSync(`${INCLUDE}/${header}`, 'utf8');
  const pattern = /^#define[ \t]+(\w+)[ \t]+(0x[0-9a-fA-F]+|\d+)[ \t]*(?:\/[*/].*)?$/gm;
  return new Map([...text.matchAll(pattern)].map(([, name = '', value = '']) => [name, Number(value)]));
};

const numbersOf = (module: object): [string, number][] =>
  Object.entries(module).filter((entry): entry is [string, number] => typeof entry[1] === 'number');

/** Names of ours, renamed to the kernel's, that the header must know. */
const compare = (module: object, header: string, rename: (name: string) => string, atLeast: number): void => {
  const defines = readDefines(header);
  const shared = numbersOf(module).filter(([name]) => defines.has(rename(name)));
  expect(Object.fromEntries(shared)).toEqual(
    Object.fromEntries(shared.map(([name]) => [name, defines.get(rename(name))])),
  );
  expect(shared.length).toBeGreaterThanOrEqual(atLeast);
};

const same = (name: string): string => name;

describe.skipIf(!installed)('the constants agree with the kernel', () => {
  it('virtio_blk.h: features, request types and statuses', () => {
    compare(blk, 'virtio_blk.h', same, 23);
  });

  it('virtio_blk.h: the unmap flag of a write-zeroes segment and the length of an id', () => {
    const defines = readDefines('virtio_blk.h');

    expect(blk.VIRTIO_BLK_SEGMENT_F_UNMAP).toBe(defines.get('VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP'));
    expect(blk.VIRTIO_BLK_ID_BYTES).toBe(defines.get('VIRTIO_BLK_ID_BYTES'));
  });

  it('virtio_net.h: features, header flags and types, control commands', () => {
    compare(net, 'virtio_net.h', same, 40);
  });

  it('virtio_net.h: the configuration space is laid out field by field', () => {
    const text = readFileSync(`${INCLUDE}/virtio_net.h`, 'utf8');
    const body = text.slice(text.indexOf('struct virtio_net_config {'), text.indexOf('__attribute__((packed))'));
    const sizes = { __virtio16: 2, __le16: 2, __le32: 4, __u8: 1 } as const;
    const offsets = new Map<string, number>();
    let at = 0;
    for (const [, type, name, count] of body.matchAll(/(__virtio16|__le16|__le32|__u8)\s+(\w+)(?:\[(\w+)\])?;/g)) {
      offsets.set(name ?? '', at);
      at += sizes[type as keyof typeof sizes] * (count === 'ETH_ALEN' ? 6 : 1);
    }

    const ours = Object.entries(net.VIRTIO_NET_CONFIG);

    expect(Object.fromEntries(ours)).toEqual(Object.fromEntries(ours.map(([name]) => [name, offsets.get(name)])));
  });

  it('virtio_iommu.h: features, request types, statuses and faults', () => {
    const text = readFileSync(`${INCLUDE}/virtio_iommu.h`, 'utf8');
    const shifts = [...text.matchAll(/^#define[ \t]+(\w+)[ \t]+\(1 << (\d+)\)$/gm)];
    const flags = new Map(shifts.map(([, name = '', bit = '']) => [name, 1 << Number(bit)]));
    const ours = numbersOf(iommu).filter(([name]) => flags.has(name));

    compare(iommu, 'virtio_iommu.h', same, 22);
    expect(Object.fromEntries(ours)).toEqual(Object.fromEntries(ours.map(([name]) => [name, flags.get(name)])));
    expect(ours.length).toBe(7);
  });

  it('virtio_iommu.h: the structures are laid out field by field', () => {
    const text = readFileSync(`${INCLUDE}/virtio_iommu.h`, 'utf8');
    const sizes: Record<string, number> = { __u8: 1, __le16: 2, __le32: 4, __le64: 8 };
    const structures: Record<string, number> = {};
    const fieldsOf = (structure: string): Record<string, number> => {
      const body = new RegExp(`struct ${structure} \\{([^}]*)\\};`).exec(text)?.[1] ?? '';
      const fields: Record<string, number> = {};
      let at = 0;
      for (const [, type = '', name = '', count = '1'] of body.matchAll(/^\s*([\w ]+?)\s+(\w+)(?:\[(\d*)\])?;/gm)) {
        fields[name] = at;
        at += (sizes[type] ?? structures[type] ?? Number.NaN) * Number(count);
      }
      structures[`struct ${structure}`] = at;
      return { ...fields, bytes: at };
    };
    for (const name of ['range_64', 'range_32', 'req_head', 'req_tail']) fieldsOf(`virtio_iommu_${name}`);
    const config = fieldsOf('virtio_iommu_config');

    expect(config).toMatchObject({
      page_size_mask: iommu.VIRTIO_IOMMU_CONFIG.page_size_mask,
      input_range: iommu.VIRTIO_IOMMU_CONFIG.input_range_start,
      domain_range: iommu.VIRTIO_IOMMU_CONFIG.domain_range_start,
      probe_size: iommu.VIRTIO_IOMMU_CONFIG.probe_size,
      bypass: iommu.VIRTIO_IOMMU_CONFIG.bypass,
      bytes: iommu.VIRTIO_IOMMU_CONFIG_BYTES,
    });
    for (const [name, fields, bytes] of [
      ['attach', iommu.VIRTIO_IOMMU_REQ_ATTACH, iommu.VIRTIO_IOMMU_REQ_ATTACH_BYTES],
      ['detach', iommu.VIRTIO_IOMMU_REQ_DETACH, iommu.VIRTIO_IOMMU_REQ_DETACH_BYTES],
      ['map', iommu.VIRTIO_IOMMU_REQ_MAP, iommu.VIRTIO_IOMMU_REQ_MAP_BYTES],
      ['unmap', iommu.VIRTIO_IOMMU_REQ_UNMAP, iommu.VIRTIO_IOMMU_REQ_UNMAP_BYTES],
    ] as const) {
      // The tail is device-writable, and not of the request.
      expect(fieldsOf(`virtio_iommu_req_${name}`)).toMatchObject({ ...fields, tail: bytes });
    }
    const probe = /struct virtio_iommu_req_probe \{([^}]*)\}/.exec(text)?.[1] ?? '';
    expect(probe).toMatch(/head;\s+__le32\s+endpoint;\s+__u8\s+reserved\[64\];/);
    expect(fieldsOf('virtio_iommu_fault')).toMatchObject({
      ...iommu.VIRTIO_IOMMU_FAULT,
      bytes: iommu.VIRTIO_IOMMU_FAULT_BYTES,
    });
  });

  it('if_tun.h: what the reader of a TAP takes', () => {
    compare(tap, 'if_tun.h', same, 5);
  });

  it('virtio_mem.h: features, types of requests and responses, states', () => {
    compare(mem, 'virtio_mem.h', same, 13);
  });

  it('virtio_config.h: reserved feature bits', () => {
    compare(reserved, 'virtio_config.h', same, 8);
  });

  it('vhost_types.h and virtio_ring.h: the log bit and the ring feature bits', () => {
    expect(reserved.VHOST_F_LOG_ALL).toBe(readDefines('vhost_types.h').get('VHOST_F_LOG_ALL'));
    const defines = readDefines('virtio_ring.h');
    expect(reserved.VIRTIO_F_INDIRECT_DESC).toBe(defines.get('VIRTIO_RING_F_INDIRECT_DESC'));
    expect(reserved.VIRTIO_F_EVENT_IDX).toBe(defines.get('VIRTIO_RING_F_EVENT_IDX'));
  });

  it('virtio_ring.h: descriptor flags, ring flags and alignments', () => {
    const rename = (name: string): string =>
      name.replace(/^VIRTQ_(DESC|AVAIL|USED)_ALIGN$/, 'VRING_$1_ALIGN_SIZE').replace(/^VIRTQ_/, 'VRING_');
    compare(ring, 'virtio_ring.h', rename, 8);
  });

  it('virtio_ids.h: device ids', () => {
    compare(ids, 'virtio_ids.h', same, 4);
  });

  it('virtio_config.h: device status', () => {
    const rename = (name: string): string =>
      name.replace('VIRTIO_STATUS_DEVICE_', 'VIRTIO_CONFIG_S_').replace('VIRTIO_STATUS_', 'VIRTIO_CONFIG_S_');
    compare(status, 'virtio_config.h', rename, 6);
  });

  it('virtio_mmio.h: registers', () => {
    const defines = readDefines('virtio_mmio.h');
    const rename = (name: string): string =>
      `VIRTIO_MMIO_${name.toUpperCase()}`
        .replace('QUEUE_DRIVER_', 'QUEUE_AVAIL_')
        .replace('QUEUE_DEVICE_', 'QUEUE_USED_');
    // Debian 12's header has no QueueReset.
    const known = Object.entries(mmio.VIRTIO_MMIO).filter(([name]) => name !== 'queue_reset');

    expect(Object.fromEntries(known)).toEqual(
      Object.fromEntries(known.map(([name]) => [name, defines.get(rename(name))])),
    );
  });

  it('virtio_fs.h: the configuration space', () => {
    const text = readFileSync(`${INCLUDE}/virtio_fs.h`, 'utf8');

    expect(text).toMatch(/__u8 tag\[36\];\s+(\/\*[^*]*\*\/\s*)?__le32 num_request_queues;/);
    expect(fs.VIRTIO_FS_TAG_BYTES).toBe(fs.VIRTIO_FS_CONFIG.num_request_queues);
    expect([fs.VIRTIO_FS_CONFIG.num_request_queues, fs.VIRTIO_FS_CONFIG_BYTES]).toEqual([36, 40]);
  });

  it('virtio_blk.h: the configuration space is laid out field by field', () => {
    const text = readFileSync(`${INCLUDE}/virtio_blk.h`, 'utf8');
    const body = text.slice(text.indexOf('struct virtio_blk_config {'), text.indexOf('__attribute__((packed))'));
    const sizes = { __virtio64: 8, __virtio32: 4, __virtio16: 2, __u8: 1 } as const;
    const offsets = new Map<string, number>();
    let at = 0;
    for (const [, type, name, count] of body.matchAll(
      /(__virtio64|__virtio32|__virtio16|__u8)\s+(\w+)(?:\[(\d+)\])?;/g,
    )) {
      if (name === 'cylinders') offsets.set('geometry', at);
      offsets.set(name === 'wce' ? 'writeback' : (name ?? ''), at);
      at += sizes[type as keyof typeof sizes] * Number(count ?? 1);
    }

    const known = Object.entries(blk.VIRTIO_BLK_CONFIG).filter(([name]) => offsets.has(name));

    expect(Object.fromEntries(known)).toEqual(Object.fromEntries(known.map(([name]) => [name, offsets.get(name)])));
    expect(known.length).toBe(Object.keys(blk.VIRTIO_BLK_CONFIG).length);
  });
});

describe('numbers that no installed header has', () => {
  it('virtio-mmio: interrupt bits, version, and QueueReset (VIRTIO 1.3, 4.2.2)', () => {
    expect([mmio.VIRTIO_MMIO_INT_VRING, mmio.VIRTIO_MMIO_INT_CONFIG, mmio.VIRTIO_MMIO_VERSION]).toEqual([1, 2, 2]);
    expect(mmio.VIRTIO_MMIO.queue_reset).toBe(0xc0);
  });

  it('virtio-blk: 96 bytes of configuration space, LIFETIME and ZONED, GET_LIFETIME', () => {
    expect(blk.VIRTIO_BLK_CONFIG_BYTES).toBe(96);
    expect([blk.VIRTIO_BLK_F_LIFETIME, blk.VIRTIO_BLK_F_ZONED, blk.VIRTIO_BLK_T_GET_LIFETIME]).toEqual([15, 17, 10]);
  });

  it('virtio-net: UDP segmentation, SPEED_DUPLEX, 17 bytes of configuration space, headers of 10 and 12 bytes', () => {
    const { VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_SPEED_DUPLEX } = net;
    expect([VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_USO]).toEqual([54, 55, 56]);
    expect(VIRTIO_NET_F_SPEED_DUPLEX).toBe(63);
    expect(net.VIRTIO_NET_HDR_GSO_UDP_L4).toBe(5);
    expect([net.VIRTIO_NET_CONFIG_BYTES, net.VIRTIO_NET_LEGACY_HDR_BYTES, net.VIRTIO_NET_HDR_BYTES]).toEqual([
      17, 10, 12,
    ]);
    expect(net.VIRTIO_NET_HDR).toEqual({
      flags: 0,
      gso_type: 1,
      hdr_len: 2,
      gso_size: 4,
      csum_start: 6,
      csum_offset: 8,
      num_buffers: 10,
    });
    expect([tap.TUN_F_USO4, tap.TUN_F_USO6]).toEqual([0x20, 0x40]);
  });

  it('virtio-net: queues of a pair, 5.1.2', () => {
    expect([0, 1, 5].map(net.receiveQueueOf)).toEqual([0, 2, 10]);
    expect([0, 1, 5].map(net.transmitQueueOf)).toEqual([1, 3, 11]);
  });

  it('split ring: sizes of the three parts for 1, 256 and 32768 entries (VIRTIO 1.3, 2.7)', () => {
    expect([1, 256, 32768].map(ring.descriptorTableBytes)).toEqual([16, 4096, 524288]);
    expect([1, 256, 32768].map(ring.availRingBytes)).toEqual([8, 518, 65542]);
    expect([1, 256, 32768].map(ring.usedRingBytes)).toEqual([14, 2054, 262150]);
  });

  it('vhost-user takes bit 30 of the virtio features', () => {
    expect(reserved.VHOST_USER_F_PROTOCOL_FEATURES).toBe(30);
    expect(reserved.featureMask(30, 32)).toBe(0x1_4000_0000n);
    expect(reserved.hasFeature(0x1_4000_0000n, 32)).toBe(true);
    expect(reserved.hasFeature(0x1_4000_0000n, 31)).toBe(false);
  });
});
