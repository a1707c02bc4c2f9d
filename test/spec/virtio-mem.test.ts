/**
 * The memory device, rule by rule, with the numbers of the standard. Source: VIRTIO 1.3, 5.15 Memory Device.
 *
 * The region is 1 GiB at 4 GiB, of 512 blocks of 2 MiB in 4 pieces of 256 MiB.
 */

import { beforeEach, describe, expect, it } from 'vitest';
import { VirtioMem } from '../../vmm-client/vmm/devices/mem/mem.ts';

const MiB = 2 ** 20;
const BLOCK = 2 * MiB;
const START = 0x1_0000_0000;
const PIECE = 256 * MiB;
const PLUG = 0;
const UNPLUG = 1;
const UNPLUG_ALL = 2;
const STATE = 3;
const ACK = 0;
const NACK = 1;
const BUSY = 2;
const ERROR = 3;

interface Part {
  readonly start: number;
  readonly length: number;
}

/** Pieces that are only noted. What happens to them is in `events`, as [what, offset in MiB, length in MiB]. */
class NotedPieces {
  readonly there = new Set<number>();
  readonly events: [string, number, number][] = [];
  addFails = false;
  reserveFails = false;

  #note(what: string, { start, length }: Part): void {
    this.events.push([what, (start - START) / MiB, length / MiB]);
  }

  has({ start }: Part): boolean {
    return this.there.has(start);
  }

  async add(piece: Part): Promise<void> {
    await Promise.resolve();
    if (this.addFails) throw new Error('the back end has no slot');
    if (this.has(piece)) return;
    this.there.add(piece.start);
    this.#note('add', piece);
  }

  async remove(piece: Part): Promise<void> {
    await Promise.resolve();
    this.there.delete(piece.start);
    this.#note('remove', piece);
  }

  async discard(part: Part): Promise<void> {
    this.#note('discard', part);
  }

  async reserve(): Promise<void> {
    if (this.reserveFails) throw new Error('no huge pages');
  }
}

let pieces: NotedPieces;
let mem: VirtioMem;
/** Of the configuration: whether the driver is told. */
let told: boolean[];
let lines: string[];

const create = (requestedBytes = 0): VirtioMem => {
  pieces = new NotedPieces();
  told = [];
  lines = [];
  const region = { start: START, size: 1024 * MiB, hotplugBytes: 1024 * MiB, pieceBytes: PIECE };
  const device = new VirtioMem({ region, pieces, requestedBytes, log: (line) => lines.push(line) });
  device.plug({ configChanged: (byDriver = false) => void told.push(!byDriver), send: () => false });
  return device;
};

beforeEach(() => {
  mem = create();
});

/** struct virtio_mem_req: le16 type, le16 padding[3], le64 addr, le16 nb_blocks, le16 padding[3]. */
const requestBytes = (type: number, address: bigint, count: number): Uint8Array => {
  const bytes = new Uint8Array(24).fill(0xa5);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, type, true);
  view.setBigUint64(8, address, true);
  view.setUint16(16, count, true);
  return bytes;
};

/** The type of the response, and its state where the request is for one. */
const ask = async (type: number, block = 0, count = 1): Promise<number> => {
  const answer = await mem.serve(0, requestBytes(type, BigInt(START + block * BLOCK), count), 10);
  expect(answer).toHaveLength(10);
  return new DataView(answer.buffer).getUint16(0, true);
};

const stateOf = async (block: number, count: number): Promise<number> => {
  const answer = await mem.serve(0, requestBytes(STATE, BigInt(START + block * BLOCK), count), 10);
  const view = new DataView(answer.buffer);
  expect(view.getUint16(0, true)).toBe(ACK);
  return view.getUint16(8, true);
};

const config = () => {
  const view = new DataView(mem.config.buffer, mem.config.byteOffset);
  const at = (offset: number): number => Number(view.getBigUint64(offset, true));
  return {
    blockSize: at(0),
    nodeId: at(8),
    addr: at(16),
    regionSize: at(24),
    usable: at(32) / MiB,
    plugged: at(40) / MiB,
    requested: at(48) / MiB,
  };
};

describe('the memory device', () => {
  it('is device 24 with one queue; a driver has to accept UNPLUGGED_INACCESSIBLE', () => {
    expect(mem.deviceId).toBe(24);
    expect(mem.queueSizes).toHaveLength(1);
    expect(mem.features).toBe(0b10n);
    expect(mem.required).toBe(0b10n);
  });

  it('5.15.4: has its sizes in the configuration space', async () => {
    expect(mem.config).toHaveLength(56);
    expect(config()).toEqual({
      blockSize: 0x20_0000,
      nodeId: 0,
      addr: 0x1_0000_0000,
      regionSize: 0x4000_0000,
      usable: 0,
      plugged: 0,
      requested: 0,
    });
  });

  it('5.15.4.2: tells the driver of another requested size, and that more is usable', async () => {
    await mem.resize(300 * MiB);

    expect(config()).toMatchObject({ usable: 512, plugged: 0, requested: 300 });
    expect(told).toEqual([true]);
  });

  it('5.15.4.2: does not shrink the usable region when less is requested', async () => {
    await mem.resize(300 * MiB);
    await mem.resize(2 * MiB);

    expect(config()).toMatchObject({ usable: 512, requested: 2 });
  });

  it('5.15.4.2: brings plugged_size up to date without telling the driver', async () => {
    await mem.resize(256 * MiB);
    await ask(PLUG, 3, 4);

    expect(config().plugged).toBe(8);
    expect(told).toEqual([true, false]);
  });

  describe('5.15.6.2: PLUG', () => {
    beforeEach(() => mem.resize(256 * MiB));

    it('plugs blocks', async () => {
      expect(await ask(PLUG, 0, 128)).toBe(ACK);
      expect(await stateOf(0, 128)).toBe(0);
      expect(mem.pluggedBytes).toBe(256 * MiB);
    });

    it.each([
      ['that are not aligned', BigInt(START + 4096), 1],
      ['that are none', BigInt(START), 0],
      ['below the region', BigInt(START - BLOCK), 1],
      ['at 0', 0n, 1],
      ['above the usable region', BigInt(START + PIECE), 1],
      ['beyond the end of the usable region', BigInt(START + PIECE - BLOCK), 2],
      ['far above', 0x8000_0000_0000_0000n, 1],
      ['that wrap around', 0xffff_ffff_ffe0_0000n, 65535],
      ['whose address is no safe number', 0xffff_ffff_ffff_ffffn, 1],
      ['that are too many', BigInt(START), 65535],
    ])('rejects blocks %s', async (_, address, count) => {
      for (const type of [PLUG, UNPLUG, STATE]) {
        const answer = await mem.serve(0, requestBytes(type, address, count), 10);
        expect(answer[0]).toBe(ERROR);
      }
      expect(mem.pluggedBytes).toBe(0);
      expect(mem.counters().errors).toBe(3);
    });

    it('rejects blocks of which one is plugged', async () => {
      expect(await ask(PLUG, 5)).toBe(ACK);
      expect(await ask(PLUG, 0, 10)).toBe(ERROR);
      expect(await ask(PLUG, 5)).toBe(ERROR);
      expect(mem.pluggedBytes).toBe(BLOCK);
    });

    it('denies more than what is requested', async () => {
      await mem.resize(20 * MiB);
      expect(await ask(PLUG, 0, 8)).toBe(ACK);
      expect(await ask(PLUG, 8, 3)).toBe(NACK);
      expect(await ask(PLUG, 8, 2)).toBe(ACK);
      expect(await ask(PLUG, 10, 1)).toBe(NACK);
      await mem.resize(2 * MiB);
      expect(await ask(PLUG, 10, 1)).toBe(NACK);
    });

    it('is to be tried again later where a back end has no room', async () => {
      await mem.resize(512 * MiB);
      await mem.resize(256 * MiB);
      pieces.addFails = true;
      expect(await ask(PLUG, 128)).toBe(BUSY);
      expect(await ask(PLUG, 129)).toBe(BUSY);
      expect(mem.pluggedBytes).toBe(0);
      expect(lines).toEqual(['memory __mem: no memory for what the guest plugs: the back end has no slot']);
    });

    it('gives back what it got where there are not enough huge pages', async () => {
      await mem.resize(1024 * MiB);
      await mem.resize(256 * MiB);
      pieces.events.length = 0;
      pieces.reserveFails = true;
      expect(await ask(PLUG, 128, 2)).toBe(BUSY);
      expect(pieces.events).toEqual([
        ['add', 256, 256],
        ['discard', 256, 4],
        ['remove', 256, 256],
      ]);
    });
  });

  describe('5.15.6.3: UNPLUG', () => {
    beforeEach(async () => {
      await mem.resize(512 * MiB);
      await ask(PLUG, 120, 16);
    });

    it('unplugs blocks, whose memory the host gets back', async () => {
      expect(await ask(UNPLUG, 122, 2)).toBe(ACK);
      expect(config().plugged).toBe(28);
      expect(await stateOf(122, 2)).toBe(1);
      expect(await stateOf(120, 16)).toBe(2);
      expect(pieces.events.slice(2)).toEqual([['discard', 244, 4]]);
    });

    it('rejects blocks of which one is not plugged', async () => {
      expect(await ask(UNPLUG, 119, 2)).toBe(ERROR);
      expect(await ask(UNPLUG, 0)).toBe(ERROR);
      expect(config().plugged).toBe(32);
    });

    it('goes over the border of pieces', async () => {
      expect(await ask(UNPLUG, 120, 16)).toBe(ACK);
      expect(pieces.events.slice(2)).toEqual([
        ['discard', 240, 16],
        ['discard', 256, 16],
      ]);
    });
  });

  describe('5.15.6.4: UNPLUG ALL', () => {
    it('unplugs everything, and only what is requested stays usable', async () => {
      await mem.resize(1024 * MiB);
      await ask(PLUG, 0, 512);
      await mem.resize(256 * MiB);

      expect(await ask(UNPLUG_ALL)).toBe(ACK);
      expect(config()).toMatchObject({ usable: 256, plugged: 0, requested: 256 });
      expect([...pieces.there]).toEqual([START]);
      expect(pieces.events.at(-1)).toEqual(['discard', 0, 256]);
    });

    it('has no other fields', async () => {
      const answer = await mem.serve(0, requestBytes(UNPLUG_ALL, 0xffff_ffff_ffff_ffffn, 0), 10);
      expect(answer[0]).toBe(ACK);
    });
  });

  describe('5.15.6: what is no request', () => {
    it.each([
      ['too short', requestBytes(UNPLUG_ALL, 0n, 0).subarray(0, 23), 10],
      ['without room for a response', requestBytes(UNPLUG_ALL, 0n, 0), 9],
    ])('goes back as it came: %s', async (_, bytes, writable) => {
      expect(await mem.serve(0, bytes, writable)).toHaveLength(0);
    });

    it('is an error when its type is unknown', async () => {
      await mem.resize(256 * MiB);
      expect(await ask(4)).toBe(ERROR);
      expect(await ask(0xffff)).toBe(ERROR);
    });
  });

  describe('pieces', () => {
    it('are there for what is requested before the driver hears of it', async () => {
      mem.plug({ configChanged: () => pieces.events.push(['told', 0, 0]), send: () => false });
      await mem.resize(300 * MiB);

      expect(pieces.events).toEqual([
        ['add', 0, 256],
        ['add', 256, 256],
        ['told', 0, 0],
      ]);
    });

    it('go when nothing of them is plugged and nothing of them is requested', async () => {
      await mem.resize(1024 * MiB);
      for (const block of [0, 128, 300, 511]) expect(await ask(PLUG, block)).toBe(ACK);
      await mem.resize(256 * MiB);
      expect([...pieces.there].map((start) => (start - START) / PIECE)).toEqual([0, 1, 2, 3]);
      for (const block of [0, 300, 511]) expect(await ask(UNPLUG, block)).toBe(ACK);
      expect([...pieces.there].map((start) => (start - START) / PIECE)).toEqual([0, 1]);
    });

    it('come back for a block that is plugged in the usable region', async () => {
      await mem.resize(1024 * MiB);
      await mem.resize(256 * MiB);
      expect(pieces.there.size).toBe(1);
      expect(await ask(PLUG, 500)).toBe(ACK);
      expect([...pieces.there].map((start) => (start - START) / PIECE)).toEqual([0, 3]);
    });

    it('that cannot be had are said, and nothing has changed', async () => {
      pieces.addFails = true;
      await expect(mem.resize(300 * MiB)).rejects.toThrow(
        'memory: no 314572800 bytes can be added: the back end has no slot',
      );
      expect(config()).toMatchObject({ usable: 0, requested: 0 });
      expect(told).toEqual([]);
    });

    it('are there for what is requested from the start on', async () => {
      mem = create(300 * MiB);
      await mem.open();
      expect(pieces.there.size).toBe(2);
      expect(config()).toMatchObject({ usable: 512, requested: 300 });
    });
  });

  it('keeps blocks over a reset by the driver, and unplugs them when the machine is reset', async () => {
    await mem.resize(512 * MiB);
    await ask(PLUG, 0, 100);
    mem.reset();
    expect(config().plugged).toBe(200);
    await mem.systemReset();
    expect(config()).toMatchObject({ plugged: 0, requested: 512, usable: 512 });
    expect(await stateOf(0, 100)).toBe(1);
  });

  it('changes nothing while memory is copied', async () => {
    await mem.resize(512 * MiB);
    await ask(PLUG, 0, 2);
    await mem.holdStill(true);
    expect(await ask(PLUG, 2)).toBe(BUSY);
    expect(await ask(UNPLUG, 0)).toBe(BUSY);
    expect(await ask(UNPLUG_ALL)).toBe(BUSY);
    expect(await stateOf(0, 2)).toBe(0);
    await mem.holdStill(false);
    expect(await ask(PLUG, 2)).toBe(ACK);
  });

  it('serves requests and changes of size one at a time', async () => {
    const answers = await Promise.all([
      mem.resize(2 * MiB),
      ask(PLUG, 0),
      ask(PLUG, 1),
      mem.resize(4 * MiB),
      ask(PLUG, 1),
      mem.systemReset(),
      ask(PLUG, 0),
    ]);
    expect(answers).toEqual([undefined, ACK, NACK, undefined, ACK, undefined, ACK]);
    expect(mem.counters()).toMatchObject({ plugs: 3, nacks: 1, plugged_bytes: BLOCK, requested_bytes: 2 * BLOCK });
  });

  describe('elsewhere', () => {
    it('goes on as it was', async () => {
      await mem.resize(1024 * MiB);
      await ask(PLUG, 5, 3);
      await ask(PLUG, 300);
      await mem.resize(300 * MiB);
      const state = structuredClone(mem.save());

      mem = create();
      for (const piece of [0, 1, 2]) pieces.there.add(START + piece * PIECE);
      await mem.restore(state);

      expect(config()).toMatchObject({ usable: 1024, plugged: 8, requested: 300 });
      expect(await stateOf(5, 3)).toBe(0);
      expect(await stateOf(300, 1)).toBe(0);
      expect(pieces.events).toEqual([
        ['discard', 0, 10],
        ['discard', 16, 240],
        ['discard', 256, 256],
        ['discard', 512, 88],
        ['discard', 602, 166],
      ]);
    });

    it.each([
      ['no object', () => 'plugged', /not an object/],
      ['another region', (state: object) => ({ ...state, start: 0 }), /its region was 1073741824 bytes at 0x0, it is/],
      ['more than there can be', (state: object) => ({ ...state, requested: 2 ** 31 }), /requested: 2147483648/],
      ['half a block', (state: object) => ({ ...state, requested: MiB }), /not a multiple of 2097152/],
      ['less usable than requested', (state: object) => ({ ...state, usable: 0 }), /usable/],
      ['too few bits', (state: object) => ({ ...state, plugged: new Uint8Array(63) }), /not 64 bytes/],
      [
        'blocks that are not usable',
        (state: object) => ({ ...state, plugged: new Uint8Array(64).fill(255) }),
        /usable/,
      ],
      [
        'blocks of a piece that is not there',
        (state: object) => ({ ...state, plugged: new Uint8Array(64).fill(1, 17, 18) }),
        /blocks of piece 1 are plugged, and it is not there/,
      ],
    ])('refuses a state with %s', async (_, change, sentence) => {
      await mem.resize(400 * MiB);
      const state = change(mem.save());
      mem = create();
      pieces.there.add(START);
      await expect(mem.restore(state)).rejects.toThrow(sentence);
    });
  });
});
