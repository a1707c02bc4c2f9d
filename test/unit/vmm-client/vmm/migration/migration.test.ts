/** Source and destination of a migration, with machines that are pieces of memory. */

import type { Socket } from 'node:net';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { checkConfig } from '../../../../../vmm-client/vmm/check-config.ts';
import type { Machine } from '../../../../../vmm-client/vmm/machine.ts';
import { acceptPeer } from '../../../../../vmm-client/vmm/migration/accept.ts';
import { Channel } from '../../../../../vmm-client/vmm/migration/channel.ts';
import {
  ACCEPT,
  CONFIG as CONFIG_FRAME,
  GO,
  READY,
  ROUND,
  RUNNING,
  STATE,
  TAKEN,
} from '../../../../../vmm-client/vmm/migration/frames.ts';
import { plainOffer } from '../../../../../vmm-client/vmm/migration/offer.ts';
import { type Received, receiveGuest } from '../../../../../vmm-client/vmm/migration/receiver.ts';
import { sendMachine } from '../../../../../vmm-client/vmm/migration/send.ts';
import { Sender } from '../../../../../vmm-client/vmm/migration/sender.ts';
import { UndecidedError } from '../../../../../vmm-client/vmm/migration/undecided.ts';
import { encodeState } from '../../../../../vmm-client/vmm/state/codec.ts';
import { cleanupAfterEach } from '../../../../support/cleanup.ts';
import { CONFIG, FakeSource, FakeTarget, HIGH, LAYOUT, operation, PAGE, RANGES, socketPair } from './fakes.ts';

const cleanup = cleanupAfterEach();
const TIMEOUT_MS = 2000;

const setUp = async () => {
  const [a, b] = await socketPair(cleanup);
  const source = new FakeSource();
  const target = new FakeTarget();
  const sending = operation('send-migration');
  const receiving = operation('receive-migration');
  const options = { downtimeMs: 300, timeoutMs: 5000, isMemoryShared: false, autoConverge: true };
  const send = (isRunning = true, changes: Partial<typeof options> = {}): Promise<void> =>
    new Sender(source, new Channel(a, TIMEOUT_MS), { ...options, ...changes }, sending).run({
      config: CONFIG,
      layout: LAYOUT,
      isRunning,
    });
  const receive = (channel = new Channel(b, TIMEOUT_MS)): Promise<Received<FakeTarget>> =>
    receiveGuest(channel, async (config) => ({ machine: target, config }), receiving);
  return { a, b, source, target, sending, receiving, send, receive };
};

const settle = <T extends readonly Promise<unknown>[]>(...promises: T) => Promise.allSettled<T>(promises);
const sentence = (result: PromiseSettledResult<unknown> | undefined): string =>
  result?.status === 'rejected' ? (result.reason as Error).message : 'it went well';

/** A source that follows no more of the protocol than is in a test. Kept when its memory is awaited. */
const offerBy = async (socket: Socket): Promise<Channel> => {
  const peer = new Channel(socket, TIMEOUT_MS);
  await peer.send(CONFIG_FRAME, encodeState(plainOffer({ config: CONFIG, layout: LAYOUT, isRunning: true })));
  await peer.receive([ACCEPT]);
  return peer;
};

describe('a migration', () => {
  it('brings memory, state and configuration, and lets the guest run there', async () => {
    const { source, target, send, receive, sending, receiving } = await setUp();
    for (const [page, value] of [
      [0, 1],
      [5, 2],
      [511, 3],
    ] as const) {
      source.memory.fill(page * PAGE, value);
    }
    source.memory.fill(HIGH + 7 * PAGE, 4);

    const [received] = await Promise.all([receive(), send()]);

    expect(received.config).toEqual(CONFIG);
    expect(received.running).toBe(true);
    expect(source.memory.equals(target.memory)).toBe(true);
    expect(target.state).toEqual({ counter: 7n, bytes: Uint8Array.of(1, 2, 3) });
    expect(target.calls).toEqual(['restore', 'devices', 'run']);
    expect(source.calls).toEqual(['startDirtyLog', 'suspend', 'state']);
    expect(sending.progress).toMatchObject({ phase: 'handing over', round: 2, downtime_ms: expect.any(Number) });
    expect(receiving.progress).toMatchObject({ bytes_done: 4 * PAGE, round: 2 });
  });

  it('of a guest that was held leaves it held', async () => {
    const { target, send, receive } = await setUp();

    const [received] = await Promise.all([receive(), send(false)]);

    expect(received.running).toBe(false);
    expect(target.calls).toEqual(['restore', 'devices']);
  });

  it('sends again what is written meanwhile, and no page that is zero and never was anything else', async () => {
    const { source, target, receiving, send, receive } = await setUp();
    for (let page = 0; page < 512; page += 1) source.memory.fill(page * PAGE, page % 3 === 0 ? 0 : 1 + (page % 250));
    let takes = 0;
    source.onTakeDirty = () => {
      takes += 1;
      if (takes === 1) {
        source.write(5 * PAGE, 0);
        source.discard(7 * PAGE);
        source.write(6 * PAGE, 9);
        source.write(HIGH + 255 * PAGE, 8);
      }
    };
    source.onSuspend = () => source.write(HIGH, 17);

    await Promise.all([receive(), send()]);

    expect(source.memory.equals(target.memory)).toBe(true);
    // 341 pages that are not zero; then 5 and 7 as zeros, 6, the last and HIGH.
    expect(receiving.progress.bytes_done).toBe((341 + 5) * PAGE);
  });

  it('goes round until what is left fits the downtime', async () => {
    const { source, target, sending, send, receive } = await setUp();
    for (let page = 0; page < 512; page += 1) source.memory.fill(page * PAGE, 1);
    let calm = 0;
    source.onTakeDirty = () => {
      calm += 1;
      if (calm > 4) return;
      for (let page = 0; page < 512; page += 1) source.write(page * PAGE, calm);
    };

    await Promise.all([receive(), send(true, { downtimeMs: 0 })]);

    expect(source.memory.equals(target.memory)).toBe(true);
    expect(sending.progress.round).toBe(6);
  });

  it('slows a guest down that writes more than half of what is sent, step by step until it does not', async () => {
    const { source, target, sending, send, receive } = await setUp();
    for (let page = 0; page < 512; page += 1) source.memory.fill(page * PAGE, 1);
    let takes = 0;
    source.onTakeDirty = () => {
      takes += 1;
      const percent = Number(
        source.calls.findLast((call) => call.startsWith('throttle'))?.slice('throttle '.length) ?? 0,
      );
      const pages = percent < 40 ? 512 : 200 >> takes;
      for (let page = 0; page < pages; page += 1) source.write(page * PAGE, takes);
    };

    await Promise.all([receive(), send(true, { downtimeMs: 0 })]);

    expect(source.memory.equals(target.memory)).toBe(true);
    expect(source.calls.filter((call) => call.startsWith('throttle'))).toEqual([
      'throttle 20',
      'throttle 30',
      'throttle 40',
    ]);
    expect(sending.progress.throttle_percent).toBe(40);
  });

  it('leaves the guest alone where it is told to', async () => {
    const { source, send, receive } = await setUp();
    source.onTakeDirty = () => {
      for (let page = 0; page < 512; page += 1) source.write(page * PAGE, 1 + (page % 9));
    };

    const [sent] = await settle(send(true, { downtimeMs: 0, autoConverge: false }), receive());

    expect(sentence(sent)).toMatch(/^the guest writes memory faster than it is sent/);
    expect(source.calls).toEqual(['startDirtyLog', 'stopDirtyLog']);
  });

  it('of a guest that does not become calm fails, and the guest runs on', async () => {
    const { source, target, sending, send, receive } = await setUp();
    source.onTakeDirty = () => {
      for (let page = 0; page < 512; page += 1) source.write(page * PAGE, 1 + (page % 9));
    };

    const [sent, received] = await settle(send(true, { downtimeMs: 0 }), receive());

    expect(sentence(sent)).toMatch(/^the guest writes memory faster than it is sent: after 40 rounds 2097152 bytes/);
    expect(sentence(received)).toMatch(/^the peer gave up: the guest writes memory faster/);
    expect(sending.progress).toMatchObject({ converges: false, throttle_percent: 99 });
    // Not slowed down any more.
    expect(source.calls.filter((call) => !call.startsWith('throttle'))).toEqual(['startDirtyLog', 'stopDirtyLog']);
    expect(source.calls.at(-2)).toBe('throttle 0');
    expect(target.calls).toEqual(['close']);
  });

  it('that takes longer than it may fails', async () => {
    const { source, send, receive } = await setUp();
    source.onTakeDirty = () => source.write(0, 1);

    const [sent] = await settle(send(true, { downtimeMs: 0, timeoutMs: 1 }), receive());

    expect(sentence(sent)).toMatch(/^not done within 1 ms/);
  });

  it.each(['reset', 'shutdown'] as const)('is given up at a %s of the guest', async (ending) => {
    const { source, target, send, receive } = await setUp();
    source.onTakeDirty = () => {
      source.ending = ending;
    };

    const [sent] = await settle(send(), receive());

    expect(sentence(sent)).toMatch(/^the migration was given up: the guest (resets itself|has ended)/);
    expect(source.calls).not.toContain('state');
    expect(target.calls).toEqual(['close']);
  });
});

describe('a machine that is sent', () => {
  it('has no device that its guest let go of while the destination was dialled', async () => {
    const path = join(cleanup.directory(), 'm');
    const disks = ['a', 'b'].map((id) => ({ id, path: `/images/${id}` }));
    const config = checkConfig({ ...CONFIG, disks });
    const machine = Object.assign(new FakeSource(), {
      layout: { ranges: RANGES, slots: new Map([['b', 1]]) },
      holdMemory: async () => undefined,
    });
    let listens: () => void = () => undefined;
    const listening = new Promise<void>((resolve) => {
      listens = resolve;
    });
    const sending = operation('send-migration');
    const warn = (line: string): void => expect.unreachable(line);
    const accepted = acceptPeer({ kind: 'unix', path }, { signal: sending.signal, onListening: listens, warn });
    await listening;
    const options = { downtimeMs: 300, timeoutMs: undefined, paused: false, isMemoryShared: false, autoConverge: true };
    const sent = sendMachine(machine as unknown as Machine, config, { kind: 'unix', path }, options, sending);
    const offered = receiveGuest(
      new Channel((await accepted).socket, TIMEOUT_MS),
      async ({ disks: wanted }) => {
        throw new Error(wanted.map(({ id }) => id).join());
      },
      operation('receive-migration'),
    );

    const results = await settle(offered, sent);

    expect(results.map(sentence)).toEqual(['b', 'the peer gave up: b']);
  });
});

describe('a migration that is cancelled', () => {
  it.each([
    ['before the first round', (t: Awaited<ReturnType<typeof setUp>>) => t.sending.cancel('enough'), false],
    [
      'between rounds',
      (t: Awaited<ReturnType<typeof setUp>>) => {
        t.source.onTakeDirty = () => t.sending.cancel('enough');
      },
      false,
    ],
    [
      'while the guest is held',
      (t: Awaited<ReturnType<typeof setUp>>) => {
        t.source.onSuspend = () => t.sending.cancel('enough');
      },
      true,
    ],
    [
      'while the destination restores',
      (t: Awaited<ReturnType<typeof setUp>>) => {
        t.target.onRestore = () => t.sending.cancel('enough');
      },
      true,
    ],
  ])('%s goes on at the source and leaves nothing at the destination', async (_when, arrange, isHeld) => {
    const test = await setUp();
    arrange(test);

    const [sent, received] = await settle(test.send(), test.receive());

    expect(sentence(sent)).toBe('send-migration: enough');
    expect(sentence(received)).toMatch(/enough/);
    expect(test.source.calls.filter((call) => call === 'goOn')).toHaveLength(isHeld ? 1 : 0);
    expect(test.target.calls.at(-1) ?? 'close').toBe('close');
    expect(test.target.calls).not.toContain('run');
  });

  it('at the destination fails at both ends, with its reason', async () => {
    const { target, source, receiving, send, receive } = await setUp();
    source.onTakeDirty = () => receiving.cancel('not here');

    const [sent, received] = await settle(send(), receive());

    expect(sentence(received)).toBe('receive-migration: not here');
    expect(sentence(sent)).toBe('the peer gave up: receive-migration: not here');
    expect(target.calls).toEqual(['close']);
  });

  it('before it began asks the destination for nothing', async () => {
    const { sending, send } = await setUp();
    sending.cancel('enough');

    await expect(send()).rejects.toThrow('send-migration: enough');
  });

  it('at the destination when GO is there already does not run', async () => {
    const { a, b, target, receiving, receive } = await setUp();
    const channel = new Channel(b, TIMEOUT_MS);
    const say = channel.send.bind(channel);
    channel.send = (type, payload) => {
      const said = say(type, payload);
      if (type === READY) receiving.cancel('not here');
      return said;
    };
    const source = async () => {
      const peer = await offerBy(a);
      await Promise.all([peer.send(STATE, encodeState({})), peer.send(GO)]);
      await peer.receive([READY]);
      await peer.receive([RUNNING]);
    };

    const [sent, received] = await settle(source(), receive(channel));

    expect(sentence(received)).toBe('receive-migration: not here');
    expect(sentence(sent)).toBe('the peer gave up: receive-migration: not here');
    expect(target.calls).toEqual(['restore', 'devices', 'close']);
  });

  it('once the guest has been let go is not', async () => {
    const { source, target, sending, receiving, send, receive } = await setUp();
    target.onRun = () => {
      sending.cancel('too late');
      receiving.cancel('too late');
    };

    await Promise.all([receive(), send()]);

    expect(source.calls).not.toContain('goOn');
    expect(target.calls).toEqual(['restore', 'devices', 'run']);
  });
});

describe('a migration whose destination', () => {
  it('cannot restore fails with its sentence, and the guest goes on', async () => {
    const { source, target, send, receive } = await setUp();
    target.onRestore = () => {
      throw new Error('disk _disk0: the image is in use');
    };

    const [sent] = await settle(send(), receive());

    expect(sentence(sent)).toBe('the peer gave up: disk _disk0: the image is in use');
    expect(source.calls).toEqual(['startDirtyLog', 'suspend', 'state', 'goOn', 'stopDirtyLog']);
    expect(target.calls).toEqual(['restore', 'close']);
  });

  it('does not run the guest after all, and says so, fails and the guest goes on', async () => {
    const { source, target, send, receive } = await setUp();
    target.onRun = () => {
      throw new Error('no processors left');
    };

    const [sent] = await settle(send(), receive());

    expect(sentence(sent)).toBe('the peer gave up: no processors left');
    expect(source.calls).toContain('goOn');
  });

  it.each([
    [
      'fails',
      (test: Awaited<ReturnType<typeof setUp>>) => {
        test.target.onRestore = () => {
          throw new Error('no');
        };
      },
    ],
    [
      'is cancelled',
      (test: Awaited<ReturnType<typeof setUp>>) => {
        test.target.onRestore = () => test.receiving.cancel('no');
      },
    ],
  ])('%s has let go of its devices before the source hears of it', async (_what, arrange) => {
    const test = await setUp();
    arrange(test);
    const channel = new Channel(test.b, TIMEOUT_MS);
    const refuse = channel.refuse.bind(channel);
    channel.refuse = (reason) => {
      test.target.calls.push('refuse');
      refuse(reason);
    };

    const [sent] = await settle(test.send(), test.receive(channel));

    expect(sentence(sent)).toMatch(/no$/);
    expect(test.target.calls.slice(-2)).toEqual(['close', 'refuse']);
  });

  it('says something else after GO is undecided, and not listened to any more', async () => {
    const { b, send } = await setUp();
    const peer = new Channel(b, TIMEOUT_MS);
    const destination = async () => {
      await peer.receive([CONFIG_FRAME]);
      await peer.send(ACCEPT);
      for (;;) {
        const { type, payload } = await peer.receive([ROUND, STATE, GO]);
        await peer.send(type === STATE ? READY : TAKEN, type === ROUND ? payload : Buffer.alloc(type === GO ? 4 : 0));
      }
    };

    const [sent] = await settle(send(), destination());

    expect(sent.status === 'rejected' && sent.reason).toBeInstanceOf(UndecidedError);
    await expect(peer.receive([GO])).rejects.toThrow('the peer closed the connection');
  });

  it('gets a round without a number says so', async () => {
    const { a, receive } = await setUp();
    const source = async () => (await offerBy(a)).send(ROUND);

    const [, received] = await settle(source(), receive());

    expect(sentence(received)).toBe('the peer sends a ROUND of 0 bytes, 4 are needed');
  });

  it('is not heard of after GO is undecided: the guest stays held here', async () => {
    const { source, target, b, send, receive } = await setUp();
    const channel = new Channel(b, TIMEOUT_MS);
    target.onRun = () => channel.fail(new Error('gone'));

    const [sent, received] = await settle(send(), receive(channel));

    expect(sent.status === 'rejected' && sent.reason).toBeInstanceOf(UndecidedError);
    expect(sentence(sent)).toMatch(/the guest is paused here; vm.resume it if it does not run there/);
    expect(received.status).toBe('fulfilled');
    expect(source.calls).not.toContain('goOn');
  });

  it('is gone before GO fails, and the guest goes on', async () => {
    const { source, target, b, send, receive } = await setUp();
    const channel = new Channel(b, TIMEOUT_MS);
    target.onRestore = () => channel.fail(new Error('gone'));

    const [sent] = await settle(send(), receive(channel));

    expect(sentence(sent)).toMatch(/^the peer closed the connection$/);
    expect(source.calls).toContain('goOn');
    expect(target.calls).toEqual(['restore', 'devices', 'close']);
  });

  it('takes nothing any more fails after the deadline, and the guest goes on', async () => {
    const { source, b, send } = await setUp();
    for (let page = 0; page < 512; page += 1) source.memory.fill(page * PAGE, 1);
    const peer = new Channel(b, TIMEOUT_MS);
    const accept = async () => {
      await peer.receive([CONFIG_FRAME]);
      await peer.send(ACCEPT);
    };

    const [sent] = await settle(send(), accept());

    expect(sentence(sent)).toMatch(/^the peer (says|takes) nothing for \d+ ms$/);
    expect(source.calls).not.toContain('suspend');
  });
});
