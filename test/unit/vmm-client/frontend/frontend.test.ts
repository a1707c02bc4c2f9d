import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { createEventFd, OwnedFd } from '../../../../protocol/sys/owned-fd.ts';
import { UnixStream } from '../../../../protocol/sys/unix-socket.ts';
import { Endpoint } from '../../../../protocol/vhost-user/endpoint.ts';
import { PeerError, ProtocolError } from '../../../../protocol/vhost-user/errors.ts';
import { BACKEND } from '../../../../protocol/vhost-user/messages.ts';
import { featureMask } from '../../../../protocol/virtio/reserved-features.ts';
import { type FrontendOptions, VhostUserFrontend } from '../../../../vmm-client/frontend/frontend.ts';
import { SharedMemory } from '../../../../vmm-client/frontend/shared-memory.ts';
import type { Vring } from '../../../../vmm-client/frontend/vring.ts';
import { countOwnFds } from '../../../support/frontend/process-probe.ts';
import { type Script, ScriptedBackend } from './scripted-backend.ts';

const FEATURES = featureMask(5, 30, 32);
/** MQ, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS. */
const PROTOCOL_FEATURES = featureMask(0, 3, 5, 9, 12, 13, 15);
const NEGOTIATION = [
  'GET_FEATURES',
  'GET_PROTOCOL_FEATURES',
  'SET_PROTOCOL_FEATURES',
  'GET_QUEUE_NUM',
  'GET_MAX_MEM_SLOTS',
  'SET_OWNER',
  'SET_BACKEND_REQ_FD+1',
];
const VRING = [
  'SET_VRING_NUM',
  'SET_VRING_BASE',
  'SET_VRING_ADDR',
  'SET_VRING_CALL+1',
  'SET_VRING_KICK+1',
  'SET_VRING_ERR',
  'SET_VRING_ENABLE',
];

let directory: string;
let path: string;
let backend: ScriptedBackend | undefined;
let frontend: VhostUserFrontend | undefined;
let fdsBefore: number;
let memories: SharedMemory[];
let vringFds: OwnedFd[];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'ringside-frontend-'));
  path = join(directory, 'socket');
  memories = [];
  vringFds = [];
  fdsBefore = countOwnFds();
});

afterEach(() => {
  frontend?.close();
  backend?.close();
  for (const memory of memories) memory.close();
  for (const fd of vringFds) fd.close();
  frontend = undefined;
  backend = undefined;
  rmSync(directory, { recursive: true, force: true });
});

async function connect(script: Partial<Script> = {}, options: FrontendOptions = {}) {
  backend = new ScriptedBackend(path, { features: FEATURES, protocolFeatures: PROTOCOL_FEATURES, ...script });
  frontend = await VhostUserFrontend.connect(path, options);
  return { backend, frontend };
}

function createMemory(index = 0): SharedMemory {
  const memory = new SharedMemory(65536, 0x1_0000_0000 + index * 65536);
  memories.push(memory);
  return memory;
}

function createVring(resume: Vring['resume'] = () => 0): { vring: Vring; notified: () => number } {
  const [kick, call] = [createEventFd(), createEventFd()];
  vringFds.push(kick, call);
  let notifications = 0;
  const vring: Vring = {
    index: 1,
    size: 8,
    descriptorTable: 0x7000_1000,
    availRing: 0x7000_2000,
    usedRing: 0x7000_3000,
    kick,
    call,
    error: undefined,
    resume,
    notify: () => {
      notifications += 1;
    },
  };
  return { vring, notified: () => notifications };
}

describe('negotiation', () => {
  it('asks and tells in the order of QEMU', async () => {
    const { backend, frontend } = await connect();
    expect(backend.log).toEqual(NEGOTIATION);
    expect(frontend.capabilities).toEqual({
      features: FEATURES,
      offeredProtocolFeatures: PROTOCOL_FEATURES,
      protocolFeatures: PROTOCOL_FEATURES,
      queueCount: 4,
      maxMemorySlots: 12,
    });
  });

  it('accepts nothing that it does not know', async () => {
    const { backend } = await connect({ protocolFeatures: PROTOCOL_FEATURES | featureMask(14, 17, 20, 63) });
    expect(backend.last.get('SET_PROTOCOL_FEATURES')).toBe(PROTOCOL_FEATURES);
  });

  it('does without protocol features', async () => {
    const { backend, frontend } = await connect({ features: featureMask(5, 32) });
    await frontend.acceptFeatures(featureMask(5, 6, 30, 32));
    expect(backend.log).toEqual(['GET_FEATURES', 'SET_OWNER', 'SET_FEATURES', 'GET_FEATURES']);
    expect(backend.last.get('SET_FEATURES')).toBe(featureMask(5, 32));
  });

  it('leaves no descriptor open when it fails', async () => {
    backend = new ScriptedBackend(path, { ...{ features: FEATURES, ignore: ['GET_PROTOCOL_FEATURES'] } });
    const listening = countOwnFds();
    await expect(VhostUserFrontend.connect(path, { timeoutMs: 50 })).rejects.toThrow(PeerError);
    backend.die();
    expect(countOwnFds()).toBe(listening);
  });
});

describe('handing over', () => {
  it('sends a ring in order, enabled last, and kicks once', async () => {
    const { backend, frontend } = await connect();
    await frontend.acceptFeatures(FEATURES);
    backend.log.length = 0;
    const { vring, notified } = createVring();
    await frontend.startVring(vring, 5);
    expect(backend.log).toEqual(VRING);
    expect(backend.last.get('SET_VRING_BASE')).toEqual({ index: 1, num: 5 });
    expect(backend.last.get('SET_VRING_ERR')).toEqual({ index: 1, noFd: true });
    expect(backend.last.get('SET_VRING_ADDR')).toMatchObject({ descriptor: 0x7000_1000, used: 0x7000_3000 });
    expect(notified()).toBe(1);
    expect(await frontend.stopVring(1)).toBe(77);
  });

  it('sends memory as a table, and single regions beyond its eight', async () => {
    const { backend, frontend } = await connect();
    backend.log.length = 0;
    const regions = Array.from({ length: 9 }, (_, i) => createMemory(i));
    await frontend.setMemory(regions.slice(0, 2));
    await frontend.setMemory(regions);
    expect(backend.log).toEqual(['SET_MEM_TABLE+2', 'SET_MEM_TABLE+8', 'ADD_MEM_REG+1']);
  });

  it('adds and removes single regions', async () => {
    const { backend, frontend } = await connect();
    const [first, second] = [createMemory(0), createMemory(1)];
    await frontend.setMemory([first]);
    backend.log.length = 0;
    await frontend.addMemory(second);
    await frontend.removeMemory(first);
    expect(backend.log).toEqual(['ADD_MEM_REG+1', 'REM_MEM_REG']);
    expect(backend.last.get('REM_MEM_REG')).toEqual(first.region);
  });

  it('sends a new table where single regions are not offered', async () => {
    const { backend, frontend } = await connect({ protocolFeatures: featureMask(3) });
    const [first, second] = [createMemory(0), createMemory(1)];
    await frontend.setMemory([first]);
    await frontend.addMemory(second);
    expect(backend.log.filter((name) => name.startsWith('SET_MEM'))).toEqual(['SET_MEM_TABLE+1', 'SET_MEM_TABLE+2']);
  });

  it('refuses more regions than the back end has slots', async () => {
    const { frontend } = await connect();
    const regions = Array.from({ length: 13 }, (_, i) => createMemory(i));
    await expect(frontend.setMemory(regions)).rejects.toThrow(
      '13 memory regions are needed, the back end has 12 slots',
    );
  });

  it('does not keep what the back end refused', async () => {
    const { frontend } = await connect({ refuse: ['SET_MEM_TABLE'] });
    await expect(frontend.setMemory([createMemory()])).rejects.toThrow('SET_MEM_TABLE was refused by the back end');
    // The connection is as good as before.
    await frontend.acceptFeatures(FEATURES);
  });
});

describe('a peer that does wrong', () => {
  it('by not answering rejects everything that waits, at the deadline', async () => {
    const { frontend } = await connect({ ignore: ['SET_FEATURES', 'GET_CONFIG'] }, { timeoutMs: 50 });
    const lost = once(frontend, 'lost');
    const waiting = [frontend.acceptFeatures(FEATURES), frontend.readConfig(0, 8)];
    const results = await Promise.allSettled(waiting);
    expect(results.map((result) => result.status === 'rejected' && result.reason)).toEqual([
      expect.any(PeerError),
      expect.any(PeerError),
    ]);
    expect(await lost).toEqual([expect.objectContaining({ message: expect.stringContaining('SET_FEATURES') })]);
    await expect(frontend.readConfig(0, 8)).rejects.toThrow(PeerError);
  });

  it('by answering another question is a protocol error', async () => {
    const { frontend } = await connect({ mislabel: ['GET_CONFIG'] });
    await expect(frontend.readConfig(0, 8)).rejects.toThrow(ProtocolError);
    expect(frontend.isConnected).toBe(false);
  });

  it('by going away rejects what waits', async () => {
    const { backend, frontend } = await connect({ ignore: ['GET_CONFIG'] });
    const reading = frontend.readConfig(0, 8);
    setImmediate(() => backend.die());
    await expect(reading).rejects.toThrow('closed the connection instead of answering GET_CONFIG');
  });

  it('by refusing to read the configuration is told so, and goes on', async () => {
    const { frontend } = await connect({ refuse: ['GET_CONFIG'] });
    await expect(frontend.readConfig(8, 4)).rejects.toThrow('refuses to read 4 bytes of configuration at 8');
    expect(frontend.isConnected).toBe(true);
  });
});

describe('the request channel', () => {
  function openChannel(backend: ScriptedBackend): Endpoint {
    const fd = backend.channel?.take() ?? -1;
    backend.channel = undefined;
    return new Endpoint(new UnixStream(new OwnedFd(fd)));
  }

  it('delivers changes of the configuration and acknowledges them', async () => {
    const { backend, frontend } = await connect();
    const channel = openChannel(backend);
    const changed = once(frontend, 'configChange');
    channel.sendRequest(BACKEND.CONFIG_CHANGE_MSG, undefined, { needReply: true });
    await changed;
    expect((await channel.next())?.payload).toEqual(new Uint8Array(8));
    channel.close();
  });

  it('refuses everything else', async () => {
    const { backend } = await connect();
    const channel = openChannel(backend);
    channel.sendRequest(BACKEND.VRING_CALL, { index: 0, num: 0 }, { needReply: true });
    expect((await channel.next())?.payload[0]).toBe(1);
    channel.close();
  });

  it('may break without the connection', async () => {
    const { backend, frontend } = await connect();
    const fault = once(frontend, 'channelFault');
    const stream = new UnixStream(new OwnedFd(backend.channel?.take() ?? -1));
    stream.send(new Uint8Array(12).fill(0xff));
    await fault;
    stream.close();
    expect((await frontend.readConfig(0, 4)).length).toBe(4);
  });
});

describe('a back end that comes back', () => {
  it('gets everything again, in order, and the in-flight region before the rings', async () => {
    const { backend, frontend } = await connect({}, { reconnectMs: 5000 });
    const resumed: boolean[] = [];
    const { vring, notified } = createVring((keepsInflight) => {
      resumed.push(keepsInflight);
      return 9;
    });
    await frontend.acceptFeatures(FEATURES);
    await frontend.setMemory([createMemory()]);
    expect(await frontend.trackInflight(2, 8)).toBe(true);
    await frontend.startVring(vring);
    backend.log.length = 0;
    const away = once(frontend, 'disconnect');
    const back = once(frontend, 'reconnect');
    backend.die();
    await away;
    // Asked meanwhile: answered by the one that comes back.
    const config = frontend.readConfig(0, 4);
    await back;
    expect(backend.connections).toBe(2);
    expect(backend.log).toEqual([...NEGOTIATION, 'SET_FEATURES', 'SET_MEM_TABLE+1', 'SET_INFLIGHT_FD+1', ...VRING]);
    expect(backend.last.get('SET_VRING_BASE')).toEqual({ index: 1, num: 9 });
    expect(backend.last.get('SET_INFLIGHT_FD')).toEqual({ mmapSize: 4096, mmapOffset: 0, numQueues: 2, queueSize: 8 });
    expect([resumed, notified()]).toEqual([[true], 2]);
    expect((await config).length).toBe(4);
  });

  it('does not get rings that were stopped', async () => {
    const { backend, frontend } = await connect({}, { reconnectMs: 5000 });
    await frontend.startVring(createVring().vring);
    await frontend.stopVring(1);
    backend.log.length = 0;
    const back = once(frontend, 'reconnect');
    backend.die();
    await back;
    expect(backend.log).toEqual(NEGOTIATION);
  });

  it('with less than it had is not taken', async () => {
    const script = { features: FEATURES, protocolFeatures: PROTOCOL_FEATURES };
    const { backend: before, frontend } = await connect(script, { reconnectMs: 5000 });
    await frontend.acceptFeatures(FEATURES);
    const lost = once(frontend, 'lost');
    before.close();
    backend = new ScriptedBackend(path, { ...script, features: featureMask(30, 32) });
    const [error] = await lost;
    expect(error.message).toContain('without features it had before (mask 0x20)');
  });

  it('too late is not waited for', async () => {
    const { backend, frontend } = await connect({}, { reconnectMs: 250 });
    const lost = once(frontend, 'lost');
    backend.close();
    const [error] = await lost;
    expect(error.message).toContain('did not come back within 250 ms');
    await expect(frontend.readConfig(0, 4)).rejects.toThrow(PeerError);
  });
});

it('closes every descriptor that it opened', async () => {
  const { backend, frontend } = await connect();
  await frontend.trackInflight(2, 8);
  frontend.close();
  frontend.close();
  backend.close();
  expect(countOwnFds()).toBe(fdsBefore);
});

describe('waiting', () => {
  it('for somebody to listen, for a while', async () => {
    const connecting = VhostUserFrontend.connect(path, { waitMs: 5000 });
    backend = new ScriptedBackend(path, { features: FEATURES, protocolFeatures: PROTOCOL_FEATURES });
    frontend = await connecting;
    expect(frontend.isConnected).toBe(true);
  });

  it('in vain names the socket', async () => {
    await expect(VhostUserFrontend.connect(path, { waitMs: 20 })).rejects.toThrow(`connect ${path}`);
  });

  it('for a back end that is away has an end', async () => {
    const { backend: away, frontend: waiting } = await connect({}, { reconnectMs: 5000 });
    const gone = once(waiting, 'disconnect');
    away.close();
    await gone;
    expect(await waiting.waitUntilConnected(10)).toBe(false);
    expect(waiting.isReconnecting).toBe(true);
    backend = new ScriptedBackend(path, { features: FEATURES, protocolFeatures: PROTOCOL_FEATURES });
    expect(await waiting.waitUntilConnected(5000)).toBe(true);
  });
});

describe('taking back', () => {
  const handOver = async (options: FrontendOptions = {}, script: Partial<Script> = {}) => {
    const peers = await connect(script, options);
    await peers.frontend.acceptFeatures(FEATURES);
    await peers.frontend.setMemory([createMemory()]);
    await peers.frontend.trackInflight(2, 8);
    await peers.frontend.startVring(createVring().vring);
    peers.backend.log.length = 0;
    return peers;
  };

  it('disables and stops rings, then resets the device', async () => {
    const { backend, frontend } = await handOver();
    await frontend.takeBack(0);
    expect(backend.log).toEqual(['SET_VRING_ENABLE', 'GET_VRING_BASE', 'RESET_DEVICE']);
    expect(backend.last.get('SET_VRING_ENABLE')).toEqual({ index: 1, num: 0 });
    expect(frontend.features).toBe(0n);
  });

  it('leaves nothing for a back end that comes back', async () => {
    const { backend, frontend } = await handOver({ reconnectMs: 5000 });
    const gone = once(frontend, 'disconnect');
    backend.die();
    await gone;
    await frontend.takeBack(5000);
    expect(frontend.isConnected).toBe(true);
    expect(backend.log).toEqual(NEGOTIATION);
  });

  it('is over when the back end is lost', async () => {
    const { backend, frontend } = await handOver();
    const lost = once(frontend, 'lost');
    backend.die();
    await lost;
    await frontend.takeBack(5000);
    expect(backend.log).toEqual([]);
  });

  it.each([
    ['refuses', { refuse: ['RESET_DEVICE'] }],
    ['dies', { dieAt: ['GET_VRING_BASE'] }],
    ['is silent', { ignore: ['GET_VRING_BASE'] }],
    ['talks nonsense', { mislabel: ['GET_VRING_BASE'] }],
  ])('ends the connection where the back end %s', async (_, script) => {
    const { backend, frontend } = await handOver({ reconnectMs: 5000, timeoutMs: 200 }, script);
    await frontend.takeBack(5000);
    expect(frontend.isConnected).toBe(true);
    expect(backend.connections).toBe(2);
    expect(backend.log).not.toContain('SET_VRING_KICK+1');
  });
});
