import { expect, it } from 'vitest';
import { RESET_VECTOR } from '../../../../../vmm-client/vmm/boot/reset-vector.ts';

it('writes 1 to the reset register at F000:FFF0, and stays there', () => {
  expect(RESET_VECTOR.address).toBe(0xf0000 + 0xfff0);
  // mov dx, 0x600; mov al, 1; out dx, al; hlt; jmp to the hlt
  expect(Buffer.from(RESET_VECTOR.bytes).toString('hex')).toBe('ba0006b001eef4ebfd');
});
