/** The proof that a daemon still serves a correct client, after whatever was done to it. */

import { randomBytes } from 'node:crypto';
import { doRequest, STATUS, TYPE } from './blk-request.ts';
import { RawFrontend } from './raw-frontend.ts';
import { FEATURE, hasBit } from './wire.ts';

const SECTOR_BYTES = 512;

export interface GoodClientOptions {
  /** The block to use, in units of `blockBytes`; default 3. */
  readonly block?: number;
  /** Logical block size; default 4096, which suits every daemon. */
  readonly blockBytes?: number;
  /** Whether what is written can be read again; false for a null engine. Default true. */
  readonly contentIsKept?: boolean;
}

/** @throws Error - a well-formed request did not succeed */
const succeed = async (frontend: RawFrontend, type: number, sector: number, io: { out?: Uint8Array; in?: number }) => {
  const answer = await doRequest(frontend, {
    type,
    sector,
    ...(io.out === undefined ? {} : { out: io.out }),
    ...(io.in === undefined ? {} : { inBytes: io.in }),
  });
  if (answer.status !== STATUS.OK) throw new Error(`request type ${type} at sector ${sector}: status ${answer.status}`);
  return answer.data;
};

/**
 * Connects, hands a ring over, reads a block, writes random bytes there, flushes, reads them back, restores what was
 * there, stops the ring and leaves: the image is as it was. A read-only device is only read.
 * @throws Error - any of it failed, or what was read is not what was written
 */
export const connectGood = async (socket: string, options: GoodClientOptions = {}): Promise<void> => {
  const bytes = options.blockBytes ?? 4096;
  const sector = ((options.block ?? 3) * bytes) / SECTOR_BYTES;
  const frontend = await RawFrontend.start(socket, { features: [FEATURE.FLUSH, FEATURE.RO] });
  try {
    const before = await succeed(frontend, TYPE.IN, sector, { in: bytes });
    if (!hasBit(frontend.offered, FEATURE.RO)) {
      const pattern = randomBytes(bytes);
      await succeed(frontend, TYPE.OUT, sector, { out: pattern });
      if (hasBit(frontend.features, FEATURE.FLUSH)) await succeed(frontend, TYPE.FLUSH, 0, {});
      frontend.ram.bytes.fill(0, frontend.dataStart);
      const after = await succeed(frontend, TYPE.IN, sector, { in: bytes });
      const isKept = options.contentIsKept ?? true;
      if (isKept && Buffer.compare(after, pattern) !== 0) throw new Error('what was read back is not what was written');
      await succeed(frontend, TYPE.OUT, sector, { out: before });
    }
    const done = frontend.ring().usedIndex;
    const base = await frontend.stopRing(frontend.ring());
    if (base !== done) throw new Error(`GET_VRING_BASE says ${base} after ${done} requests`);
  } finally {
    frontend.close();
  }
};
