import { once } from 'node:events';
import type { Readable } from 'node:stream';
import { setImmediate as turn } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { KEPT_BYTES, MAX_READERS, SerialTap } from '../../../../../vmm-client/vmm/legacy/serial-tap.ts';

const say = (tap: SerialTap, text: string): void => {
  for (const byte of Buffer.from(text)) tap.push(byte);
};

/** All of a stream that ends. */
const readAll = async (stream: Readable): Promise<string> => {
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString();
};

describe('A tap of a serial port', () => {
  it('gives a reader what was said before, and what comes', async () => {
    const tap = new SerialTap();
    say(tap, 'before ');
    const reader = tap.read();
    const all = readAll(reader);
    await turn();
    say(tap, 'after');
    await turn();
    tap.close();
    expect(await all).toBe('before after');
  });

  it('keeps the last 64 KiB', async () => {
    const tap = new SerialTap();
    for (let i = 0; i < KEPT_BYTES + 10; i += 1) tap.push(i % 251);
    const reader = tap.read();
    tap.close();
    const chunks: Buffer[] = [];
    for await (const chunk of reader) chunks.push(chunk as Buffer);
    const all = Buffer.concat(chunks);
    expect(all.length).toBe(KEPT_BYTES);
    expect([all[0], all.at(-1)]).toEqual([10, (KEPT_BYTES + 9) % 251]);
    expect(all.every((byte, i) => byte === (i + 10) % 251)).toBe(true);
  });

  it('gives every reader the same', async () => {
    const tap = new SerialTap();
    const [a, b] = [readAll(tap.read()), readAll(tap.read())];
    for (let i = 0; i < 300; i += 1) {
      say(tap, `line ${i}\n`);
      if (i % 7 === 0) await turn();
    }
    const late = readAll(tap.read());
    tap.close();
    expect(await a).toBe(await b);
    expect(await late).toBe(await a);
    expect((await a).split('\n').length).toBe(301);
  });

  it('cuts a reader off that falls behind, and holds nobody up', async () => {
    const tap = new SerialTap();
    const slow = tap.read();
    const failed = once(slow, 'error');
    // Reads once and then no more.
    slow.read(0);
    for (let round = 0; round < 8; round += 1) {
      for (let i = 0; i < KEPT_BYTES / 4; i += 1) tap.push(0x61);
      await turn();
    }
    const [error] = (await failed) as [Error];
    expect(error).toMatchObject({ code: 'SLOW_READER' });
    expect(slow.readableLength).toBeLessThanOrEqual(2 * 16 * 1024);
  });

  it('forgets a reader that is gone, and has a limit of them', () => {
    const tap = new SerialTap();
    const readers = Array.from({ length: MAX_READERS }, () => tap.read());
    expect(() => tap.read()).toThrow(`${MAX_READERS} readers read the serial port already`);
    for (const reader of readers) reader.destroy();
    expect(() => tap.read()).not.toThrow();
  });

  it('ends readers with the machine, also those that come after', async () => {
    const tap = new SerialTap();
    say(tap, 'last words');
    tap.close();
    expect(await readAll(tap.read())).toBe('last words');
  });
});
