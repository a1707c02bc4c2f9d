/** A progress bar on a terminal; nothing at all where output goes elsewhere. Redrawn at most ten times a second. */

import { formatSize } from './quantity.ts';

const REDRAW_MS = 100;
const BAR_WIDTH = 30;

/** Where the bar goes: process.stderr, or a stand-in. */
export interface ProgressOutput {
  readonly isTTY?: boolean | undefined;
  readonly columns?: number | undefined;
  write(text: string): unknown;
}

/** What is counted: bytes done, or milliseconds gone by. */
export type ProgressUnit = 'bytes' | 'time';

/** One line of a bar: what, how far, how fast, how long it will still take. Cut to `columns`. */
export function renderProgress(
  label: string,
  done: number,
  total: number,
  elapsedMs: number,
  columns: number,
  unit: ProgressUnit = 'bytes',
): string {
  const share = total > 0 ? Math.min(1, done / total) : 1;
  const filled = Math.round(share * BAR_WIDTH);
  const bar = `${'#'.repeat(filled)}${'-'.repeat(BAR_WIDTH - filled)}`;
  const rate = elapsedMs > 0 ? (done / elapsedMs) * 1000 : 0;
  const restSeconds = rate > 0 ? Math.ceil((total - done) / rate) : 0;
  const percent = `${Math.floor(share * 100)}%`.padStart(4);
  const amount = unit === 'bytes' ? `${formatSize(total)}, ${formatSize(rate)}/s` : `${total / 1000} s`;
  const line = `${label} [${bar}] ${percent} of ${amount}, ${restSeconds} s left`;
  return line.slice(0, Math.max(0, columns - 1));
}

/** One line that is drawn again and again on a terminal; nothing at all elsewhere. */
export class StatusLine {
  readonly #output: ProgressOutput | undefined;
  #drawnAt = Number.NEGATIVE_INFINITY;
  #drawn = false;

  constructor(output: ProgressOutput) {
    this.#output = output.isTTY === true ? output : undefined;
  }

  /** Draws what `render` makes for a number of columns, unless that was done a moment ago. */
  draw(render: (columns: number) => string): void {
    if (this.#output === undefined) return;
    const now = performance.now();
    if (now - this.#drawnAt < REDRAW_MS) return;
    this.#drawnAt = now;
    this.#drawn = true;
    // 0 where the terminal does not know.
    this.#output.write(`\r\x1b[K${render(this.#output.columns || 80)}`);
  }

  /** Removes the line, so that what is printed next begins on a clean one. Idempotent. */
  clear(): void {
    if (!this.#drawn) return;
    this.#output?.write('\r\x1b[K');
    this.#drawn = false;
  }
}

export class Progress {
  readonly #line: StatusLine;
  readonly #label: string;
  readonly #total: number;
  readonly #unit: ProgressUnit;
  readonly #started = performance.now();

  constructor(output: ProgressOutput, label: string, total: number, unit: ProgressUnit = 'bytes') {
    this.#line = new StatusLine(output);
    this.#label = label;
    this.#total = total;
    this.#unit = unit;
  }

  /** `done` altogether. */
  update(done: number): void {
    const elapsedMs = performance.now() - this.#started;
    this.#line.draw((columns) => renderProgress(this.#label, done, this.#total, elapsedMs, columns, this.#unit));
  }

  /** Removes the bar. Idempotent. */
  clear(): void {
    this.#line.clear();
  }
}
