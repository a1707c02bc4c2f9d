import { once } from 'node:events';
import { PassThrough, Writable } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { Serial } from '../../../../../vmm-client/vmm/legacy/serial.ts';
import { feedSerial, SerialOutput } from '../../../../../vmm-client/vmm/legacy/serial-stream.ts';

/** A stream that takes one chunk at a time, when it is told to. */
class Slow extends Writable {
  readonly chunks: string[] = [];
  #done: (() => void) | undefined;

  constructor(highWaterMark: number) {
    super({ highWaterMark });
  }

  override _write(chunk: Buffer, _: string, done: () => void): void {
    this.chunks.push(chunk.toString());
    this.#done = done;
  }

  take(): void {
    this.#done?.();
  }
}

const writeText = (output: SerialOutput, text: string): (void | Promise<void>)[] =>
  Array.from(Buffer.from(text), (byte) => output.write(byte));

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

describe('output of a serial port', () => {
  it('goes out as one chunk for each turn of the event loop', async () => {
    const stream = new Slow(100);
    const output = new SerialOutput(stream);
    expect(writeText(output, 'hello')).toEqual(Array(5).fill(undefined));
    expect(stream.chunks).toEqual([]);
    await turn();
    writeText(output, ' world');
    await turn();
    stream.take();
    await turn();
    expect(stream.chunks).toEqual(['hello', ' world']);
  });

  it('waits while the stream is full, and goes on', async () => {
    const stream = new Slow(4);
    const output = new SerialOutput(stream);
    writeText(output, 'full');
    await turn();
    const waiting = output.write(0x21);
    expect(waiting).toBeInstanceOf(Promise);
    stream.take();
    await waiting;
    expect(output.write(0x3f)).toBeUndefined();
    await turn();
    stream.take();
    await turn();
    expect(stream.chunks).toEqual(['full', '!?']);
  });

  it('is handed over to the last byte when it is closed, and nobody waits any more', async () => {
    const stream = new Slow(4);
    const output = new SerialOutput(stream);
    writeText(output, 'full');
    await turn();
    const waiting = output.write(0x21);
    output.close();
    await waiting;
    stream.take();
    await turn();
    expect(stream.chunks).toEqual(['full', '!']);
    expect(output.write(0x3f)).toBeUndefined();
    expect(stream.listenerCount('drain')).toBe(0);
  });

  it('holds nobody up while it is released, and then again', async () => {
    const stream = new Slow(4);
    const output = new SerialOutput(stream);
    writeText(output, 'full');
    await turn();
    const waiting = output.write(0x21);
    expect(waiting).toBeInstanceOf(Promise);
    output.release();
    await waiting;
    expect(output.write(0x21)).toBeUndefined();
    output.restrain();
    let isKept = false;
    const again = Promise.resolve(output.write(0x21)).then(() => {
      isKept = true;
    });
    await turn();
    expect(isKept).toBe(false);
    stream.take();
    stream.take();
    await again;
    output.close();
  });

  it('into a stream that broke does not hold the guest up', async () => {
    const stream = new Slow(1);
    stream.on('error', () => undefined);
    const output = new SerialOutput(stream);
    writeText(output, 'x');
    await turn();
    const waiting = output.write(0x21);
    stream.destroy(new Error('gone'));
    await waiting;
    expect(output.write(0x21)).toBeUndefined();
  });
});

describe('input of a serial port', () => {
  it('comes to the port of the next machine after that of the last', async () => {
    const input = new PassThrough();
    const first = feedSerial(input, new Serial({ raise: () => undefined, transmit: () => undefined }));
    await turn();
    first();
    const serial = new Serial({ raise: () => undefined, transmit: () => undefined });
    const letGo = feedSerial(input, serial);
    input.write('a');
    await turn();
    expect(serial.read(0, 1)).toBe(0x61);
    letGo();
  });

  it('stops at what the port wants, goes on when it was read, and ends with nothing', async () => {
    const serial = new Serial({ raise: () => undefined, transmit: () => undefined });
    const input = new PassThrough();
    const letGo = feedSerial(input, serial);
    input.write('a'.repeat(5000));
    await turn();
    expect(input.isPaused()).toBe(true);
    for (let i = 0; i < 5000; i += 1) serial.read(0, 1);
    expect(input.isPaused()).toBe(false);
    input.end('b');
    await once(input, 'end');
    expect(String.fromCharCode(serial.read(0, 1))).toBe('b');
    letGo();
    expect(input.listenerCount('data')).toBe(0);
  });
});
