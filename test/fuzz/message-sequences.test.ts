/**
 * Random messages in random order, with random descriptors, to the real daemon, while random things happen to the rings:
 * whatever the sequence, the daemon answers or closes the connection, serves the next client, and leaks nothing.
 */

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { createEventFd, type OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { createMemfd, createPipe } from '../support/frontend/descriptors.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import type { RawFrontend } from '../support/frontend/raw-frontend.ts';
import {
  bits,
  config,
  FEATURE,
  inflight,
  memoryTable,
  message,
  PROTOCOL,
  REQUEST,
  singleRegion,
  u64,
  vringAddress,
  vringFd,
  vringState,
} from '../support/frontend/wire.ts';

const QUEUES = 2;
const QUEUE_SIZE = 16;
const RUNS = 250;
/** Protocol features that every daemon offers. */
const ACCEPTED = [
  PROTOCOL.MQ,
  PROTOCOL.REPLY_ACK,
  PROTOCOL.BACKEND_REQ,
  PROTOCOL.CONFIG,
  PROTOCOL.INFLIGHT_SHMFD,
  PROTOCOL.RESET_DEVICE,
  PROTOCOL.CONFIGURE_MEM_SLOTS,
  PROTOCOL.LOG_SHMFD,
  PROTOCOL.STATUS,
];
const PACKED = bits(FEATURE.VERSION_1, FEATURE.PROTOCOL_FEATURES, FEATURE.RING_PACKED, FEATURE.IN_ORDER);
const daemon = hostileDaemon({ numQueues: QUEUES, readOnly: true });

/** One thing to do to the daemon. `run` must not wait for an answer. */
interface Step {
  readonly title: string;
  readonly run: (frontend: RawFrontend) => Promise<void> | void;
}

const ring = fc.oneof({ weight: 9, arbitrary: fc.nat(QUEUES - 1) }, { weight: 1, arbitrary: fc.constantFrom(2, 255) });
const flags = fc.oneof({ weight: 9, arbitrary: fc.constantFrom(1, 9) }, { weight: 1, arbitrary: fc.nat(0x1f) });

const kinds = {
  event: createEventFd,
  memory: () => createMemfd(0x20_0000),
  small: () => createMemfd(100),
  pipe: () => {
    const [read, write] = createPipe();
    read.close();
    return write;
  },
  socket: () => {
    const [a, b] = UnixStream.pair();
    a.close();
    return b.detach();
  },
} as const;

/** Which descriptors come along: as a rule the right ones. */
const attachment = (right: readonly (keyof typeof kinds | 'ram')[]) =>
  fc.oneof(
    { weight: 12, arbitrary: fc.constant(right) },
    {
      weight: 1,
      arbitrary: fc.array(fc.constantFrom('event', 'memory', 'small', 'pipe', 'socket', 'ram'), { maxLength: 3 }),
    },
  ) as fc.Arbitrary<readonly (keyof typeof kinds | 'ram')[]>;

const sendStep = (
  id: number,
  payload: fc.Arbitrary<Uint8Array | ((frontend: RawFrontend) => Uint8Array)>,
  fds: readonly (keyof typeof kinds | 'ram')[] = [],
): fc.Arbitrary<Step> =>
  fc.tuple(payload, flags, attachment(fds)).map(([content, flags, attached]) => ({
    title: `request ${id} flags ${flags} fds [${attached}]`,
    run: async (frontend) => {
      const bytes = typeof content === 'function' ? content(frontend) : content;
      const made: OwnedFd[] = [];
      const all = attached.map((kind) => {
        if (kind === 'ram') return frontend.ram.fd;
        const fd = kinds[kind]();
        made.push(fd);
        return fd;
      });
      try {
        await frontend.connection.sendBytes(message(id, bytes, { flags }), all);
      } finally {
        for (const fd of made) fd.close();
      }
    },
  }));

const mask = fc.oneof(
  { weight: 6, arbitrary: fc.constant(bits(FEATURE.VERSION_1, FEATURE.PROTOCOL_FEATURES, FEATURE.FLUSH, FEATURE.RO)) },
  {
    weight: 2,
    arbitrary: fc.constantFrom(
      0n,
      bits(FEATURE.VERSION_1),
      bits(FEATURE.INDIRECT_DESC, FEATURE.EVENT_IDX),
      PACKED,
      PACKED | bits(FEATURE.EVENT_IDX, FEATURE.LOG_ALL),
    ),
  },
  { weight: 1, arbitrary: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }) },
);
const size = fc.oneof(
  { weight: 8, arbitrary: fc.constantFrom(QUEUE_SIZE, 8, 1, 13) },
  { weight: 1, arbitrary: fc.nat() },
);

const steps = fc.oneof(
  sendStep(REQUEST.GET_FEATURES, fc.constant(new Uint8Array(0))),
  sendStep(REQUEST.SET_FEATURES, mask.map(u64)),
  sendStep(REQUEST.SET_PROTOCOL_FEATURES, fc.constantFrom(u64(bits(...ACCEPTED)), u64(8), u64(0))),
  sendStep(REQUEST.SET_OWNER, fc.constant(new Uint8Array(0))),
  sendStep(REQUEST.RESET_OWNER, fc.constant(new Uint8Array(0))),
  sendStep(REQUEST.RESET_DEVICE, fc.constant(new Uint8Array(0))),
  {
    weight: 3,
    arbitrary: sendStep(
      REQUEST.SET_MEM_TABLE,
      fc.constant((f: RawFrontend) => memoryTable([f.ram.region()])),
      ['ram'],
    ),
  },
  sendStep(REQUEST.SET_MEM_TABLE, fc.constantFrom(memoryTable([]), memoryTable([], 3))),
  sendStep(
    REQUEST.ADD_MEM_REG,
    fc
      .nat(3)
      .map((i) => singleRegion({ guestAddress: i * 0x1000, size: 0x1000, userAddress: i * 0x1000, mmapOffset: 0 })),
    ['memory'],
  ),
  sendStep(
    REQUEST.REM_MEM_REG,
    fc
      .nat(3)
      .map((i) => singleRegion({ guestAddress: i * 0x1000, size: 0x1000, userAddress: i * 0x1000, mmapOffset: 0 })),
  ),
  sendStep(
    REQUEST.REM_MEM_REG,
    fc.constant((f: RawFrontend) => singleRegion(f.ram.region())),
  ),
  {
    weight: 2,
    arbitrary: sendStep(
      REQUEST.SET_VRING_NUM,
      fc.tuple(ring, size).map(([index, num]) => vringState(index, num)),
    ),
  },
  {
    weight: 3,
    arbitrary: sendStep(
      REQUEST.SET_VRING_ADDR,
      ring.map((index) => (f: RawFrontend) => vringAddress(index, f.ring(index % QUEUES).addresses())),
    ),
  },
  sendStep(
    REQUEST.SET_VRING_ADDR,
    fc
      .tuple(ring, fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }))
      .map(([index, at]) => vringAddress(index, { descriptor: at, used: at, available: at })),
  ),
  sendStep(
    REQUEST.SET_VRING_BASE,
    fc
      .tuple(ring, fc.oneof(fc.nat(70_000), fc.constantFrom(0x8000_8000, 0x8005_8003, 0x0001_8001, 0xffff_ffff)))
      .map(([index, num]) => vringState(index, num)),
  ),
  sendStep(
    REQUEST.VRING_KICK,
    ring.map((index) => vringState(index, 0)),
  ),
  sendStep(
    REQUEST.SET_LOG_BASE,
    fc.tuple(fc.constantFrom(0, 64, 0x1000, 0x20_0000), fc.constantFrom(0, 1, 0x1000)).map(([size, offset]) => {
      const bytes = new Uint8Array(16);
      new DataView(bytes.buffer).setBigUint64(0, BigInt(size), true);
      new DataView(bytes.buffer).setBigUint64(8, BigInt(offset), true);
      return bytes;
    }),
    ['memory'],
  ),
  sendStep(REQUEST.SET_LOG_FD, fc.constant(new Uint8Array(0)), ['event']),
  sendStep(
    REQUEST.SET_STATUS,
    fc.constantFrom(0, 1, 3, 11, 15, 0x1_0000).map((status) => u64(status)),
  ),
  {
    weight: 2,
    arbitrary: sendStep(
      REQUEST.GET_VRING_BASE,
      ring.map((index) => vringState(index, 0)),
    ),
  },
  {
    weight: 4,
    arbitrary: sendStep(
      REQUEST.SET_VRING_KICK,
      ring.map((index) => vringFd(index)),
      ['event'],
    ),
  },
  sendStep(
    REQUEST.SET_VRING_KICK,
    ring.map((index) => vringFd(index, true)),
  ),
  sendStep(
    REQUEST.SET_VRING_CALL,
    ring.map((index) => vringFd(index)),
    ['event'],
  ),
  sendStep(
    REQUEST.SET_VRING_ERR,
    ring.map((index) => vringFd(index)),
    ['event'],
  ),
  {
    weight: 2,
    arbitrary: sendStep(
      REQUEST.SET_VRING_ENABLE,
      fc.tuple(ring, fc.nat(2)).map(([index, num]) => vringState(index, num)),
    ),
  },
  sendStep(
    REQUEST.GET_CONFIG,
    fc.tuple(fc.nat(300), fc.nat(256)).map(([offset, length]) => config(offset, new Uint8Array(length))),
  ),
  sendStep(
    REQUEST.SET_CONFIG,
    fc.tuple(fc.nat(40), fc.nat(4)).map(([offset, length]) => config(offset, new Uint8Array(length))),
  ),
  sendStep(
    REQUEST.GET_INFLIGHT_FD,
    fc.constant(inflight({ mmapSize: 0, mmapOffset: 0, numQueues: QUEUES, queueSize: QUEUE_SIZE })),
  ),
  sendStep(
    REQUEST.SET_INFLIGHT_FD,
    fc.constant(inflight({ mmapSize: 0x1000, mmapOffset: 0, numQueues: QUEUES, queueSize: QUEUE_SIZE })),
    ['memory'],
  ),
  sendStep(REQUEST.SET_BACKEND_REQ_FD, fc.constant(new Uint8Array(0)), ['socket']),
  fc.tuple(fc.nat(60), fc.uint8Array({ maxLength: 64 })).chain(([id, payload]) => sendStep(id, fc.constant(payload))),
  {
    weight: 3,
    arbitrary: fc
      .tuple(fc.nat(QUEUES - 1), fc.nat(20), fc.uint8Array({ minLength: 16, maxLength: 128 }))
      .map(([index, jump, bytes]) => ({
        title: `ring ${index}: garbage descriptors, avail.idx + ${jump}, kick`,
        run: (frontend: RawFrontend) => {
          const at = frontend.ring(index);
          frontend.ram.bytes.set(bytes, at.table);
          at.setAvailIndex(at.availIndex + jump);
          at.signal();
        },
      })),
  },
  fc.constant({
    title: 'memory truncated',
    run: (frontend: RawFrontend) => frontend.ram.truncate(0x1000),
  }),
);

const sequence = fc.array(steps, { minLength: 1, maxLength: 25 });

/** Runs one sequence to its end or to the end of the connection. */
const play = async (frontend: RawFrontend, list: readonly Step[], setUp: boolean): Promise<void> => {
  try {
    if (setUp) {
      await frontend.negotiate();
      await frontend.shareMemory();
      for (const each of frontend.rings) await frontend.startRing(each);
    }
    for (const step of list) {
      if (frontend.connection.ended) return;
      await step.run(frontend);
    }
    await frontend.connection.send(REQUEST.GET_QUEUE_NUM);
  } catch (error) {
    // The connection was closed while we were sending.
    expect(String(error)).toMatch(/EPIPE|ECONNRESET/);
    return;
  }
  for (;;) {
    const reply = await frontend.connection.receive();
    for (const fd of reply?.fds ?? []) fd.close();
    if (reply === undefined || reply.id === REQUEST.GET_QUEUE_NUM) return;
  }
};

describe('a random sequence of messages', () => {
  it('does the daemon no harm', async () => {
    const property = fc.asyncProperty(sequence, fc.boolean(), async (list, setUp) => {
      const frontend = daemon().connect({ queues: QUEUES, queueSize: QUEUE_SIZE });
      try {
        await play(frontend, list, setUp);
      } catch (error) {
        throw new Error(`after ${list.map(({ title }) => title).join('; ')}:\n${daemon().backend.log().slice(-1500)}`, {
          cause: error,
        });
      } finally {
        frontend.close();
      }
      await daemon().expectUnharmed();
    });

    await fc.assert(property, { numRuns: RUNS, interruptAfterTimeLimit: 60_000 });
  });
});
