/** The program around the device: its command line, its socket, its signals. Source: vhost-user, Backend program conventions. */

import { execFileSync } from 'node:child_process';
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { UnixListener, UnixStream } from '../../protocol/sys/unix-socket.ts';
import { Child } from '../support/child.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { prepareRequest, STATUS, TYPE } from '../support/frontend/blk-request.ts';
import { createMemfd, setBlocking } from '../support/frontend/descriptors.ts';
import { connectGood } from '../support/frontend/good-client.ts';
import { eventually, fdCount } from '../support/frontend/process-probe.ts';
import { BLK_MAIN, Program } from '../support/frontend/program.ts';
import { RawConnection } from '../support/frontend/raw-connection.ts';
import { RawFrontend } from '../support/frontend/raw-frontend.ts';
import { REQUEST } from '../support/frontend/wire.ts';
import { randomImage } from '../support/image.ts';

const cleanup = cleanupAfterEach();
let directory: string;
let socket: string;
let image: string;

beforeEach(() => {
  directory = cleanup.directory();
  socket = join(directory, 'blk.sock');
  image = randomImage(join(directory, 'disk.img'), 1 << 20);
});

const start = (args: string[], fds: OwnedFd[] = []): Program => new Program(cleanup, args, fds);

const serve = async (...more: string[]): Promise<Program> => {
  const program = start([`--socket-path=${socket}`, `--blk-file=${image}`, '--log-format=json', ...more]);
  await program.waitForLog(/listening on/);
  return program;
};

/** What a failing command line says: one line, no stack. */
const expectRefused = async (program: Program, status: number, sentence: RegExp): Promise<void> => {
  expect((await program.waitForExit()).code).toBe(status);
  expect(program.stderr).toMatch(/^vhost-user-blk: [^\n]+\n$/);
  expect(program.stderr).toMatch(sentence);
  expect(program.stdout).toBe('');
};

describe('the command line', () => {
  it('--print-capabilities prints them as JSON, whatever else is there', async () => {
    const program = start(['--print-capabilities', '--nonsense', '--fd=abc']);

    expect((await program.waitForExit()).code).toBe(0);
    expect(JSON.parse(program.stdout)).toEqual({ type: 'block', features: ['read-only', 'blk-file'] });
    expect(program.stderr).toBe('');
  });

  it('--version prints a version and --help the options, on stdout', async () => {
    const version = start(['--version']);
    const help = start(['--help']);

    expect((await version.waitForExit()).code).toBe(0);
    expect(version.stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
    expect((await help.waitForExit()).code).toBe(0);
    expect(help.stdout).toContain('--blk-file');
  });

  it.each<[string, string[], RegExp]>([
    ['nothing', [], /--blk-file/],
    ['no socket', ['--blk-file=x'], /--socket-path/],
    ['an unknown option', ['--socket-path=s', '--blk-file=x', '--colour'], /--colour/],
    ['a queue count that is no number', ['--socket-path=s', '--blk-file=x', '--num-queues=many'], /num-queues/],
    ['no queue', ['--socket-path=s', '--blk-file=x', '--num-queues=0'], /num-queues/],
    ['a block size of 1000', ['--socket-path=s', '--blk-file=x', '--blk-size=1000'], /blk-size/],
    ['a serial number of 21 bytes', ['--socket-path=s', '--blk-file=x', `--serial=${'x'.repeat(21)}`], /serial/],
    ['an unknown engine', ['--socket-path=s', '--blk-file=x', '--engine=steam'], /engine/],
    ['both --fd and --socket-path', ['--socket-path=s', '--fd=3', '--blk-file=x'], /cannot be used with/],
    ['--iopoll without --direct', ['--socket-path=s', '--blk-file=x', '--iopoll'], /--direct/],
  ])('with %s ends with status 2 and one sentence', async (_, args, sentence) => {
    await expectRefused(start(args), 2, sentence);
  });

  it.each<[string, () => string, RegExp, number]>([
    ['that is not there', () => join(directory, 'absent'), /absent.*ENOENT/, 1],
    ['that is a directory', () => directory, /neither a file nor a block device/, 2],
    ['that is a character device', () => '/dev/zero', /neither a file nor a block device/, 2],
    [
      'that is a pipe, which it would wait for,',
      () => {
        execFileSync('mkfifo', [join(directory, 'pipe')]);
        return join(directory, 'pipe');
      },
      /neither a file nor a block device/,
      2,
    ],
    [
      'that is smaller than a sector',
      () => {
        writeFileSync(join(directory, 'tiny'), 'x'.repeat(511));
        return join(directory, 'tiny');
      },
      /511 bytes/,
      2,
    ],
  ])('with a file %s ends with one sentence', async (_, path, sentence, status) => {
    await expectRefused(
      start([`--socket-path=${socket}`, `--blk-file=${path()}`, '--read-only', '--log-level=silent']),
      status,
      sentence,
    );

    expect(existsSync(socket)).toBe(false);
  });

  it('with a socket path that is too long ends with one sentence', async () => {
    const program = start([`--socket-path=/tmp/${'x'.repeat(120)}`, `--blk-file=${image}`, '--log-level=silent']);

    expect((await program.waitForExit()).code).not.toBe(0);
    expect(program.stderr).toMatch(/^vhost-user-blk: [^\n]+\n$/);
  });
});

describe('the socket', () => {
  it('of a daemon that was killed is replaced', async () => {
    const first = await serve();
    first.kill('SIGKILL');
    await first.waitForExit();
    expect(existsSync(socket)).toBe(true);

    await serve();

    await connectGood(socket);
  });

  it('of a daemon that lives is refused to a second one, and the first goes on', async () => {
    await serve();
    const other = randomImage(join(directory, 'other.img'), 1 << 20);

    const second = start([`--socket-path=${socket}`, `--blk-file=${other}`, '--log-level=silent']);

    await expectRefused(second, 1, /EADDRINUSE/);
    await connectGood(socket);
  });

  it('is not made where a file is that is no socket', async () => {
    writeFileSync(socket, 'precious');

    await expectRefused(
      start([`--socket-path=${socket}`, `--blk-file=${image}`, '--log-level=silent']),
      1,
      /EADDRINUSE/,
    );

    expect(existsSync(socket)).toBe(true);
  });
});

describe('a file', () => {
  const second = (...more: string[]): Program =>
    start([`--socket-path=${join(directory, 'second.sock')}`, `--blk-file=${image}`, '--log-level=silent', ...more]);

  it('that one daemon writes is refused to a second one', async () => {
    await serve();

    await Promise.all([second(), second('--read-only')].map((program) => expectRefused(program, 2, /in use/)));
    await connectGood(socket);
  });

  it('that is served read-only is served so by a second one too, but not for writing', async () => {
    await serve('--read-only');

    const reader = start([
      `--socket-path=${join(directory, 'reader.sock')}`,
      `--blk-file=${image}`,
      '--log-format=json',
      '--read-only',
    ]);

    await reader.waitForLog(/listening on/);
    await connectGood(join(directory, 'reader.sock'));
    await expectRefused(second(), 2, /in use/);
  });
});

describe('an inherited socket', () => {
  it.each([
    ['', false],
    [' that blocks, as systemd hands it over,', true],
  ])('that listens%s is served, connection after connection', async (_, blocking) => {
    const listener = UnixListener.listen(socket);
    cleanup.add(() => listener.close());
    const fd = new OwnedFd(listener.fd);
    if (blocking) setBlocking(fd);
    const program = start(['--fd=3', `--blk-file=${image}`, '--log-format=json'], [fd]);
    await program.waitForLog(/listening on fd 3/);

    await connectGood(socket);
    await connectGood(socket);

    program.kill('SIGTERM');
    expect((await program.waitForExit()).code).toBe(0);
    expect(existsSync(socket)).toBe(true);
  });

  it('that is connected is served until its end, which ends the program', async () => {
    const [ours, theirs] = UnixStream.pair();
    const fd = theirs.detach();
    const program = start(['--fd=3', `--blk-file=${image}`, '--log-format=json'], [fd]);
    fd.close();
    const connection = new RawConnection(ours);
    expect(await connection.ask(REQUEST.GET_FEATURES)).toBeGreaterThan(0n);

    connection.close();

    expect((await program.waitForExit()).code).toBe(0);
  });

  it.each<[string, () => OwnedFd[]]>([
    ['is not open', () => []],
    ['is a file', () => [createMemfd(4096)]],
  ])('that %s is refused', async (_, open) => {
    const fds = open();
    const program = start(['--fd=3', `--blk-file=${image}`, '--log-level=silent'], fds);
    for (const fd of fds) fd.close();

    await expectRefused(program, 2, /--fd=3/);
  });
});

describe('--client', () => {
  it('dials the front end, waits for it, and dials again when it went away', async () => {
    const program = start([`--socket-path=${socket}`, '--client', `--blk-file=${image}`, '--log-format=json']);
    await program.waitForLog(/waiting for a front end/);
    const listener = UnixListener.listen(socket);
    cleanup.add(() => listener.close());

    for (let i = 0; i < 2; i += 1) {
      const stream = await eventually(
        'connection',
        () => listener.accept(),
        (accepted) => accepted !== undefined,
        5_000,
      );
      const frontend = new RawFrontend(new RawConnection(stream as UnixStream));
      await frontend.negotiate();
      await frontend.shareMemory();
      await frontend.startRing(frontend.ring());
      frontend.close();
    }

    program.kill('SIGTERM');
    expect((await program.waitForExit()).code).toBe(0);
  });
});

describe('a signal to stop', () => {
  it.each(['SIGTERM', 'SIGINT'] as const)(
    '%s ends the program with status 0, quickly, and removes the socket',
    async (signal) => {
      const program = await serve();
      const idle = RawConnection.connect(socket);
      cleanup.add(() => idle.close());
      await idle.ask(REQUEST.GET_FEATURES);
      const started = performance.now();

      program.kill(signal);

      expect(await program.waitForExit()).toEqual({ code: 0, signal: null });
      // Well below the 10 s that requests in flight would be waited for.
      expect(performance.now() - started).toBeLessThan(5000);
      expect(existsSync(socket)).toBe(false);
      await idle.waitForEnd();
    },
  );

  it('lets it finish what is in flight: every request that was taken is answered', async () => {
    const program = await serve();
    const frontend = await RawFrontend.start(socket, { ramBytes: 8 << 20 });
    cleanup.add(() => frontend.close());
    const areas = Array.from({ length: 40 }, (_, i) =>
      prepareRequest(frontend, { type: TYPE.IN, sector: (i % 8) * 128, inBytes: 65536 }, 3 * i, i),
    );
    frontend.ring().publish(...areas.map((_, i) => 3 * i));
    frontend.ring().signal();

    program.kill('SIGTERM');

    expect((await program.waitForExit()).code).toBe(0);
    expect(areas.filter((area) => area.statusByte === STATUS.OK)).toHaveLength(frontend.ring().usedIndex);
  });

  it('during a stalled half message ends the program all the same', async () => {
    const program = await serve();
    const stalled = RawConnection.connect(socket);
    cleanup.add(() => stalled.close());
    await stalled.sendBytes(new Uint8Array(7));
    await connectGood(socket);

    program.kill('SIGTERM');

    expect((await program.waitForExit()).code).toBe(0);
  });
});

describe('--supervised', () => {
  const supervise = async (): Promise<Child> => {
    const args = [BLK_MAIN, `--socket-path=${socket}`, `--blk-file=${image}`, '--log-level=silent', '--supervised'];
    const child = new Child(process.execPath, args);
    cleanup.add(() => child.stop());
    await child.waitFor(/^ready\n/, 10_000);
    return child;
  };

  it('says ready when it serves, and nothing else', async () => {
    const child = await supervise();

    await connectGood(socket);
    expect(child.output()).toBe('ready\n');
  });

  it('stops in order when its input ends, and not before', async () => {
    const child = await supervise();
    child.stdin.write('words are no end\n');
    const frontend = await RawFrontend.start(socket);
    cleanup.add(() => frontend.close());
    expect(child.running).toBe(true);

    child.stdin.end();

    expect(await child.waitForExit(10_000)).toEqual({ code: 0, signal: null });
    expect(existsSync(socket)).toBe(false);
  });
});

describe('few descriptors', () => {
  it('limit what front ends can bring, and nothing else', async () => {
    const args = [BLK_MAIN, `--socket-path=${socket}`, `--blk-file=${image}`, '--log-format=json'];
    const program = new Program(cleanup, ['--nofile=64:64', process.execPath, ...args], [], 'prlimit');
    await program.waitForLog(/listening on/);
    const before = fdCount(program.pid);

    // Four front ends with 16 call and err descriptors each: more than 64 together.
    const greedy = Array.from({ length: 4 }, () => RawFrontend.connect(socket, { queues: 8, queueSize: 16 }));
    for (const frontend of greedy) cleanup.add(() => frontend.close());
    const outcomes = await Promise.allSettled(
      greedy.map(async (frontend) => {
        await frontend.negotiate();
        for (const ring of frontend.rings) await frontend.configureRing(ring);
      }),
    );

    expect(outcomes.map(({ status }) => status)).toContain('rejected');
    expect(program.ended).toBe(false);
    for (const frontend of greedy) frontend.close();
    await eventually(
      'descriptors of the daemon',
      () => fdCount(program.pid),
      (count) => count === before,
    );
    await connectGood(socket);
  });
});
