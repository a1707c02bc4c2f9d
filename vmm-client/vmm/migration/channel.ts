/**
 * One connection of a migration: frames to the peer and from it, with deadlines. Once something is wrong every pending and
 * further call fails with the reason.
 *
 * The kernel puts a payload where it is to be, and only what comes before somebody waits for it into a small buffer: the
 * streams of Node.js would allocate 64 KiB for each read.
 */

import { type OnReadOpts, Socket, type SocketConstructorOpts } from 'node:net';
import { duplicateFd } from '../../../protocol/sys/owned-fd.ts';
import { VmError } from '../errors.ts';
import {
  checkFrame,
  FAILED,
  type Frame,
  frameName,
  HEADER_BYTES,
  MAX_PAGES_BYTES,
  MAX_SENTENCE_BYTES,
  PAGES,
  parseHeader,
  writeHeader,
} from './frames.ts';

/** What the peer may send before somebody waits for it; then it is made to wait. Longer than FAILED with its sentence. */
const EARLY_BYTES = 16 * 1024;
/** How long what was written last may take to be taken when the connection ends. */
const LINGER_MS = 1000;

const NOTHING: Buffer = Buffer.alloc(0);

/** The other side said that it gives up: it does not run the guest. */
export class PeerGaveUp extends VmError {}

export class Channel {
  readonly #socket: Socket;
  readonly #timeoutMs: number;
  readonly #header = Buffer.alloc(HEADER_BYTES);
  readonly #earlyBuffer = Buffer.allocUnsafe(EARLY_BYTES);
  /** What came and nobody has received yet. */
  #early: Buffer;
  /** What is to be filled, and how much of it is. */
  #target = NOTHING;
  #filled = 0;
  #wake: () => void = () => undefined;
  #failure: Error | undefined;
  /** Why nothing more is wanted of the peer, which has not been told yet. */
  #interruption: Error | undefined;
  #sent = 0;
  #received = 0;
  #pages: Buffer | undefined;
  #bytesSent = 0;

  /** Takes a connected socket over. The peer may be silent for, or not take what is sent within, `timeoutMs`. */
  constructor(connected: Socket, timeoutMs: number) {
    this.#timeoutMs = timeoutMs;
    this.#early = connected.read() ?? NOTHING;
    const socket = takeOver(connected, {
      buffer: () => this.#place(),
      callback: (length, buffer) => this.#take(length, buffer),
    });
    this.#socket = socket;
    if (socket.destroyed) this.fail(new VmError('the peer closed the connection'));
    socket.setNoDelay(true);
    // Its end is told only to those who want all that comes before.
    socket.resume();
    socket.on('error', (error) => this.fail(new VmError(`the connection broke: ${error.message}`, { cause: error })));
    socket.on('close', () => this.fail(new VmError('the peer closed the connection')));
  }

  /** Bytes that the peer was sent. */
  get bytesSent(): number {
    return this.#bytesSent;
  }

  /** Whether the peer said something that nobody has received yet. */
  get hasNews(): boolean {
    return this.#early.length > 0;
  }

  /** @throws VmError - the connection has ended */
  check(): void {
    const reason = this.#interruption ?? this.#failure;
    if (reason !== undefined) throw reason;
  }

  /** Lets what waits for the peer, and every further call, fail with `error`, but for those that end the connection. */
  interrupt(error: Error): void {
    this.#interruption ??= error;
    this.#wake();
  }

  /** Ends the connection at once; what waits fails with `error`, if with nothing else before. Idempotent. */
  fail(error: Error): void {
    this.#failure ??= error;
    this.#socket.destroy();
    this.#wake();
  }

  /** Ends the connection when the peer has what was sent, or does not take it. Idempotent. */
  close(): void {
    if (this.#failure !== undefined) return;
    this.#failure = new VmError('the connection was closed');
    this.#wake();
    const timer = setTimeout(() => this.#socket.destroy(), LINGER_MS);
    this.#socket.once('close', () => clearTimeout(timer));
    this.#socket.resume();
    this.#socket.end();
  }

  /** Tells the peer why there will be no more, as far as it still listens, and closes. */
  refuse(sentence: string): void {
    if (this.#failure !== undefined) return;
    const text = Buffer.from(sentence).subarray(0, MAX_SENTENCE_BYTES);
    const header = Buffer.alloc(HEADER_BYTES);
    writeHeader(header, FAILED, text, this.#sent);
    this.#socket.write(Buffer.concat([header, text]));
    this.close();
  }

  /** Sends a frame. Kept when the kernel has it, so `payload` is free again. */
  async send(type: number, payload: Buffer = Buffer.alloc(0)): Promise<void> {
    const frame = Buffer.allocUnsafe(HEADER_BYTES + payload.length);
    payload.copy(frame, HEADER_BYTES);
    await this.sendFramed(type, frame);
  }

  /** The same for a payload with room for a header before it. */
  async sendFramed(type: number, frame: Buffer): Promise<void> {
    this.check();
    writeHeader(frame.subarray(0, HEADER_BYTES), type, frame.subarray(HEADER_BYTES), this.#sent);
    this.#sent = (this.#sent + 1) >>> 0;
    await this.#write(frame);
  }

  #write(bytes: Buffer): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => this.fail(new VmError(`the peer takes nothing for ${this.#timeoutMs} ms`)),
        this.#timeoutMs,
      );
      this.#socket.write(bytes, (error) => {
        clearTimeout(timer);
        if (error !== null && error !== undefined) reject(this.#failure ?? error);
        else {
          this.#bytesSent += bytes.length;
          resolve();
        }
      });
    });
  }

  /**
   * The next frame, which is to be one of `types`. A deadline of its own is for an answer that takes its time.
   * @throws VmError - another one, FAILED with what it says; the peer is silent, gone, or talks nonsense
   */
  async receive(types: readonly number[], timeoutMs: number = this.#timeoutMs): Promise<Frame> {
    const header = this.#header;
    await this.#fill(header, timeoutMs);
    const { type, length } = parseHeader(header, this.#received);
    this.#received = (this.#received + 1) >>> 0;
    // Before memory is taken for it.
    if (type !== FAILED && !types.includes(type)) {
      throw new VmError(`the peer sends ${frameName(type)} where ${types.map(frameName).join(' or ')} was to come`);
    }
    const payload = type === PAGES ? this.#pagesBuffer().subarray(0, length) : Buffer.allocUnsafe(length);
    await this.#fill(payload, timeoutMs);
    const frame = { type, payload };
    checkFrame(header, frame);
    if (type === FAILED) throw new PeerGaveUp(`the peer gave up: ${printable(payload.toString())}`);
    return frame;
  }

  #pagesBuffer(): Buffer {
    this.#pages ??= Buffer.allocUnsafe(MAX_PAGES_BYTES);
    return this.#pages;
  }

  /** Where the next bytes go. */
  #place(): Buffer {
    const isAwaited = this.#target.length - this.#filled > EARLY_BYTES;
    return isAwaited ? this.#target.subarray(this.#filled) : this.#earlyBuffer;
  }

  /** Bytes came, to a place that was asked for before. Returns whether more are wanted now. */
  #take(length: number, place: Uint8Array): boolean {
    // Nobody receives anything any more.
    if (this.#failure !== undefined) return true;
    if (place === this.#earlyBuffer) {
      // A copy: the next ones may go to the same place.
      this.#early = Buffer.concat([this.#early, this.#earlyBuffer.subarray(0, length)]);
      this.#takeEarly();
    } else {
      this.#filled += length;
    }
    this.#wake();
    return this.#early.length === 0;
  }

  /** Gives what came early to whom it is for. */
  #takeEarly(): void {
    const taken = this.#early.copy(this.#target, this.#filled);
    this.#filled += taken;
    this.#early = this.#early.subarray(taken);
  }

  async #fill(target: Buffer, timeoutMs: number): Promise<void> {
    this.#target = target;
    this.#filled = 0;
    this.#takeEarly();
    if (this.#early.length === 0) this.#socket.resume();
    for (;;) {
      if (this.#interruption !== undefined) throw this.#interruption;
      if (this.#filled === target.length) break;
      await this.#more(timeoutMs);
    }
    this.#target = NOTHING;
    this.#filled = 0;
  }

  /** Waits for bytes. What came before the end of the connection is still to be had. */
  async #more(timeoutMs: number): Promise<void> {
    this.check();
    const timer = setTimeout(() => this.fail(new VmError(`the peer says nothing for ${timeoutMs} ms`)), timeoutMs);
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
    clearTimeout(timer);
    this.#wake = () => undefined;
  }
}

/** Goes on with the connection of a socket, which is closed, as one that reads to places of the caller's. */
function takeOver(connected: Socket, onread: OnReadOpts): Socket {
  // The documentation has no name for the descriptor of a socket that Node.js accepted.
  const fd = (connected as Socket & { readonly _handle?: { readonly fd: number } | null })._handle?.fd;
  // It broke meanwhile.
  if (fd === undefined) return connected.destroy();
  try {
    const own = duplicateFd(fd).take();
    const options: SocketConstructorOpts & { readonly onread: OnReadOpts } = {
      fd: own,
      readable: true,
      writable: true,
      onread,
    };
    return new Socket(options);
  } finally {
    connected.destroy();
  }
}

/** A sentence of the peer's, for a log and an answer. */
function printable(sentence: string): string {
  return sentence.replaceAll(/\p{Cc}/gu, ' ');
}
