/**
 * A guest sends packets with whatever in them, and programs of the host write, read, end and go, in any order. A list of
 * open connections says which packets must be answered by RST; whatever happens, the table keeps its limit, a connection
 * that broke no rule carries its data, and in the end no descriptor is left.
 */

import fc from 'fast-check';
import { afterAll, expect, it } from 'vitest';
import type { RingAttachment } from '../../backends/core/device.ts';
import type { Logger } from '../../backends/core/logging.ts';
import { Vring, type VringHost } from '../../backends/core/vring.ts';
import type { Connection } from '../../backends/vsock/connection.ts';
import { Counters } from '../../backends/vsock/counters.ts';
import { Deadlines } from '../../backends/vsock/deadlines.ts';
import { DEFAULT_LIMITS } from '../../backends/vsock/limits.ts';
import { Muxer } from '../../backends/vsock/muxer.ts';
import { Receiver } from '../../backends/vsock/receive.ts';
import { Transmitter } from '../../backends/vsock/transmit.ts';
import { GuestMemory } from '../../protocol/memory/guest-memory.ts';
import { Epoll } from '../../protocol/sys/epoll.ts';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { GuestRam } from '../support/frontend/guest-ram.ts';
import { countOwnFds } from '../support/frontend/process-probe.ts';
import { RawRing, WRITE } from '../support/frontend/raw-ring.ts';
import { decodePacket, encodeHeader, OP, type VsockPacket } from '../support/frontend/vsock-wire.ts';

const SIZE = 32;
const BUFFER = 200;
const CID = 3;
const MAX_CONNECTIONS = 8;
const BUFFER_SIZE = 4096;
/** The connection that breaks no rule. */
const GOOD = 9999;
const TX_AT = 0x1_0000;
const RX_AT = 0x4_0000;

const ram = new GuestRam(0x8_0000);
const memory = new GuestMemory();
memory.add({ guestAddress: ram.guest(0), userAddress: ram.user(0), size: ram.length, mmapOffset: 0 }, ram.fd);
afterAll(() => {
  memory.clear();
  ram.close();
});

const silent = (): void => undefined;

const host = (offersBuffers: boolean): VringHost => ({
  memory,
  iotlb: undefined,
  dirtyLog: undefined,
  awaitsLog: false,
  ringFeatures: { packed: false, indirect: false, eventIdx: false, inOrder: false },
  log: { info: silent, warn: silent, error: silent } as unknown as Logger,
  attachment: {
    ringTraits: () => ({ offersBuffers, runsDisabled: false }),
    ringChanged: silent,
  } as unknown as RingAttachment,
  wake: silent,
  memoryFaulted: false,
  onMemoryFault: silent,
  requestTranslations: () => 0,
});

interface Fields {
  readonly op: number;
  readonly srcPort: number;
  readonly dstPort: number;
  readonly type: number;
  readonly flags: number;
  readonly bytes: number;
  readonly lie: number;
  readonly srcCid: number;
  readonly dstCid: number;
  readonly bufAlloc: number;
  readonly fwdCnt: number;
}

type Step =
  | { readonly kind: 'packet'; readonly fields: Fields }
  | { readonly kind: 'host'; readonly which: number; readonly what: 'write' | 'read' | 'close' };

const often = <T>(usual: T, ...rare: fc.Arbitrary<T>[]): fc.Arbitrary<T> =>
  fc.oneof({ weight: 8, arbitrary: fc.constant(usual) }, ...rare.map((arbitrary) => ({ weight: 1, arbitrary })));

const fields: fc.Arbitrary<Fields> = fc.record({
  op: fc.oneof({ weight: 20, arbitrary: fc.integer({ min: 1, max: 7 }) }, { weight: 1, arbitrary: fc.nat(0xffff) }),
  srcPort: fc.nat(2),
  dstPort: fc.nat(2),
  type: fc.oneof({ weight: 8, arbitrary: fc.constantFrom(1, 2) }, { weight: 1, arbitrary: fc.nat(0xffff) }),
  flags: fc.oneof({ weight: 4, arbitrary: fc.nat(3) }, { weight: 1, arbitrary: fc.nat() }),
  bytes: fc.oneof(fc.nat(64), fc.nat(5000)),
  lie: often(0, fc.nat(0xffff_ffff)),
  srcCid: often(CID, fc.nat(10)),
  dstCid: often(2, fc.nat(10)),
  bufAlloc: fc.oneof(fc.constant(65_536), fc.nat(300), fc.nat(0xffff_ffff)),
  fwdCnt: fc.oneof({ weight: 6, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.nat(0xffff_ffff) }),
});

const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 4, arbitrary: fields.map((f) => ({ kind: 'packet' as const, fields: f })) },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant('host' as const),
      which: fc.nat(7),
      what: fc.constantFrom('write' as const, 'read' as const, 'close' as const),
    }),
  },
);

const SEQPACKET = 2;
const SOCK_SEQPACKET = 5;
const SOCK_STREAM = 1;

/** A muxer between two rings, with sockets of this process as the host's side. */
class World {
  readonly epoll = new Epoll();
  readonly deadlines = new Deadlines();
  readonly counters = new Counters();
  readonly muxer: Muxer;
  readonly hosts: UnixStream[] = [];
  readonly txRing = new RawRing(ram, 1, SIZE, 0x1000);
  readonly rxRing = new RawRing(ram, 0, SIZE, 0x3000);
  readonly tx = new Vring(1, host(false));
  readonly rx = new Vring(0, host(true));
  readonly #transmitter: Transmitter;
  readonly #receiver: Receiver;

  constructor() {
    const limits = { ...DEFAULT_LIMITS, maxConnections: MAX_CONNECTIONS, bufferSize: BUFFER_SIZE };
    const dialer = { dial: (muxer: Muxer, connection: Connection) => this.#dial(muxer, connection) };
    const { epoll, deadlines, counters } = this;
    this.muxer = new Muxer(CID, limits, { epoll, deadlines, counters, dialer });
    this.muxer.start(7n);
    this.#transmitter = new Transmitter(this.muxer);
    this.#receiver = new Receiver(this.muxer);
    for (const [vring, ring] of [
      [this.tx, this.txRing],
      [this.rx, this.rxRing],
    ] as const) {
      ram.bytes.fill(0, ring.table, ring.end);
      const { table, avail, used } = ring;
      const addresses = { descriptor: ram.user(table), available: ram.user(avail), used: ram.user(used) };
      vring.start({ size: SIZE, base: 0, addresses, usedLog: undefined, inflight: undefined });
      vring.enabled = true;
    }
    for (let i = 0; i < SIZE; i += 1) this.#giveBuffer(i);
  }

  #dial(muxer: Muxer, connection: Connection): void {
    if (connection.peerPort === 0 || connection.peerCid !== 2) {
      muxer.reset(connection);
      return;
    }
    const [near, far] = UnixStream.pair(connection.type === SEQPACKET ? SOCK_SEQPACKET : SOCK_STREAM);
    this.hosts.push(far);
    muxer.sockets.attach(connection, near.detach());
    muxer.accept(connection);
  }

  #giveBuffer(i: number): void {
    this.rxRing.setDescriptor(i, { address: ram.guest(RX_AT + i * BUFFER), length: BUFFER, flags: WRITE });
    this.rxRing.publish(i);
  }

  send(packet: Omit<VsockPacket, 'payload'>, payload: Uint8Array): void {
    ram.bytes.set(encodeHeader(packet), TX_AT);
    ram.bytes.set(payload, TX_AT + 44);
    this.txRing.setDescriptor(0, { address: ram.guest(TX_AT), length: 44 + payload.length });
    this.txRing.publish(0);
  }

  /** Lets everything happen that can. Returns the packets that the guest got. */
  run(): VsockPacket[] {
    const got: VsockPacket[] = [];
    for (let work = 1; work > 0; ) {
      work = this.#transmitter.run(this.tx, 64) + this.epoll.dispatch() + this.#receiver.run(this.rx);
      this.tx.flush(false);
      this.rx.flush(false);
      for (; this.rxRing.seen !== this.rxRing.usedIndex; this.rxRing.seen = (this.rxRing.seen + 1) & 0xffff) {
        const { id, length } = this.rxRing.usedEntry(this.rxRing.seen);
        const at = RX_AT + id * BUFFER;
        got.push(decodePacket(ram.bytes.slice(at, at + length)));
        this.#giveBuffer(id);
      }
      if (got.length > 10_000) throw new Error('packets without end');
    }
    expect(this.txRing.usedIndex).toBe(this.txRing.availIndex);
    expect(this.muxer.size).toBeLessThanOrEqual(MAX_CONNECTIONS);
    return got;
  }

  close(): void {
    this.muxer.close();
    for (const stream of this.hosts) stream.close();
    this.epoll.close();
    this.txRing.close();
    this.rxRing.close();
  }
}

const key = (guestPort: number, peerCid: number, peerPort: number): string => `${guestPort} ${peerCid} ${peerPort}`;

const header = (f: Omit<Fields, 'bytes' | 'lie'>, len: number): Omit<VsockPacket, 'payload'> => ({ ...f, len });

const sendGood = (world: World, op: number, text: string, fwdCnt = 0): VsockPacket[] => {
  const payload = Buffer.from(text);
  const packet = {
    op,
    srcPort: GOOD,
    dstPort: GOOD,
    type: 1,
    flags: 0,
    srcCid: CID,
    dstCid: 2,
    bufAlloc: 65_536,
    fwdCnt,
  };
  world.send({ ...packet, len: payload.length }, payload);
  return world.run();
};

/** What a packet must bring, and what it does to the list of open connections. */
const check = (open: Map<string, number>, f: Fields, got: readonly VsockPacket[]): void => {
  const mine = key(f.srcPort, f.dstCid, f.dstPort);
  const answers = got.filter((p) => key(p.dstPort, Number(p.srcCid), p.srcPort) === mine);
  if (f.srcCid !== CID) expect(answers.every((p) => p.op !== OP.RESPONSE)).toBe(true);
  else if (!open.has(mine) || open.get(mine) !== f.type) {
    if (f.op === OP.RST) expect(answers.filter((p) => p.op === OP.RST)).toEqual([]);
    else if (f.op === OP.REQUEST) expect([OP.RESPONSE, OP.RST]).toContain(answers.find((p) => p.type === f.type)?.op);
    else expect(answers.filter((p) => p.op === OP.RST && p.type === f.type)).toHaveLength(1);
  } else {
    const isEnd = f.op === OP.SHUTDOWN && (f.flags & 3) === 3;
    const isBreach = f.op === OP.REQUEST || f.op === OP.RESPONSE || f.op === OP.INVALID || f.op > OP.CREDIT_REQUEST;
    if (isEnd || isBreach) expect(answers.filter((p) => p.op === OP.RST)).toHaveLength(1);
  }
  if (f.srcCid === CID && f.op === OP.RST && open.get(mine) === f.type) open.delete(mine);
  for (const p of got) {
    const theirs = key(p.dstPort, Number(p.srcCid), p.srcPort);
    if (p.op === OP.RESPONSE) {
      expect(open.has(theirs)).toBe(false);
      open.set(theirs, p.type);
    } else if (p.op === OP.RST) {
      if (open.get(theirs) === p.type) open.delete(theirs);
    } else expect(open.get(theirs), `op ${p.op} of a connection that is not open`).toBe(p.type);
  }
};

it('serves a good connection whatever a guest sends on others', () => {
  const before = countOwnFds();
  fc.assert(
    fc.property(fc.array(step, { minLength: 1, maxLength: 150, size: 'max' }), (steps) => {
      const world = new World();
      try {
        const open = new Map<string, number>();
        expect(sendGood(world, OP.REQUEST, '').map((p) => p.op)).toEqual([OP.RESPONSE]);
        open.set(key(GOOD, 2, GOOD), 1);
        const good = world.hosts[0] as UnixStream;
        const scratch = new Uint8Array(65_536);
        for (const s of steps) {
          if (s.kind === 'packet') {
            const { bytes, lie, ...rest } = s.fields;
            world.send(header(rest, lie === 0 ? bytes : lie), new Uint8Array(bytes));
            check(open, s.fields, world.run());
          } else if (world.hosts.length > 1) {
            const stream = world.hosts[1 + (s.which % (world.hosts.length - 1))] as UnixStream;
            try {
              if (s.what === 'write') stream.send(scratch.subarray(0, 500));
              else if (s.what === 'read') stream.receive(scratch, 0, scratch.length)?.fds;
              else stream.close();
            } catch {
              // It is closed, or its other end is.
            }
            check(open, NOBODY, world.run());
          }
        }
        expect(
          sendGood(world, OP.RW, 'still here').filter((p) => p.dstPort === GOOD && p.op !== OP.CREDIT_UPDATE),
        ).toEqual([]);
        expect(Buffer.from(scratch.subarray(0, good.receive(scratch, 0, 64)?.length)).toString()).toBe('still here');
        good.send(Buffer.from('you too'));
        const back = world.run().filter((p) => p.dstPort === GOOD);
        expect(back.map((p) => Buffer.from(p.payload).toString())).toEqual(['you too']);
      } finally {
        world.close();
      }
      expect(countOwnFds()).toBe(before);
    }),
    { numRuns: 400 },
  );
}, 120_000);

/** A packet that was not sent: of another guest. */
const NOBODY: Fields = {
  op: OP.RST,
  srcPort: 0xffff,
  dstPort: 0xffff,
  type: 1,
  flags: 0,
  bytes: 0,
  lie: 0,
  srcCid: 0,
  dstCid: 0,
  bufAlloc: 0,
  fwdCnt: 0,
};
