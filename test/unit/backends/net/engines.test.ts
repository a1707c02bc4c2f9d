/** The engines against a pair of datagram sockets, which keep packets apart as a TAP does. */

import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Engine } from '../../../../backends/net/engines/engine.ts';
import { NullEngine } from '../../../../backends/net/engines/null.ts';
import { SyscallEngine } from '../../../../backends/net/engines/syscalls.ts';
import { UringEngine } from '../../../../backends/net/engines/uring.ts';
import { Packet, RECEIVE, TRANSMIT } from '../../../../backends/net/packet.ts';
import { IoUring } from '../../../../protocol/sys/io-uring.ts';
import { checked, libc } from '../../../../protocol/sys/libc.ts';
import { OwnedFd } from '../../../../protocol/sys/owned-fd.ts';
import { allocatePinned } from '../../../../protocol/sys/pinned.ts';
import { countOwnFds, eventually } from '../../../support/frontend/process-probe.ts';

const AF_UNIX = 1;
const SOCK_DGRAM_NONBLOCK_CLOEXEC = 2 | 0x800 | 0x80000;
const EAGAIN = 11;
const pair = allocatePinned(8);
const memory = allocatePinned(4096);

const ringIsPossible = (() => {
  try {
    new IoUring({ entries: 2, completionEntries: 4 }).close();
    return true;
  } catch (error) {
    process.stderr.write(`skipped: io_uring: ${String(error)}\n`);
    return false;
  }
})();

const socketPair = (): [OwnedFd, OwnedFd] => {
  checked(libc.socketpair(AF_UNIX, SOCK_DGRAM_NONBLOCK_CLOEXEC, 0, pair.address), 'socketpair');
  return [new OwnedFd(pair.data.getInt32(0, true)), new OwnedFd(pair.data.getInt32(4, true))];
};

/** Two packets to send and two to receive. */
const createPackets = (): Packet[] => [
  new Packet(0, TRANSMIT, 0),
  new Packet(1, TRANSMIT, 0),
  new Packet(2, RECEIVE, 0),
  new Packet(3, RECEIVE, 0),
];

const put = (fd: OwnedFd, text: string): void => {
  memory.bytes.set(Buffer.from(text), 2048);
  checked(libc.send(fd.fd, memory.address + 2048, text.length, 0), 'send');
};

const take = (fd: OwnedFd): string | undefined => {
  const length = libc.recv(fd.fd, memory.address + 2048, 1024, 0);
  return length < 0 ? undefined : Buffer.from(memory.bytes.slice(2048, 2048 + length)).toString();
};

const ENGINES: [string, (fds: readonly number[], packets: readonly Packet[], done: (p: Packet) => void) => Engine][] = [
  ['syscalls', (fds, _, done) => new SyscallEngine(fds, done)],
  ...(ringIsPossible
    ? [['io_uring', (fds, packets, done) => new UringEngine(fds, packets, done)] satisfies (typeof ENGINES)[number]]
    : []),
];

describe.each(ENGINES)('the engine %s', (name, create) => {
  let near: OwnedFd;
  let far: OwnedFd;
  let packets: Packet[];
  let engine: Engine;
  let ended: [id: number, result: number][];
  let fdsBefore = 0;

  beforeEach(() => {
    fdsBefore = countOwnFds();
    [near, far] = socketPair();
    packets = createPackets();
    ended = [];
    engine = create([near.fd], packets, (packet) => ended.push([packet.id, packet.result]));
  });

  afterEach(async () => {
    engine.close();
    near.close();
    far.close();
    await eventually('own descriptors', countOwnFds, (count) => count === fdsBefore);
  });

  /** Lets packet `id` consist of these pieces of the memory. */
  const lay = (id: number, ...pieces: [at: number, length: number][]): Packet => {
    const packet = packets[id] as Packet;
    packet.clear();
    for (const [at, length] of pieces) packet.append(memory.address + at, length);
    return packet;
  };

  it('tells its name, and has nothing to do', () => {
    expect(engine.name).toBe(name);
    engine.poll();
    expect([ended, engine.mustPoll]).toEqual([[], false]);
  });

  it('writes packets of one piece and of several, in order', () => {
    memory.bytes.set(Buffer.from('first  second'), 0);
    engine.submit(lay(0, [0, 5]));
    engine.submit(lay(1, [7, 3], [10, 3]));
    expect(take(far)).toBeUndefined();

    engine.poll();

    expect(ended).toEqual([
      [0, 5],
      [1, 6],
    ]);
    expect([take(far), take(far), take(far)]).toEqual(['first', 'second', undefined]);
  });

  it('reads packets into one piece and several, and says when there is none', () => {
    memory.bytes.fill(0, 0, 64);
    put(far, 'abcdef');
    engine.submit(lay(2, [0, 4], [32, 10]));
    engine.submit(lay(3, [48, 10]));

    engine.poll();

    expect(ended).toEqual([
      [2, 6],
      [3, -EAGAIN],
    ]);
    expect(Buffer.from(memory.bytes.slice(0, 5)).toString()).toBe('abcd\0');
    expect(Buffer.from(memory.bytes.slice(32, 35)).toString()).toBe('ef\0');
  });

  it('takes other descriptors, and lets go of the old one', async () => {
    const [next, nextFar] = socketPair();
    engine.replaceQueues([next.fd]);
    near.close();
    memory.bytes.set(Buffer.from('to whom'), 0);
    engine.submit(lay(0, [0, 7]));

    engine.poll();

    expect([take(nextFar), take(far)]).toEqual(['to whom', undefined]);
    // Nobody holds the other end any more.
    await eventually(
      'whether the old queue is closed',
      () => libc.send(far.fd, memory.address, 1, 0),
      (result) => result === -1,
    );
    next.close();
    nextFar.close();
  });
});

describe('the engine null', () => {
  it('swallows what is sent, and never finds a packet', () => {
    const ended: [number, number][] = [];
    const packets = createPackets();
    const engine = new NullEngine((packet) => ended.push([packet.id, packet.result]));
    for (const packet of packets) {
      packet.append(memory.address, 60);
      engine.submit(packet);
    }
    expect(ended).toEqual([]);

    engine.poll();
    engine.poll();

    expect(ended).toEqual([
      [0, 60],
      [1, 60],
      [2, -EAGAIN],
      [3, -EAGAIN],
    ]);
  });
});
