/**
 * How a daemon asks for translations: of large requests for as many pages as they have, whatever else the front end says
 * meanwhile; and again where an answer cannot come any more, or is one that a driver got which is gone.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { VhostUserFrontend } from '../../vmm-client/frontend/frontend.ts';
import { IoMappings } from '../../vmm-client/frontend/io-mappings.ts';
import { SharedMemory } from '../../vmm-client/frontend/shared-memory.ts';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { prepareRequest, RequestArea, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { RawConnection } from '../support/frontend/raw-connection.ts';
import { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { WRITE } from '../support/frontend/raw-virtqueue.ts';
import { BACKEND_REQUEST, FEATURE, FLAGS, iotlb, message, PROTOCOL, REQUEST, u64 } from '../support/frontend/wire.ts';
import { randomImage } from '../support/image.ts';
import { DiskRig, PAGE, READ } from './disk-rig.ts';

const MiB = 1 << 20;
const DISK_BYTES = 4 * MiB;
const READ_WRITE = 3;
const UPDATE = 2;
const INVALIDATE = 3;
const cleanup = cleanupAfterEach();

const startDaemon = (): Promise<BlkBackend> => {
  const image = randomImage(join(cleanup.directory(), 'disk.img'), DISK_BYTES);
  return BlkBackend.start(cleanup, { image, extra: ['--iommu'] });
};

it.each([false, true])('requests may have any number of pages, each mapped by itself (packed: %s)', async (packed) => {
  const { socket, image } = await startDaemon();
  const iommu = new IoMappings();
  const frontend = await VhostUserFrontend.connect(socket, { iommu });
  cleanup.add(() => frontend.close());
  const memory = new SharedMemory(8 * MiB, 0x1_0000_0000, 0x7f_0000_0000);
  cleanup.add(() => memory.close());
  const rig = await DiskRig.open(frontend, memory, packed);
  const data = memory.allocate(4 * MiB, MiB);
  for (let at = 0; at < memory.bytes.length; at += PAGE) {
    const userAddress = memory.userAddress + at;
    await iommu.map({ iova: 0x7f_0000_0000 + at, size: PAGE, userAddress, permission: READ_WRITE });
  }
  await frontend.setMemory([{ region: memory.region, memfd: memory.memfd }]);
  await rig.start();

  const disk = readFileSync(image);
  let at = data;
  for (const pages of [64, 65, 128, 256, 480]) {
    expect(await rig.run(READ, 0, at, pages * PAGE)).toBe(0);
    expect(memory.slice(at, pages * PAGE).equals(disk.subarray(0, pages * PAGE))).toBe(true);
    at += pages * PAGE;
  }
});

describe('a page of a request', () => {
  const openChannel = async (frontend: RawFrontend): Promise<RawConnection> => {
    const [ours, theirs] = UnixStream.pair();
    const channel = new RawConnection(ours);
    cleanup.add(() => channel.close());
    const fd = theirs.detach();
    await frontend.require(REQUEST.SET_BACKEND_REQ_FD, undefined, [fd]);
    fd.close();
    return channel;
  };

  /** A ring behind an IOMMU that maps all of memory but its last page, rings at user addresses, data at guest addresses. */
  const open = async () => {
    const daemon = await startDaemon();
    const frontend = RawFrontend.connect(daemon.socket, {
      features: [FEATURE.ACCESS_PLATFORM],
      protocolFeatures: [PROTOCOL.BACKEND_REQ],
    });
    cleanup.add(() => frontend.close());
    await frontend.negotiate();
    const channel = await openChannel(frontend);
    await frontend.shareMemory();
    const { ram, connection } = frontend;
    const tell = async (iova: number, size: number, type = UPDATE): Promise<void> => {
      const userAddress = iova >= ram.userAddress ? iova : iova - ram.guestAddress + ram.userAddress;
      const answer = await connection.ask(
        REQUEST.IOTLB_MSG,
        iotlb({ iova, size, userAddress, permission: READ_WRITE, type }),
      );
      expect(answer).toBe(0n);
    };
    const tellAll = async (): Promise<void> => {
      await tell(ram.guestAddress, ram.length - PAGE);
      await tell(ram.userAddress, ram.length - PAGE);
    };
    await tellAll();
    const ring = frontend.queue();
    await frontend.startRing(ring);
    const lastPage = ram.guest(ram.length - PAGE);
    /** Asks for data in the page that is not mapped. */
    const submit = (): RequestArea => {
      const area = new RequestArea(frontend, 0, PAGE);
      area.putHeader(TYPE.IN);
      ring.setChain(0, [
        area.headerDescriptor(),
        { address: lastPage, length: 512, flags: WRITE },
        area.statusDescriptor(),
      ]);
      ring.publish(0);
      ring.signal();
      return area;
    };
    return { daemon, frontend, channel, ring, tell, tellAll, lastPage, submit };
  };

  const expectMiss = async (channel: RawConnection, iova: number): Promise<void> => {
    const asked = await channel.receive();
    expect(asked?.id).toBe(BACKEND_REQUEST.IOTLB_MSG);
    const { buffer, byteOffset } = asked?.payload ?? new Uint8Array(32);
    expect(Number(new DataView(buffer, byteOffset).getBigUint64(0, true))).toBe(iova);
  };

  const deny = (channel: RawConnection): Promise<void> =>
    channel.sendBytes(message(BACKEND_REQUEST.IOTLB_MSG, u64(1), { flags: FLAGS.VERSION | FLAGS.REPLY }));

  it('is waited for as long as it takes, whatever is said of others', async () => {
    const { frontend, channel, ring, tell, lastPage, submit } = await open();
    const area = submit();
    await expectMiss(channel, lastPage);
    for (let round = 0; round < 150; round += 1) {
      await tell(0x1000, PAGE, round % 2 === 0 ? UPDATE : INVALIDATE);
    }
    expect(ring.waiting).toBe(0);
    await tell(lastPage, PAGE);
    await ring.take();
    expect(area.statusByte).toBe(STATUS.OK);
    expect(frontend.connection.ended).toBe(false);
  });

  it('is asked for again by another channel', async () => {
    const { frontend, channel, ring, tell, lastPage, submit } = await open();
    const area = submit();
    await expectMiss(channel, lastPage);
    const other = await openChannel(frontend);
    await expectMiss(other, lastPage);
    await tell(lastPage, PAGE);
    await ring.take();
    expect(area.statusByte).toBe(STATUS.OK);
  });

  it('is asked for again by a ring that was stopped before the answer', async () => {
    const { frontend, channel, ring, tell, tellAll, lastPage, submit } = await open();
    const area = submit();
    await expectMiss(channel, lastPage);
    const base = await frontend.stopRing(ring);
    await tellAll();
    await frontend.startRing(ring, base);
    await expectMiss(channel, lastPage);
    await tell(lastPage, PAGE);
    await ring.take();
    expect(area.statusByte).toBe(STATUS.OK);
  });

  it('is asked for again when the device was stopped: nobody tells it then what the guest unmaps', async () => {
    const { frontend, channel, ring, tellAll } = await open();
    await frontend.startRing(ring, await frontend.stopRing(ring));
    await expectMiss(channel, frontend.ram.user(frontend.ring().table));
    await tellAll();
    const area = prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    await ring.run(0);
    expect(area.statusByte).toBe(STATUS.OK);
  });

  it('that was denied to a ring can be had by the next driver', async () => {
    const { daemon, frontend, channel, ring, tell, tellAll } = await open();
    const { ram } = frontend;
    const table = ram.user(frontend.ring().table);
    // The guest unmaps its ring before it resets the device.
    await tell(table, PAGE, INVALIDATE);
    await expectMiss(channel, table);
    await deny(channel);
    await daemon.waitForLog(/out of service/, 10_000);
    // Said once, although the ring is looked for with every translation.
    for (let round = 0; round < 20; round += 1) await tell(0x1000, PAGE);
    expect(daemon.log().match(/out of service/g)).toHaveLength(1);

    const base = await frontend.stopRing(ring);
    await tellAll();
    await tell(table, PAGE, INVALIDATE);
    await frontend.startRing(ring, base);
    await expectMiss(channel, table);
    await tell(table, PAGE);
    const area = prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    await ring.run(0);
    expect(area.statusByte).toBe(STATUS.OK);
  });
});
