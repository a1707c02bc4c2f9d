/**
 * The stream of a migration, when its ends have greeted each other (greeting.ts): each side sends frames. Numbers are
 * little endian.
 *
 *     frame   type u32 @0, bytes of payload u32 @4, sequence number u32 @8, CRC-32 u32 @12, payload
 *
 * Sequence numbers count the frames of one side from 0; the CRC is of the first 12 bytes and the payload.
 *
 *     source                                        destination
 *     CONFIG  configuration, RAM, slots       -->
 *                                             <--   ACCEPT   the machine is built, its devices are connected
 *     PAGES * n, ROUND                        -->
 *                                             <--   TAKEN    the round is in memory         (again for each round)
 *     PAGES * n, ROUND, STATE                 -->            the guest is held
 *                                             <--   TAKEN, READY   restored, not running
 *     GO                                      -->            the source will not resume by itself from here on
 *                                             <--   RUNNING
 *
 * Either side may send FAILED with a sentence in the place of its next frame; so may the destination after GO, when it
 * does not run the guest.
 */

import { crc32 } from 'node:zlib';
import { VmError } from '../errors.ts';
import { PAGE_BYTES } from '../layout.ts';

export const VERSION = 1;
export const HEADER_BYTES = 16;
const CHECKED_HEADER_BYTES = 12;

/** From the source. */
export const CONFIG = 1;
export const PAGES = 2;
export const ROUND = 3;
export const STATE = 4;
export const GO = 5;
/** From the destination. */
export const ACCEPT = 0x101;
export const TAKEN = 0x102;
export const READY = 0x103;
export const RUNNING = 0x104;
/** From either. */
export const FAILED = 0x201;

/** Of one PAGES frame: bytes of payload, and of guest memory that it is about (zeros take no room in the payload). */
export const MAX_PAGES_BYTES = 1024 * 1024 + PAGE_BYTES;
export const MAX_COVERED_BYTES = 16 * 1024 * 1024;
export const MAX_SENTENCE_BYTES = 4096;

interface FrameKind {
  readonly name: string;
  readonly maxBytes: number;
  /** Where it has a fixed layout. */
  readonly minBytes?: number;
}

const ROUND_BYTES = 4;

const KINDS: ReadonlyMap<number, FrameKind> = new Map([
  [CONFIG, { name: 'CONFIG', maxBytes: 1024 * 1024 }],
  [PAGES, { name: 'PAGES', maxBytes: MAX_PAGES_BYTES }],
  [ROUND, { name: 'ROUND', minBytes: ROUND_BYTES, maxBytes: ROUND_BYTES }],
  [STATE, { name: 'STATE', maxBytes: 64 * 1024 * 1024 }],
  [GO, { name: 'GO', maxBytes: 0 }],
  [ACCEPT, { name: 'ACCEPT', maxBytes: 0 }],
  [TAKEN, { name: 'TAKEN', minBytes: ROUND_BYTES, maxBytes: ROUND_BYTES }],
  [READY, { name: 'READY', maxBytes: 0 }],
  [RUNNING, { name: 'RUNNING', maxBytes: 0 }],
  [FAILED, { name: 'FAILED', maxBytes: MAX_SENTENCE_BYTES }],
]);

export interface Frame {
  readonly type: number;
  /** Valid until the next frame is received. */
  readonly payload: Buffer;
}

export interface FrameHeader {
  readonly type: number;
  readonly length: number;
}

export function frameName(type: number): string {
  return KINDS.get(type)?.name ?? `type 0x${type.toString(16)}`;
}

function checksum(header: Buffer, payload: Buffer): number {
  const ofHeader = crc32(header.subarray(0, CHECKED_HEADER_BYTES));
  // Of no bytes at no address zlib makes 0, and not what it was before.
  return payload.length === 0 ? ofHeader : crc32(payload, ofHeader);
}

/** Writes the header of a frame. @throws VmError - its payload is longer than a frame of that type can be */
export function writeHeader(header: Buffer, type: number, payload: Buffer, sequence: number): void {
  const kind = KINDS.get(type);
  if (kind === undefined) throw new Error(`a frame of type ${type}`);
  if (payload.length > kind.maxBytes) {
    throw new VmError(`${kind.name} would have ${payload.length} bytes, at most ${kind.maxBytes} are possible`);
  }
  header.writeUInt32LE(type, 0);
  header.writeUInt32LE(payload.length, 4);
  header.writeUInt32LE(sequence, 8);
  header.writeUInt32LE(checksum(header, payload), 12);
}

/** What a header says of its payload, which is not there yet. @throws VmError - no frame begins like that */
export function parseHeader(header: Buffer, sequence: number): FrameHeader {
  const type = header.readUInt32LE(0);
  const length = header.readUInt32LE(4);
  const kind = KINDS.get(type);
  if (kind === undefined) throw new VmError(`the peer sends a frame of ${frameName(type)}, which there is not`);
  if (length > kind.maxBytes) {
    throw new VmError(`the peer sends a ${kind.name} of ${length} bytes, at most ${kind.maxBytes} are possible`);
  }
  const { minBytes = 0 } = kind;
  if (length < minBytes) throw new VmError(`the peer sends a ${kind.name} of ${length} bytes, ${minBytes} are needed`);
  const number = header.readUInt32LE(8);
  if (number !== sequence) throw new VmError(`the peer sends frame ${number} in the place of frame ${sequence}`);
  return { type, length };
}

/** @throws VmError - header or payload are not as they were sent */
export function checkFrame(header: Buffer, { type, payload }: Frame): void {
  if (header.readUInt32LE(12) === checksum(header, payload)) return;
  throw new VmError(`the peer's ${frameName(type)} was damaged on the way (its checksum is wrong)`);
}
