/**
 * What a terminal would show of what a guest prints: lines of text and a cursor, with the movements that shells, boot
 * loaders and `less` use. Colours and modes are understood and dropped, as are titles and answers that a terminal would
 * give. Nothing that comes in can do more than put characters into lines. Source: ECMA-48; XTerm Control Sequences.
 */

/** Of the screen that absolute positions are in, as serial consoles take for granted. */
const ROWS = 24;
const COLUMNS = 80;
/** Lines that are kept. */
export const MAX_LINES = 2000;
/** Characters of one line; what comes behind stays in its last place. */
const MAX_COLUMNS = 4096;
const TAB = 8;
/** Characters of an escape sequence that is not to end. */
const MAX_SEQUENCE = 256;
const BLANK = ' ';

const ESC = '\x1b';
const BEL = '\x07';

/** Between the characters of a sequence. */
type Mode = 'text' | 'escape' | 'control' | 'string' | 'designate';

export class Screen {
  /** Lines; the last ROWS of them are the screen. */
  #lines: string[] = [''];
  #row = 0;
  #column = 0;
  #mode: Mode = 'text';
  #sequence = '';
  #saved: readonly [row: number, column: number] = [0, 0];

  get lines(): readonly string[] {
    return this.#lines;
  }

  /** The cursor's line, counted from the first that is kept, and its column. */
  get cursor(): { readonly line: number; readonly column: number } {
    return { line: this.#row, column: this.#column };
  }

  write(text: string): void {
    for (const character of text) this.#take(character);
  }

  /** Empty, as at the start. */
  reset(): void {
    this.#lines = [''];
    this.#row = 0;
    this.#column = 0;
    this.#mode = 'text';
  }

  #take(character: string): void {
    switch (this.#mode) {
      case 'text':
        this.#takeText(character);
        return;
      case 'escape':
        this.#takeEscape(character);
        return;
      case 'control':
        this.#takeControl(character);
        return;
      case 'designate':
        this.#mode = 'text';
        return;
      case 'string':
        // Titles and the like end with BEL or ESC \.
        if (character === BEL) this.#mode = 'text';
        else if (character === ESC) this.#mode = 'escape';
        else this.#grow(character);
        return;
    }
  }

  #takeText(character: string): void {
    switch (character) {
      case '\n':
        // To the start of the next line, as a terminal's driver has it: kernels that boot do not say \r.
        this.#moveDown(true);
        return;
      case '\v':
      case '\f':
        this.#moveDown();
        return;
      case '\r':
        this.#column = 0;
        return;
      case '\b':
        this.#column = Math.max(0, this.#column - 1);
        return;
      case '\t':
        this.#column = Math.min(MAX_COLUMNS - 1, (Math.floor(this.#column / TAB) + 1) * TAB);
        return;
      case ESC:
        this.#mode = 'escape';
        this.#sequence = '';
        return;
      default:
        // Other control characters, DEL among them, show nothing.
        if (character >= BLANK && character !== '\x7f' && !(character >= '\x80' && character < '\xa0'))
          this.#put(character);
    }
  }

  #takeEscape(character: string): void {
    this.#sequence = '';
    this.#mode = 'text';
    if (character === '[') this.#mode = 'control';
    else if (']PX^_'.includes(character)) this.#mode = 'string';
    else if ('()*+-./#% '.includes(character)) this.#mode = 'designate';
    else if (character === 'c') this.#clear();
    else if (character === 'D' || character === 'E') this.#moveDown(character === 'E');
    else if (character === 'M') this.#row = Math.max(this.#top, this.#row - 1);
    else if (character === '7') this.#saved = [this.#row - this.#top, this.#column];
    else if (character === '8') this.#restore();
  }

  #takeControl(character: string): void {
    if (character >= '@' && character <= '~') {
      this.#mode = 'text';
      this.#control(character, this.#sequence);
    } else if (character === ESC) {
      this.#mode = 'escape';
    } else if (character < BLANK) {
      // A control character in a sequence does what it does anywhere.
      this.#takeText(character);
    } else {
      this.#grow(character);
    }
  }

  /** A sequence that is too long is none. */
  #grow(character: string): void {
    this.#sequence += character;
    if (this.#sequence.length > MAX_SEQUENCE) this.#mode = 'text';
  }

  #control(final: string, parameters: string): void {
    // Private ones switch modes, and those with intermediate characters are something else.
    if (/[^0-9;]/.test(parameters)) return;
    const [first = 0, second = 0] = parameters.split(';').map((text) => Math.min(Number(text), MAX_COLUMNS));
    const count = Math.max(1, first);
    const bottom = this.#top + ROWS - 1;
    switch (final) {
      case 'A':
        this.#row = Math.max(this.#top, this.#row - count);
        return;
      case 'B':
        this.#goTo(Math.min(bottom, this.#row + count), this.#column);
        return;
      case 'C':
        this.#column = Math.min(MAX_COLUMNS - 1, this.#column + count);
        return;
      case 'D':
        this.#column = Math.max(0, this.#column - count);
        return;
      case 'G':
        this.#column = count - 1;
        return;
      case 'd':
        this.#goTo(Math.min(bottom, this.#top + count - 1), this.#column);
        return;
      case 'H':
      case 'f':
        this.#goTo(Math.min(bottom, this.#top + count - 1), Math.min(COLUMNS, Math.max(1, second)) - 1);
        return;
      case 'J':
        this.#eraseScreen(first);
        return;
      case 'K':
        this.#eraseLine(first);
        return;
      case 'P':
        this.#edit((line) => line.slice(0, this.#column) + line.slice(this.#column + count));
        return;
      case '@':
        this.#edit((line) => line.slice(0, this.#column) + BLANK.repeat(count) + line.slice(this.#column));
        return;
      case 'X':
        this.#edit((line) => line.slice(0, this.#column) + BLANK.repeat(count) + line.slice(this.#column + count));
        return;
      case 's':
        this.#saved = [this.#row - this.#top, this.#column];
        return;
      case 'u':
        this.#restore();
        return;
    }
  }

  /** The line of the screen's first row. */
  get #top(): number {
    return Math.max(0, this.#lines.length - ROWS);
  }

  #put(character: string): void {
    if (this.#column >= MAX_COLUMNS) this.#column = MAX_COLUMNS - 1;
    const line = this.#lines[this.#row] ?? '';
    if (line.length === this.#column) this.#lines[this.#row] = line + character;
    else this.#edit((old) => old.slice(0, this.#column) + character + old.slice(this.#column + 1));
    this.#column += 1;
  }

  /** Changes the cursor's line, which is as long as to the cursor at least. */
  #edit(change: (line: string) => string): void {
    const line = (this.#lines[this.#row] ?? '').padEnd(this.#column, BLANK);
    this.#lines[this.#row] = change(line).slice(0, MAX_COLUMNS);
  }

  #moveDown(toStart = false): void {
    if (toStart) this.#column = 0;
    this.#goTo(this.#row + 1, this.#column);
  }

  #goTo(row: number, column: number): void {
    while (this.#lines.length <= row) this.#lines.push('');
    this.#row = row;
    this.#column = column;
    const beyond = this.#lines.length - MAX_LINES;
    if (beyond <= 0) return;
    this.#lines.splice(0, beyond);
    this.#row -= beyond;
  }

  #restore(): void {
    const [row, column] = this.#saved;
    this.#goTo(this.#top + row, column);
  }

  /** What was on the screen goes up, as it does when a shell clears it. */
  #clear(): void {
    const used = this.#lines.length;
    if (used > 1 || this.#lines[0] !== '') for (let row = 0; row < ROWS; row += 1) this.#lines.push('');
    this.#goTo(this.#top, 0);
  }

  #eraseScreen(which: number): void {
    if (which >= 2) {
      const row = this.#row - this.#top;
      const column = this.#column;
      this.#clear();
      this.#goTo(this.#top + row, column);
      return;
    }
    const [from, to] = which === 0 ? [this.#row + 1, this.#lines.length] : [this.#top, this.#row];
    for (let row = from; row < to; row += 1) this.#lines[row] = '';
    this.#eraseLine(which);
  }

  #eraseLine(which: number): void {
    if (which === 0) this.#edit((line) => line.slice(0, this.#column));
    else if (which === 1) this.#edit((line) => BLANK.repeat(this.#column + 1) + line.slice(this.#column + 1));
    else this.#lines[this.#row] = '';
  }
}
