/** Snapshots as files: sparse, whole or not there. */

import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it, vi } from 'vitest';
import { readMemory, readTexts, SnapshotWriter } from '../../../../../vmm-client/vmm/migration/snapshot-files.ts';
import { cleanupAfterEach } from '../../../../support/cleanup.ts';
import { FakeRam, HIGH, PAGE } from './fakes.ts';

const cleanup = cleanupAfterEach();
const nothing = (): void => undefined;
const texts = { config: Buffer.from('{"config":1}'), state: Buffer.from('{"state":1}') };

const filled = (): FakeRam => {
  const ram = new FakeRam();
  ram.fill(PAGE, 1);
  ram.fill(2 * PAGE, 0);
  ram.fill(300 * PAGE, 3);
  ram.fill(HIGH + 255 * PAGE, 4);
  return ram;
};

const save = async (directory: string, ram = filled()): Promise<void> => {
  const writer = await SnapshotWriter.create(directory);
  await writer.writeMemory(ram, nothing);
  await writer.writeTexts(texts);
  await writer.commit();
};

describe('a snapshot', () => {
  it('is three files for their owner, one of which is RAM with its holes', async () => {
    const directory = join(cleanup.directory(), 'snapshot');

    await save(directory);

    expect(readdirSync(directory).sort()).toEqual(['config.json', 'memory-ranges', 'state.json']);
    expect(statSync(directory).mode & 0o777).toBe(0o700);
    const { size, blocks, mode } = statSync(join(directory, 'memory-ranges'));
    expect({ size, mode: mode & 0o777 }).toEqual({ size: 3 << 20, mode: 0o600 });
    // Three pages that are not zero; file systems have blocks of 4 KiB here.
    expect(blocks * 512).toBeLessThanOrEqual(4 * PAGE);
    const memory = readFileSync(join(directory, 'memory-ranges'));
    expect([memory[PAGE], memory[300 * PAGE], memory[(2 << 20) + 255 * PAGE]]).toEqual([1, 3, 4]);
    expect(await readTexts(directory)).toEqual(texts);
  });

  it.each([
    ['a new one', false],
    ['one that is there', true],
  ])('has a name for good: what its directory is in is synced for %s', async (_, isThere) => {
    const parent = cleanup.directory();
    const directory = join(parent, 'snapshot');
    if (isThere) mkdirSync(directory);
    const probe = await open(parent);
    const files = Object.getPrototypeOf(probe) as FileHandle;
    await probe.close();
    const synced: string[] = [];
    const sync = vi.spyOn(files, 'sync').mockImplementation(async function (this: FileHandle) {
      synced.push(readlinkSync(`/proc/self/fd/${this.fd}`));
    });
    cleanup.add(() => sync.mockRestore());

    await save(directory);

    expect(synced.slice(-1)).toEqual([directory]);
    expect(synced.filter((path) => path === parent)).toHaveLength(isThere ? 0 : 1);
  });

  it('whose name cannot be synced is not begun', async () => {
    const directory = join(cleanup.directory(), 'snapshot');
    const probe = await open(cleanup.directory());
    const files = Object.getPrototypeOf(probe) as FileHandle;
    await probe.close();
    const sync = vi.spyOn(files, 'sync').mockRejectedValue(new Error('EIO: i/o error, fsync'));
    cleanup.add(() => sync.mockRestore());

    await expect(SnapshotWriter.create(directory)).rejects.toThrow(
      "the snapshot's directory cannot be made for good: EIO: i/o error, fsync",
    );
    expect(existsSync(directory)).toBe(false);
  });

  it('fills RAM as it was', async () => {
    const directory = cleanup.directory();
    const [before, after] = [filled(), new FakeRam()];
    await save(directory, before);
    let bytes = 0;

    await readMemory(directory, after, (piece) => {
      bytes += piece;
    });

    expect(after.equals(before)).toBe(true);
    expect(bytes).toBeLessThanOrEqual(4 * PAGE);
  });

  it('is not written where there is one', async () => {
    const directory = cleanup.directory();
    await save(directory);

    await expect(SnapshotWriter.create(directory)).rejects.toMatchObject({
      code: 'VM_CONFIG',
      message: `${directory} has a snapshot already (state.json)`,
    });
  });

  it('is not written where no directory can be', async () => {
    const directory = cleanup.directory();
    writeFileSync(join(directory, 'file'), '');

    for (const path of [join(directory, 'absent', 'snapshot'), join(directory, 'file', 'snapshot')]) {
      await expect(SnapshotWriter.create(path)).rejects.toMatchObject({
        code: 'VM_CONFIG',
        message: expect.stringMatching(/^the snapshot's directory cannot be made: E(NOENT|NOTDIR)/),
      });
    }
  });

  it('that is given up leaves nothing but the directory, and what was there before', async () => {
    const directory = cleanup.directory();
    for (const name of ['config.json', 'mine']) writeFileSync(join(directory, name), 'x');
    const writer = await SnapshotWriter.create(directory);
    let pieces = 0;
    const written = writer.writeMemory(filled(), () => {
      pieces += 1;
      throw new Error('enough');
    });

    await expect(written).rejects.toThrow('enough');
    await writer.discard();

    expect(pieces).toBeGreaterThan(0);
    expect(readdirSync(directory).sort()).toEqual(['config.json', 'mine']);
  });

  it('takes the place of one that was never finished', async () => {
    const directory = cleanup.directory();
    writeFileSync(join(directory, 'state.json.partial'), 'half');
    writeFileSync(join(directory, 'memory-ranges'), 'half');

    await save(directory);

    expect(await readTexts(directory)).toEqual(texts);
    expect(existsSync(join(directory, 'state.json.partial'))).toBe(false);
  });

  it('whose file system is full says so', async () => {
    const directory = cleanup.directory();
    const writer = await SnapshotWriter.create(directory);
    // Nothing can be written to it, and the kernel says it as of a full disk.
    const { symlinkSync } = await import('node:fs');
    symlinkSync('/dev/full', join(directory, 'config.json.partial'));

    await expect(writer.writeTexts(texts)).rejects.toMatchObject({
      code: 'VM',
      message: `snapshot: ${directory}/config.json is not written: ENOSPC: no space left on device, write`,
    });
  });
});

describe('a directory', () => {
  it('without a snapshot is refused', async () => {
    const directory = cleanup.directory();
    mkdirSync(join(directory, 'empty'));

    await expect(readTexts(join(directory, 'empty'))).rejects.toMatchObject({
      code: 'VM_CONFIG',
      message: `${join(directory, 'empty')} has no whole snapshot: there is no state.json`,
    });
  });

  it('with a memory file of another size is refused', async () => {
    const directory = cleanup.directory();
    await save(directory);
    truncateSync(join(directory, 'memory-ranges'), PAGE);

    await expect(readMemory(directory, new FakeRam(), nothing)).rejects.toMatchObject({
      code: 'VM',
      message: `${directory}/memory-ranges has 4096 bytes, and the guest's RAM has 3145728`,
    });
  });

  it('with a state that is too large is refused before it is read', async () => {
    const directory = cleanup.directory();
    await save(directory);
    truncateSync(join(directory, 'state.json'), 65 << 20);

    await expect(readTexts(directory)).rejects.toMatchObject({
      code: 'VM',
      message: `${directory}/state.json has 68157440 bytes, at most 67108864 are possible`,
    });
  });
});
