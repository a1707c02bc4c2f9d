/**
 * What a destination makes of a stream that is cut off, damaged, or made by somebody who knows the format: a sentence, and
 * nothing is left of the machine. Only the stream as it was sent brings a guest.
 */

import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import fc from 'fast-check';
import { beforeAll, describe, expect, it } from 'vitest';
import { VmConfigError, VmError } from '../../vmm-client/vmm/errors.ts';
import { Channel } from '../../vmm-client/vmm/migration/channel.ts';
import { type Received, receiveGuest } from '../../vmm-client/vmm/migration/receiver.ts';
import { Sender } from '../../vmm-client/vmm/migration/sender.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import {
  CONFIG,
  FakeSource,
  FakeTarget,
  HIGH,
  LAYOUT,
  operation,
  PAGE,
  socketPair,
} from '../unit/vmm-client/vmm/migration/fakes.ts';

const cleanup = cleanupAfterEach();
const HEADER_BYTES = 16;
/** Silence after which a destination gives up here. */
const SILENCE_MS = 1000;

const receive = (socket: Socket, target: FakeTarget): Promise<Received<FakeTarget>> =>
  receiveGuest(
    new Channel(socket, SILENCE_MS),
    async (config) => ({ machine: target, config }),
    operation('receive-migration'),
  );

interface Recording {
  readonly bytes: Buffer;
  /** Where each frame begins. */
  readonly frames: readonly number[];
}

const record = async (): Promise<Recording> => {
  const [a, near] = await socketPair(cleanup);
  const [far, b] = await socketPair(cleanup);
  const chunks: Buffer[] = [];
  near.on('data', (chunk: Buffer) => chunks.push(chunk));
  near.pipe(far).pipe(near);
  const source = new FakeSource();
  for (const page of [1, 2, 9]) source.memory.fill(page * PAGE, page);
  source.onTakeDirty = () => {
    if (source.memory.touched.has(HIGH)) return;
    source.write(HIGH, 7);
    source.write(2 * PAGE, 0);
  };
  const options = { downtimeMs: 300, timeoutMs: 5000, isMemoryShared: false, autoConverge: true };
  const sender = new Sender(source, new Channel(a, SILENCE_MS), options, operation('send-migration'));
  await Promise.all([receive(b, new FakeTarget()), sender.run({ config: CONFIG, layout: LAYOUT, isRunning: true })]);
  const bytes = Buffer.concat(chunks);
  const frames: number[] = [];
  for (let at = 0; at < bytes.length; at += HEADER_BYTES + bytes.readUInt32LE(at + 4)) frames.push(at);
  return { bytes, frames };
};

/** Makes a stream end in what it was sent as, for the pieces that were changed. */
const seal = (frame: Buffer): Buffer => {
  frame.writeUInt32LE(crc32(frame.subarray(HEADER_BYTES), crc32(frame.subarray(0, 12))), 12);
  return frame;
};

interface Outcome {
  readonly error: unknown;
  readonly target: FakeTarget;
}

let listener: { readonly path: string; readonly next: () => Promise<Socket> };

/** What a destination does with these bytes and the end of the connection, or with silence instead of the end. */
const feed = async (bytes: Buffer, ends = true): Promise<Outcome> => {
  const target = new FakeTarget();
  const accepted = listener.next();
  const socket = connect(listener.path);
  socket.on('error', () => undefined);
  const result = receive(await accepted, target);
  socket.resume();
  socket.write(bytes);
  if (ends) socket.end();
  try {
    await result;
    return { error: undefined, target };
  } catch (error) {
    return { error, target };
  } finally {
    socket.destroy();
  }
};

const expectRefusal = ({ error, target }: Outcome): void => {
  expect(error).toSatisfy((e: unknown) => e instanceof VmError || e instanceof VmConfigError);
  expect((error as Error).message).toMatch(/^[^\n]{5,}$/);
  expect(target.calls).not.toContain('run');
  // Where a machine was built, it is gone.
  if (target.calls.length > 0) expect(target.calls.at(-1)).toBe('close');
};

let recording: Recording;

describe('a migration stream', () => {
  beforeAll(async () => {
    const { Cleanup } = await import('../support/cleanup.ts');
    const all = new Cleanup();
    const path = join(all.directory(), 'f');
    const waiting: ((socket: Socket) => void)[] = [];
    const server = createServer((socket) => {
      socket.on('error', () => undefined);
      waiting.shift()?.(socket);
    });
    await new Promise<void>((resolve) => server.listen(path, resolve));
    listener = { path, next: () => new Promise((resolve) => waiting.push(resolve)) };
    recording = await record();
    return () => {
      server.close();
      return all.run();
    };
  });

  it('brings the guest as it was sent, in pieces of any size', async () => {
    const { error, target } = await feed(recording.bytes);

    expect(error).toBeUndefined();
    expect(target.calls).toEqual(['restore', 'devices', 'run']);
    expect(recording.frames.length).toBeGreaterThanOrEqual(7);
  });

  it('that ends anywhere is refused', async () => {
    const { bytes, frames } = recording;
    const ends = new Set([bytes.length - 1]);
    for (const at of frames) for (const more of [0, 1, 15, 16, 17]) ends.add(at + more);
    for (const end of ends) if (end < bytes.length) expectRefusal(await feed(bytes.subarray(0, end)));
  });

  it('that falls silent anywhere is refused after the deadline', async () => {
    const { bytes, frames } = recording;
    const ends = [0, 16, (frames[1] ?? 0) + 20];
    const outcomes = await Promise.all(ends.map((end) => feed(bytes.subarray(0, end), false)));
    for (const outcome of outcomes) {
      expectRefusal(outcome);
      expect((outcome.error as Error).message).toBe(`the peer says nothing for ${SILENCE_MS} ms`);
    }
  });

  it('in which a byte is another one is refused', async () => {
    const { bytes, frames } = recording;
    // All of the headers, and any of the rest.
    const positions = new Set<number>();
    for (const at of frames) for (let i = 0; i < HEADER_BYTES; i += 3) positions.add(at + i);
    for (const at of positions) {
      const damaged = Buffer.from(bytes);
      damaged[at] = (damaged[at] as number) ^ 0x40;
      expectRefusal(await feed(damaged));
    }
    await fc.assert(
      fc.asyncProperty(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 255 }), async (at, mask) => {
        const damaged = Buffer.from(bytes);
        damaged[at] = (damaged[at] as number) ^ mask;
        expectRefusal(await feed(damaged));
      }),
      { numRuns: 150 },
    );
  });

  it('in which frames are left out, doubled or in another order is refused', async () => {
    const { bytes, frames } = recording;
    const pieces = frames.map((at, i) => bytes.subarray(at, frames[i + 1] ?? bytes.length));
    for (let i = 0; i < pieces.length; i += 1) {
      const piece = pieces[i] as Buffer;
      const rest = pieces.filter((_, j) => j !== i);
      expectRefusal(await feed(Buffer.concat(rest)));
      const doubled = pieces.toSpliced(i, 0, piece);
      // The last one twice is a guest that runs, and what nobody reads any more.
      if (i < pieces.length - 1) expectRefusal(await feed(Buffer.concat(doubled)));
      if (i > 0) expectRefusal(await feed(Buffer.concat([piece, ...rest])));
    }
  });

  it('by one who knows the format brings no machine down, whatever it says', async () => {
    const { bytes, frames } = recording;
    const frame = fc.nat(frames.length - 1);
    const change = fc.record({
      at: fc.nat(0xffff),
      value: fc.oneof(fc.nat(255), fc.constantFrom(0, 1, 0x7f, 0x80, 0xff)),
    });
    await fc.assert(
      fc.asyncProperty(frame, fc.array(change, { minLength: 1, maxLength: 6 }), async (index, changes) => {
        const pieces = frames.map((at, i) => Buffer.from(bytes.subarray(at, frames[i + 1] ?? bytes.length)));
        const piece = pieces[index] as Buffer;
        if (piece.length === HEADER_BYTES) return;
        for (const { at, value } of changes) piece[HEADER_BYTES + (at % (piece.length - HEADER_BYTES))] = value;
        seal(piece);
        const outcome = await feed(Buffer.concat(pieces));
        if (outcome.error !== undefined) expectRefusal(outcome);
      }),
      { numRuns: 300 },
    );
  });

  it('with records that are not of this RAM is refused', async () => {
    const { bytes, frames } = recording;
    const start = bytes.subarray(0, frames[1]);
    const recordOf = (address: bigint, length: number, kind: number, data = 0): Buffer => {
      const made = Buffer.alloc(HEADER_BYTES + 16 + data);
      made.writeUInt32LE(2, 0);
      made.writeUInt32LE(16 + data, 4);
      made.writeUInt32LE(1, 8);
      made.writeBigUInt64LE(address, 16);
      made.writeUInt32LE(length, 24);
      made.writeUInt32LE(kind, 28);
      return seal(made);
    };
    const cases: [Buffer, RegExp][] = [
      [recordOf(0x20_0000n, PAGE, 0, PAGE), /4096 bytes at guest address 0x200000, which are not in RAM/],
      [recordOf(0x1f_f000n, 2 * PAGE, 0, 2 * PAGE), /8192 bytes at guest address 0x1ff000, which are not in RAM/],
      [recordOf(0xffff_ffff_ffff_f000n, PAGE, 0, PAGE), /guest address 0xfffffffffffff000, which is no address/],
      [recordOf(1n, PAGE, 0, PAGE), /which are no pages/],
      [recordOf(0n, 0, 0), /0 bytes at guest address 0x0, which are no pages/],
      [recordOf(0n, PAGE, 0, 100), /sends 100 of 4096 bytes/],
      [recordOf(0n, PAGE, 2), /a record of kind 2/],
      [recordOf(0n, 0xffff_f000, 1), /which are not in RAM/],
    ];
    for (const [made, sentence] of cases) {
      const outcome = await feed(Buffer.concat([start, made]));
      expectRefusal(outcome);
      expect((outcome.error as Error).message).toMatch(sentence);
    }
  });
});
