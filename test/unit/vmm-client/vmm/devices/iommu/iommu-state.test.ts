import { describe, expect, it } from 'vitest';
import { VirtioIommu } from '../../../../../../vmm-client/vmm/devices/iommu/iommu.ts';
import { VmError } from '../../../../../../vmm-client/vmm/errors.ts';
import { WRITE } from '../../../../../support/frontend/raw-ring.ts';
import { RING_FEATURES } from '../local/local-bench.ts';
import { IOMMU_FEATURES, IommuBench, S } from './iommu-bench.ts';

const bench = new IommuBench();

/** RAM of the tests' guest: 4 MiB from here. */
const RAM = 0x1_4000_0000;

/** With endpoint 1 attached to domain 7. */
const attached = async (): Promise<void> => {
  await bench.start();
  expect(await bench.attach(7, 1)).toBe(S.ok);
};

describe('faults', () => {
  const offerBuffers = (): void => {
    const { ram, dataStart } = bench.guest;
    const ring = bench.guest.ring(1);
    for (let i = 0; i < 4; i++) {
      ring.setDescriptor(i, { address: ram.guest(dataStart + 64 * i), length: 24, flags: WRITE });
    }
    ring.publish(0, 1, 2, 3);
  };
  const reports = (): string[] => {
    const { ram, dataStart } = bench.guest;
    return bench.guest
      .ring(1)
      .harvest()
      .map(({ id, length }) =>
        Buffer.from(ram.bytes.slice(dataStart + 64 * id, dataStart + 64 * id + length)).toString('hex'),
      );
  };

  it('are reported with reason, flags, endpoint and address', async () => {
    await attached();
    await bench.device.writeConfig(36, Uint8Array.of(0), IOMMU_FEATURES);
    await bench.map(7, 0x1000, 0x1fff, RAM, 1);
    offerBuffers();
    const mappings = bench.iommu.endpoint(1);
    expect(mappings.grant(0x1fffn, 1)).toBeDefined();
    expect(mappings.grant(0x1fffn, 3)).toBeUndefined();
    expect(mappings.grant(0x8000n, 1)).toBeUndefined();
    expect(bench.iommu.endpoint(2).grant(0xffff_ffff_ffff_f000n, 2)).toBeUndefined();
    expect(reports()).toEqual([
      '02000000' + '03010000' + '01000000' + '00000000' + 'ff1f000000000000',
      '02000000' + '01010000' + '01000000' + '00000000' + '0080000000000000',
      '01000000' + '02010000' + '02000000' + '00000000' + '00f0ffffffffffff',
    ]);
    expect(bench.device.counters()).toMatchObject({ faults: 3, faults_dropped: 0 });
  });

  it('are dropped where no buffer waits for them', async () => {
    await attached();
    bench.iommu.endpoint(1).noteFault(0x1000n, 1);
    expect(bench.device.counters()).toMatchObject({ faults: 1, faults_dropped: 1 });
    offerBuffers();
    expect(reports()).toEqual([]);
  });
});

describe('bypass', () => {
  it('follows what the driver writes, and only 0 and 1', async () => {
    await bench.start();
    const write = (...bytes: number[]) => bench.device.writeConfig(36, Uint8Array.of(...bytes), IOMMU_FEATURES);
    await write(0);
    expect([bench.device.config[36], bench.reach(0, RAM)]).toEqual([0, undefined]);
    await write(2);
    expect(bench.device.config[36]).toBe(0);
    await write(1, 0);
    expect(bench.device.config[36]).toBe(0);
    await write(1);
    expect([bench.device.config[36], bench.reach(17, RAM)]).toEqual([1, { offset: 0, permission: 3 }]);
    await bench.device.writeConfig(36, Uint8Array.of(0), RING_FEATURES);
    await bench.device.writeConfig(0, Uint8Array.of(0), IOMMU_FEATURES);
    expect(Buffer.from(bench.device.config).toString('hex')).toMatch(/^00f0.*01000000$/);
  });

  it('stays over a reset of the device, and ends with one of the machine', async () => {
    await attached();
    await bench.device.writeConfig(36, Uint8Array.of(0), IOMMU_FEATURES);
    await bench.device.reset();
    expect([bench.device.config[36], bench.reach(1, RAM)]).toEqual([0, undefined]);
    await bench.iommu.systemReset();
    expect([bench.device.config[36], bench.reach(1, RAM)]).toEqual([1, { offset: 0, permission: 3 }]);
  });

  it('covers RAM that comes later, for those that are in bypass mode', async () => {
    await attached();
    const region = { guestAddress: 0x2_0000_0000, size: 0x1000, userAddress: 0x7000_0000_0000, mmapOffset: 0 };
    const added = { region, memfd: bench.guest.ram.fd };
    await bench.device.addMemory(added);
    expect(bench.iommu.endpoint(1).find(0x2_0000_0000)).toBeUndefined();
    expect(bench.iommu.endpoint(2).find(0x2_0000_0fff)?.userAddress).toBe(0x7000_0000_0000);
    await bench.device.removeMemory(added);
    expect(bench.iommu.endpoint(2).find(0x2_0000_0000)).toBeUndefined();
    expect(bench.lines).toEqual([]);
  });
});

describe('a state', () => {
  const other = async (state: unknown): Promise<void> => {
    bench.device.close();
    bench.create();
    await bench.device.restore(state, bench.activation(RING_FEATURES | IOMMU_FEATURES));
  };

  it('goes on elsewhere', async () => {
    await attached();
    await bench.device.writeConfig(36, Uint8Array.of(0), IOMMU_FEATURES);
    await bench.attach(9, 2, 1);
    await bench.attach(7, 5);
    await bench.map(7, 0x1000, 0x1fff, RAM + 0x3000, 1);
    await bench.map(7, 0x8000, 0xafff, RAM, 2);
    await other(await bench.device.suspend());
    for (const endpoint of [1, 5]) {
      expect(bench.reach(endpoint, 0x1fff)).toEqual({ offset: 0x3fff, permission: 1 });
      expect(bench.reach(endpoint, 0xafff)).toEqual({ offset: 0x2fff, permission: 2 });
    }
    expect([bench.reach(2, RAM), bench.reach(3, RAM)]).toEqual([{ offset: 0, permission: 3 }, undefined]);
    expect(bench.device.counters()).toMatchObject({ domains: 2, mappings: 2, attached_endpoints: 3 });
    expect(await bench.unmap(7, 0, 0xffff)).toBe(S.ok);
  });

  const domain = (fields: object) => ({
    bypass: true,
    domains: [{ id: 1, bypass: false, endpoints: [1], mappings: [], ...fields }],
  });
  it.each([
    [null, 'iommu: null: not an object'],
    [{ bypass: 1 }, 'iommu: bypass: 1: not true or false'],
    [{ bypass: true, domains: Array.from({ length: 19 }) }, 'iommu: domains: 19 elements, at most 18 are possible'],
    [domain({ id: 65536 }), 'iommu: id of a domain: 65536: not a whole number between 0 and 65535'],
    [domain({ endpoints: [18] }), 'iommu: domain 1: endpoint 18 cannot be attached to it'],
    [domain({ mappings: [0, 4096, RAM] }), 'iommu: domain 1: 3 numbers are no mappings'],
    [
      domain({ mappings: [0, 4096, 0x1000, 3] }),
      'iommu: domain 1: 4096 bytes at guest address 0x1000 for I/O address 0x0: that is not RAM',
    ],
    [
      domain({ mappings: [0, 4096, RAM, 3, 0, 4096, RAM, 3] }),
      'iommu: domain 1: 4096 bytes at guest address 0x140000000 for I/O address 0x0: that cannot be mapped',
    ],
    [domain({ mappings: [0, -1, RAM, 3] }), /^iommu: domain 1: mapping: -1: not a whole number/],
    [domain({ endpoints: [], mappings: [0, 4096, RAM, 3] }), /that cannot be mapped$/],
  ] as const)('that is none is refused: %j', async (state, complaint) => {
    bench.create();
    const refused = bench.device.restore({ queues: [], model: state }, undefined);
    await expect(refused).rejects.toThrow(VmError);
    await expect(refused).rejects.toThrow(complaint as string | RegExp);
  });
});

it('a mapping over two regions of RAM is one mapping, and two for back ends', async () => {
  const { ram } = bench.guest;
  const { memory, regions, hostAddress } = bench.guest.deviceMemory;
  const next = { guestAddress: RAM + ram.length, size: 0x2000, userAddress: 0x7f00_0000_0000, mmapOffset: 0 };
  const region = memory.add(next, ram.fd);
  bench.iommu = new VirtioIommu({
    ram: {
      memory,
      regions,
      hostAddress: (at, length) => (at < region.start ? hostAddress(at, length) : at - region.start + next.userAddress),
    },
    slot: 18,
    log: (line) => bench.lines.push(line),
  });
  bench.device = bench.open(bench.iommu);
  await bench.device.activate(bench.activation(RING_FEATURES | IOMMU_FEATURES));
  await bench.attach(7, 1);
  expect(await bench.map(7, 0x1000, 0x3fff, RAM + ram.length - 0x1000)).toBe(S.ok);
  expect(bench.reach(1, 0x1000)).toEqual({ offset: ram.length - 0x1000, permission: 3 });
  expect(bench.iommu.endpoint(1).find(0x2000)).toMatchObject({
    iova: 0x2000,
    size: 0x2000,
    userAddress: 0x7f00_0000_0000,
  });
  expect(await bench.unmap(7, 0x1000, 0x1fff)).toBe(S.range);
  expect(await bench.unmap(7, 0x1000, 0x3fff)).toBe(S.ok);
  expect(bench.iommu.endpoint(1).count).toBe(0);
  memory.remove(region);
});
