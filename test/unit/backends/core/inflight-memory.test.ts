import { afterEach, describe, expect, it } from 'vitest';
import { createInflightFd, InflightMemory } from '../../../../backends/core/inflight-memory.ts';
import { createSealedMemfd, type OwnedFd } from '../../../../protocol/sys/owned-fd.ts';

const MAX_QUEUES = 4;
const open: { close(): void }[] = [];

afterEach(() => {
  for (const closable of open.splice(0).reverse()) closable.close();
});

interface Shape {
  readonly numQueues: number;
  readonly queueSize: number;
  readonly mmapSize: number;
}

const map = (shape: Shape, packed: boolean, fileBytes = shape.mmapSize): InflightMemory => {
  const fd: OwnedFd = createSealedMemfd('test', fileBytes);
  open.push(fd);
  const memory = new InflightMemory({ ...shape, mmapOffset: 0 }, fd, MAX_QUEUES, packed);
  open.push(memory);
  return memory;
};

/** Where the parts of the queues begin, relative to the first, and how long they are. */
const partsOf = (memory: InflightMemory, queues: number, size: number, packed: boolean) => {
  const parts = Array.from({ length: queues }, (_, i) => memory.queue(i, size, packed));
  const start = parts[0]?.address ?? 0;
  return parts.map((part) => (part === undefined ? undefined : [part.address - start, part.length]));
};

describe('a region that we make', () => {
  it.each([
    [128, false],
    [128, true],
    [100, true],
  ])('for queues of %i has room for 1024 entries of either layout (packed %s)', (queueSize, packed) => {
    const { reply, fd } = createInflightFd({ numQueues: 2, queueSize, mmapSize: 0, mmapOffset: 0 }, MAX_QUEUES);
    open.push(fd);
    const memory = new InflightMemory(reply, fd, MAX_QUEUES, packed);
    open.push(memory);

    // 32 + 32 * 1024, to the next multiple of 64.
    expect(reply.mmapSize).toBe(2 * 32_832);
    expect(partsOf(memory, 2, 1024, packed)).toEqual([
      [0, 32_832],
      [32_832, 32_832],
    ]);
    expect(memory.queue(2, queueSize, packed)).toBeUndefined();
    expect(memory.queue(0, 2048, true)).toBeUndefined();
  });

  it('keeps its parts when the layout is known only when a ring starts', () => {
    const { reply, fd } = createInflightFd({ numQueues: 2, queueSize: 128, mmapSize: 0, mmapOffset: 0 }, MAX_QUEUES);
    open.push(fd);
    const memory = new InflightMemory(reply, fd, MAX_QUEUES, false);
    open.push(memory);

    expect(partsOf(memory, 2, 128, true)).toEqual(partsOf(memory, 2, 128, false));
  });

  it.each([0, 32769])('is impossible for queues of %i', (queueSize) => {
    const request = { numQueues: 1, queueSize, mmapSize: 0, mmapOffset: 0 };
    expect(() => createInflightFd(request, MAX_QUEUES)).toThrow(/1 to 32768/);
  });

  it.each([0, 5])('is impossible for %i queues', (numQueues) => {
    const request = { numQueues, queueSize: 128, mmapSize: 0, mmapOffset: 0 };
    expect(() => createInflightFd(request, MAX_QUEUES)).toThrow(/1 to 4 are possible/);
  });
});

describe('a region that another back end made', () => {
  it.each([
    [128, false, 2112],
    [128, true, 4160],
    [100, true, 3264],
  ])('for queues of %i (packed %s) has parts of %i bytes', (queueSize, packed, stride) => {
    const memory = map({ numQueues: 3, queueSize, mmapSize: 3 * stride }, packed);

    expect(partsOf(memory, 3, queueSize, packed)).toEqual([0, 1, 2].map((i) => [i * stride, stride]));
    expect(memory.queue(0, queueSize + 64, packed)).toBeUndefined();
  });

  it('may be rounded up to pages', () => {
    const memory = map({ numQueues: 2, queueSize: 128, mmapSize: 12_288 }, true);

    expect(partsOf(memory, 2, 128, true)).toEqual([
      [0, 4160],
      [4160, 4160],
    ]);
  });

  it('of version 0.1.0 has parts of 1024 entries, split', () => {
    const memory = map({ numQueues: 2, queueSize: 128, mmapSize: 2 * 16_448 }, false);

    expect(partsOf(memory, 2, 128, false)).toEqual([
      [0, 16_448],
      [16_448, 16_448],
    ]);
    expect(memory.queue(1, 1024, true)).toBeUndefined();
  });

  it('has no part for a layout that it is too small for', () => {
    const memory = map({ numQueues: 1, queueSize: 128, mmapSize: 2112 }, false);

    expect(memory.queue(0, 128, false)?.length).toBe(2112);
    expect(memory.queue(0, 128, true)).toBeUndefined();
  });

  it.each([
    [{ numQueues: 2, queueSize: 128, mmapSize: 2 * 2112 }, true, 2 * 2112, /8320 are needed/],
    [{ numQueues: 2, queueSize: 128, mmapSize: 4223 }, false, 8192, /4224 are needed/],
    [{ numQueues: 1, queueSize: 100, mmapSize: 8192 }, false, 8192, /packed rings/],
    [{ numQueues: 2, queueSize: 128, mmapSize: 2 * 4160 }, true, 8191, /file of 8191 bytes/],
    [{ numQueues: 2, queueSize: 128, mmapSize: 2 * 32_832 }, true, 65_663, /65664 are needed/],
  ])('is refused: %o, packed %s, in a file of %i bytes', (shape, packed, fileBytes, message) => {
    expect(() => map(shape, packed, fileBytes)).toThrow(message);
  });
});
