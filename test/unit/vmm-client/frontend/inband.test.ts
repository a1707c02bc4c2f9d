import { once } from 'node:events';
import { describe, expect, it } from 'vitest';
import { Notifier } from '../../../../protocol/sys/notifier.ts';
import { BACKEND } from '../../../../protocol/vhost-user/messages.ts';
import { DEFAULT_PROTOCOL_FEATURES, USABLE_PROTOCOL_FEATURES } from '../../../../vmm-client/frontend/negotiation.ts';
import { takeEvent, waitReadable } from '../../../support/frontend/descriptors.ts';
import { eventually } from '../../../support/frontend/process-probe.ts';
import { dump } from '../../../support/hex.ts';
import { FrontendBench, le64, mask } from './frontend-bench.ts';
import { type Script, u64 } from './scripted-backend.ts';

const bench = new FrontendBench();
const FEATURES = mask(30, 32);
/** REPLY_ACK, BACKEND_REQ, INBAND_NOTIFICATIONS. */
const PROTOCOL = mask(3, 5, 14);

const open = async (script: Partial<Script> = {}, options = {}) => {
  const peers = await bench.connect(
    { features: FEATURES, protocolFeatures: PROTOCOL, ...script },
    { protocolFeatures: USABLE_PROTOCOL_FEATURES, ...options },
  );
  const memory = bench.memory();
  await peers.frontend.acceptFeatures(FEATURES);
  await peers.frontend.setMemory([memory]);
  peers.backend.wire.length = 0;
  const ring = bench.ring(memory, 1);
  await peers.frontend.startVring(ring.vring, 0x8005_8005);
  // A driver signals its own descriptor and closes it with the notifier.
  const kicker = bench.keep(new Notifier(ring.kick.duplicate()));
  return { ...peers, memory, ring, kicker };
};

const kicks = (wire: readonly string[]) => wire.filter((line) => line === 'VRING_KICK 9 0100000000000000').length;

describe('notifications in band', () => {
  it('start a ring by a kick that is a message, and give no descriptors', async () => {
    const { backend } = await open();
    expect(backend.wire.map((line) => line.split(' ')[0])).toEqual([
      'SET_VRING_NUM',
      'SET_VRING_BASE',
      'SET_VRING_ADDR',
      'SET_VRING_ENABLE',
      'VRING_KICK',
    ]);
    expect(kicks(backend.wire)).toBe(1);
    // All 32 bits of a packed ring's base.
    expect(backend.wire[1]).toBe('SET_VRING_BASE 9 0100000005800580');
  });

  it('carry what the driver writes to its kick descriptor', async () => {
    const { backend, kicker } = await open();
    kicker.signal();
    await eventually(
      'kicks',
      () => kicks(backend.wire),
      (count) => count === 2,
    );
    kicker.signal();
    await eventually(
      'kicks',
      () => kicks(backend.wire),
      (count) => count === 3,
    );
  });

  it('make one of kicks that come while one waits for its acknowledgement', async () => {
    const { backend, kicker, frontend } = await open();
    for (let i = 0; i < 10; i++) kicker.signal();
    await eventually(
      'kicks',
      () => kicks(backend.wire),
      (count) => count === 2,
    );
    await frontend.readConfig(0, 4);
    expect(kicks(backend.wire)).toBe(2);
  });

  it('write calls and errors to the descriptors of the driver', async () => {
    const { backend, ring } = await open();
    const channel = bench.channel(backend);
    channel.sendRequest(BACKEND.VRING_CALL, { index: 1, num: 0 }, { needReply: true });
    expect(dump((await channel.next())?.payload ?? new Uint8Array())).toBe(le64(0));
    await waitReadable(ring.call, 5000, 'call');
    expect(takeEvent(ring.error)).toBe(0n);
    channel.sendRequest(BACKEND.VRING_ERR, { index: 1, num: 0 }, { needReply: true });
    expect(dump((await channel.next())?.payload ?? new Uint8Array())).toBe(le64(0));
    await waitReadable(ring.error, 5000, 'error');
    channel.sendRequest(BACKEND.VRING_CALL, { index: 0, num: 0 }, { needReply: true });
    expect(dump((await channel.next())?.payload ?? new Uint8Array())).toBe(le64(1));
  });

  it('do not start again what was stopped', async () => {
    const { backend, frontend, kicker } = await open();
    await frontend.stopVring(1);
    kicker.signal();
    await frontend.readConfig(0, 4);
    expect(kicks(backend.wire)).toBe(1);
  });

  it('go on with a back end that comes back', async () => {
    const { backend, frontend, kicker } = await open({}, { reconnectMs: 5000 });
    const gone = once(frontend, 'disconnect');
    const back = once(frontend, 'reconnect');
    backend.die();
    await gone;
    kicker.signal();
    backend.wire.length = 0;
    await back;
    // The one that starts the ring, and the one that the driver made meanwhile.
    await eventually(
      'kicks',
      () => kicks(backend.wire),
      (count) => count >= 1,
    );
    kicker.signal();
    await eventually(
      'kicks',
      () => kicks(backend.wire),
      (count) => count >= 2,
    );
  });

  it('report a kick that was refused', async () => {
    const { backend, frontend, kicker } = await open();
    backend.rewrite({ answer: (name) => (name === 'VRING_KICK' ? { payload: u64(1n) } : undefined) });
    const refusal = once(frontend, 'refusal');
    kicker.signal();
    expect((await refusal)[0].message).toContain('VRING_KICK was refused');
  });
});

describe('notifications in band are not negotiated', () => {
  it.each([
    ['unless asked for', PROTOCOL, DEFAULT_PROTOCOL_FEATURES, mask(3, 5)],
    ['without a request channel', mask(3, 14), USABLE_PROTOCOL_FEATURES, mask(3)],
    ['without acknowledgements', mask(5, 14), USABLE_PROTOCOL_FEATURES, mask(5)],
  ])('%s', async (_, offered, protocolFeatures, accepted) => {
    const { frontend } = await bench.connect({ features: FEATURES, protocolFeatures: offered }, { protocolFeatures });
    expect(frontend.capabilities.protocolFeatures).toBe(accepted);
  });
});
