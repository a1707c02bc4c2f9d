/**
 * Every message and every feature bit, to every daemon: what belongs to something that is offered is served, everything
 * else is refused as the protocol says. What served messages do, other tests show. Source: vhost-user, Front-end message
 * types, Protocol features, REPLY_ACK; VIRTIO 1.3, 6.
 */

import { join } from 'node:path';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { Child } from '../support/child.ts';
import { cleanupAfterAll } from '../support/cleanup.ts';
import { createMemfd, createPipe } from '../support/frontend/descriptors.ts';
import { RawFrontend } from '../support/frontend/raw-frontend.ts';
import {
  bits,
  config,
  FEATURE,
  hasBit,
  inflight,
  memoryTable,
  PROTOCOL,
  singleRegion,
  u64,
  vringAddress,
  vringFd,
  vringState,
} from '../support/frontend/wire.ts';
import { randomImage } from '../support/image.ts';
import { projectDirectory } from '../support/peers.ts';

interface DaemonRow {
  readonly name: string;
  readonly options: (directory: string) => string[];
  /** Bytes of the configuration space. */
  readonly configBytes: number;
  readonly rings: bigint;
}

const DAEMONS: DaemonRow[] = [
  {
    name: 'blk',
    options: (directory) => [`--blk-file=${randomImage(join(directory, 'disk'), 1 << 20)}`, '--num-queues=5'],
    configBytes: 96,
    rings: 5n,
  },
  { name: 'net', options: () => ['--null', '--num-queue-pairs=3', '--ctrl-vq'], configBytes: 17, rings: 7n },
  { name: 'vsock', options: (directory) => ['--guest-cid=3', `--uds-path=${directory}/v`], configBytes: 8, rings: 3n },
];

interface Message {
  readonly payload?: Uint8Array;
  readonly fds?: readonly OwnedFd[];
}

interface MessageRow {
  readonly id: number;
  readonly name: string;
  /** The protocol feature that it belongs to; undefined: part of every back end; 'none': of no device here. */
  readonly needs?: number | 'none';
  /** Bytes of the reply's payload; undefined: it is only acknowledged. */
  readonly reply?: number;
  /** A well-formed one, for a front end that shared its memory and described ring 0; undefined: shown elsewhere. */
  readonly message: ((frontend: RawFrontend, daemon: DaemonRow) => Message | Promise<Message>) | undefined;
}

/** Closed after each test. */
const open: { close(): void }[] = [];

const keep = <T extends { close(): void }>(closable: T): T => {
  open.push(closable);
  return closable;
};

const none = (): Message => ({});
const number = (value: number | bigint) => (): Message => ({ payload: u64(value) });
const ring = (value: number) => (): Message => ({ payload: vringState(0, value) });

const socket = (): Message => {
  const [ours, theirs] = UnixStream.pair();
  keep(ours);
  return { fds: [keep(theirs.detach())] };
};

/** A log whose bits reach to the end of the memory, one a page. */
const dirtyLog = ({ ram }: RawFrontend): Message => {
  const bytes = Math.ceil((ram.guestAddress + ram.length) / 4096 / 8 / 4096) * 4096;
  const payload = new Uint8Array(16);
  new DataView(payload.buffer).setBigUint64(0, BigInt(bytes), true);
  return { payload, fds: [keep(createMemfd(bytes))] };
};

const inflightRegion = async ({ connection }: RawFrontend): Promise<Message> => {
  const wanted = inflight({ mmapSize: 0, mmapOffset: 0, numQueues: 1, queueSize: 128 });
  const { payload, fds } = await connection.call(31, wanted);
  return { payload, fds: fds.map(keep) };
};

/** An invalidation of one page: type 3 at byte 25. */
const invalidation = (): Message => {
  const payload = new Uint8Array(32);
  const view = new DataView(payload.buffer);
  view.setBigUint64(0, 0x1000n, true);
  view.setBigUint64(8, 0x1000n, true);
  view.setUint8(25, 3);
  return { payload };
};

/** The state of a migrated device: the flag is bit 0. */
const migratedConfig = (_: RawFrontend, { configBytes }: DaemonRow): Message => ({
  payload: config(0, new Uint8Array(configBytes), 1),
});

/** Save (0), while stopped (0), into the write end of a pipe. */
const savedState = (): Message => {
  const [reader, writer] = createPipe();
  keep(reader);
  return { payload: new Uint8Array(8), fds: [keep(writer)] };
};

const MESSAGES: MessageRow[] = [
  { id: 1, name: 'GET_FEATURES', reply: 8, message: none },
  { id: 2, name: 'SET_FEATURES', message: number(bits(FEATURE.VERSION_1, FEATURE.PROTOCOL_FEATURES)) },
  { id: 3, name: 'SET_OWNER', message: none },
  { id: 4, name: 'RESET_OWNER', message: none },
  {
    id: 5,
    name: 'SET_MEM_TABLE',
    message: ({ ram }) => ({ payload: memoryTable([ram.region()]), fds: [ram.fd] }),
  },
  { id: 6, name: 'SET_LOG_BASE', needs: PROTOCOL.LOG_SHMFD, reply: 8, message: dirtyLog },
  { id: 7, name: 'SET_LOG_FD', message: (frontend) => ({ fds: [frontend.queue().call] }) },
  { id: 8, name: 'SET_VRING_NUM', message: ring(128) },
  {
    id: 9,
    name: 'SET_VRING_ADDR',
    message: (frontend) => ({ payload: vringAddress(0, frontend.queue().addresses()) }),
  },
  { id: 10, name: 'SET_VRING_BASE', message: ring(0) },
  { id: 11, name: 'GET_VRING_BASE', reply: 8, message: ring(0) },
  { id: 12, name: 'SET_VRING_KICK', message: (frontend) => ({ payload: vringFd(0), fds: [frontend.queue().kick] }) },
  { id: 13, name: 'SET_VRING_CALL', message: (frontend) => ({ payload: vringFd(0), fds: [frontend.queue().call] }) },
  { id: 14, name: 'SET_VRING_ERR', message: (frontend) => ({ payload: vringFd(0), fds: [frontend.queue().err] }) },
  { id: 15, name: 'GET_PROTOCOL_FEATURES', reply: 8, message: none },
  { id: 16, name: 'SET_PROTOCOL_FEATURES', message: number(bits(PROTOCOL.REPLY_ACK)) },
  { id: 17, name: 'GET_QUEUE_NUM', needs: PROTOCOL.MQ, reply: 8, message: none },
  { id: 18, name: 'SET_VRING_ENABLE', message: ring(1) },
  { id: 19, name: 'SEND_RARP', needs: PROTOCOL.RARP, message: number(0x5634_1200_5452n) },
  { id: 20, name: 'NET_SET_MTU', needs: PROTOCOL.MTU, message: number(1400) },
  { id: 21, name: 'SET_BACKEND_REQ_FD', needs: PROTOCOL.BACKEND_REQ, message: socket },
  { id: 22, name: 'IOTLB_MSG', reply: 8, message: invalidation },
  { id: 23, name: 'SET_VRING_ENDIAN', needs: PROTOCOL.CROSS_ENDIAN, message: ring(0) },
  {
    id: 24,
    name: 'GET_CONFIG',
    needs: PROTOCOL.CONFIG,
    reply: 20,
    message: () => ({ payload: config(0, new Uint8Array(8)) }),
  },
  { id: 25, name: 'SET_CONFIG', needs: PROTOCOL.CONFIG, message: migratedConfig },
  { id: 26, name: 'CREATE_CRYPTO_SESSION', needs: PROTOCOL.CRYPTO_SESSION, reply: 0, message: none },
  { id: 27, name: 'CLOSE_CRYPTO_SESSION', needs: PROTOCOL.CRYPTO_SESSION, message: number(0) },
  { id: 28, name: 'POSTCOPY_ADVISE', needs: PROTOCOL.PAGEFAULT, reply: 0, message: undefined },
  { id: 29, name: 'POSTCOPY_LISTEN', needs: PROTOCOL.PAGEFAULT, message: undefined },
  { id: 30, name: 'POSTCOPY_END', needs: PROTOCOL.PAGEFAULT, reply: 8, message: undefined },
  {
    id: 31,
    name: 'GET_INFLIGHT_FD',
    needs: PROTOCOL.INFLIGHT_SHMFD,
    reply: 24,
    message: () => ({ payload: inflight({ mmapSize: 0, mmapOffset: 0, numQueues: 1, queueSize: 128 }) }),
  },
  { id: 32, name: 'SET_INFLIGHT_FD', needs: PROTOCOL.INFLIGHT_SHMFD, message: inflightRegion },
  { id: 33, name: 'GPU_SET_SOCKET', needs: 'none', message: socket },
  { id: 34, name: 'RESET_DEVICE', needs: PROTOCOL.RESET_DEVICE, message: none },
  { id: 35, name: 'VRING_KICK', needs: PROTOCOL.INBAND_NOTIFICATIONS, message: ring(0) },
  { id: 36, name: 'GET_MAX_MEM_SLOTS', needs: PROTOCOL.CONFIGURE_MEM_SLOTS, reply: 8, message: none },
  {
    id: 37,
    name: 'ADD_MEM_REG',
    needs: PROTOCOL.CONFIGURE_MEM_SLOTS,
    message: ({ ram }) => ({ payload: singleRegion(ram.region()), fds: [ram.fd] }),
  },
  {
    id: 38,
    name: 'REM_MEM_REG',
    needs: PROTOCOL.CONFIGURE_MEM_SLOTS,
    message: ({ ram }) => ({ payload: singleRegion(ram.region()) }),
  },
  { id: 39, name: 'SET_STATUS', needs: PROTOCOL.STATUS, message: number(3) },
  { id: 40, name: 'GET_STATUS', needs: PROTOCOL.STATUS, reply: 8, message: none },
  {
    id: 41,
    name: 'GET_SHARED_OBJECT',
    needs: PROTOCOL.SHARED_OBJECT,
    reply: 8,
    message: () => ({ payload: new Uint8Array(16) }),
  },
  { id: 42, name: 'SET_DEVICE_STATE_FD', needs: PROTOCOL.DEVICE_STATE, reply: 8, message: savedState },
  { id: 43, name: 'CHECK_DEVICE_STATE', needs: PROTOCOL.DEVICE_STATE, reply: 8, message: none },
  { id: 44, name: 'GET_SHMEM_CONFIG', needs: PROTOCOL.SHMEM, reply: 2056, message: none },
  {
    id: 45,
    name: 'GET_VRING_BASE_SKIP_DRAIN',
    needs: PROTOCOL.GET_VRING_BASE_SKIP_DRAIN,
    reply: 8,
    message: ring(0),
  },
  { id: 0, name: 'message 0', needs: 'none', message: none },
  { id: 46, name: 'message 46', needs: 'none', message: none },
  { id: 0xffff_ffff, name: 'message 2^32 - 1', needs: 'none', message: none },
];

/** What devices of these kinds have no use for, or what means something else to another peer. */
const NEVER = {
  protocol: [6, 7, 10, 11, 17, 18, ...Array.from({ length: 44 }, (_, i) => 20 + i)],
  ring: [24, 25, 27, 31, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49],
};

const ALL_BITS = [...Array(64).keys()];
/** Without these two, notifications cannot be messages. */
const IN_BAND_NEEDS = [PROTOCOL.BACKEND_REQ, PROTOCOL.REPLY_ACK];

describe.each(DAEMONS)('vhost-user-$name', (daemon) => {
  const cleanup = cleanupAfterAll();
  let path = '';
  let child: Child | undefined;

  beforeAll(async () => {
    const directory = cleanup.directory();
    path = join(directory, 'socket');
    const main = join(projectDirectory, `dist/backends/${daemon.name}/main.js`);
    const options = [
      `--socket-path=${path}`,
      '--log-format=json',
      '--iommu',
      '--in-band',
      ...daemon.options(directory),
    ];
    child = new Child(process.execPath, [main, ...options]);
    cleanup.add(() => child?.stop());
    await child.waitFor(/"listening on /, 15_000);
  });

  afterEach(() => {
    for (const closable of open.splice(0)) closable.close();
    expect(child?.running).toBe(true);
  });

  /** A front end that negotiated, shared its memory and described ring 0, with notifications in band if it asks for that. */
  const prepare = async (protocolFeatures: readonly number[] = []): Promise<RawFrontend> => {
    const frontend = keep(RawFrontend.connect(path, { protocolFeatures }));
    await frontend.negotiate();
    await frontend.shareMemory();
    await frontend.configureRing(frontend.queue());
    return frontend;
  };

  it.each(MESSAGES)(
    'serves $name if it offers what that belongs to, and refuses it if not',
    async ({ id, needs, reply, message }) => {
      const inBand = needs === PROTOCOL.INBAND_NOTIFICATIONS ? [...IN_BAND_NEEDS, needs] : [];
      const frontend = await prepare(inBand);
      const isServed = needs !== 'none' && (needs === undefined || hasBit(frontend.offeredProtocol, needs));
      if (isServed && message === undefined) return;
      const { payload, fds } = (await message?.(frontend, daemon)) ?? {};

      if (!isServed) {
        // What has a reply of its own cannot say no.
        expect(await frontend.isRefused(id, payload, fds)).toBe(reply === undefined ? 'nack' : 'closed');
        return;
      }
      if (reply === undefined) expect(await frontend.connection.acknowledge(id, payload, fds)).toBe(0n);
      else {
        const answer = await frontend.connection.call(id, payload, fds);
        for (const fd of answer.fds) keep(fd);
        expect(answer.payload).toHaveLength(reply);
      }
      expect(await frontend.connection.ask(1)).toBe(frontend.offered);
    },
  );

  it('ends the connection at a message that it refuses, if no answer is asked for', async () => {
    const { connection } = await prepare();

    await connection.send(23, vringState(0, 0));

    expect(await connection.receive()).toBeUndefined();
  });

  it('takes the bits that it offers, and refuses all others', async () => {
    const frontend = await prepare();
    const { offered, offeredProtocol } = frontend;
    for (const bit of ALL_BITS) {
      const features = u64(bits(bit, FEATURE.VERSION_1, FEATURE.PROTOCOL_FEATURES));
      expect([bit, await frontend.isRefused(2, features)]).toEqual([bit, hasBit(offered, bit) ? 'ok' : 'nack']);
      const protocol = u64(bits(bit, ...IN_BAND_NEEDS));
      expect([bit, await frontend.isRefused(16, protocol)]).toEqual([
        bit,
        hasBit(offeredProtocol, bit) ? 'ok' : 'nack',
      ]);
    }
  });

  it('never offers what it cannot do', async () => {
    const { offered, offeredProtocol } = await prepare();

    expect(NEVER.ring.filter((bit) => hasBit(offered, bit))).toEqual([]);
    expect(NEVER.protocol.filter((bit) => hasBit(offeredProtocol, bit))).toEqual([]);
  });

  it('has the rings that its options say', async () => {
    const { connection } = await prepare();

    expect(await connection.ask(17)).toBe(daemon.rings);
    expect(await connection.acknowledge(8, vringState(Number(daemon.rings) - 1, 8))).toBe(0n);
    expect(await connection.acknowledge(8, vringState(Number(daemon.rings), 8))).not.toBe(0n);
  });
});
