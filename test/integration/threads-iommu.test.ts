/**
 * A front end says "there is no such page" while it takes memory back: the answer comes on another channel than the
 * request, and must not bring a ring back to memory that is about to go.
 */

import { describe, expect, it } from 'vitest';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { RequestArea } from '../support/frontend/blk-request.ts';
import { GuestRam } from '../support/frontend/guest-ram.ts';
import { RawConnection } from '../support/frontend/raw-connection.ts';
import { WRITE } from '../support/frontend/raw-virtqueue.ts';
import {
  BACKEND_REQUEST,
  FEATURE,
  FLAGS,
  iotlb,
  memoryTable,
  message,
  PROTOCOL,
  REQUEST,
  u64,
} from '../support/frontend/wire.ts';
import { SLOTS, ThreadsRig } from './threads-rig.ts';

const PAGE = 4096;
const READ_WRITE = 3;
const UPDATE = 2;
const ROUNDS = 10;
const cleanup = cleanupAfterEach();

/** Rings 0 and 1 behind an IOMMU that maps all of memory but its last page, one to one with user addresses. */
const open = async (threads: number) => {
  const rig = await ThreadsRig.negotiate(cleanup, {
    threads,
    queues: 2,
    extra: ['--iommu'],
    features: [FEATURE.ACCESS_PLATFORM],
    protocolFeatures: [PROTOCOL.BACKEND_REQ],
  });
  const { frontend } = rig;
  const [ours, theirs] = UnixStream.pair();
  const channel = new RawConnection(ours);
  cleanup.add(() => channel.close());
  const fd = theirs.detach();
  await frontend.require(REQUEST.SET_BACKEND_REQ_FD, undefined, [fd]);
  fd.close();
  await frontend.shareMemory();
  const map = (iova: number, userAddress: number): Promise<bigint> =>
    frontend.connection.ask(
      REQUEST.IOTLB_MSG,
      iotlb({ iova, size: frontend.ram.length - PAGE, userAddress, permission: READ_WRITE, type: UPDATE }),
    );
  await map(frontend.ram.guestAddress, frontend.ram.userAddress);
  await map(frontend.ram.userAddress, frontend.ram.userAddress);
  for (const ring of frontend.queues) await frontend.startRing(ring);
  return { rig, frontend, channel };
};

describe.each([1, 2])('with %i threads', (threads) => {
  it('a denial that comes while memory is replaced changes nothing until it is there', async () => {
    const { rig, frontend, channel } = await open(threads);
    const { ram } = frontend;
    const [first] = frontend.queues;
    if (first === undefined) throw new Error('no ring');
    const area = new RequestArea(frontend, 2 * SLOTS, PAGE);
    // Mapped first, it takes the place in the daemon that the memory had.
    const other = new GuestRam(ram.length, 0x8000_0000, 0x7d00_0000_0000);
    cleanup.add(() => other.close());

    for (let round = 0; round < ROUNDS; round += 1) {
      area.putHeader(0);
      const missing = { address: ram.guest(ram.length - PAGE), length: 512, flags: WRITE };
      first.setChain(3 * SLOTS, [area.headerDescriptor(), missing, area.statusDescriptor()]);
      first.publish(3 * SLOTS);
      first.signal();
      const miss = await channel.receive();
      // Ring 1 is a while about it: every write goes to the disk. Ring 0 waits, and has nothing in flight.
      rig.load(1).submit();
      const memory = round % 2 === 0 ? [other, ram] : [ram];
      const table = memoryTable(memory.map((part) => part.region()));
      const replaced = frontend.require(
        REQUEST.SET_MEM_TABLE,
        table,
        memory.map(({ fd }) => fd),
      );
      await channel.sendBytes(message(BACKEND_REQUEST.IOTLB_MSG, u64(1), { flags: FLAGS.VERSION | FLAGS.REPLY }));
      await replaced;

      expect(miss?.id).toBe(BACKEND_REQUEST.IOTLB_MSG);
      const [used] = await first.take();
      expect([used?.id, area.statusByte]).toEqual([3 * SLOTS, 1]);
      await rig.drain([rig.load(1)]);
    }
    expect(rig.backend.running).toBe(true);
  });
});
