import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { statFd } from '../../../../protocol/sys/owned-fd.ts';
import { GuestRam, ramRanges } from '../../../../vmm-client/vmm/guest-ram.ts';
import { openFiles } from '../../../support/frontend/process-probe.ts';

const GiB = 2 ** 30;
const NO_LIMIT = 2 ** 46;

const hugePages = (name: string): number =>
  Number(new RegExp(`^HugePages_${name}:\\s+(\\d+)$`, 'm').exec(readFileSync('/proc/meminfo', 'utf8'))?.[1] ?? 0);
const HUGE = 2 << 20;
const enough = hugePages('Free') - hugePages('Rsvd') >= 8;
if (!enough) process.stderr.write('skipped: huge pages of pieces: fewer than 8 are free (/proc/sys/vm/nr_hugepages)\n');

const open: GuestRam[] = [];
const directories: string[] = [];
afterEach(async () => {
  for (const ram of open.splice(0)) ram.close();
  // RAM is given back on the thread pool, and its descriptors with it.
  const isRam = (file: string): boolean => file.startsWith('/memfd:ringside-ram');
  await expect.poll(() => openFiles(process.pid).filter(isRam), { timeout: 5000 }).toEqual([]);
  for (const directory of directories.splice(0)) rmSync(directory, { recursive: true });
});

function allocate(config: { size: number; file?: string; hugepages?: boolean }, limit = NO_LIMIT): GuestRam {
  const ram = GuestRam.allocate(config, limit);
  open.push(ram);
  return ram;
}

function directory(): string {
  const path = mkdtempSync(join(tmpdir(), 'guest-ram-'));
  directories.push(path);
  return path;
}

function readAt(file: string, position: number): string {
  const fd = openSync(file, 'r');
  const bytes = Buffer.alloc(5);
  readSync(fd, bytes, 0, 5, position);
  closeSync(fd);
  return bytes.toString();
}

describe('ramRanges', () => {
  it('ends below the hole and goes on above 4 GiB', () => {
    expect(ramRanges(3 * GiB)).toEqual([{ start: 0, length: 3 * GiB }]);
    expect(ramRanges(3 * GiB + 4096)).toEqual([
      { start: 0, length: 0xc000_0000 },
      { start: 0x1_0000_0000, length: 4096 },
    ]);
    expect(ramRanges(96 * GiB)).toEqual([
      { start: 0, length: 0xc000_0000 },
      { start: 0x1_0000_0000, length: 93 * GiB },
    ]);
  });
});

describe('GuestRam', () => {
  it('holds more than 64 GiB without taking it', () => {
    const ram = allocate({ size: 96 * GiB });
    const last = 0x1_0000_0000 + 93 * GiB - 8;
    expect(ram.memory.copyIn(last, Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8))).toBe(true);
    const back = new Uint8Array(8);
    expect(ram.memory.copyOut(last, back)).toBe(true);
    expect([...back]).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  });

  it('tells back ends the addresses of this process', () => {
    const ram = allocate({ size: 4 * GiB });
    for (const { region, memfd } of ram.regions) {
      expect(region.userAddress).toBe(ram.hostAddress(region.guestAddress, region.size));
      expect(statFd(memfd.fd).size).toBe(region.size);
    }
    expect(ram.regions.map(({ region }) => region.guestAddress)).toEqual([0, 0x1_0000_0000]);
  });

  it('has no address for what is not in one region', () => {
    const ram = allocate({ size: 4 * GiB });
    expect(ram.hostAddress(0xc000_0000 - 4, 8)).toBeUndefined();
    expect(ram.hostAddress(0xc000_0000, 1)).toBeUndefined();
    expect(ram.hostAddress(0x1_4000_0000, 1)).toBeUndefined();
    expect(ram.hostAddress(0x1_4000_0000 - 1, 1)).toBeDefined();
  });

  it('puts regions one after the other into a file', () => {
    const file = join(directory(), 'ram');
    const ram = allocate({ size: 3 * GiB + (1 << 20), file });
    ram.memory.copyIn(0x1_0000_0000, Buffer.from('above'));
    ram.memory.copyIn(0x1000, Buffer.from('below'));
    expect(statSync(file).size).toBe(3 * GiB + (1 << 20));
    expect(ram.regions[1]?.region.mmapOffset).toBe(3 * GiB);
    expect(readAt(file, 0x1000)).toBe('below');
    expect(readAt(file, 3 * GiB)).toBe('above');
  });

  it('leaves no name in a directory', () => {
    const path = directory();
    const ram = allocate({ size: 64 << 20, file: path });
    expect(ram.memory.copyIn(0, Uint8Array.of(1))).toBe(true);
    expect(readdirSync(path)).toEqual([]);
  });

  it.each([[{ size: 8 * GiB }, 2 ** 33, /ends at guest address 0x240000000, above the 0x200000000/]])(
    'refuses %o',
    (config, limit, sentence) => {
      expect(() => GuestRam.allocate(config, limit)).toThrow(sentence);
    },
  );

  it('names a file that cannot be had', () => {
    expect(() => GuestRam.allocate({ size: 64 << 20, file: '/nonexistent/ram' }, NO_LIMIT)).toThrow(
      /\/nonexistent\/ram/,
    );
  });

  describe('pieces', () => {
    const START = 0x1_0000_0000;
    const memoryFiles = (): string[] =>
      readFileSync('/proc/self/maps', 'utf8')
        .split('\n')
        .filter((line) => line.includes('ringside-ram'));

    it('come and go with everything that is of them', () => {
      const ram = allocate({ size: 64 << 20 });
      const mapped = memoryFiles().length;
      const descriptors = readdirSync('/proc/self/fd').length;

      const piece = ram.addRegion(START, 16 << 20);
      expect(ram.pieces).toEqual([{ start: START, length: 16 << 20 }]);
      expect(ram.ranges).toEqual([{ start: 0, length: 64 << 20 }]);
      expect(ram.regions.map(({ region }) => region.guestAddress)).toEqual([0, START]);
      expect(piece.region.userAddress).toBe(ram.hostAddress(START, 16 << 20));
      expect(ram.memory.copyIn(START + 4096, Uint8Array.of(1, 2, 3))).toBe(true);
      expect(memoryFiles().length).toBe(mapped + 1);

      ram.removeRegion(piece);
      ram.removeRegion(piece);
      expect(ram.pieces).toEqual([]);
      expect(ram.hostAddress(START, 1)).toBeUndefined();
      expect(ram.memory.copyIn(START + 4096, Uint8Array.of(1))).toBe(false);
      expect(memoryFiles().length).toBe(mapped);
      expect(readdirSync('/proc/self/fd').length).toBe(descriptors);
    });

    it('do not come any more when RAM is gone', () => {
      const ram = allocate({ size: 64 << 20 });
      ram.close();
      const descriptors = readdirSync('/proc/self/fd').length;
      expect(() => ram.addRegion(START, 1 << 20)).toThrow('RAM is gone: the machine has ended');
      // Those of RAM are being closed meanwhile.
      expect(readdirSync('/proc/self/fd').length).toBeLessThanOrEqual(descriptors);
    });

    it('that a machine had elsewhere are there from the start', () => {
      const pieces = [{ start: START, length: 1 << 20 }];
      const ram = GuestRam.allocate({ size: 64 << 20 }, NO_LIMIT, pieces);
      open.push(ram);
      expect(ram.pieces).toEqual(pieces);
    });

    it('have a place of their own in a file', () => {
      const file = join(directory(), 'ram');
      writeFileSync(file, 'RAM is zero at the start');
      const ram = allocate({ size: 2 << 20, file });
      expect(readAt(file, 0)).toBe('\0\0\0\0\0');
      const second = ram.addRegion(START + (4 << 20), 2 << 20);
      const first = ram.addRegion(START, 2 << 20);
      ram.memory.copyIn(START, Buffer.from('first'));
      ram.memory.copyIn(START + (4 << 20), Buffer.from('again'));
      expect(readAt(file, START)).toBe('first');
      expect(readAt(file, START + (4 << 20))).toBe('again');
      ram.removeRegion(second);
      ram.removeRegion(first);
      expect(ram.memory.copyIn(0, Uint8Array.of(1))).toBe(true);
    });
  });

  it('tells where it has been written to, and nothing else', async () => {
    const ram = allocate({ size: 8 * GiB });
    expect(ram.nextData(0)).toBeUndefined();
    const piece = ram.addRegion(0x8_0000_0000, 64 << 20);
    for (const at of [0x1000, 0x2fff, 0x1_0000_0000 + 4 * 2 ** 30, 0x8_0000_0000 + 0x5000]) {
      ram.memory.copyIn(at, Uint8Array.of(1));
    }
    const found: { start: number; length: number }[] = [];
    for (let at = 0, data = ram.nextData(0); data !== undefined; data = ram.nextData(at)) {
      found.push(data);
      at = data.start + data.length;
    }
    expect(found).toEqual([
      { start: 0x1000, length: 0x2000 },
      { start: 0x1_0000_0000 + 4 * 2 ** 30, length: 0x1000 },
      { start: 0x8_0000_0000 + 0x5000, length: 0x1000 },
    ]);

    await ram.discard(0x8_0000_0000, 64 << 20);
    expect(ram.nextData(0x8_0000_0000)).toBeUndefined();
    expect(ram.bytes(0x8_0000_0000 + 0x5000, 1)).toEqual(Uint8Array.of(0));
    ram.removeRegion(piece);
    await expect(ram.discard(0x8_0000_0000, 4096)).rejects.toThrow(/are not in one region of RAM/);
  });

  it('shows bytes of one region', () => {
    const ram = allocate({ size: 4 * GiB });
    ram.bytes(0x1_0000_0000, 3).set([1, 2, 3]);
    expect([...ram.bytes(0x1_0000_0001, 2)]).toEqual([2, 3]);
    expect(ram.bytes(0x2000_0000 - 4096, 512 << 20)).toHaveLength(512 << 20);
    expect(() => ram.bytes(0, (512 << 20) + 1)).toThrow(RangeError);
    expect(() => ram.bytes(0xbfff_ffff, 2)).toThrow(/no view of 2 bytes of RAM at guest address 0xbfffffff/);
  });

  it.runIf(enough)('takes huge pages of pieces when they are reserved, and gives them back', async () => {
    const ram = allocate({ size: HUGE, hugepages: true });
    const before = { free: hugePages('Free'), reserved: hugePages('Rsvd') };
    const now = () => ({ free: hugePages('Free'), reserved: hugePages('Rsvd') });
    const piece = ram.addRegion(0x1_0000_0000, 2 ** 36);
    expect(now()).toEqual(before);
    await ram.reserve(0x1_0000_0000 + 4 * HUGE, 2 * HUGE);
    expect(now()).toEqual({ ...before, free: before.free - 2 });
    ram.memory.copyIn(0x1_0000_0000 + 4 * HUGE, Uint8Array.of(1));
    await ram.discard(0x1_0000_0000 + 4 * HUGE, 2 * HUGE);
    expect(now()).toEqual(before);
    await expect(ram.reserve(0x1_0000_0000, 2 ** 36)).rejects.toThrow(/ENOSPC/);
    await ram.discard(0x1_0000_0000, 2 ** 36);
    expect(now()).toEqual(before);
    ram.removeRegion(piece);
  });
});
