import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { GuestRam, type RamRegion } from '../../../../vmm-client/vmm/guest-ram.ts';
import { MemoryPieces } from '../../../../vmm-client/vmm/memory-pieces.ts';

const PIECE = { start: 0x1_0000_0000, length: 16 << 20 };
const OTHER = { start: 0x1_0100_0000, length: 16 << 20 };

let ram: GuestRam;
let pieces: MemoryPieces;
let events: string[];
let lines: string[];
/** What fails, by its name in `events`. */
let failing: string;

const note = (what: string): void => {
  events.push(what);
  if (failing === what) throw new Error(`${what} fails`);
};

class NotedVm {
  slots = 0;

  addMemory(guestAddress: number): number {
    note(`slot ${guestAddress.toString(16)}`);
    this.slots += 1;
    return this.slots - 1;
  }

  removeMemory(slot: number): void {
    note(`no slot ${slot}`);
  }
}

const users = {
  addMemory: async ({ region }: RamRegion) => note(`add ${region.guestAddress.toString(16)}`),
  removeMemory: async ({ region }: RamRegion) => {
    // It is there until everybody has let go of it.
    expect(ram.hostAddress(region.guestAddress, region.size)).toBe(region.userAddress);
    note(`remove ${region.guestAddress.toString(16)}`);
  },
};

beforeEach(() => {
  events = [];
  lines = [];
  failing = '';
  ram = GuestRam.allocate({ size: 8 << 20 }, 2 ** 40);
  pieces = new MemoryPieces(ram, { warn: (line: string | object) => void lines.push(String(line)) });
});

afterEach(() => ram.close());

describe('MemoryPieces', () => {
  it('shows a virtual machine all RAM that is there', async () => {
    await pieces.add(PIECE);
    pieces.connect(new NotedVm());
    expect(events).toEqual(['slot 0', 'slot 100000000']);
  });

  it('adds a piece to devices and then to KVM, and takes it away the other way round', async () => {
    pieces.connect(new NotedVm());
    pieces.tell(users);
    await pieces.add(PIECE);
    await pieces.add(PIECE);
    await pieces.add(OTHER);
    await pieces.remove(PIECE);
    await pieces.remove(PIECE);

    expect(events).toEqual([
      'slot 0',
      'add 100000000',
      'slot 100000000',
      'add 101000000',
      'slot 101000000',
      'no slot 1',
      'remove 100000000',
    ]);
    expect(ram.pieces).toEqual([OTHER]);
    expect([pieces.has(PIECE), pieces.has(OTHER)]).toEqual([false, true]);
  });

  it.each([
    // One of the devices may have come by it meanwhile.
    ['a device', 'add 100000000', ['slot 0', 'add 100000000', 'remove 100000000']],
    ['KVM', 'slot 100000000', ['slot 0', 'add 100000000', 'slot 100000000', 'remove 100000000']],
  ])('leaves nothing of a piece that %s refuses', async (_, what, expected) => {
    pieces.connect(new NotedVm());
    pieces.tell(users);
    failing = what;
    await expect(pieces.add(PIECE)).rejects.toThrow(`${what} fails`);
    expect(events).toEqual(expected);
    expect(ram.pieces).toEqual([]);
  });

  it('hands nobody a piece that was refused while others let go of it', async () => {
    const seen: number[] = [];
    pieces.tell({
      addMemory: async () => {
        throw new Error('no slots');
      },
      removeMemory: async () => void seen.push(ram.regions.length),
    });
    await expect(pieces.add(PIECE)).rejects.toThrow('no slots');
    expect(seen).toEqual([1]);
  });

  it('asks no virtual machine that is gone', async () => {
    pieces.connect(new NotedVm());
    await pieces.add(PIECE);
    pieces.disconnect();
    await pieces.remove(PIECE);
    expect(events).toEqual(['slot 0', 'slot 100000000']);
  });

  it('gives the memory of a part back, and of all of it when RAM is gone', async () => {
    await pieces.add(PIECE);
    ram.memory.copyIn(PIECE.start, Uint8Array.of(1));
    await pieces.discard({ start: PIECE.start, length: 4096 });
    expect(ram.nextData(PIECE.start)).toBeUndefined();
    ram.close();
    await pieces.discard(PIECE);
    await pieces.remove(PIECE);
    expect(lines).toEqual([]);
  });
});
