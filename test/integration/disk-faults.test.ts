/**
 * The host's disk fails: full, limited, truncated, broken. The guest gets IOERR, the log a line with the reason, and the
 * daemon goes on: when the disk is well again, so are requests.
 */

import { execFileSync } from 'node:child_process';
import { readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { doRequest, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { connectGood } from '../support/frontend/good-client.ts';
import { BLK_MAIN, Program } from '../support/frontend/program.ts';
import { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { config, FEATURE, hasBit, REQUEST } from '../support/frontend/wire.ts';
import { createImage, randomImage } from '../support/image.ts';

const MiB = 1 << 20;
const cleanup = cleanupAfterEach();
let directory: string;

beforeEach(() => {
  directory = cleanup.directory();
});

/** Whether this machine lets us do what needs privileges; says why not. */
const canDo = (what: string, tryIt: () => void): boolean => {
  try {
    tryIt();
    return true;
  } catch (error) {
    process.stderr.write(
      `skipped: ${what}: ${error instanceof Error ? error.message.split('\n')[0] : String(error)}\n`,
    );
    return false;
  }
};

const run = (command: string, ...args: string[]): string =>
  execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }).trim();

/** Lazily: the kernel lets go of the files of an io_uring only some time after its process ended. */
const unmountAtTheEnd = (path: string): void => cleanup.add(() => run('umount', '--lazy', path));

const canMount = canDo('a full disk', () => {
  run('unshare', '--mount', 'mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', '/mnt');
});
const canLoop = canDo('a disk with errors', () => {
  run('losetup', '--find');
});

const connect = async (socket: string, features: number[] = [FEATURE.FLUSH]): Promise<RawFrontend> => {
  const frontend = await RawFrontend.start(socket, { features });
  cleanup.add(() => frontend.close());
  return frontend;
};

const write = (frontend: RawFrontend, atBytes: number) =>
  doRequest(frontend, { type: TYPE.OUT, sector: atBytes / 512, out: new Uint8Array(65536).fill(0x5a) });

const read = (frontend: RawFrontend, atBytes: number) =>
  doRequest(frontend, { type: TYPE.IN, sector: atBytes / 512, inBytes: 65536 });

const ENGINES: [string, string[]][] = [
  ['io_uring', ['--engine=io_uring']],
  ['threads', ['--engine=threads']],
];

describe.skipIf(!canMount).each(ENGINES)('a full file system (%s)', (_, extra) => {
  it('fails writes until there is room again', async () => {
    run('mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', directory);
    unmountAtTheEnd(directory);
    const image = createImage(join(directory, 'disk.img'), 8 * MiB);
    writeFileSync(join(directory, 'ballast'), new Uint8Array(512 << 10));
    const backend = await BlkBackend.start(cleanup, { image, extra, socket: join(cleanup.directory(), 's') });
    const frontend = await connect(backend.socket);

    const statuses = [];
    for (let i = 0; i < 16; i += 1) statuses.push((await write(frontend, i * 65536)).status);

    expect(statuses.slice(0, 4)).toEqual([STATUS.OK, STATUS.OK, STATUS.OK, STATUS.OK]);
    expect(statuses.at(-1)).toBe(STATUS.IOERR);
    expect((await read(frontend, 0)).status).toBe(STATUS.OK);
    await backend.waitForLog(/write of \d+ bytes at \d+ of .*disk\.img: no space left on device/);

    rmSync(join(directory, 'ballast'));
    expect((await write(frontend, 15 * 65536)).status).toBe(STATUS.OK);
    frontend.close();
    await backend.sigterm();
  });
});

describe.skipIf(!canMount)('a file on a read-only file system', () => {
  it('makes the device read-only, and the log says so', async () => {
    run('mount', '-t', 'tmpfs', 'tmpfs', directory);
    unmountAtTheEnd(directory);
    const image = randomImage(join(directory, 'disk.img'), MiB);
    run('mount', '-o', 'remount,ro', directory);
    const backend = await BlkBackend.start(cleanup, { image, socket: join(cleanup.directory(), 's') });

    const frontend = await connect(backend.socket, [FEATURE.RO]);

    expect(hasBit(frontend.offered, FEATURE.RO)).toBe(true);
    expect((await read(frontend, 0)).status).toBe(STATUS.OK);
    expect((await write(frontend, 0)).status).toBe(STATUS.IOERR);
    await backend.waitForLog(/cannot be written \(EROFS\): the device is read-only/);
    frontend.close();
    await backend.sigterm();
  });
});

describe.each(ENGINES)('a limit on the size of files (%s)', (_, extra) => {
  it('fails writes beyond it, and its signal does not end the daemon', async () => {
    const image = createImage(join(directory, 'disk.img'), 4 * MiB);
    const socket = join(directory, 's');
    const args = [BLK_MAIN, `--socket-path=${socket}`, `--blk-file=${image}`, '--log-format=json', ...extra];
    const program = new Program(cleanup, [`--fsize=${MiB}:${MiB}`, process.execPath, ...args], [], 'prlimit');
    await program.waitForLog(/listening on/);
    const frontend = await connect(socket);

    expect((await write(frontend, 0)).status).toBe(STATUS.OK);
    expect((await write(frontend, 2 * MiB)).status).toBe(STATUS.IOERR);
    expect((await read(frontend, 2 * MiB)).status).toBe(STATUS.OK);
    expect((await write(frontend, 65536)).status).toBe(STATUS.OK);

    frontend.close();
    await connectGood(socket);
    expect(program.ended).toBe(false);
  });
});

describe.each(ENGINES)('a file truncated underneath the daemon (%s)', (_, extra) => {
  it('fails reads of what is gone, serves what is left, and takes writes', async () => {
    const image = randomImage(join(directory, 'disk.img'), 4 * MiB);
    const backend = await BlkBackend.start(cleanup, { image, extra });
    const frontend = await connect(backend.socket);
    truncateSync(image, 2 * MiB + 1000);

    expect((await read(frontend, 3 * MiB)).status).toBe(STATUS.IOERR);
    expect((await read(frontend, 2 * MiB)).status).toBe(STATUS.IOERR);
    expect((await read(frontend, 0)).status).toBe(STATUS.OK);
    await backend.waitForLog(/the file ended early/);

    expect((await write(frontend, 3 * MiB)).status).toBe(STATUS.OK);
    expect((await read(frontend, 3 * MiB)).data.every((byte) => byte === 0x5a)).toBe(true);
    frontend.close();
    await connectGood(backend.socket);
  });

  it('logs a storm of errors as a few lines', async () => {
    const image = createImage(join(directory, 'disk.img'), 4 * MiB);
    const backend = await BlkBackend.start(cleanup, { image, extra });
    const frontend = await connect(backend.socket);
    truncateSync(image, 0);

    for (let i = 0; i < 200; i += 1) expect((await read(frontend, 0)).status).toBe(STATUS.IOERR);

    expect(backend.log().split('ended early').length - 1).toBeLessThan(10);
  });
});

describe.skipIf(!canLoop).each(ENGINES)('a block device that reports errors (%s)', (_, extra) => {
  it('fails the requests that meet them, and serves the others', async () => {
    const backing = randomImage(join(directory, 'backing.img'), 4 * MiB);
    const device = run('losetup', '--find', '--show', backing);
    cleanup.add(() => run('losetup', '--detach', device));
    const backend = await BlkBackend.start(cleanup, { image: device, extra: [...extra, '--direct'] });
    const frontend = await connect(backend.socket);
    expect((await read(frontend, 3 * MiB)).status).toBe(STATUS.OK);

    // The loop driver answers EIO for what its file does not have any more.
    truncateSync(backing, 2 * MiB);

    expect((await read(frontend, 3 * MiB)).status).toBe(STATUS.IOERR);
    await backend.waitForLog(/read of 65536 bytes at 3145728 of \/dev\/loop\d+: i\/o error/);
    expect((await read(frontend, 0)).status).toBe(STATUS.OK);
    expect((await doRequest(frontend, { type: TYPE.FLUSH })).status).toBe(STATUS.OK);
    frontend.close();
    await connectGood(backend.socket);
    await backend.sigterm();
  });
});

describe.skipIf(!canLoop)('a block device with sectors of 4096 bytes', () => {
  it.each([
    ['through the page cache', []],
    ['with O_DIRECT', ['--direct']],
  ])('says so, and serves requests of 512 bytes all the same, %s', async (_, extra) => {
    const backing = randomImage(join(directory, 'backing.img'), MiB);
    const device = run('losetup', '--find', '--show', '--sector-size', '4096', backing);
    cleanup.add(() => run('losetup', '--detach', device));
    const backend = await BlkBackend.start(cleanup, { image: device, extra });
    const frontend = await connect(backend.socket, [FEATURE.FLUSH, FEATURE.BLK_SIZE]);
    const { payload } = await frontend.connection.call(REQUEST.GET_CONFIG, config(20, new Uint8Array(4)));
    const expected = readFileSync(backing);
    const out = new Uint8Array(512).fill(0x77);

    const written = await doRequest(frontend, { type: TYPE.OUT, sector: 11, out });
    const read = await doRequest(frontend, { type: TYPE.IN, sector: 9, inBytes: 2048 });
    await doRequest(frontend, { type: TYPE.FLUSH });

    expect(Buffer.from(payload).readUInt32LE(12)).toBe(4096);
    expect([written.status, read.status]).toEqual([STATUS.OK, STATUS.OK]);
    expected.set(out, 11 * 512);
    expect(Buffer.compare(read.data, expected.subarray(9 * 512, 13 * 512))).toBe(0);
    frontend.close();
    await backend.sigterm();
  });
});
