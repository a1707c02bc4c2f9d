/**
 * Guest memory and the in-flight region as messages: what a front end sends when it hands them over, and again when the
 * back end comes back. Source: vhost-user, Memory region description, Inflight I/O tracking.
 */

import { type OwnedFd, statFd } from '../../protocol/sys/owned-fd.ts';
import { closeAll } from '../../protocol/vhost-user/endpoint.ts';
import { ProtocolError } from '../../protocol/vhost-user/errors.ts';
import { FRONTEND } from '../../protocol/vhost-user/messages.ts';
import { type Inflight, MAX_TABLE_REGIONS, type MemoryRegion } from '../../protocol/vhost-user/payloads.ts';
import type { FrontendConnection } from './connection.ts';

/** A region of guest memory as back ends are told of it, with the descriptor of its file. Owned by whoever made it. */
export interface SharedRegion {
  readonly region: MemoryRegion;
  readonly memfd: OwnedFd;
  /** Where the front end's IOMMU maps all of it for the device, while it has the region. Undefined: somebody else maps. */
  readonly iova?: number | undefined;
}

/** Where a back end keeps track of what it has taken and not yet completed. Owned by the front end. */
export interface InflightRegion {
  readonly area: Inflight;
  readonly fd: OwnedFd;
}

/** Replaces all memory: by a table, and what does not fit into one (back ends with CONFIGURE_MEM_SLOTS) by additions. */
export async function sendMemory(connection: FrontendConnection, regions: readonly SharedRegion[]): Promise<void> {
  const table = regions.slice(0, MAX_TABLE_REGIONS);
  await connection.command(
    FRONTEND.SET_MEM_TABLE,
    table.map(({ region }) => region),
    table.map(({ memfd }) => memfd),
  );
  for (const { region, memfd } of regions.slice(MAX_TABLE_REGIONS)) {
    await connection.command(FRONTEND.ADD_MEM_REG, region, [memfd]);
  }
}

/**
 * Asks the back end for a region for so many queues of so many entries. The caller owns its descriptor.
 * @throws ProtocolError - the answer has no descriptor, or one of a smaller region than it says
 */
export async function requestInflight(
  connection: FrontendConnection,
  numQueues: number,
  queueSize: number,
): Promise<InflightRegion> {
  const wanted: Inflight = { mmapSize: 0, mmapOffset: 0, numQueues, queueSize };
  const { value, fds } = await connection.callWithFds(FRONTEND.GET_INFLIGHT_FD, wanted);
  const [fd, ...surplus] = fds;
  closeAll(surplus);
  if (fd === undefined || value.mmapSize === 0 || statFd(fd.fd).size < value.mmapOffset + value.mmapSize) {
    fd?.close();
    throw new ProtocolError('GET_INFLIGHT_FD was answered without a descriptor of a region of the stated size');
  }
  return { area: { ...value, numQueues, queueSize }, fd };
}

/** Gives a region (back) to the back end. */
export async function sendInflight(connection: FrontendConnection, { area, fd }: InflightRegion): Promise<void> {
  await connection.command(FRONTEND.SET_INFLIGHT_FD, area, [fd]);
}
