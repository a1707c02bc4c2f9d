/** A front end whose guest moved here before its memory: the messages of postcopy, in single steps. */

import type { OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import type { LateMemory } from './late-memory.ts';
import type { RawFrontend } from './raw-frontend.ts';
import { FLAGS, memoryTable, PROTOCOL, type RawRegion, REQUEST, readU64, singleRegion, u64 } from './wire.ts';

/** Protocol features to negotiate for it, with the messages about single regions or without. */
export const POSTCOPY = { protocolFeatures: [PROTOCOL.PAGEFAULT] };
export const POSTCOPY_SLOTS = { protocolFeatures: [PROTOCOL.PAGEFAULT, PROTOCOL.CONFIGURE_MEM_SLOTS] };

/** POSTCOPY_ADVISE. @throws Error - the answer is not a descriptor and nothing else */
export const advise = async (frontend: RawFrontend, late: LateMemory): Promise<void> => {
  const { payload, fds } = await frontend.connection.call(REQUEST.POSTCOPY_ADVISE);
  const [userFault, ...more] = fds;
  if (userFault === undefined || more.length > 0 || payload.length > 0) {
    throw new Error(`POSTCOPY_ADVISE answered by ${payload.length} bytes and ${fds.length} descriptors`);
  }
  late.serve(userFault);
};

/** POSTCOPY_LISTEN, which is acknowledged once. */
export const listen = (frontend: RawFrontend): Promise<void> => frontend.require(REQUEST.POSTCOPY_LISTEN);

/** POSTCOPY_END. Returns the answer. */
export const end = (frontend: RawFrontend): Promise<bigint> => frontend.connection.ask(REQUEST.POSTCOPY_END);

/** SET_MEM_TABLE while listening. Returns where the back end has the regions. */
export const setTable = async (
  frontend: RawFrontend,
  regions: readonly RawRegion[] = [frontend.ram.region()],
  fds: readonly OwnedFd[] = regions.map(() => frontend.ram.fd),
): Promise<number[]> => {
  const { payload, fds: none } = await frontend.connection.call(REQUEST.SET_MEM_TABLE, memoryTable(regions), fds);
  const bases = regions.map((_, i) => Number(readU64(payload.subarray(8 + 32 * i + 16, 8 + 32 * i + 24))));
  const expected = memoryTable(regions.map((region, i) => ({ ...region, userAddress: bases[i] as number })));
  if (none.length > 0 || Buffer.compare(payload, expected) !== 0) throw new Error('the answer is another table');
  return bases;
};

/** ADD_MEM_REG while listening. Returns where the back end has the region. */
export const addRegion = async (frontend: RawFrontend, region: RawRegion): Promise<number> => {
  const { payload } = await frontend.connection.call(REQUEST.ADD_MEM_REG, singleRegion(region), [frontend.ram.fd]);
  const base = Number(readU64(payload.subarray(24, 32)));
  const expected = singleRegion({ ...region, userAddress: base });
  if (Buffer.compare(payload, expected) !== 0) throw new Error('the answer is another region');
  return base;
};

/** What follows such an answer. QEMU puts the request's number there, and a u64. */
export const acknowledge = (frontend: RawFrontend, id: number = REQUEST.SET_MEM_TABLE, value = 0): Promise<void> =>
  frontend.connection.send(id, u64(value), [], FLAGS.VERSION);

/** Everything up to memory that comes late. */
export const shareLate = async (frontend: RawFrontend, late: LateMemory): Promise<void> => {
  await advise(frontend, late);
  await listen(frontend);
  [late.base = 0] = await setTable(frontend);
  await acknowledge(frontend);
};
