import { describe, expect, it } from 'vitest';
import { loadKernel } from '../../../../../vmm-client/vmm/boot/kernel.ts';
import { VmConfigError } from '../../../../../vmm-client/vmm/errors.ts';
import {
  bootOptions,
  bytesAt,
  type ElfOptions,
  elf,
  elfWithNotes,
  GiB,
  load,
  MiB,
  machineOf,
  note,
  viewAt,
  XEN,
} from './kernel-files.ts';

const CODE = Array.from({ length: 16 }, (_, index) => index + 1);

const failure = (kernel: Uint8Array): string => {
  try {
    loadKernel(bootOptions(machineOf([0, 16 * MiB]), kernel));
  } catch (error) {
    expect(error).toBeInstanceOf(VmConfigError);
    return (error as Error).message.replace(/^kernel \S+: /, '');
  }
  throw new Error('the kernel was loaded');
};

describe('a vmlinux', () => {
  it('is loaded at its physical addresses, with zeros where the file has no bytes', () => {
    const machine = machineOf([0, 16 * MiB]);
    machine.memory.copyIn(2 * MiB, new Uint8Array(64).fill(0xee));

    loadKernel(bootOptions(machine, elf({ headers: [load({ memoryBytes: 32n })] })));

    const expected = [...CODE, ...new Array<number>(16).fill(0), 0xee];
    expect([...bytesAt(machine, 2 * MiB, 33)]).toEqual(expected);
  });

  it('may have segments above 4 GiB and segments without memory', () => {
    const machine = machineOf([0, 16 * MiB], [4 * GiB, 16 * MiB]);
    const empty = load({ address: 0n, fileBytes: 0n, memoryBytes: 0n });

    loadKernel(bootOptions(machine, elf({ headers: [load({ address: 0x1_0020_0000n }), empty, load()] })));

    expect([...bytesAt(machine, 4 * GiB + 2 * MiB, 16)]).toEqual(CODE);
  });

  it('starts in long mode at e_entry when it has no PVH note', () => {
    const state = loadKernel(bootOptions(machineOf([0, 16 * MiB]), elf({ entry: 0x20_0008n, headers: [load()] })));

    expect(state.protocol).toBe('linux64');
    expect(state.general).toEqual({ rip: 0x20_0008, rsp: 0x8ff0, rbx: 0, rsi: 0x7000, rflags: 2 });
  });

  it('gets a setup header in its zero page', () => {
    const machine = machineOf([0, 16 * MiB]);

    loadKernel(bootOptions(machine, elf({ headers: [load()] })));

    const page = viewAt(machine, 0x7000, 4096);
    expect(page.getUint16(0x1fe, true)).toBe(0xaa55);
    expect(page.getUint32(0x202, true)).toBe(0x5372_6448);
    expect([page.getUint8(0x210), page.getUint8(0x211)]).toEqual([0xff, 1]);
    expect(page.getUint32(0x228, true)).toBe(0x2_0000);
  });

  it.each([
    ['of 8 bytes', note(18, XEN, [8, 0, 0x20, 0, 0, 0, 0, 0])],
    ['of 4 bytes', note(18, XEN, [8, 0, 0x20, 0])],
    [
      'behind other notes',
      [
        ...note(18, [0x47, 0x4e, 0x55, 0], [1, 2, 3, 4]),
        ...note(6, XEN, [0x6c, 0x69, 0x6e, 0x75, 0x78, 0]),
        ...note(18, XEN, [8, 0, 0x20, 0, 0, 0, 0, 0]),
      ],
    ],
  ])('starts in protected mode at the entry of a PVH note %s', (_, notes) => {
    const state = loadKernel(bootOptions(machineOf([0, 16 * MiB]), elfWithNotes(notes)));

    expect(state.protocol).toBe('pvh');
    expect(state.general).toEqual({ rip: 0x20_0008, rsp: 0x8ff0, rbx: 0x6000, rsi: 0, rflags: 2 });
  });

  it('may pad its notes to eight bytes', () => {
    const notes = [4, 0, 0, 0, 2, 0, 0, 0, 6, 0, 0, 0, ...XEN, 1, 2, 0, 0, 0, 0, 0, 0];
    notes.push(...note(18, XEN, [8, 0, 0x20, 0]));

    const state = loadKernel(bootOptions(machineOf([0, 16 * MiB]), elfWithNotes(notes, { alignment: 8n })));

    expect([state.protocol, state.general.rip]).toEqual(['pvh', 0x20_0008]);
  });
});

const HUGE = 0xffff_ffff_ffff_f000n;

describe('a vmlinux that cannot be started', () => {
  it.each<[string, ElfOptions, string]>([
    [
      'is for 32 bits',
      { ident: [0x7f, 0x45, 0x4c, 0x46, 1, 1, 1], headers: [load()] },
      'an ELF file of class 1, only 64-bit kernels (class 2) can be started',
    ],
    [
      'is big endian',
      { ident: [0x7f, 0x45, 0x4c, 0x46, 2, 2, 1], headers: [load()] },
      'an ELF file with byte order 2, little endian (1) is needed',
    ],
    ['is for arm64', { machine: 183, headers: [load()] }, 'an ELF file for machine 183, x86-64 (62) is needed'],
    ['is a shared object', { type: 3, headers: [load()] }, 'an ELF file of type 3, a program (type 2) is needed'],
    ['has no program headers', { headers: [] }, 'the ELF file has no program headers'],
    [
      'has program headers of another size',
      { headers: [load()], headerBytes: 32 },
      'program headers of 32 bytes, ELF64 has 56',
    ],
    [
      'has more program headers than bytes',
      { headers: [load()], headerCount: 65535 },
      'truncated: 65535 program headers at offset 64 are beyond its 528 bytes',
    ],
    [
      'has its program headers at the end of the address space',
      { headers: [load()], tableOffset: HUGE },
      'truncated: 1 program headers at offset 18446744073709548000 are beyond its 528 bytes',
    ],
    ['has nothing to load', { headers: [{ type: 4 }] }, 'the ELF file has no segment to load'],
    [
      'has a segment beyond the file',
      { headers: [load({ fileBytes: 17n, memoryBytes: 17n })] },
      'truncated: the segment at 0x200000 has 17 bytes at offset 512, beyond its 528 bytes',
    ],
    [
      'has a segment at an offset that overflows',
      { headers: [load({ offset: HUGE })] },
      'truncated: the segment at 0x200000 has 16 bytes at offset 18446744073709548000, beyond its 528 bytes',
    ],
    [
      'has more of a segment in the file than in memory',
      { headers: [load({ memoryBytes: 15n })] },
      'the segment at 0x200000 has 16 bytes in the file and only 15 in memory',
    ],
    [
      'has a segment over the boot structures',
      { headers: [load({ address: 0xf_fff0n })] },
      'the segment at 0xffff0 is below 0x100000, where the boot structures are',
    ],
    [
      'has a segment beyond the RAM',
      { headers: [load({ address: 0xff_fff1n })] },
      'the segment at 0xfffff1 needs 16 bytes of memory, which the machine does not have there',
    ],
    [
      'has a segment of more memory than there are addresses',
      { headers: [load({ memoryBytes: HUGE })] },
      'the segment at 0x200000 needs 18446744073709548000 bytes of memory, which the machine does not have there',
    ],
    [
      'has a segment at the end of the address space',
      { headers: [load({ address: HUGE })] },
      'the segment at 0xfffffffffffff000 needs 16 bytes of memory, which the machine does not have there',
    ],
    [
      'has segments that overlap',
      { headers: [load({ address: 0x20_000fn }), load()] },
      'two segments overlap at 0x20000f',
    ],
    [
      'is entered outside its segments',
      { entry: 0x20_0010n, headers: [load()] },
      'its 64-bit entry point 0x200010 is in no segment',
    ],
  ])('because it %s is refused in one sentence', (_, options, sentence) => {
    expect(failure(elf(options))).toBe(sentence);
  });

  it('because its entry is above 4 GiB is refused', () => {
    const machine = machineOf([0, 16 * MiB], [4 * GiB, 16 * MiB]);
    const kernel = elf({ entry: 0x1_0000_0000n, headers: [load({ address: 0x1_0000_0000n })] });

    expect(() => loadKernel(bootOptions(machine, kernel))).toThrow(
      'its 64-bit entry point 0x100000000 is not below 0x100000000',
    );
  });

  it.each<[string, Uint8Array, string]>([
    ['its header is cut', elf({ headers: [load()] }).slice(0, 63), 'truncated: 63 bytes, an ELF header has 64'],
    ['it is cut before its class', elf({ headers: [load()] }).slice(0, 4), 'truncated: 4 bytes, an ELF header has 64'],
    [
      'its PVH note has 2 bytes',
      elfWithNotes(note(18, XEN, [8, 0])),
      'its PVH entry note has 2 bytes, 4 or 8 are needed',
    ],
    [
      'its PVH entry is in no segment',
      elfWithNotes(note(18, XEN, [8, 0, 0x30, 0])),
      'its PVH entry point 0x300008 is in no segment',
    ],
    [
      'its notes are beyond the file',
      elfWithNotes(note(18, XEN, [8, 0, 0x20, 0]), { fileBytes: 21n }),
      'truncated: the notes at offset 528 have 21 bytes, beyond its 548 bytes',
    ],
    [
      'its notes are a mebibyte and more',
      elfWithNotes(note(18, XEN, [8, 0, 0x20, 0]), { fileBytes: 0x10_0001n }),
      'a note segment of 1048577 bytes, at most 1048576 are looked at',
    ],
    [
      'a note is longer than its segment',
      elfWithNotes([4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 18, 0, 0, 0, ...XEN, 8, 0, 0x20, 0]),
      'the note at offset 528 reaches beyond its segment, which ends at 548',
    ],
    [
      'the name of a note is longer than its segment',
      elfWithNotes([0xff, 0xff, 0xff, 0xff, 4, 0, 0, 0, 18, 0, 0, 0, ...XEN, 8, 0, 0x20, 0]),
      'the note at offset 528 reaches beyond its segment, which ends at 548',
    ],
  ])('because %s is refused in one sentence', (_, kernel, sentence) => {
    expect(failure(kernel)).toBe(sentence);
  });
});
