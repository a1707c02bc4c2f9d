import { describe, expect, it } from 'vitest';
import { MAX_LINES, Screen } from '../../../../vmm-client/ui/page/screen.ts';

const show = (...texts: readonly string[]): Screen => {
  const screen = new Screen();
  for (const text of texts) screen.write(text);
  return screen;
};

/** The lines without what is blank at their ends. */
const linesOf = (...texts: readonly string[]): string[] => show(...texts).lines.map((line) => line.trimEnd());

describe('A screen', () => {
  it('shows lines, with or without a carriage return', () => {
    expect(linesOf('one\r\ntwo\nthree')).toEqual(['one', 'two', 'three']);
    expect(show('one\r\ntw').cursor).toEqual({ line: 1, column: 2 });
  });

  it('overwrites after a return, a backspace and a tab', () => {
    expect(linesOf('loading 10%\rloading 99%')).toEqual(['loading 99%']);
    expect(linesOf('abc\b\b\bX')).toEqual(['Xbc']);
    expect(linesOf('\b\ba\tb')).toEqual(['a       b']);
  });

  it('takes colours, titles, modes and character sets in silence', () => {
    expect(linesOf('\x1b[1;32mok\x1b[0m \x1b]0;title\x07a\x1b]2;title\x1b\\b\x1b[?25l\x1b(Bc\x1b=d\x1b[>0q')).toEqual([
      'ok abcd',
    ]);
    // Requests for an answer get none.
    expect(linesOf('x\x1b[6n\x1b[cy\x1bPq#1\x1b\\z')).toEqual(['xyz']);
    expect(linesOf('a\x00\x07\x0e\x7f\x9bb')).toEqual(['ab']);
  });

  it('takes a sequence in pieces', () => {
    expect(linesOf('a\x1b', '[', '3', '1', 'm', 'b\x1b]0;ti', 'tle', '\x07c')).toEqual(['abc']);
  });

  it('moves and erases as shells do', () => {
    expect(linesOf('abcdef\x1b[3D\x1b[K')).toEqual(['abc']);
    expect(linesOf('abcdef\x1b[3D\x1b[1P')).toEqual(['abcef']);
    expect(linesOf('abc\x1b[2D\x1b[1@X')).toEqual(['aXbc']);
    expect(linesOf('abcdef\x1b[3G\x1b[2X')).toEqual(['ab  ef']);
    expect(linesOf('abc\x1b[1K')).toEqual(['']);
    expect(linesOf('one\ntwo\x1b[A\rX')).toEqual(['Xne', 'two']);
    expect(linesOf('one\ntwo\x1b[1;2HX')).toEqual(['oXe', 'two']);
    expect(linesOf('a\x1b7bcd\x1b8X')).toEqual(['aXcd']);
    expect(linesOf('a\nb\nc\x1b[2;1H\x1b[J')).toEqual(['a', '', '']);
  });

  it('clears by going down, so that what was there can be read', () => {
    const lines = linesOf('before\x1b[H\x1b[2Jafter');
    expect(lines[0]).toBe('before');
    expect(lines.at(-24)).toBe('after');
  });

  it('has positions from the top of its last 24 lines', () => {
    const text = Array.from({ length: 30 }, (_, n) => `line ${n}`).join('\n');
    expect(linesOf(text, '\x1b[1;1HX')[6]).toBe('Xine 6');
    // Beyond the edge is at the edge.
    expect(show(text, '\x1b[999;999H').cursor).toEqual({ line: 29, column: 79 });
    expect(show(text, '\x1b[999A').cursor.line).toBe(6);
  });

  it('keeps a bounded number of lines, columns and characters of a sequence', () => {
    const many = show('x\n'.repeat(3 * MAX_LINES));
    expect(many.lines.length).toBe(MAX_LINES);
    expect(many.cursor.line).toBe(MAX_LINES - 1);
    expect(show('y'.repeat(100_000)).lines[0]?.length).toBe(4096);
    expect(show('\x1b[9999999999C', 'z').lines[0]?.length).toBe(4096);
    expect(show(`\x1b[${'1;'.repeat(100_000)}m`).lines.join('').length).toBeLessThanOrEqual(4096);
    expect(show('\x1b[99999999B').lines.length).toBeLessThanOrEqual(24);
  });

  it('survives anything', () => {
    let seed = 12345;
    const random = (): number => {
      seed = (seed * 1103515245 + 12345) & 0x7fffffff;
      return seed;
    };
    const alphabet = [
      '\x1b',
      '[',
      ']',
      '?',
      ';',
      '0',
      '7',
      '99',
      'H',
      'J',
      'K',
      'A',
      'P',
      '@',
      'M',
      'c',
      '\n',
      'ü',
      '💥',
      '\x9b',
    ];
    const screen = new Screen();
    for (let i = 0; i < 50_000; i += 1) screen.write(alphabet[random() % alphabet.length] ?? '');
    expect(screen.lines.length).toBeLessThanOrEqual(MAX_LINES);
    const { line, column } = screen.cursor;
    expect(line).toBeLessThan(screen.lines.length);
    expect(column).toBeLessThanOrEqual(4096);
  });
});
