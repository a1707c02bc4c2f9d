/** Kick, call and err descriptors of every kind, in every state a peer can bring them into. */

import { describe, expect, it } from 'vitest';
import { checked, libc } from '../../protocol/sys/libc.ts';
import { Notifier } from '../../protocol/sys/notifier.ts';
import { createEventFd, OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { doRequest, prepareRequest, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import {
  createBlockingEventFd,
  createMemfd,
  createPipe,
  openPath,
  setBlocking,
  takeEvent,
  waitReadable,
  writeEvent,
} from '../support/frontend/descriptors.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import { cpuWhenIdle, eventually } from '../support/frontend/process-probe.ts';
import { DEADLINE_MS } from '../support/frontend/raw-connection.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { FEATURE, REQUEST, vringFd, vringState } from '../support/frontend/wire.ts';

const FULL = 0xffff_ffff_ffff_fffen;
const daemon = hostileDaemon({ numQueues: 2 });

const read = (frontend: RawFrontend, queue = 0) => doRequest(frontend, { type: TYPE.IN, inBytes: 512, queue });

/** A request on ring 0 whose end is seen in the used ring, whatever the call descriptor does. */
const requestWithoutCall = async (frontend: RawFrontend): Promise<void> => {
  const ring = frontend.ring();
  const area = prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
  const before = ring.usedIndex;
  ring.publish(0);
  ring.signal();
  await eventually(
    'used index',
    () => ring.usedIndex,
    (index) => index === ((before + 1) & 0xffff),
  );
  expect(area.statusByte).toBe(STATUS.OK);
};

describe('kicks', () => {
  it('without anything available cost nothing', async () => {
    const frontend = await daemon().start();

    for (let i = 0; i < 1000; i += 1) frontend.ring().signal();

    expect((await read(frontend)).status).toBe(STATUS.OK);
    expect(frontend.ring().usedIndex).toBe(1);
  });

  it('in a storm do not keep another ring or another connection from being served', async () => {
    const frontend = await daemon().start({ queues: 2, features: [FEATURE.MQ] });
    const storm = setInterval(() => {
      for (let i = 0; i < 200; i += 1) frontend.ring(0).signal();
    }, 0);

    try {
      for (let i = 0; i < 50; i += 1) expect((await read(frontend, 1)).status).toBe(STATUS.OK);
      const other = await daemon().negotiate();
      expect(await other.connection.ask(REQUEST.GET_QUEUE_NUM)).toBe(2n);
    } finally {
      clearInterval(storm);
    }
  });

  it('never come when the front end gave no descriptor: the ring is polled', async () => {
    const frontend = await daemon().negotiate();
    await frontend.shareMemory();
    const ring = frontend.ring();
    await frontend.configureRing(ring);
    await frontend.require(REQUEST.SET_VRING_KICK, vringFd(0, true));
    await frontend.require(REQUEST.SET_VRING_ENABLE, vringState(0, 1));
    prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });

    ring.publish(0);

    expect(await ring.take()).toEqual([{ id: 0, length: 513 }]);
  });

  it('that were missed before the ring was started are made up for', async () => {
    const frontend = await daemon().negotiate();
    await frontend.shareMemory();
    prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    frontend.ring().publish(0);

    await frontend.startRing(frontend.ring());

    expect(await frontend.ring().take()).toEqual([{ id: 0, length: 513 }]);
  });
});

const O_CLOEXEC = 0x80000;
/** System call numbers of x86-64, and their arguments. */
const EXOTIC: [string, number, number, number][] = [
  ['an epoll instance', 291, O_CLOEXEC, 0],
  ['a timerfd', 283, 1, O_CLOEXEC],
  ['an inotify instance', 294, O_CLOEXEC, 0],
  ['a pidfd', 434, process.pid, 0],
];

describe.runIf(process.arch === 'x64')('a descriptor that is', () => {
  it.each(EXOTIC)('%s, for kick, call and err, harms only its ring', async (_, call, first, second) => {
    const fd = daemon().keep(new OwnedFd(checked(libc.syscall(call, first, second, 0, 0, 0, 0), 'syscall')));
    const frontend = await daemon().start({ queues: 2, features: [FEATURE.MQ] });

    for (const id of [REQUEST.SET_VRING_CALL, REQUEST.SET_VRING_ERR, REQUEST.SET_VRING_KICK]) {
      await frontend.isRefused(id, vringFd(0), [fd]);
    }
    publishOne(frontend);
    frontend.ring().signal();

    expect((await read(frontend, 1)).status).toBe(STATUS.OK);
    expect(await cpuWhenIdle(daemon().backend.pid, 100, 49)).toBeLessThan(50);
  });
});

/** Starts ring 0 with this kick descriptor. */
const startWithKick = async (kick: OwnedFd): Promise<RawFrontend> => {
  const frontend = await daemon().start();
  await frontend.require(REQUEST.SET_VRING_KICK, vringFd(0), [kick]);
  return frontend;
};

const publishOne = (frontend: RawFrontend): void => {
  prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
  frontend.ring().publish(0);
};

describe('a kick descriptor', () => {
  it('that blocks works', async () => {
    const kick = daemon().keep(createBlockingEventFd());
    const frontend = await startWithKick(kick);
    publishOne(frontend);

    writeEvent(kick);

    expect(await frontend.ring().take()).toEqual([{ id: 0, length: 513 }]);
  });

  it.each([
    ['', true],
    [' that blocks', false],
  ])('that is a pipe%s works, again and again', async (_, nonBlocking) => {
    const [readEnd, writeEnd] = createPipe(nonBlocking);
    daemon().keep(writeEnd);
    const frontend = await startWithKick(readEnd);
    readEnd.close();

    for (let i = 0; i < 5; i += 1) {
      publishOne(frontend);
      writeEvent(writeEnd);
      expect(await frontend.ring().take()).toEqual([{ id: 0, length: 513 }]);
    }
  });

  it('that is a socket works', async () => {
    const [ours, theirs] = UnixStream.pair();
    daemon().keep(ours);
    const kick = theirs.detach();
    const frontend = await startWithKick(kick);
    kick.close();
    publishOne(frontend);

    ours.send(Uint8Array.of(1));

    expect(await frontend.ring().take()).toEqual([{ id: 0, length: 513 }]);
  });

  it('whose other end is closed does not make the daemon spin', async () => {
    const [readEnd, writeEnd] = createPipe();
    const frontend = await startWithKick(readEnd);
    readEnd.close();
    writeEnd.close();
    await frontend.connection.ask(REQUEST.GET_FEATURES);
    expect(await cpuWhenIdle(daemon().backend.pid, 100, 49)).toBeLessThan(50);
  });

  it('that the front end drains behind our back does not block the daemon', async () => {
    const kick = daemon().keep(createBlockingEventFd());
    const frontend = await startWithKick(kick);
    const thief = daemon().keep(new Notifier(kick.duplicate()));
    const deadline = performance.now() + 200;

    while (performance.now() < deadline) {
      writeEvent(kick);
      thief.drain();
    }

    expect(await frontend.connection.ask(REQUEST.GET_QUEUE_NUM)).toBe(2n);
  });

  it.each<[string, () => OwnedFd]>([
    ['a memfd', () => createMemfd(4096)],
    ['/dev/null', () => openPath('/dev/null')],
    ['a directory', () => openPath('/', 0o200000)],
  ])('that is %s is refused, for kick, call and err', async (_, create) => {
    const frontend = await daemon().start();
    const fd = daemon().keep(create());

    for (const id of [REQUEST.SET_VRING_KICK, REQUEST.SET_VRING_CALL, REQUEST.SET_VRING_ERR]) {
      expect(await frontend.isRefused(id, vringFd(0), [fd])).toBe('nack');
    }

    expect((await read(frontend)).status).toBe(STATUS.OK);
  });
});

describe('a call descriptor', () => {
  const withCall = async (call: OwnedFd): Promise<RawFrontend> => {
    const frontend = await daemon().start();
    await frontend.require(REQUEST.SET_VRING_CALL, vringFd(0), [call]);
    return frontend;
  };

  it('that is full is left alone, and requests are served', async () => {
    const call = daemon().keep(createEventFd());
    const frontend = await withCall(call);
    takeEvent(call);
    writeEvent(call, FULL);

    for (let i = 0; i < 3; i += 1) await requestWithoutCall(frontend);
  });

  it('that is full and blocks does not block the daemon', async () => {
    const call = daemon().keep(createBlockingEventFd());
    const frontend = await withCall(call);
    takeEvent(call);
    writeEvent(call, FULL);

    for (let i = 0; i < 3; i += 1) await requestWithoutCall(frontend);
  });

  it('that is made to block and filled after it was handed over does not block the daemon', async () => {
    const call = daemon().keep(createEventFd());
    const frontend = await withCall(call);
    takeEvent(call);
    writeEvent(call, FULL);
    setBlocking(call);

    try {
      for (let i = 0; i < 3; i += 1) await requestWithoutCall(frontend);
      await daemon().negotiate();
    } finally {
      // Unblocks a daemon that does hang, so that the other tests can go on.
      takeEvent(call);
    }
  });

  it.each([
    ['', true],
    [' that blocks', false],
  ])('that is a full pipe%s does not block the daemon', async (_, nonBlocking) => {
    const [readEnd, writeEnd] = createPipe(true);
    daemon().keep(readEnd);
    daemon().keep(writeEnd);
    try {
      for (;;) writeEvent(writeEnd);
    } catch {
      // Full now.
    }
    if (!nonBlocking) setBlocking(writeEnd);
    const frontend = await withCall(writeEnd);

    for (let i = 0; i < 3; i += 1) await requestWithoutCall(frontend);
  });

  it('that is a socket, as User-mode Linux gives it, is written to, and one that is never read does no harm', async () => {
    const [ours, theirs] = UnixStream.pair();
    daemon().keep(ours);
    const call = theirs.detach();
    const frontend = await withCall(call);
    call.close();

    await requestWithoutCall(frontend);
    for (let i = 0; i < 500; i += 1) await requestWithoutCall(frontend);

    expect(ours.receive(new Uint8Array(8), 0, 8)?.length).toBe(8);
  });

  it.each<[string, () => OwnedFd]>([
    [
      'the read end of a pipe',
      () => {
        const [readEnd, writeEnd] = createPipe();
        daemon().keep(writeEnd);
        return readEnd;
      },
    ],
    [
      'a pipe without a reader',
      () => {
        const [readEnd, writeEnd] = createPipe();
        readEnd.close();
        return writeEnd;
      },
    ],
    [
      'a socket without another end',
      () => {
        const [ours, theirs] = UnixStream.pair();
        ours.close();
        return theirs.detach();
      },
    ],
  ])('that is %s loses notifications and nothing else', async (_, create) => {
    const frontend = await withCall(daemon().keep(create()));

    for (let i = 0; i < 3; i += 1) await requestWithoutCall(frontend);
  });

  it('taken away (bit 8) keeps the ring served without calls', async () => {
    const frontend = await daemon().start();
    await frontend.require(REQUEST.SET_VRING_CALL, vringFd(0, true));
    takeEvent(frontend.ring().call);

    await requestWithoutCall(frontend);

    expect(takeEvent(frontend.ring().call)).toBe(0n);
  });

  it('given to a started ring is signalled, in case the one before missed something', async () => {
    const frontend = await daemon().start();
    const call = daemon().keep(createEventFd());

    await frontend.require(REQUEST.SET_VRING_CALL, vringFd(0), [call]);

    await waitReadable(call, DEADLINE_MS, 'call');
  });

  it('replaced a thousand times leaks nothing', async () => {
    const frontend = await daemon().start();

    for (let i = 0; i < 1000; i += 1) {
      const id = [REQUEST.SET_VRING_CALL, REQUEST.SET_VRING_KICK, REQUEST.SET_VRING_ERR][i % 3] as number;
      await frontend.require(id, vringFd(0), [frontend.ring().kick]);
    }

    expect(daemon().backend.fdCount()).toBeLessThan(40);
  });
});
