import { once } from 'node:events';
import { describe, expect, it } from 'vitest';
import { FrontendBench, le64, mask } from './frontend-bench.ts';
import { type Script, u64 } from './scripted-backend.ts';

const bench = new FrontendBench();
const FEATURES = mask(30, 32);
/** REPLY_ACK, RESET_DEVICE, STATUS. */
const PROTOCOL = mask(3, 13, 16);

const open = async (script: Partial<Script> = {}, options = {}) => {
  let status = 0n;
  const answer: Script['answer'] = (name, payload) => {
    if (name === 'SET_STATUS') status = Buffer.from(payload).readBigUInt64LE();
    return name === 'GET_STATUS' ? { payload: u64(status) } : undefined;
  };
  const peers = await bench.connect({ features: FEATURES, protocolFeatures: PROTOCOL, answer, ...script }, options);
  return { ...peers, memory: bench.memory() };
};

const about = (wire: readonly string[]) => wire.filter((line) => /STATUS|RESET|KICK|SET_FEATURES/.test(line));

/** ACKNOWLEDGE, DRIVER and FEATURES_OK; with DRIVER_OK. */
const NEGOTIATED = [`SET_FEATURES 9 ${le64(FEATURES)}`, `SET_STATUS 9 ${le64(11)}`, 'GET_STATUS 1'];
const READY = `SET_STATUS 9 ${le64(15)}`;

describe('the device status', () => {
  it('says FEATURES_OK, sees whether it stays, and DRIVER_OK after all rings', async () => {
    const { backend, frontend, memory } = await open();
    await frontend.acceptFeatures(FEATURES);
    await frontend.setMemory([memory]);
    const rings = [bench.ring(memory, 0), bench.ring(memory, 1)];
    await frontend.startVrings(rings.map(({ vring }) => ({ vring, base: 0 })));
    const kick = (index: number) => `SET_VRING_KICK 9 ${le64(index)}`;
    expect(about(backend.wire)).toEqual([...NEGOTIATED, kick(0), kick(1), READY]);
    await frontend.acceptFeatures(FEATURES);
    await frontend.startVring(bench.ring(memory, 2).vring);
    expect(about(backend.wire).slice(6)).toEqual([`SET_FEATURES 9 ${le64(FEATURES)}`, kick(2)]);
  });

  it('is 0 after a reset, and begins anew', async () => {
    const { backend, frontend, memory } = await open();
    await frontend.acceptFeatures(FEATURES);
    await frontend.setMemory([memory]);
    await frontend.startVring(bench.ring(memory).vring);
    backend.wire.length = 0;
    await frontend.takeBack(0);
    expect(about(backend.wire)).toEqual(['RESET_DEVICE 9', `SET_STATUS 9 ${le64(0)}`]);
    await frontend.acceptFeatures(FEATURES);
    expect(about(backend.wire).slice(2)).toEqual(NEGOTIATED);
  });

  it('resets where there is no RESET_DEVICE', async () => {
    const { backend, frontend } = await open({ protocolFeatures: mask(3, 16) });
    await frontend.resetDevice();
    expect(about(backend.wire)).toEqual([`SET_STATUS 9 ${le64(0)}`]);
  });

  it('tells when the device does not accept the features', async () => {
    const { frontend } = await open({ answer: (name) => (name === 'GET_STATUS' ? { payload: u64(3n) } : undefined) });
    await expect(frontend.acceptFeatures(FEATURES)).rejects.toThrow('does not accept its features (status 0x3)');
    expect(frontend.features).toBe(0n);
  });

  it('is told again to a back end that comes back', async () => {
    const { backend, frontend, memory } = await open({}, { reconnectMs: 5000 });
    await frontend.acceptFeatures(FEATURES);
    await frontend.setMemory([memory]);
    await frontend.startVring(bench.ring(memory).vring);
    backend.wire.length = 0;
    const back = once(frontend, 'reconnect');
    backend.die();
    await back;
    expect(about(backend.wire)).toEqual([...NEGOTIATED, `SET_VRING_KICK 9 ${le64(0)}`, READY]);
  });
});

it('announces an address', async () => {
  const { backend, frontend } = await open({ protocolFeatures: mask(2, 3) });
  expect(await frontend.announce(Uint8Array.of(0x52, 0x54, 0, 0x12, 0x34, 0x56))).toBe(true);
  expect(backend.wire.at(-1)).toBe('SEND_RARP 9 5254001234560000');
});

it('announces nothing where the back end cannot', async () => {
  const { backend, frontend } = await open();
  expect(await frontend.announce(new Uint8Array(6))).toBe(false);
  expect(backend.log).not.toContain('SEND_RARP');
});
