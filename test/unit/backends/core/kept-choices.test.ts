/** Choices in memory that outlives who writes them: whole, whenever it is killed. */

import { describe, expect, it } from 'vitest';
import { KEPT_CHOICES_BYTES, KeptChoices } from '../../../../backends/core/kept-choices.ts';

const bytes = (length: number, value: number): Uint8Array => new Uint8Array(length).fill(value);

describe('choices', () => {
  it('are what was stored last, for whoever looks there next', () => {
    const memory = new ArrayBuffer(KEPT_CHOICES_BYTES);
    expect(new KeptChoices(memory).load()).toBeUndefined();
    for (let i = 1; i < 6; i += 1) {
      new KeptChoices(memory).store(bytes(100 * i, i));
      expect(new KeptChoices(memory).load()).toEqual(bytes(100 * i, i));
    }
    new KeptChoices(memory).store(new Uint8Array());
    expect(new KeptChoices(memory).load()).toEqual(new Uint8Array());
  });

  it('have a limit', () => {
    const kept = new KeptChoices(new ArrayBuffer(KEPT_CHOICES_BYTES));
    kept.store(bytes(2036, 1));
    expect(kept.load()).toEqual(bytes(2036, 1));
    expect(() => kept.store(bytes(2037, 1))).toThrow(RangeError);
    expect(kept.load()).toEqual(bytes(2036, 1));
  });

  it('are the ones before where the last were not written to their end', () => {
    for (const first of [1, 2]) {
      const memory = new ArrayBuffer(KEPT_CHOICES_BYTES);
      const kept = new KeptChoices(memory);
      for (let i = 0; i < first; i += 1) kept.store(bytes(50, 1));
      const before = new Uint8Array(memory.slice(0));
      kept.store(bytes(80, 2));
      const after = new Uint8Array(memory.slice(0));
      const changed = [...after.keys()].filter((at) => after[at] !== before[at]);
      // Killed after each byte.
      for (let done = 0; done < changed.length; done += 1) {
        const torn = before.slice();
        for (const at of changed.slice(0, done)) torn[at] = after[at] as number;
        expect(new KeptChoices(torn.buffer).load()).toEqual(bytes(50, 1));
      }
    }
  });

  it('are none where somebody else wrote', () => {
    const memory = new ArrayBuffer(KEPT_CHOICES_BYTES);
    new Uint8Array(memory).fill(0xff);
    const kept = new KeptChoices(memory);
    expect(kept.load()).toBeUndefined();
    kept.store(bytes(3, 4));
    expect(kept.load()).toEqual(bytes(3, 4));
  });
});
