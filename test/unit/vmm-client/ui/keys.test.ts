import { describe, expect, it } from 'vitest';
import { textOfKey } from '../../../../vmm-client/ui/page/keys.ts';

const press = (key: string, modifiers = '') =>
  textOfKey({
    key,
    ctrlKey: modifiers.includes('c'),
    altKey: modifiers.includes('a'),
    metaKey: modifiers.includes('m'),
  });

describe('A key', () => {
  it('is its character, or what terminals send for it', () => {
    expect(['a', 'Z', ' ', 'ü', '💥'].map((key) => press(key))).toEqual(['a', 'Z', ' ', 'ü', '💥']);
    expect(['Enter', 'Backspace', 'Escape', 'ArrowUp'].map((key) => press(key))).toEqual([
      '\r',
      '\x7f',
      '\x1b',
      '\x1b[A',
    ]);
  });

  it('is a control character with Ctrl', () => {
    expect([press('c', 'c'), press('D', 'c'), press('[', 'c'), press('@', 'c')]).toEqual([
      '\x03',
      '\x04',
      '\x1b',
      '\x00',
    ]);
    expect([press('1', 'c'), press('Enter', 'c')]).toEqual([undefined, undefined]);
  });

  it("stays the browser's where it leads out of the console, or is a shortcut", () => {
    expect([press('Tab'), press('F5'), press('Shift'), press('Dead')]).toEqual([
      undefined,
      undefined,
      undefined,
      undefined,
    ]);
    expect([press('r', 'm'), press('ArrowLeft', 'a')]).toEqual([undefined, undefined]);
  });
});
