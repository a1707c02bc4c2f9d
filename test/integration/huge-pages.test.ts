/** Guest memory on huge pages, whose mappings begin and end at multiples of 2 MiB whatever the region says. */

import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { libc } from '../../protocol/sys/libc.ts';
import { SharedMapping } from '../../protocol/sys/mapping.ts';
import { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { allocatePinned } from '../../protocol/sys/pinned.ts';
import { userFaultsAvailable } from '../../protocol/sys/userfault.ts';
import { doRequest, prepareRequest, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { truncate } from '../support/frontend/descriptors.ts';
import { hostileDaemon } from '../support/frontend/hostile-daemon.ts';
import { LateMemory } from '../support/frontend/late-memory.ts';
import { acknowledge, advise, listen, POSTCOPY, setTable } from '../support/frontend/postcopy-frontend.ts';
import { memoryTable, REQUEST } from '../support/frontend/wire.ts';

const MFD_CLOEXEC = 1;
const MFD_HUGETLB = 4;
const HUGE = 2 << 20;

const free = Number(/^HugePages_Free:\s+(\d+)$/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1] ?? 0);
if (free < 4) process.stderr.write('skipped: huge pages: fewer than 4 are free (echo 8 > /proc/sys/vm/nr_hugepages)\n');

describe.skipIf(free < 4)('memory on huge pages', () => {
  const daemon = hostileDaemon();

  const hugeFile = (pages: number): OwnedFd => {
    const fd = daemon().keep(new OwnedFd(libc.memfd_create('test-ram-huge', MFD_CLOEXEC | MFD_HUGETLB)));
    truncate(fd, pages * HUGE);
    return fd;
  };

  /** A front end whose ordinary memory is joined by two huge pages of `fd`, of which it says `offset` and `size`. */
  const withHugeRegion = async (fd: OwnedFd, offset: number, size: number) => {
    const frontend = await daemon().negotiate();
    const region = { guestAddress: 0x1_0000_0000, size, userAddress: 0x7100_0000_0000, mmapOffset: offset };
    const table = memoryTable([frontend.ram.region(), region]);
    await frontend.require(REQUEST.SET_MEM_TABLE, table, [frontend.ram.fd, fd]);
    await frontend.startRing(frontend.ring());
    return { frontend, start: region.guestAddress };
  };

  it.each([
    ['whole', 0, 2 * HUGE],
    ['from the second page on', HUGE, HUGE],
    ['from the middle of a page on', 4096, 2 * HUGE - 4096],
    ['up to the middle of a page', 0, HUGE + 4096],
  ])('is used, %s', async (_, offset, size) => {
    const { frontend, start } = await withHugeRegion(hugeFile(2), offset, size);
    const area = prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    const data = { address: start + size - 512, length: 512, flags: 2 };
    frontend.ring().setChain(0, [area.headerDescriptor(), data, area.statusDescriptor()]);

    expect(await frontend.ring().run(0)).toEqual([{ id: 0, length: 513 }]);

    expect(area.statusByte).toBe(STATUS.OK);
  });

  it('that is truncated after it was mapped ends the connection or the request, not the daemon', async () => {
    const fd = hugeFile(2);
    const { frontend, start } = await withHugeRegion(fd, 0, 2 * HUGE);
    truncate(fd, 0);
    const area = prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    const status = { address: start, length: 1, flags: 2 };
    frontend.ring().setChain(0, [area.headerDescriptor(), area.dataDescriptor(512, 2), status]);

    frontend.ring().publish(0);
    frontend.ring().signal();

    await frontend.connection.waitForEnd();
  });

  it.runIf(userFaultsAvailable())('is waited for, a huge page at a time, when it comes late', async () => {
    const fd = hugeFile(2);
    const frontend = await daemon().negotiate(POSTCOPY);
    const region = { guestAddress: 0x1_0000_0000, size: 2 * HUGE, userAddress: 0x7100_0000_0000, mmapOffset: 0 };
    const late = daemon().keep(new LateMemory(frontend.ram, 'wake', 0, 0));
    const area = prepareRequest(frontend, { type: TYPE.IN, inBytes: 512 });
    const data = { address: region.guestAddress + HUGE + 4096, length: 512, flags: 2 };
    frontend.ring().setChain(0, [area.headerDescriptor(), data, area.statusDescriptor()]);
    await advise(frontend, late);
    await listen(frontend);
    const [, base = 0] = await setTable(frontend, [frontend.ram.region(), region], [frontend.ram.fd, fd]);
    late.base = base;
    const page = allocatePinned(HUGE);
    page.bytes.fill(9);
    late.bringHuge(page.address, HUGE);
    await acknowledge(frontend);

    await frontend.startRing(frontend.ring());
    expect(await frontend.ring().run(0)).toEqual([{ id: 0, length: 513 }]);

    expect([area.statusByte, late.asked]).toEqual([STATUS.OK, [HUGE / 4096]]);
    const view = daemon().keep({
      mapping: new SharedMapping(fd.fd, 0, 2 * HUGE),
      close() {
        this.mapping.retire();
      },
    });
    const bytes = new Uint8Array(view.mapping.view(HUGE, 8192));
    expect([bytes[4095], bytes[4096 + 512]]).toEqual([9, 9]);
    expect(bytes.slice(4096, 4096 + 512)).toEqual(new Uint8Array(readFileSync(daemon().image).subarray(0, 512)));
  });

  it('beyond what the file has is refused', async () => {
    const frontend = await daemon().negotiate();
    const region = { guestAddress: 0x1_0000_0000, size: 4 * HUGE, userAddress: 0x7100_0000_0000, mmapOffset: 0 };

    expect(await frontend.isRefused(REQUEST.SET_MEM_TABLE, memoryTable([region]), [hugeFile(2)])).toBe('nack');

    await frontend.shareMemory();
    await frontend.startRing(frontend.ring());
    expect((await doRequest(frontend, { type: TYPE.IN, inBytes: 512 })).status).toBe(STATUS.OK);
  });
});
