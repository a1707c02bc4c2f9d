/**
 * One block request whose chain is laid out in any way, on a ring of either layout, with the proof that the ring is served
 * afterwards.
 */

import { expect } from 'vitest';
import { doRequest, RequestArea, STATUS, TYPE } from './blk-request.ts';
import type { HostileDaemon } from './hostile-daemon.ts';
import type { RawFrontend } from './raw-frontend.ts';
import { type RawDescriptor, type RawVirtqueue, WRITE } from './raw-virtqueue.ts';
import { FEATURE } from './wire.ts';

export const CHAIN_RING_SIZE = 128;

/** Both layouts: name, and features to accept for it. */
export const RINGS: [string, readonly number[]][] = [
  ['split', []],
  ['packed', [FEATURE.RING_PACKED]],
];

/** Lays a chain out from place 0 on. */
export type Layout = (ring: RawVirtqueue, area: RequestArea, frontend: RawFrontend) => void;

/** Guest address of the first byte behind the memory. */
export const behind = (frontend: RawFrontend): number => frontend.ram.guest(frontend.ram.length);

export interface ChainAnswer {
  readonly id: number | undefined;
  readonly usedLength: number | undefined;
  readonly status: number;
  /** The first sector of the area's data, which held 0xee before. */
  readonly data: Uint8Array;
}

/** Submits a read whose chain `layout` lays out, then a good one on the same ring: it must still be served. */
export const submitChain = async (
  daemon: HostileDaemon,
  layout: Layout,
  ringFeatures: readonly number[] = [],
  features: readonly number[] = [FEATURE.INDIRECT_DESC, FEATURE.FLUSH],
): Promise<ChainAnswer> => {
  const frontend = await daemon.start({ features: [...features, ...ringFeatures], queueSize: CHAIN_RING_SIZE });
  const ring = frontend.queue();
  const area = new RequestArea(frontend);
  area.putHeader(TYPE.IN, 0);
  frontend.ram.bytes.fill(0xee, area.data, area.data + 0x1_0000);
  layout(ring, area, frontend);
  const [used] = await ring.run(0);
  const answer = {
    id: used?.id,
    usedLength: used?.length,
    status: area.statusByte,
    data: frontend.ram.bytes.slice(area.data, area.data + 512),
  };
  expect((await doRequest(frontend, { type: TYPE.IN, inBytes: 512 })).status).toBe(STATUS.OK);
  return answer;
};

/** A read of one sector whose pieces can be replaced. */
export const readRequest = (
  area: RequestArea,
  replace: { data?: RawDescriptor; status?: RawDescriptor } = {},
): RawDescriptor[] => [
  area.headerDescriptor(),
  replace.data ?? area.dataDescriptor(512, WRITE),
  replace.status ?? area.statusDescriptor(),
];

/** Writes a table of `chain` into the area and descriptor 0 that refers to it, with lies. */
export const indirect = (
  ring: RawVirtqueue,
  area: RequestArea,
  chain: readonly RawDescriptor[],
  lies: Partial<RawDescriptor> = {},
): void => ring.setDescriptor(0, { ...area.indirect(chain), ...lies });
