/**
 * How the two ends of a migration greet each other, before there are frames: the source says what it is, and the
 * destination, when it takes it. Numbers are little endian.
 *
 *     preamble   "RINGSIDE", version u32 @8, descriptors u32 @12
 *
 * The descriptors, from the source alone and over a Unix socket alone, are those of RAM, one for each range in the order of
 * the ranges in CONFIG: memory that is handed over, and not sent.
 */

import type { OwnedFd } from '../../../protocol/sys/owned-fd.ts';
import { VmError } from '../errors.ts';
import { VERSION } from './frames.ts';
import type { Line } from './line.ts';

const MAGIC = 'RINGSIDE';
export const PREAMBLE_BYTES = 16;

export function encodePreamble(descriptors: number, version: number = VERSION): Buffer {
  const preamble = Buffer.alloc(PREAMBLE_BYTES);
  preamble.write(MAGIC, 'latin1');
  preamble.writeUInt32LE(version, 8);
  preamble.writeUInt32LE(descriptors, 12);
  return preamble;
}

/** How many descriptors come with it. @throws VmError - this is something else, or of another version */
function parsePreamble(preamble: Buffer): number {
  const version = preamble.readUInt32LE(8);
  if (version !== VERSION) throw new VmError(`the peer's migration has version ${version}, this program's ${VERSION}`);
  return preamble.readUInt32LE(12);
}

async function receivePreamble(line: Line): Promise<{ readonly preamble: Buffer; readonly fds: readonly OwnedFd[] }> {
  const magic = await line.receive(MAGIC.length);
  try {
    if (magic.bytes.toString('latin1') !== MAGIC) throw new VmError('the peer sends something that is no migration');
    const rest = await line.receive(PREAMBLE_BYTES - MAGIC.length);
    return { preamble: Buffer.concat([magic.bytes, rest.bytes]), fds: [...magic.fds, ...rest.fds] };
  } catch (error) {
    for (const fd of magic.fds) fd.close();
    throw error;
  }
}

/** The source's part. `memory`: descriptors to hand over, none where memory is sent. @throws VmError - it is no VMM */
export async function greet(line: Line, memory: readonly number[]): Promise<void> {
  line.send(encodePreamble(memory.length), memory);
  const { preamble, fds } = await receivePreamble(line);
  for (const fd of fds) fd.close();
  parsePreamble(preamble);
}

/**
 * The destination's part: what a source hands over. It is told that it is the one by `welcome`.
 * @throws VmError - it is no source, or one of another version, which has been told so
 */
export async function hearSource(line: Line): Promise<readonly OwnedFd[]> {
  const { preamble, fds } = await receivePreamble(line);
  try {
    const wanted = parsePreamble(preamble);
    if (wanted !== fds.length) throw new VmError(`the peer sends ${fds.length} descriptors and says ${wanted}`);
    return fds;
  } catch (error) {
    for (const fd of fds) fd.close();
    // One of another version would like to know.
    if (preamble.readUInt32LE(8) !== VERSION) welcome(line);
    throw error;
  }
}

/** Tells a source that it is the one. @throws Error - it is gone */
export function welcome(line: Line): void {
  line.send(encodePreamble(0), []);
}
