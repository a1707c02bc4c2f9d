/**
 * A vmlinux: an ELF64 program for x86-64 whose PT_LOAD segments name physical addresses. A note of the name "Xen" and the
 * type XEN_ELFNOTE_PHYS32_ENTRY makes it one for the PVH boot protocol and has the entry; without it, the kernel is
 * entered at e_entry by the 64-bit boot protocol of Linux. No field of the file is trusted.
 *
 *     Ehdr (64 bytes): 0 ident, 16 e_type, 18 e_machine, 24 e_entry, 32 e_phoff, 54 e_phentsize, 56 e_phnum
 *     Phdr (56 bytes): 0 p_type, 8 p_offset, 24 p_paddr, 32 p_filesz, 40 p_memsz, 48 p_align
 *     Note:            0 n_namesz, 4 n_descsz, 8 n_type, 12 name (padded), descriptor (padded)
 *
 * Source: System V ABI, chapter 5 (Object Files); elf.h; Xen, public/elfnote.h and docs/misc/pvh.pandoc.
 */

import { CMDLINE_MAX_BYTES, HIGH_RAM_ADDRESS } from '../layout.ts';
import type { BootFile } from './boot-file.ts';
import { hex, isFreeRam, type KernelImage, type KernelPart, type Range } from './kernel-image.ts';

export const ELF_MAGIC = 0x7f45_4c46;
const EHDR_BYTES = 64;
const PHDR_BYTES = 56;
const NOTE_BYTES = 12;

const ELFCLASS64 = 2;
const ELFDATA2LSB = 1;
const ET_EXEC = 2;
const EM_X86_64 = 62;
const PT_LOAD = 1;
const PT_NOTE = 4;
const XEN_ELFNOTE_PHYS32_ENTRY = 18;

/** No kernel's notes come near it: Linux has 512 bytes. */
const NOTES_MAX_BYTES = 0x10_0000;
/** Both entries are reached with an identity map or without paging: below 4 GiB. */
const ENTRY_LIMIT = 0x1_0000_0000;

interface Segment {
  readonly type: number;
  readonly offset: number;
  readonly address: number;
  readonly fileBytes: number;
  readonly memoryBytes: number;
  readonly alignment: number;
}

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** A 64-bit field as a number. Above 2^53 it loses low bits, and stays far above any limit that it is compared with. */
const u64 = (view: DataView, offset: number): number => Number(view.getBigUint64(offset, true));

const readHeader = (file: BootFile): DataView => {
  const bytes = file.peek(0, EHDR_BYTES);
  if (bytes.length >= 5 && bytes[4] !== ELFCLASS64) {
    throw file.fault(`an ELF file of class ${bytes[4]}, only 64-bit kernels (class ${ELFCLASS64}) can be started`);
  }
  if (bytes.length < EHDR_BYTES) {
    throw file.fault(`truncated: ${bytes.length} bytes, an ELF header has ${EHDR_BYTES}`);
  }
  const header = viewOf(bytes);
  if (header.getUint8(5) !== ELFDATA2LSB) {
    throw file.fault(`an ELF file with byte order ${header.getUint8(5)}, little endian (${ELFDATA2LSB}) is needed`);
  }
  const machine = header.getUint16(18, true);
  if (machine !== EM_X86_64) {
    throw file.fault(`an ELF file for machine ${machine}, x86-64 (${EM_X86_64}) is needed`);
  }
  const type = header.getUint16(16, true);
  if (type !== ET_EXEC) throw file.fault(`an ELF file of type ${type}, a program (type ${ET_EXEC}) is needed`);
  return header;
};

const readSegments = (file: BootFile, header: DataView): Segment[] => {
  const tableOffset = u64(header, 32);
  const entryBytes = header.getUint16(54, true);
  const count = header.getUint16(56, true);
  if (count === 0) throw file.fault('the ELF file has no program headers');
  if (entryBytes !== PHDR_BYTES) {
    throw file.fault(`program headers of ${entryBytes} bytes, ELF64 has ${PHDR_BYTES}`);
  }
  if (!file.holds(tableOffset, count * PHDR_BYTES)) {
    throw file.fault(
      `truncated: ${count} program headers at offset ${tableOffset} are beyond its ${file.sizeBytes} bytes`,
    );
  }
  const table = viewOf(file.peek(tableOffset, count * PHDR_BYTES));
  return Array.from({ length: count }, (_, index) => {
    const at = index * PHDR_BYTES;
    return {
      type: table.getUint32(at, true),
      offset: u64(table, at + 8),
      address: u64(table, at + 24),
      fileBytes: u64(table, at + 32),
      memoryBytes: u64(table, at + 40),
      alignment: u64(table, at + 48),
    };
  });
};

const checkSegment = (file: BootFile, segment: Segment, ranges: readonly Range[]): void => {
  const { address, offset, fileBytes, memoryBytes } = segment;
  const what = `the segment at ${hex(address)}`;
  if (fileBytes > memoryBytes) {
    throw file.fault(`${what} has ${fileBytes} bytes in the file and only ${memoryBytes} in memory`);
  }
  if (!file.holds(offset, fileBytes)) {
    throw file.fault(
      `truncated: ${what} has ${fileBytes} bytes at offset ${offset}, beyond its ${file.sizeBytes} bytes`,
    );
  }
  if (address < HIGH_RAM_ADDRESS) {
    throw file.fault(`${what} is below ${hex(HIGH_RAM_ADDRESS)}, where the boot structures are`);
  }
  if (!isFreeRam(ranges, address, memoryBytes)) {
    throw file.fault(`${what} needs ${memoryBytes} bytes of memory, which the machine does not have there`);
  }
};

const findLoads = (file: BootFile, segments: readonly Segment[], ranges: readonly Range[]): Segment[] => {
  const loads = segments.filter(({ type, memoryBytes }) => type === PT_LOAD && memoryBytes > 0);
  if (loads.length === 0) throw file.fault('the ELF file has no segment to load');
  for (const segment of loads) checkSegment(file, segment, ranges);
  loads.sort((a, b) => a.address - b.address);
  let end = 0;
  for (const { address, memoryBytes } of loads) {
    if (address < end) throw file.fault(`two segments overlap at ${hex(address)}`);
    end = address + memoryBytes;
  }
  return loads;
};

const isXenName = (bytes: Uint8Array): boolean => String.fromCharCode(...bytes) === 'Xen\0';

/** The PVH entry among the notes of one segment, or undefined. */
const findEntryNote = (file: BootFile, { offset, fileBytes, alignment }: Segment): number | undefined => {
  if (fileBytes > NOTES_MAX_BYTES) {
    throw file.fault(`a note segment of ${fileBytes} bytes, at most ${NOTES_MAX_BYTES} are looked at`);
  }
  if (!file.holds(offset, fileBytes)) {
    throw file.fault(
      `truncated: the notes at offset ${offset} have ${fileBytes} bytes, beyond its ${file.sizeBytes} bytes`,
    );
  }
  const bytes = file.peek(offset, fileBytes);
  const view = viewOf(bytes);
  const align = alignment === 8 ? 8 : 4;
  const padded = (length: number): number => Math.ceil(length / align) * align;
  for (let at = 0; at + NOTE_BYTES <= bytes.length; ) {
    const nameBytes = view.getUint32(at, true);
    const descriptorBytes = view.getUint32(at + 4, true);
    const descriptor = at + padded(NOTE_BYTES + nameBytes);
    if (descriptor + descriptorBytes > bytes.length) {
      throw file.fault(
        `the note at offset ${offset + at} reaches beyond its segment, which ends at ${offset + fileBytes}`,
      );
    }
    const isEntry = view.getUint32(at + 8, true) === XEN_ELFNOTE_PHYS32_ENTRY && nameBytes === 4;
    if (isEntry && isXenName(bytes.subarray(at + NOTE_BYTES, at + NOTE_BYTES + 4))) {
      if (descriptorBytes === 4) return view.getUint32(descriptor, true);
      if (descriptorBytes === 8) return u64(view, descriptor);
      throw file.fault(`its PVH entry note has ${descriptorBytes} bytes, 4 or 8 are needed`);
    }
    at = descriptor + padded(descriptorBytes);
  }
  return undefined;
};

const findPvhEntry = (file: BootFile, segments: readonly Segment[]): number | undefined => {
  for (const segment of segments) {
    if (segment.type !== PT_NOTE) continue;
    const entry = findEntryNote(file, segment);
    if (entry !== undefined) return entry;
  }
  return undefined;
};

/**
 * Checks a file that begins with ELF_MAGIC and finds out how it is loaded and entered.
 * @throws VmConfigError - it is not a kernel that this machine can start
 */
export const parseElf = (file: BootFile, ranges: readonly Range[]): KernelImage => {
  const header = readHeader(file);
  const segments = readSegments(file, header);
  const loads = findLoads(file, segments, ranges);
  const pvhEntry = findPvhEntry(file, segments);
  const entry = pvhEntry ?? u64(header, 24);
  const inside = loads.some(({ address, memoryBytes }) => entry >= address && entry - address < memoryBytes);
  if (!inside || entry >= ENTRY_LIMIT) {
    const where = inside ? `not below ${hex(ENTRY_LIMIT)}` : 'in no segment';
    throw file.fault(`its ${pvhEntry === undefined ? '64-bit' : 'PVH'} entry point ${hex(entry)} is ${where}`);
  }
  const parts = loads.map(
    ({ address, offset, fileBytes, memoryBytes }): KernelPart => ({
      address,
      fileOffset: offset,
      fileBytes,
      zeroBytes: memoryBytes - fileBytes,
    }),
  );
  return {
    protocol: pvhEntry === undefined ? 'linux64' : 'pvh',
    entry,
    parts,
    occupied: loads.map(({ address, memoryBytes }) => ({ start: address, length: memoryBytes })),
    initramfsAddressMax: ENTRY_LIMIT - 1,
    cmdlineMax: CMDLINE_MAX_BYTES - 1,
  };
};
