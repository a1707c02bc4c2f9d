/**
 * The user's terminal as the guest's. While the guest runs it is raw: every key goes to the guest, Ctrl-C included, but for
 * what follows Ctrl-A: x ends the machine, Ctrl-A is one Ctrl-A for the guest. Input that is no terminal goes to the guest
 * as it is.
 */

import { PassThrough, type Readable, type Writable } from 'node:stream';

const CTRL_A = 0x01;
const NOTICE = 'Ctrl-A x ends the machine, Ctrl-A Ctrl-A sends Ctrl-A.\n';
/** Bytes that are kept for a guest that does not read; further keys are lost, but Ctrl-A x is not. */
const TYPED_AHEAD_BYTES = 65536;

/** What is told from the bytes of the keyboard. */
export class EscapeFilter {
  #escaped = false;

  /** What of `bytes` is the guest's; undefined at the keys that end the machine. */
  filter(bytes: Uint8Array): Uint8Array | undefined {
    const kept: number[] = [];
    for (const byte of bytes) {
      if (!this.#escaped && byte === CTRL_A) {
        this.#escaped = true;
        continue;
      }
      if (this.#escaped && (byte === 0x78 || byte === 0x58)) return undefined;
      // Of any other pair both are the guest's.
      if (this.#escaped && byte !== CTRL_A) kept.push(CTRL_A);
      this.#escaped = false;
      kept.push(byte);
    }
    return Uint8Array.from(kept);
  }
}

/** Standard input: a terminal, or not. */
export type TerminalInput = Readable & {
  readonly isTTY?: boolean;
  setRawMode?(raw: boolean): unknown;
};

export class Terminal {
  /** What the guest reads. */
  readonly input: Readable;
  /** Kept when the user wants the machine to end. */
  readonly left: Promise<void>;
  readonly #stdin: TerminalInput;
  readonly #notice: Writable;
  readonly #keys = new PassThrough({ highWaterMark: TYPED_AHEAD_BYTES });
  readonly #filter = new EscapeFilter();
  #leave: () => void = () => undefined;
  #isRaw = false;

  constructor(stdin: TerminalInput, notice: Writable) {
    this.#stdin = stdin;
    this.#notice = notice;
    this.input = stdin.isTTY === true ? this.#keys : stdin;
    this.left = new Promise((resolve) => {
      this.#leave = resolve;
    });
  }

  /** Makes a terminal raw, and says how to leave. Anything else stays as it is. */
  enter(): void {
    if (this.#stdin.isTTY !== true || this.#isRaw) return;
    this.#isRaw = true;
    this.#stdin.setRawMode?.(true);
    this.#stdin.on('data', this.#onKeys);
    // A terminal that went away has nobody left who could end the machine by keys.
    this.#stdin.on('end', this.#leave).on('error', this.#leave);
    this.#notice.write(NOTICE);
  }

  /** Makes the terminal what it was, and stops reading. Idempotent, and made for the moment of a crash. */
  restore(): void {
    if (this.#isRaw) {
      this.#isRaw = false;
      this.#stdin.off('data', this.#onKeys);
      this.#stdin.setRawMode?.(false);
    }
    this.#stdin.pause();
  }

  readonly #onKeys = (bytes: Uint8Array): void => {
    const kept = this.#filter.filter(bytes);
    if (kept === undefined) this.#leave();
    else if (this.#keys.writableLength + this.#keys.readableLength < TYPED_AHEAD_BYTES) this.#keys.write(kept);
  };
}
