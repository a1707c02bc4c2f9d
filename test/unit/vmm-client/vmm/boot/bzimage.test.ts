import { describe, expect, it } from 'vitest';
import { loadKernel } from '../../../../../vmm-client/vmm/boot/kernel.ts';
import { VmConfigError } from '../../../../../vmm-client/vmm/errors.ts';
import { type BzImageOptions, bootOptions, bytesAt, bzImage, MiB, machineOf, viewAt } from './kernel-files.ts';

const CODE = Array.from({ length: 2048 }, (_, index) => index & 0xff);

const failure = (options: BzImageOptions): string => {
  try {
    loadKernel(bootOptions(machineOf([0, 64 * MiB]), bzImage(options)));
  } catch (error) {
    expect(error).toBeInstanceOf(VmConfigError);
    return (error as Error).message.replace(/^kernel \S+: /, '');
  }
  throw new Error('the kernel was loaded');
};

describe('a bzImage', () => {
  it('is loaded at its preferred address and entered 0x200 behind it in long mode', () => {
    const machine = machineOf([0, 64 * MiB]);

    const state = loadKernel(bootOptions(machine, bzImage()));

    expect([...bytesAt(machine, 0x100_0000, 2048)]).toEqual(CODE);
    expect(state.protocol).toBe('linux64');
    expect(state.general).toEqual({ rip: 0x100_0200, rsp: 0x8ff0, rbx: 0, rsi: 0x7000, rflags: 2 });
  });

  it.each<[string, BzImageOptions, number]>([
    ['at 1 MiB when it has no preference and does not move', { prefAddress: 0n, relocatable: 0 }, 0x10_0000],
    ['at its alignment when it moves', { prefAddress: 0x100_0001n, alignment: 0x20_0000 }, 0x120_0000],
    ['where it wants when it does not move', { prefAddress: 0x100_1000n, relocatable: 0 }, 0x100_1000],
    ['behind four setup sectors when it says none', { setupSects: 0 }, 0x100_0000],
  ])('is loaded %s', (_, options, address) => {
    const machine = machineOf([0, 64 * MiB]);

    const state = loadKernel(bootOptions(machine, bzImage(options)));

    expect(state.general.rip).toBe(address + 0x200);
    expect([...bytesAt(machine, address, 2048)]).toEqual(CODE);
  });

  it('fits exactly into the memory that it asks for', () => {
    const state = loadKernel(bootOptions(machineOf([0, 17 * MiB]), bzImage({ initSize: MiB })));

    expect(state.general.rip).toBe(0x100_0200);
  });

  it('finds its own setup header in the zero page, with the answers of the loader, and nothing else of the file', () => {
    const machine = machineOf([0, 64 * MiB]);
    const file = bzImage();
    file[0x1ef] = 0xff;
    file[0x26b] = 0x77;
    file[0x26c] = 0x88;

    loadKernel(bootOptions(machine, file));

    const page = viewAt(machine, 0x7000, 4096);
    expect([page.getUint8(0x1f1), page.getUint8(0x1ef), page.getUint8(0x26b), page.getUint8(0x26c)]).toEqual([
      1, 0, 0x77, 0,
    ]);
    expect([page.getUint16(0x206, true), page.getUint16(0x236, true)]).toEqual([0x020f, 1]);
    expect([page.getUint8(0x210), page.getUint8(0x211)]).toEqual([0xff, 1]);
    expect([page.getUint32(0x214, true), page.getUint32(0x228, true)]).toEqual([0x100_0000, 0x2_0000]);
    expect([page.getUint32(0x218, true), page.getUint32(0x21c, true)]).toEqual([0, 0]);
  });
});

describe('a bzImage that cannot be started', () => {
  it.each<[string, BzImageOptions, string]>([
    [
      'is from the last century',
      { version: 0x0205 },
      'the kernel is too old: boot protocol 2.05, at least 2.06 is needed',
    ],
    ['has no flags', { version: 0x020b }, 'the kernel has no 64-bit entry point (boot protocol 2.11)'],
    ['is for 32 bits', { xloadflags: 0xfe }, 'the kernel has no 64-bit entry point (boot protocol 2.15)'],
    ['ends in its header', { fileBytes: 0x263 }, 'truncated: 611 bytes, the setup header alone ends at 612'],
    ['ends before its code does', { fileBytes: 3071 }, 'truncated: 3071 bytes, by its setup header it has 3072'],
    [
      'claims 64 GiB of code',
      { syssize: 0xffff_ffff },
      'truncated: 3072 bytes, by its setup header it has 68719477744',
    ],
    ['has no code', { syssize: 32 }, 'its protected-mode code has 512 bytes, too few for a 64-bit entry point'],
    [
      'needs more memory than there is',
      { initSize: 48 * MiB + 1 },
      'it needs 50331649 bytes of memory at 0x1000000, which the machine does not have there',
    ],
    [
      'wants to be over the boot structures',
      { prefAddress: 0x1000n, relocatable: 0 },
      'it needs 1048576 bytes of memory at 0x1000, which the machine does not have there',
    ],
    [
      'wants to be at the end of the address space',
      { prefAddress: 0xffff_ffff_ffff_f000n, relocatable: 0 },
      'it needs 1048576 bytes of memory at 0xfffffffffffff000, which the machine does not have there',
    ],
    ['has a header that is too short', { jump: 0x61 }, 'its setup header ends at 0x263, not between 0x264 and 0x290'],
    ['has a header that is too long', { jump: 0x8f }, 'its setup header ends at 0x291, not between 0x264 and 0x290'],
  ])('because it %s is refused in one sentence', (_, options, sentence) => {
    expect(failure(options)).toBe(sentence);
  });
});
