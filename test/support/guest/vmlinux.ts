/**
 * The ELF kernel inside a bzImage: the machines of cloud VMMs boot vmlinux, and Debian ships vmlinuz only.
 *
 *     bzImage   (setup_sects + 1) sectors of set-up code, then code that unpacks; in the latter, at payload_offset,
 *               payload_length bytes of compressed vmlinux (Linux, Documentation/arch/x86/boot.rst, section 1.3)
 */

import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { type PeerName, peerPath } from '../peers.ts';

const SETUP_SECTS = 0x1f1;
const HEADER_MAGIC = 0x202;
const PAYLOAD_OFFSET = 0x248;
const PAYLOAD_LENGTH = 0x24c;
const SECTOR_BYTES = 512;

/** By the first bytes of what each makes. The kernel's lz4 is of the legacy format. */
const DECOMPRESSORS: readonly { readonly magic: string; readonly program: PeerName }[] = [
  { magic: '1f8b', program: 'gzip' },
  { magic: '02214c18', program: 'lz4' },
  { magic: 'fd377a585a00', program: 'xz' },
  { magic: '28b52ffd', program: 'zstd' },
];

/** What `bzImage` unpacks to. @throws Error - when that is no ELF file, or not as long as it says. */
const unpack = (bzImage: Buffer): Buffer => {
  if (bzImage.toString('latin1', HEADER_MAGIC, HEADER_MAGIC + 4) !== 'HdrS') throw new Error('not a bzImage');
  const code = ((bzImage[SETUP_SECTS] ?? 0) + 1) * SECTOR_BYTES;
  const start = code + bzImage.readUInt32LE(PAYLOAD_OFFSET);
  const payload = bzImage.subarray(start, start + bzImage.readUInt32LE(PAYLOAD_LENGTH));
  const found = DECOMPRESSORS.find(({ magic }) => payload.toString('hex', 0, magic.length / 2) === magic);
  if (found === undefined) throw new Error(`a payload that starts with ${payload.toString('hex', 0, 8)} is unknown`);
  // Linux, scripts/Makefile.lib, size_append: the length of the vmlinux follows. In gzip it is the format's own end.
  const input = found.program === 'gzip' ? payload : payload.subarray(0, -4);
  const vmlinux = execFileSync(peerPath(found.program), ['-dc'], { input, maxBuffer: 1 << 30 });
  const length = payload.readUInt32LE(payload.length - 4);
  if (vmlinux.length !== length || vmlinux.toString('hex', 0, 4) !== '7f454c46') {
    throw new Error(`${found.program} made ${vmlinux.length} bytes, not an ELF file of ${length}`);
  }
  return vmlinux;
};

/** The vmlinux of the unpacked Debian kernel, kept beside it. Returns its path. */
export const vmlinuxPath = (): string => {
  const vmlinuz = peerPath('cloud kernel');
  const path = join(dirname(vmlinuz), 'vmlinux');
  if (existsSync(path)) return path;
  // Whole or not at all: two test processes may unpack it.
  writeFileSync(`${path}.${process.pid}`, unpack(readFileSync(vmlinuz)));
  renameSync(`${path}.${process.pid}`, path);
  return path;
};
