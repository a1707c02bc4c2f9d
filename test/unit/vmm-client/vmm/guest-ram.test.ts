import { closeSync, mkdtempSync, openSync, readdirSync, readSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { statFd } from '../../../../protocol/sys/owned-fd.ts';
import { GuestRam, ramRanges } from '../../../../vmm-client/vmm/guest-ram.ts';

const GiB = 2 ** 30;
const NO_LIMIT = 2 ** 46;

const open: GuestRam[] = [];
const directories: string[] = [];
afterEach(() => {
  for (const ram of open.splice(0)) ram.close();
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
});
