/**
 * What the core does for every device, by the letter of the protocol: the dirty log, an IOMMU before the device,
 * notifications as messages. The disk stands for all of them. Source: vhost-user, Migration, IOMMU support, In-band
 * notifications.
 */

import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterAll, cleanupAfterEach } from '../support/cleanup.ts';
import { doRequest, prepareRequest, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { createMemfd, createPipe } from '../support/frontend/descriptors.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { RawConnection, type RawMessage } from '../support/frontend/raw-connection.ts';
import { type FrontendOptions, RawFrontend } from '../support/frontend/raw-frontend.ts';
import {
  BACKEND_REQUEST,
  bits,
  FEATURE,
  message,
  PROTOCOL,
  REQUEST,
  u64,
  vringAddress,
  vringFd,
  vringState,
} from '../support/frontend/wire.ts';
import { randomImage } from '../support/image.ts';

const life = cleanupAfterAll();
const cleanup = cleanupAfterEach();
let backend: BlkBackend | undefined;

beforeAll(async () => {
  const image = randomImage(join(life.directory(), 'disk.img'), 1 << 20);
  backend = await BlkBackend.start(life, { image, extra: ['--iommu', '--in-band'] });
});

/** A front end that negotiated and shared its memory. */
const prepare = async (options: FrontendOptions = {}): Promise<RawFrontend> => {
  const frontend = RawFrontend.connect((backend as BlkBackend).socket, options);
  cleanup.add(() => frontend.close());
  await frontend.negotiate();
  await frontend.shareMemory();
  return frontend;
};

/** The front end's end of the channel on which the back end asks. */
const openChannel = async (frontend: RawFrontend): Promise<RawConnection> => {
  const [ours, theirs] = UnixStream.pair();
  const fd = theirs.detach();
  await frontend.require(REQUEST.SET_BACKEND_REQ_FD, undefined, [fd]);
  fd.close();
  const channel = new RawConnection(ours);
  cleanup.add(() => channel.close());
  return channel;
};

const read = (frontend: RawFrontend) => doRequest(frontend, { type: TYPE.IN, sector: 8, inBytes: 512 });

describe('the dirty log', () => {
  /** size u64 @0, offset u64 @8. */
  const logArea = (size: number | bigint, offset: number | bigint = 0): Uint8Array =>
    Uint8Array.of(...u64(size), ...u64(offset));
  /** A bit for each page up to the end of the memory, 0x4020_0000. */
  const LOG_BYTES = 0x4020_0000 / 4096 / 8;

  const memfd = (bytes: number): OwnedFd => {
    const fd = createMemfd(bytes);
    cleanup.add(() => fd.close());
    return fd;
  };

  const pipe = (): OwnedFd => {
    const ends = createPipe();
    for (const end of ends) cleanup.add(() => end.close());
    return ends[0];
  };

  it.each<[string, Uint8Array, () => OwnedFd]>([
    ['has no bytes', logArea(0), () => memfd(LOG_BYTES)],
    ['ends before the memory', logArea(LOG_BYTES - 1), () => memfd(LOG_BYTES)],
    ['is longer than its file', logArea(LOG_BYTES + 1), () => memfd(LOG_BYTES)],
    ['begins behind its file', logArea(LOG_BYTES, 1 << 20), () => memfd(LOG_BYTES)],
    ['is a pipe', logArea(LOG_BYTES), pipe],
  ])('that %s is refused', async (_, area, open) => {
    const frontend = await prepare({ protocolFeatures: [PROTOCOL.LOG_SHMFD] });

    // The message has a reply of its own, which cannot say no.
    expect(await frontend.isRefused(REQUEST.SET_LOG_BASE, area, [open()])).toBe('closed');
  });

  it('may begin in the middle of a page of its file', async () => {
    const frontend = await prepare({ protocolFeatures: [PROTOCOL.LOG_SHMFD] });

    const answer = await frontend.connection.call(REQUEST.SET_LOG_BASE, logArea(LOG_BYTES, 100), [memfd(1 << 20)]);

    expect(answer).toMatchObject({ payload: u64(0), fds: [] });
  });

  it('may come with a descriptor, which is let go of', async () => {
    const frontend = await prepare({ protocolFeatures: [PROTOCOL.LOG_SHMFD] });
    const before = (backend as BlkBackend).fdCount();

    for (let i = 0; i < 100; i += 1) await frontend.require(REQUEST.SET_LOG_FD, undefined, [frontend.queue().call]);

    // Those of the test before may be on their way out, too.
    await eventually(
      'descriptors of the daemon',
      () => (backend as BlkBackend).fdCount(),
      (count) => count <= before,
    );
  });
});

describe('behind an IOMMU', () => {
  const UPDATE = 2;
  const INVALIDATE = 3;
  const MISS = 1;
  const PAGE = 4096n;

  /** iova u64 @0, size u64 @8, user address u64 @16, permission u8 @24 (1 read, 2 write), type u8 @25. */
  const iotlb = (iova: bigint, size: bigint, userAddress: bigint, permission: number, type: number): Uint8Array => {
    const payload = Uint8Array.of(...u64(iova), ...u64(size), ...u64(userAddress), ...new Uint8Array(8));
    payload[24] = permission;
    payload[25] = type;
    return payload;
  };

  /** Data lies at its guest address, rings lie at the user address: both are mapped to where they are. */
  const userAddressOf = ({ ram }: RawFrontend, iova: bigint): bigint => {
    const user = BigInt(ram.userAddress);
    return iova >= user ? iova : iova - BigInt(ram.guestAddress) + user;
  };

  interface Guest {
    readonly frontend: RawFrontend;
    /** Pages that were asked for. A page may be asked for twice: to be read, and to be written. */
    readonly misses: bigint[];
    /** Sends an IOTLB message when those before it are answered. Resolves with the answer. */
    tell(payload: Uint8Array): Promise<bigint>;
  }

  /** Answers every miss by a page, until the channel ends. */
  const answerMisses = async ({ frontend, misses, tell }: Guest, channel: RawConnection): Promise<void> => {
    for (let asked = await channel.receive(); asked !== undefined; asked = await channel.receive()) {
      const view = new DataView(asked.payload.buffer, asked.payload.byteOffset, 32);
      expect([asked.id, asked.flags, view.getUint8(25)]).toEqual([BACKEND_REQUEST.IOTLB_MSG, 1 | 8, MISS]);
      const iova = view.getBigUint64(0, true) & ~(PAGE - 1n);
      misses.push(iova);
      expect(await tell(iotlb(iova, PAGE, userAddressOf(frontend, iova), 3, UPDATE))).toBe(0n);
      await channel.sendBytes(message(BACKEND_REQUEST.IOTLB_MSG, u64(0), { flags: 1 | 4 }));
    }
  };

  const start = async (): Promise<Guest> => {
    const options = { features: [FEATURE.ACCESS_PLATFORM], protocolFeatures: [PROTOCOL.BACKEND_REQ], queueSize: 16 };
    const frontend = await prepare(options);
    const channel = await openChannel(frontend);
    await frontend.startRing(frontend.queue());
    let last: Promise<unknown> = Promise.resolve();
    const tell = (payload: Uint8Array): Promise<bigint> => {
      const answer = last.then(() => frontend.connection.ask(REQUEST.IOTLB_MSG, payload));
      last = answer;
      return answer;
    };
    const guest = { frontend, misses: [], tell };
    // Then nothing is answered any more, and the test fails for that.
    answerMisses(guest, channel).catch(() => channel.close());
    return guest;
  };

  it('a missing translation is asked for, and used when it comes', async () => {
    const { frontend, misses } = await start();
    const { ram, dataStart } = frontend;

    expect((await read(frontend)).status).toBe(STATUS.OK);
    expect((await read(frontend)).status).toBe(STATUS.OK);

    const data = BigInt(ram.guest(dataStart));
    expect(new Set(misses)).toEqual(new Set([BigInt(ram.user(frontend.ring().table)), data, data + PAGE]));
    // The page of header and status is read and written.
    expect(misses.length).toBeLessThanOrEqual(4);
  });

  it('an invalidation is answered when nothing of it is in use', async () => {
    const { frontend, misses, tell } = await start();
    const data = BigInt(frontend.ram.guest(frontend.dataStart)) + PAGE;
    await read(frontend);
    expect(misses.filter((page) => page === data)).toHaveLength(1);

    expect(await tell(iotlb(data, PAGE, 0n, 0, INVALIDATE))).toBe(0n);

    expect((await read(frontend)).status).toBe(STATUS.OK);
    expect(misses.filter((page) => page === data)).toHaveLength(2);
  });

  it('a message of another type than update and invalidation is refused', async () => {
    const { connection } = await prepare();

    expect(await connection.ask(REQUEST.IOTLB_MSG, iotlb(0n, PAGE, 0n, 3, MISS))).toBe(1n);
  });
});

describe('notifications in band', () => {
  const NEEDED = [PROTOCOL.BACKEND_REQ, PROTOCOL.INBAND_NOTIFICATIONS];

  const kick = (frontend: RawFrontend): Promise<void> => frontend.require(REQUEST.VRING_KICK, vringState(0, 0));

  /** A ring that was started by a kick that is a message, and has no descriptors. */
  const start = async (): Promise<{ frontend: RawFrontend; channel: RawConnection }> => {
    const frontend = await prepare({ protocolFeatures: NEEDED });
    const channel = await openChannel(frontend);
    const ring = frontend.ring();
    await frontend.require(REQUEST.SET_VRING_NUM, vringState(0, ring.size));
    await frontend.require(REQUEST.SET_VRING_BASE, vringState(0, 0));
    await frontend.require(REQUEST.SET_VRING_ADDR, vringAddress(0, ring.addresses()));
    await frontend.require(REQUEST.SET_VRING_CALL, vringFd(0, true));
    await frontend.require(REQUEST.SET_VRING_ERR, vringFd(0, true));
    await kick(frontend);
    await frontend.require(REQUEST.SET_VRING_ENABLE, vringState(0, 1));
    return { frontend, channel };
  };

  /** The next message of the back end that is of this kind. */
  const next = async (channel: RawConnection, id: number): Promise<RawMessage | undefined> => {
    for (let got = await channel.receive(); got !== undefined; got = await channel.receive()) {
      if (got.id === id) return got;
    }
    return undefined;
  };

  it('start a ring, carry its kicks and its calls', async () => {
    const { frontend, channel } = await start();
    const ring = frontend.ring();
    for (let i = 1; i <= 3; i += 1) {
      const area = prepareRequest(frontend, { type: TYPE.IN, sector: 8, inBytes: 512 });
      ring.publish(0);
      await kick(frontend);

      await eventually(
        'used index',
        () => ring.usedIndex,
        (index) => index === i,
      );
      expect(await next(channel, BACKEND_REQUEST.VRING_CALL)).toMatchObject({ payload: vringState(0, 0), fds: [] });
      expect(area.statusByte).toBe(STATUS.OK);
    }
  });

  it('tell of a ring that is broken', async () => {
    const { frontend, channel } = await start();

    frontend.ring().setAvailIndex(frontend.ring().size + 1);
    await kick(frontend);

    expect(await next(channel, BACKEND_REQUEST.VRING_ERR)).toMatchObject({ payload: vringState(0, 0), fds: [] });
  });

  it('that were not negotiated are refused', async () => {
    const frontend = await prepare({ protocolFeatures: [PROTOCOL.BACKEND_REQ] });

    expect(await frontend.isRefused(REQUEST.VRING_KICK, vringState(0, 0))).toBe('nack');
  });

  it.each([
    ['BACKEND_REQ', PROTOCOL.REPLY_ACK],
    ['REPLY_ACK', PROTOCOL.BACKEND_REQ],
  ])('need %s', async (_, other) => {
    const { connection } = RawFrontend.connect((backend as BlkBackend).socket);
    cleanup.add(() => connection.close());

    await connection.send(REQUEST.SET_PROTOCOL_FEATURES, u64(bits(PROTOCOL.INBAND_NOTIFICATIONS, other)));

    expect(await connection.receive()).toBeUndefined();
  });
});
