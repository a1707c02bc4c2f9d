import { describe, expect, it } from 'vitest';
import { MAX_MAPPINGS } from '../../../../../../vmm-client/vmm/devices/iommu/address-spaces.ts';
import { RING_FEATURES } from '../local/local-bench.ts';
import { IOMMU_FEATURES, IommuBench, NO_ANSWER, request, S } from './iommu-bench.ts';

const bench = new IommuBench();

/** RAM of the tests' guest: 4 MiB from here. */
const RAM = 0x1_4000_0000;

/** With endpoint 1 attached to domain 7. */
const attached = async (): Promise<void> => {
  await bench.start();
  expect(await bench.attach(7, 1)).toBe(S.ok);
};

it('is device 23 with a request and an event queue, and says what it can', async () => {
  bench.create();
  const { device } = bench;
  expect([device.deviceId, device.queueSizes.length, device.features]).toEqual([23, 2, RING_FEATURES | IOMMU_FEATURES]);
  // 4 KiB and larger; addresses of 48 bits; domains of 16 bits; 64 bytes of properties; bypass.
  expect(Buffer.from(device.config).toString('hex')).toBe(
    '00f0ffffffffffff' + '0000000000000000' + 'ffffffffffff0000' + '00000000' + 'ffff0000' + '40000000' + '01000000',
  );
});

describe('ATTACH', () => {
  it('makes a domain, in which nothing is mapped', async () => {
    await bench.start();
    expect(bench.reach(1, RAM + 0x5000)).toEqual({ offset: 0x5000, permission: 3 });
    expect(await bench.attach(7, 1)).toBe(S.ok);
    expect(bench.reach(1, RAM + 0x5000)).toBeUndefined();
    // The other endpoints go on as they were.
    expect(bench.reach(2, RAM)).toEqual({ offset: 0, permission: 3 });
    expect(bench.device.counters()).toMatchObject({ domains: 1, mappings: 0, attached_endpoints: 1 });
  });

  it('gives an endpoint what its domain has already', async () => {
    await attached();
    expect(await bench.map(7, 0x1000, 0x2fff, RAM + 0x8000)).toBe(S.ok);
    expect(await bench.map(7, 0x7000, 0x7fff, RAM)).toBe(S.ok);
    expect(await bench.attach(7, 3)).toBe(S.ok);
    expect(bench.reach(3, 0x2fff)).toEqual({ offset: 0x9fff, permission: 3 });
    expect(bench.reach(3, 0x7000)).toEqual({ offset: 0, permission: 3 });
  });

  it('of an endpoint of another domain detaches it there first', async () => {
    await attached();
    await bench.map(7, 0x1000, 0x1fff, RAM);
    expect(await bench.attach(8, 1)).toBe(S.ok);
    expect(bench.reach(1, 0x1000)).toBeUndefined();
    // Nothing is attached to domain 7 any more: it ceased to exist, with its mappings.
    expect(await bench.map(7, 0x1000, 0x1fff, RAM)).toBe(S.noent);
    expect(bench.device.counters()).toMatchObject({ domains: 1, mappings: 0 });
  });

  it('again to its own domain changes nothing', async () => {
    await attached();
    await bench.map(7, 0x1000, 0x1fff, RAM);
    expect(await bench.attach(7, 1)).toBe(S.ok);
    expect(bench.reach(1, 0x1000)).toEqual({ offset: 0, permission: 3 });
  });

  it('to a bypass domain reaches all of RAM, which cannot be mapped there', async () => {
    await bench.start();
    await bench.device.writeConfig(36, Uint8Array.of(0), IOMMU_FEATURES);
    expect(await bench.attach(9, 4, 1)).toBe(S.ok);
    expect(bench.reach(4, RAM + 0x3f_ffff)).toEqual({ offset: 0x3f_ffff, permission: 3 });
    expect(bench.reach(5, RAM)).toBeUndefined();
    expect(await bench.map(9, 0x1000, 0x1fff, RAM)).toBe(S.inval);
    expect(await bench.unmap(9, 0, 0xffff)).toBe(S.inval);
  });

  it.each([
    ['an unknown flag', [7, 1, 2], S.inval],
    ['a reserved field that is not zero', [7, 1, 0, 1], S.inval],
    ['an endpoint that does not exist', [7, 19], S.noent],
    ['the IOMMU itself as endpoint', [7, 18], S.noent],
    ['a domain out of range', [0x1_0000, 1], S.range],
    ['a bypass domain that exists and is none', [6, 1, 1], S.inval],
    ['a domain that exists and is a bypass domain', [5, 1], S.inval],
  ] as const)('of %s is refused', async (_, args, status) => {
    await bench.start();
    await bench.attach(6, 2);
    await bench.attach(5, 3, 1);
    expect(await bench.attach(...(args as [number, number]))).toBe(status);
    expect(bench.reach(1, RAM)).toEqual({ offset: 0, permission: 3 });
  });

  it('knows no bypass domains without BYPASS_CONFIG', async () => {
    await bench.start(RING_FEATURES | 0b1_0111n);
    expect(await bench.attach(7, 1, 1)).toBe(S.inval);
    expect(await bench.attach(7, 1, 0)).toBe(S.ok);
  });
});

describe('DETACH', () => {
  it('takes everything away; the endpoint is in bypass mode then', async () => {
    await attached();
    await bench.map(7, 0x1000, 0x1fff, RAM + 0x8000);
    expect(await bench.detach(7, 1)).toBe(S.ok);
    expect(bench.reach(1, 0x1000)).toBeUndefined();
    expect(bench.reach(1, RAM)).toEqual({ offset: 0, permission: 3 });
    expect(bench.device.counters()).toMatchObject({ domains: 0, mappings: 0, attached_endpoints: 0 });
  });

  it('leaves nothing where bypass is off', async () => {
    await attached();
    await bench.device.writeConfig(36, Uint8Array.of(0), IOMMU_FEATURES);
    expect(await bench.detach(7, 1)).toBe(S.ok);
    expect(bench.reach(1, RAM)).toBeUndefined();
  });

  it.each([
    ['an endpoint that does not exist', [7, 77], S.noent],
    ['a domain that does not exist', [8, 1], S.inval],
    ['another endpoint than those attached', [7, 2], S.inval],
  ] as const)('of %s is refused', async (_, [domain, endpoint], status) => {
    await attached();
    expect(await bench.detach(domain, endpoint)).toBe(status);
    expect(bench.device.counters()).toMatchObject({ attached_endpoints: 1 });
  });
});

describe('MAP', () => {
  it.each([
    [1, 'read'],
    [2, 'written'],
    [3, 'read and written'],
  ])('with flags %i lets a range be %s', async (flags) => {
    await attached();
    expect(await bench.map(7, 0xffff_ffff_f000, 0xffff_ffff_ffff, RAM + 0x1000, flags)).toBe(S.ok);
    expect(bench.reach(1, 0xffff_ffff_ffff)).toEqual({ offset: 0x1fff, permission: flags });
  });

  it.each([
    ['of no flags', [7, 0x1000, 0x1fff, RAM, 0], S.inval],
    ['of the MMIO flag, which was not offered', [7, 0x1000, 0x1fff, RAM, 7], S.inval],
    ['of an unknown flag', [7, 0x1000, 0x1fff, RAM, 0x8000_0003], S.inval],
    ['that ends before it begins', [7, 0x2000, 0xfff, RAM], S.inval],
    ['whose start is no page', [7, 0x1800, 0x1fff, RAM], S.range],
    ['whose end is no page', [7, 0x1000, 0x1ffe, RAM], S.range],
    ['of one byte', [7, 0x1000, 0x1000, RAM], S.range],
    ['to where no page is', [7, 0x1000, 0x1fff, RAM + 8], S.range],
    ['above the input range', [7, 0x1_0000_0000_0000n, 0x1_0000_0000_0fffn, RAM], S.range],
    ['to the end of all addresses', [7, 0x1000, 0xffff_ffff_ffff_ffffn, RAM], S.range],
    ['of all addresses', [7, 0, 0xffff_ffff_ffff_ffffn, 0], S.range],
    ['in a domain out of range', [0xffff_ffff, 0x1000, 0x1fff, RAM], S.range],
    ['in a domain that does not exist', [8, 0x1000, 0x1fff, RAM], S.noent],
    ['to where no RAM is', [7, 0x1000, 0x1fff, 0xd000_0000], S.fault],
    ['that begins before RAM', [7, 0x1000, 0x2fff, RAM - 0x1000], S.fault],
    ['that ends behind RAM', [7, 0x1000, 0x2fff, RAM + 0x3f_f000], S.fault],
    ['that wraps', [7, 0x1000, 0x2fff, 0xffff_ffff_ffff_f000n], S.fault],
    ['to 2^53', [7, 0x1000, 0x1fff, 0x20_0000_0000_0000n], S.fault],
    ['of what is mapped already', [7, 0x10000, 0x10fff, RAM], S.inval],
    ['that begins in what is mapped', [7, 0x12000, 0x15fff, RAM], S.inval],
    ['that ends in what is mapped', [7, 0xf000, 0x10fff, RAM], S.inval],
    ['over what is mapped', [7, 0x1000, 0x1ffff, RAM], S.inval],
  ] as const)('%s is refused', async (_, args, status) => {
    await attached();
    await bench.map(7, 0x10000, 0x12fff, RAM);
    expect(await bench.map(...(args as unknown as [number, number, number, number, number]))).toBe(status);
    expect(bench.device.counters()).toMatchObject({ mappings: 1 });
    expect(bench.iommu.endpoint(1).count).toBe(1);
  });

  it('ends at a limit for all domains together', async () => {
    await attached();
    const state = {
      bypass: true,
      domains: [
        {
          id: 1,
          bypass: false,
          endpoints: [1],
          mappings: Array.from({ length: MAX_MAPPINGS - 1 }, (_, i) => [i * 8192, 4096, RAM, 3]).flat(),
        },
        { id: 2, bypass: false, endpoints: [2], mappings: [] },
      ],
    };
    const suspended = (await bench.device.suspend()) as object;
    bench.create();
    await bench.device.restore({ ...suspended, model: state }, bench.activation(RING_FEATURES | IOMMU_FEATURES));
    expect(await bench.map(2, 0x1000, 0x1fff, RAM)).toBe(S.ok);
    expect(await bench.map(2, 0x2000, 0x2fff, RAM)).toBe(S.nomem);
    expect(await bench.map(1, 0x1000, 0x1fff, RAM)).toBe(S.nomem);
    expect(await bench.unmap(2, 0x1000, 0x1fff)).toBe(S.ok);
    expect(await bench.map(1, 0x1000, 0x1fff, RAM)).toBe(S.ok);
    expect(await bench.detach(1, 1)).toBe(S.ok);
    expect(bench.device.counters()).toMatchObject({ mappings: 0 });
  });
});

describe('UNMAP', () => {
  // The seven sequences of 5.13.6.6, in pages; what is mapped afterwards.
  const page = 0x1000;
  it.each([
    [1, [], [0, 4], S.ok, []],
    [2, [[0, 9]], [0, 9], S.ok, []],
    [
      3,
      [
        [0, 4],
        [5, 9],
      ],
      [0, 9],
      S.ok,
      [],
    ],
    [4, [[0, 9]], [0, 4], S.range, [0, 9]],
    [
      5,
      [
        [0, 4],
        [5, 9],
      ],
      [0, 4],
      S.ok,
      [5, 9],
    ],
    [6, [[0, 4]], [0, 9], S.ok, []],
    [
      7,
      [
        [0, 4],
        [10, 14],
      ],
      [0, 14],
      S.ok,
      [],
    ],
  ] as const)('sequence %i of the standard', async (_, maps, [from, to], status, left) => {
    await attached();
    for (const [first, last] of maps) expect(await bench.map(7, first * page, (last + 1) * page - 1, RAM)).toBe(S.ok);
    expect(await bench.unmap(7, from * page, (to + 1) * page - 1)).toBe(status);
    const seen = Array.from({ length: 15 }, (_, n) => n).filter((n) => bench.reach(1, n * page) !== undefined);
    expect([seen[0], seen.at(-1)].filter((n) => n !== undefined)).toEqual([...left]);
  });

  it('that cuts the second of two mappings removes neither', async () => {
    await attached();
    await bench.map(7, 0, 0xfff, RAM);
    await bench.map(7, 0x1000, 0x2fff, RAM);
    expect(await bench.unmap(7, 0, 0x1fff)).toBe(S.range);
    expect(bench.iommu.endpoint(1).count).toBe(2);
    expect(await bench.unmap(7, 0, 0xffff_ffff_ffff_ffffn)).toBe(S.ok);
    expect(bench.iommu.endpoint(1).count).toBe(0);
  });

  it.each([
    ['in a domain that does not exist', [8, 0, 0xfff], S.noent],
    ['in a domain out of range', [0x1_0000, 0, 0xfff], S.range],
    ['that ends before it begins', [7, 0x1000, 0xfff], S.inval],
    ['above the input range, where nothing is', [7, 0x1_0000_0000_0000n, 0xffff_ffff_ffff_ffffn], S.ok],
  ] as const)('%s', async (_, args, status) => {
    await attached();
    await bench.map(7, 0, 0xfff, RAM);
    expect(await bench.unmap(...(args as unknown as [number, number, number]))).toBe(status);
    expect(bench.iommu.endpoint(1).count).toBe(1);
  });

  it('is answered when every device in the domain has let go', async () => {
    await attached();
    await bench.attach(7, 2);
    await bench.map(7, 0x1000, 0x1fff, RAM);
    let letGo = (): void => undefined;
    const heard: string[] = [];
    const listener = (name: string, gone: Promise<void>) => ({
      mapped: async () => void heard.push(`${name} mapped`),
      unmapped: async (iova: number, size: number) => {
        heard.push(`${name} ${iova} ${size}`);
        await gone;
      },
    });
    const slow = new Promise<void>((resolve) => {
      letGo = resolve;
    });
    bench.iommu.endpoint(1).listen(listener('one', Promise.resolve()));
    bench.iommu.endpoint(2).listen(listener('two', slow));
    let isAnswered = false;
    const answer = bench.unmap(7, 0, 0x3fff).finally(() => {
      isAnswered = true;
    });
    while (heard.length < 2) await new Promise((resolve) => setImmediate(resolve));
    await new Promise((resolve) => setImmediate(resolve));
    expect(isAnswered).toBe(false);
    letGo();
    expect(await answer).toBe(S.ok);
    expect(heard).toEqual(['one 0 16384', 'two 0 16384']);
  });

  it('says so when a device does not let go', async () => {
    await attached();
    await bench.map(7, 0x1000, 0x1fff, RAM);
    bench.iommu.endpoint(1).listen({
      mapped: async () => undefined,
      unmapped: () => Promise.reject(new Error('it holds on to it')),
    });
    expect(await bench.unmap(7, 0x1000, 0x1fff)).toBe(S.deverr);
    expect(bench.lines).toEqual(['iommu: endpoint 1: it holds on to it']);
    expect(await bench.map(7, 0x1000, 0x1fff, RAM)).toBe(S.ok);
  });
});

describe('PROBE', () => {
  const probe = (endpoint: number) => request(5, 72, [[4, endpoint]]);

  it('finds no properties', async () => {
    await bench.start();
    expect(await bench.run(probe(3), 68)).toEqual(new Uint8Array(68));
    expect(await bench.run(probe(3), 200)).toEqual(new Uint8Array(68));
  });

  it.each([
    ['of an endpoint that does not exist', 20, 68, S.noent, 68],
    ['without room for all properties', 3, 67, S.inval, 67],
    ['without room for any', 3, 4, S.inval, 4],
  ])('%s is refused', async (_, endpoint, room, status, length) => {
    await bench.start();
    const answer = await bench.run(probe(endpoint), room);
    expect([answer.length, answer[answer.length - 4]]).toEqual([length, status]);
  });
});

describe('a request that nobody understands', () => {
  it.each([
    ['of type 0', request(0, 20, [])],
    ['of type 6', request(6, 64, [])],
    ['of type 255', request(255, 64, [])],
    ['without a byte', new Uint8Array(0)],
    ['a short ATTACH', request(1, 19, [])],
    ['a short DETACH', request(2, 19, [])],
    ['a short MAP', request(3, 35, [])],
    ['a short UNMAP', request(4, 27, [])],
    ['a short PROBE', request(5, 71, [])],
  ])('goes back as it came: %s', async (_, bytes) => {
    await bench.start();
    expect(await bench.ask(bytes, 100)).toBe(NO_ANSWER);
  });

  it('goes back as it came: without room for a status', async () => {
    await bench.start();
    for (const room of [0, 1, 3]) expect(await bench.ask(request(2, 20, []), room)).toBe(NO_ANSWER);
  });

  it('goes back as it came: MAP, UNMAP and PROBE of a driver that did not accept them', async () => {
    await bench.start(RING_FEATURES);
    expect(await bench.attach(7, 1)).toBe(S.ok);
    expect(await bench.map(7, 0, 0xfff, RAM)).toBe(NO_ANSWER);
    expect(await bench.unmap(7, 0, 0xfff)).toBe(NO_ANSWER);
    expect(await bench.ask(request(5, 72, []), 68)).toBe(NO_ANSWER);
  });

  it('may be longer than its type', async () => {
    await bench.start();
    expect(await bench.ask(request(1, 100, [[4, 7]]))).toBe(S.ok);
  });
});
