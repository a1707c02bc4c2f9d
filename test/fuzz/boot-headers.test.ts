import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { loadKernel } from '../../vmm-client/vmm/boot/kernel.ts';
import { VmConfigError } from '../../vmm-client/vmm/errors.ts';
import {
  bootOptions,
  bytesAt,
  bzImage,
  elfWithNotes,
  MiB,
  machineOf,
  note,
  XEN,
} from '../unit/vmm-client/vmm/boot/kernel-files.ts';

/** Values that headers break at: zero, all ones, and the neighbours of limits. */
const bytes = fc.oneof(
  fc.uint8Array({ minLength: 1, maxLength: 8 }),
  fc.constantFrom(new Uint8Array(8).fill(0xff), new Uint8Array(8), Uint8Array.of(0, 0, 0, 0, 1), Uint8Array.of(0x7f)),
);

describe('headers with anything in them', () => {
  it.each([
    // ELF header and program headers; the set-up header of Linux's boot protocol.
    ['vmlinux', elfWithNotes(note(18, XEN, [8, 0, 0x20, 0])), { min: 0, max: 0x77 }],
    ['bzImage', bzImage(), { min: 0x1f1, max: 0x26c }],
  ])('a %s is loaded or refused as a configuration error', (_, sound, header) => {
    const machine = machineOf([0, 20 * MiB]);
    const seen = { loaded: 0, refused: 0 };
    const patch = fc.record({ at: fc.oneof(fc.nat(0x26c), fc.integer(header)), bytes });

    fc.assert(
      fc.property(fc.array(patch, { minLength: 1, maxLength: 3 }), (patches) => {
        const kernel = sound.slice();
        for (const { at, bytes } of patches)
          kernel.set(bytes.subarray(0, Math.max(0, kernel.length - at)), Math.min(at, kernel.length));
        try {
          const { rip } = loadKernel(bootOptions(machine, kernel)).general;
          expect(bytesAt(machine, rip, 1).length).toBe(1);
          seen.loaded += 1;
        } catch (error) {
          expect(error).toBeInstanceOf(VmConfigError);
          seen.refused += 1;
        }
      }),
      { numRuns: 150 },
    );

    expect(Math.min(seen.loaded, seen.refused)).toBeGreaterThan(10);
  });
});
