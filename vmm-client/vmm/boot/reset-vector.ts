/**
 * The reset vector of a PC, where Linux jumps in real mode when it restarts without EFI: with hardware-reduced ACPI it
 * tries neither the reset register of the FADT nor the keyboard controller first. What is there does the former.
 */

import { RESET_VALUE } from '../acpi/tables.ts';
import { ACPI_POWER_PORT, RESET_VECTOR_ADDRESS } from '../layout.ts';
import type { Placed } from './start-state.ts';

const CODE = Uint8Array.of(
  ...[0xba, ACPI_POWER_PORT & 0xff, ACPI_POWER_PORT >> 8], //  mov dx, port of the reset register
  ...[0xb0, RESET_VALUE], //                                   mov al, value that resets
  0xee, //                                                     out dx, al
  0xf4, //                                               halt: hlt
  ...[0xeb, 0xfd], //                                          jmp halt
);

/** To be put into guest memory at each start. */
export const RESET_VECTOR: Placed = { address: RESET_VECTOR_ADDRESS, bytes: CODE };
