import { afterEach, describe, expect, it } from 'vitest';
import { Postcopy } from '../../../../backends/core/postcopy.ts';
import type { GuardianData } from '../../../../backends/core/postcopy-guardian.ts';
import { GuestMemory, type MemoryRegion } from '../../../../protocol/memory/guest-memory.ts';
import { OwnedFd } from '../../../../protocol/sys/owned-fd.ts';
import { UnixStream } from '../../../../protocol/sys/unix-socket.ts';
import { userFaultsAvailable } from '../../../../protocol/sys/userfault.ts';
import { createMemfd } from '../../../support/frontend/descriptors.ts';
import { countOwnFds } from '../../../support/frontend/process-probe.ts';
import { u64 } from '../../../support/frontend/wire.ts';

const PAGE = 4096;
const SET_MEM_TABLE = 5;
const ADD_MEM_REG = 37;
const REM_MEM_REG = 38;

const open: { close(): void }[] = [];

afterEach(() => {
  for (const closable of open.splice(0).reverse()) closable.close();
});

/** One with a front end's socket, and a guardian that only counts. */
const create = (start = async (_: GuardianData): Promise<void> => undefined) => {
  const [socket, peer] = UnixStream.pair();
  open.push(socket, peer);
  const guardians = { started: 0, stopped: 0 };
  const postcopy = new Postcopy(socket.fd, async (data) => {
    await start(data);
    guardians.started += 1;
    for (const fd of [data.socket, data.userFault, data.empty]) open.push(new OwnedFd(fd));
    return {
      stop: async () => {
        guardians.stopped += 1;
      },
    };
  });
  open.push({ close: () => void postcopy.abandon() });
  return { postcopy, guardians };
};

const advise = async (postcopy: Postcopy): Promise<void> => {
  open.push(await postcopy.advise());
};

const region = (pages = 4): MemoryRegion => {
  const fd = createMemfd(pages * PAGE);
  const memory = new GuestMemory();
  open.push(fd, { close: () => memory.clear() });
  return memory.add({ guestAddress: 0, size: pages * PAGE, userAddress: 0, mmapOffset: 0 }, fd);
};

const message = (id: number, payload: Uint8Array, fds: OwnedFd[] = []) => ({
  id,
  payload,
  fds,
  isReply: false,
  needsReply: false,
});

describe.runIf(userFaultsAvailable())('postcopy', () => {
  it('goes from advice to listening to its end, with one guardian at a time', async () => {
    const { postcopy, guardians } = create();
    expect(postcopy.isListening).toBe(false);

    await advise(postcopy);
    await advise(postcopy);
    expect(postcopy.isListening).toBe(false);
    postcopy.listen(false);
    postcopy.listen(false);
    expect(postcopy.isListening).toBe(true);
    await expect(postcopy.advise()).rejects.toThrow(/before POSTCOPY_LISTEN/);
    await postcopy.end();

    expect([postcopy.isListening, guardians]).toEqual([false, { started: 2, stopped: 2 }]);
    await postcopy.end();
    await advise(postcopy);
    expect(guardians).toEqual({ started: 3, stopped: 2 });
  });

  it('does not listen without advice, nor when there is memory', async () => {
    const { postcopy } = create();

    expect(() => postcopy.listen(false)).toThrow(/POSTCOPY_ADVISE/);
    await advise(postcopy);
    expect(() => postcopy.listen(true)).toThrow(/guest memory already/);
    expect(postcopy.isListening).toBe(false);
  });

  it('does not end before it begins, nor before memory is acknowledged', async () => {
    const { postcopy } = create();
    await expect(postcopy.end()).rejects.toThrow(/POSTCOPY_ADVISE/);
    await advise(postcopy);
    postcopy.listen(false);

    postcopy.register(region());

    await expect(postcopy.end()).rejects.toThrow(/not acknowledged/);
    postcopy.acknowledge();
    await postcopy.end();
  });

  it('takes an acknowledgement of the kinds there are, while it listens', async () => {
    const { postcopy } = create();
    await advise(postcopy);
    const isAcknowledgement = (id: number, payload = u64(0), fds: OwnedFd[] = []) =>
      postcopy.isAcknowledgement(message(id, payload, fds));
    const kinds = [SET_MEM_TABLE, ADD_MEM_REG, REM_MEM_REG, 0];
    expect(kinds.map((id) => isAcknowledgement(id))).toEqual([false, false, false, false]);

    postcopy.listen(false);
    // An empty table is one, when none is due.
    expect(kinds.map((id) => isAcknowledgement(id))).toEqual([false, true, true, true]);
    postcopy.register(region());
    expect(kinds.map((id) => isAcknowledgement(id))).toEqual([true, true, true, true]);
    expect(kinds.map((id) => isAcknowledgement(id, new Uint8Array(0)))).toEqual([true, true, true, true]);
    expect(kinds.map((id) => isAcknowledgement(id, new Uint8Array(40)))).toEqual([false, false, false, false]);
    expect([1, 6, 28, 30].map((id) => isAcknowledgement(id))).toEqual([false, false, false, false]);
    expect(isAcknowledgement(SET_MEM_TABLE, u64(0), [new OwnedFd(-1)])).toBe(false);
    expect(() => isAcknowledgement(SET_MEM_TABLE, u64(1))).toThrow(/cannot bring pages/);
  });

  it('waits for an acknowledgement from the registration on', async () => {
    const { postcopy } = create();
    await advise(postcopy);
    postcopy.listen(false);
    expect(postcopy.isAwaiting).toBe(false);

    postcopy.register(region());
    expect(postcopy.isAwaiting).toBe(true);
    postcopy.acknowledge();

    expect(postcopy.isAwaiting).toBe(false);
  });

  it('fails who touches a page after it was abandoned, once and for all', async () => {
    const { postcopy, guardians } = create();
    await advise(postcopy);
    postcopy.listen(false);
    const [kept, gone] = [region(), region()];
    postcopy.register(kept);
    postcopy.register(gone);
    postcopy.forget(gone);

    await Promise.all([postcopy.abandon(), postcopy.abandon()]);

    expect(new Uint8Array(kept.view(0, PAGE))[0]).toBe(0);
    expect([kept.mapping.faulted, gone.mapping.faulted, guardians.stopped]).toEqual([true, false, 1]);
    await expect(postcopy.end()).rejects.toThrow();
  });

  it('leaves memory that came as it is when it ends', async () => {
    const { postcopy } = create();
    await advise(postcopy);
    postcopy.listen(false);
    const late = region();
    postcopy.register(late);
    postcopy.acknowledge();

    await postcopy.end();

    new Uint8Array(late.view(0, PAGE))[0] = 7;
    expect([new Uint8Array(late.view(0, PAGE))[0], late.mapping.faulted]).toEqual([7, false]);
  });

  it('keeps no descriptor when there is no guardian', async () => {
    const { postcopy } = create(() => Promise.reject(new Error('no thread')));
    const before = countOwnFds();

    await expect(postcopy.advise()).rejects.toThrow(/no thread/);

    expect(countOwnFds()).toBe(before);
  });
});
