import { once } from 'node:events';
import { describe, expect, it } from 'vitest';
import type { Endpoint } from '../../../../protocol/vhost-user/endpoint.ts';
import { BACKEND } from '../../../../protocol/vhost-user/messages.ts';
import { IoMappings } from '../../../../vmm-client/frontend/io-mappings.ts';
import { dump } from '../../../support/hex.ts';
import { FrontendBench, le64, mask } from './frontend-bench.ts';
import { type Script, u64 } from './scripted-backend.ts';

const bench = new FrontendBench();

/** PROTOCOL_FEATURES, VERSION_1, ACCESS_PLATFORM. */
const FEATURES = mask(30, 32, 33);
/** REPLY_ACK, BACKEND_REQ, CONFIGURE_MEM_SLOTS. */
const PROTOCOL = mask(3, 5, 15);
const MISS = 1;
const ACCESS_FAIL = 4;

const answer: Script['answer'] = (name) => (name === 'IOTLB_MSG' ? { payload: u64(0n) } : undefined);

/** With memory of two pages, mapped from 0x40000 on, and a running ring in it. */
const open = async (script: Partial<Script> = {}, options = {}) => {
  const { iommu, ...others } = { iommu: new IoMappings(), ...options };
  const defaults = { features: FEATURES, protocolFeatures: PROTOCOL, answer };
  const peers = await bench.connect({ ...defaults, ...script }, { iommu, ...others });
  const memory = bench.memory(0x3000, 0x1_0000_0000, 0x40000);
  await peers.frontend.acceptFeatures(mask(30, 32));
  await peers.frontend.setMemory([memory]);
  await peers.frontend.startVring(bench.ring(memory).vring);
  peers.backend.wire.length = 0;
  return { ...peers, iommu, memory };
};

/** Sends a miss or an access that failed; resolves with the code of the answer. */
const report = async (channel: Endpoint, iova: number | bigint, permission: number, type = MISS): Promise<string> => {
  const value = { iova: BigInt(iova), size: 0n, userAddress: 0n, permission, type };
  channel.sendRequest(BACKEND.IOTLB_MSG, value, { needReply: true });
  const reply = await channel.next();
  return dump(reply?.payload ?? new Uint8Array());
};

const DONE = le64(0);
const REFUSED = le64(1);

/** IOTLB_MSG as it is on the wire: iova, size, user address, permission, type, padding. */
const iotlb = (iova: number, size: number, user: number, permission: string, type: string) =>
  `IOTLB_MSG 1 ${le64(iova)}${le64(size)}${le64(user)}${permission}${type}000000000000`;

describe('behind an IOMMU', () => {
  it('the device gets ACCESS_PLATFORM, rings by IOVA, and regions by guest address', async () => {
    const { backend, frontend, memory } = await open();
    expect(frontend.features).toBe(FEATURES);
    expect(backend.last.get('SET_FEATURES')).toBe(FEATURES);
    expect(memory.guestAddress).toBe(0x40000);
    expect(backend.last.get('SET_MEM_TABLE')).toEqual([
      { guestAddress: 0x1_0000_0000, size: 0x3000, userAddress: memory.userAddress, mmapOffset: 0 },
    ]);
    expect(backend.last.get('SET_VRING_ADDR')).toMatchObject({
      descriptor: 0x40000,
      available: 0x41000,
      used: 0x42000,
    });
  });

  it('a miss is answered by the mapping, then acknowledged', async () => {
    const { backend, memory } = await open();
    const channel = bench.channel(backend);
    expect(await report(channel, 0x41234, 1)).toBe(DONE);
    expect(backend.wire).toEqual([iotlb(0x40000, 0x3000, memory.userAddress, '03', '02')]);
  });

  it('the acknowledgement of a miss does not wait for that of its update', async () => {
    const { backend } = await open({ ignore: ['IOTLB_MSG'], answer: () => undefined });
    expect(await report(bench.channel(backend), 0x40000, 3)).toBe(DONE);
  });

  it.each([
    ['where nothing is mapped', 0x3fff, 1],
    ['behind the end', 0x43000, 1],
    ['of what may not be written', 0x80000, 2],
    ['above what numbers can say', 0xffff_ffff_ffff_f000n, 1],
  ])('a miss %s is refused, and nothing is sent', async (_, iova, permission) => {
    const { backend, iommu } = await open();
    await iommu.map({ iova: 0x80000, size: 4096, userAddress: 0x7000_0000, permission: 1 });
    const channel = bench.channel(backend);
    expect(await report(channel, iova, permission)).toBe(REFUSED);
    expect(backend.wire).toEqual([]);
  });

  it('a mapping that was missed before it was made is told when it is', async () => {
    const { backend, iommu } = await open();
    const channel = bench.channel(backend);
    expect(await report(channel, 0x80fff, 2)).toBe(REFUSED);
    await iommu.map({ iova: 0x90000, size: 4096, userAddress: 0x7000_0000, permission: 3 });
    expect(backend.wire).toEqual([]);
    await iommu.map({ iova: 0x80000, size: 4096, userAddress: 0x7000_1000, permission: 2 });
    expect(backend.wire).toEqual([iotlb(0x80000, 4096, 0x7000_1000, '02', '02')]);
  });

  it('the end of a mapping is an invalidation that is waited for', async () => {
    let isAnswered = false;
    const { backend, iommu } = await open();
    await iommu.map({ iova: 0x80000, size: 4096, userAddress: 0x7000_0000, permission: 3 });
    backend.rewrite({
      answer: (name) => {
        isAnswered ||= name === 'IOTLB_MSG';
        return { payload: u64(0n) };
      },
    });
    expect(await iommu.unmap(0x80000, 4096)).toBe(1);
    expect(isAnswered).toBe(true);
    expect(backend.wire).toEqual([iotlb(0x80000, 4096, 0, '00', '03')]);
  });

  it('a back end that does not let go makes the unmapping fail, and is left', async () => {
    const { backend, frontend, iommu } = await open();
    const lost = once(frontend, 'lost');
    backend.rewrite({ answer: () => ({ payload: u64(22n) }) });
    await expect(iommu.unmap(0x40000, 0x3000)).rejects.toThrow(
      'IOTLB invalidation of 12288 bytes at 0x40000 was refused',
    );
    expect((await lost)[0].message).toContain('IOTLB invalidation of 12288 bytes at 0x40000 was refused');
  });

  it('so does one that does not answer: it lives and may use what it has', async () => {
    const { frontend, iommu } = await open({ ignore: ['IOTLB_MSG'], answer: () => undefined }, { timeoutMs: 300 });
    const lost = once(frontend, 'lost');
    await expect(iommu.unmap(0x40000, 0x3000)).rejects.toThrow('the back end did not answer IOTLB_MSG within 300 ms');
    await lost;
  });

  it('a refused update is reported', async () => {
    const { backend, frontend } = await open({
      answer: (name) => (name === 'IOTLB_MSG' ? { payload: u64(1n) } : undefined),
    });
    const refusal = once(frontend, 'refusal');
    expect(await report(bench.channel(backend), 0x40000, 3)).toBe(DONE);
    expect((await refusal)[0].message).toContain('IOTLB update of 12288 bytes at 0x40000 was refused');
  });

  it('a miss that nothing allows is a fault, which whoever plays the IOMMU hears of', async () => {
    const faults: string[] = [];
    const iommu = new IoMappings((iova, permission) => faults.push(`${iova.toString(16)} ${permission}`));
    await iommu.map({ iova: 0x80000, size: 4096, userAddress: 0x7000_0000, permission: 1 });
    const { backend } = await open({}, { iommu });
    const channel = bench.channel(backend);
    await report(channel, 0x40000, 3);
    await report(channel, 0x80000, 1);
    expect(faults).toEqual([]);
    await report(channel, 0x80000, 3);
    await report(channel, 0xffff_ffff_ffff_f000n, 2);
    expect(faults).toEqual(['80000 3', 'fffffffffffff000 2']);
  });

  it('an access that failed is noted', async () => {
    const { backend, frontend } = await open();
    const noted = once(frontend, 'accessFail');
    expect(await report(bench.channel(backend), 0x7777_0000, 2, ACCESS_FAIL)).toBe(DONE);
    expect(await noted).toEqual([{ iova: 0x7777_0000n, permission: 2 }]);
    expect(backend.wire).toEqual([]);
  });

  it('memory that is taken back is unmapped, and may come again', async () => {
    const { backend, frontend, iommu, memory } = await open();
    const added = bench.memory(4096, 0x2_0000_0000, 0x80000);
    await frontend.addMemory(added);
    expect(iommu.find(0x80fff)?.userAddress).toBe(added.userAddress);
    await frontend.removeMemory(added);
    expect(iommu.find(0x80fff)).toBeUndefined();
    expect(backend.wire.at(-1)).toBe(iotlb(0x80000, 4096, 0, '00', '03'));
    await frontend.takeBack(0);
    expect(iommu.count).toBe(0);
    await frontend.acceptFeatures(FEATURES);
    await frontend.setMemory([memory]);
    expect(iommu.count).toBe(1);
  });

  it('unmapping while the back end is away waits for nothing', async () => {
    const { backend, frontend, iommu } = await open({}, { reconnectMs: 5000 });
    await iommu.map({ iova: 0x80000, size: 4096, userAddress: 0x7000_0000, permission: 3 });
    const gone = once(frontend, 'disconnect');
    const back = once(frontend, 'reconnect');
    backend.die();
    await gone;
    await iommu.unmap(0x80000, 4096);
    await back;
    expect(backend.wire.filter((line) => line.startsWith('IOTLB'))).toEqual([]);
  });

  it('rings with I/O virtual addresses of their own are told as they are', async () => {
    const { backend, frontend, memory } = await open();
    const { vring } = bench.ring(memory, 1);
    const places = { descriptorTable: 0x1000, availRing: 0x2000, usedRing: 0x3000 };
    await frontend.startVring({ ...vring, ...places, hasIova: true });
    expect(backend.last.get('SET_VRING_ADDR')).toMatchObject({ descriptor: 0x1000, available: 0x2000, used: 0x3000 });
    await expect(frontend.startVring({ ...vring, availRing: 0x1234 })).rejects.toThrow('user address 0x1234');
  });

  it('a back end without ACCESS_PLATFORM is not taken', async () => {
    const { frontend } = await bench.connect({ features: mask(30, 32) }, { iommu: new IoMappings() });
    await expect(frontend.acceptFeatures(FEATURES)).rejects.toThrow('does not offer ACCESS_PLATFORM');
  });
});

it('without an IOMMU nobody gets ACCESS_PLATFORM, and misses are refused', async () => {
  const { backend, frontend } = await bench.connect({ features: FEATURES, protocolFeatures: PROTOCOL });
  expect(await frontend.acceptFeatures(FEATURES)).toBe(mask(30, 32));
  expect(await report(bench.channel(backend), 0x1000, 1)).toBe(REFUSED);
});
