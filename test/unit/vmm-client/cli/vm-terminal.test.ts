import { once } from 'node:events';
import { PassThrough } from 'node:stream';
import { beforeEach, describe, expect, it } from 'vitest';
import { EscapeFilter, Terminal } from '../../../../vmm-client/cli/terminal.ts';

/** A keyboard that notes which modes it was put in. */
class Keyboard extends PassThrough {
  readonly isTTY: boolean;
  readonly modes: boolean[] = [];

  constructor(isTTY = true) {
    super();
    this.isTTY = isTTY;
  }

  setRawMode(raw: boolean): void {
    this.modes.push(raw);
  }
}

describe('the escape key', () => {
  const filter = (...pieces: string[]): (string | undefined)[] => {
    const filter = new EscapeFilter();
    return pieces.map((piece) => {
      const kept = filter.filter(Buffer.from(piece));
      return kept === undefined ? undefined : Buffer.from(kept).toString();
    });
  };

  it.each<[string[], (string | undefined)[]]>([
    [['ls\r\x03'], ['ls\r\x03']],
    [['\x01x'], [undefined]],
    [['\x01X'], [undefined]],
    [
      ['ab\x01', 'x'],
      ['ab', undefined],
    ],
    [['\x01\x01'], ['\x01']],
    [['\x01\x01x'], ['\x01x']],
    [
      ['\x01', '\x01', '\x01', 'x'],
      ['', '\x01', '', undefined],
    ],
    [['\x01e'], ['\x01e']],
    [['é\xff'], ['é\xff']],
  ])('of %j leaves %j to the guest', (pieces, expected) => {
    expect(filter(...pieces)).toEqual(expected);
  });
});

describe('a terminal', () => {
  let notices: PassThrough;

  beforeEach(() => {
    notices = new PassThrough();
  });

  it('is raw from the start of the guest to the end, and says how to leave once', () => {
    const keyboard = new Keyboard();
    const terminal = new Terminal(keyboard, notices);
    expect(keyboard.modes).toEqual([]);
    terminal.enter();
    terminal.enter();
    terminal.restore();
    terminal.restore();
    expect(keyboard.modes).toEqual([true, false]);
    expect(String(notices.read())).toBe('Ctrl-A x ends the machine, Ctrl-A Ctrl-A sends Ctrl-A.\n');
  });

  it('gives all keys to the guest until the user leaves', async () => {
    const keyboard = new Keyboard();
    const terminal = new Terminal(keyboard, notices);
    terminal.enter();
    keyboard.write('a\x03\x01\x01');
    await once(terminal.input, 'readable');
    expect(String(terminal.input.read())).toBe('a\x03\x01');
    keyboard.write('\x01x');
    await terminal.left;
  });

  it('hears the user leave although the guest reads nothing', async () => {
    const keyboard = new Keyboard();
    const terminal = new Terminal(keyboard, notices);
    terminal.enter();
    for (let i = 0; i < 100; i += 1) keyboard.write('y'.repeat(4096));
    keyboard.write('\x01x');
    await terminal.left;
    expect(terminal.input.readableLength).toBeLessThan(2 * 65536);
  });

  it('that goes away ends the machine', async () => {
    const keyboard = new Keyboard();
    const terminal = new Terminal(keyboard, notices);
    terminal.enter();
    keyboard.end();
    await terminal.left;
  });

  it('that is none is input as it is, Ctrl-A and end included', async () => {
    const pipe = new Keyboard(false);
    const terminal = new Terminal(pipe, notices);
    terminal.enter();
    expect([terminal.input, pipe.modes, notices.read()]).toEqual([pipe, [], null]);
    pipe.end('\x01x');
    await once(terminal.input, 'readable');
    expect(String(terminal.input.read())).toBe('\x01x');
    terminal.restore();
    expect(pipe.modes).toEqual([]);
  });
});
