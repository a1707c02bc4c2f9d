/** Daemons that the VMM starts: how they are reached, what happens when they die, and that they are gone with it. */

import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { diskDaemon } from '../../vmm-client/vmm/daemon-commands.ts';
import { DaemonProcess } from '../../vmm-client/vmm/daemon-process.ts';
import { DaemonSupervisor, type SupervisedDaemon } from '../../vmm-client/vmm/supervisor.ts';
import { Child } from '../support/child.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { connectGood } from '../support/frontend/good-client.ts';
import { eventually, fdCount } from '../support/frontend/process-probe.ts';
import { RawConnection } from '../support/frontend/raw-connection.ts';
import { REQUEST } from '../support/frontend/wire.ts';
import { randomImage } from '../support/image.ts';
import { projectDirectory } from '../support/peers.ts';
import { isRunning } from '../support/vm/vmm-process.ts';

const DIST = join(projectDirectory, 'dist');
const cleanup = cleanupAfterEach();
let directory: string;
let image: string;
let lines: string[];
let supervisor: DaemonSupervisor;

const note = (...words: unknown[]): void => void lines.push(String(words.at(-1)));
const log = { info: note, warn: note, error: note };

const supervise = (root = DIST): DaemonSupervisor => {
  const made = new DaemonSupervisor({ root, directory, log });
  cleanup.add(() => made.stop());
  return made;
};

beforeEach(() => {
  lines = [];
  directory = cleanup.directory();
  image = randomImage(join(cleanup.directory(), 'disk.img'), 1 << 20);
  supervisor = supervise();
});

const disk = (path = image) => diskDaemon({ id: '_disk0', path });

/** A zombie has ended; whoever started it has not looked yet. */
const isGone = (pid: number): boolean => !isRunning(pid);

const waitUntilGone = (pid: number): Promise<boolean> =>
  eventually(
    `end of process ${pid}`,
    () => isGone(pid),
    (gone) => gone,
    10_000,
  );

/** Kills the present process, and waits for the next one. Returns its process id. */
const killAndWait = async (daemon: SupervisedDaemon): Promise<number> => {
  const before = daemon.pid as number;
  process.kill(before, 'SIGKILL');
  const next = await eventually(
    'the next process',
    () => daemon.pid,
    (pid) => pid !== undefined && pid !== before,
    10_000,
  );
  return next as number;
};

describe('a daemon that the VMM starts', () => {
  it('serves its disk to a front end, and leaves nothing in the file system meanwhile', async () => {
    const daemon = await supervisor.start(disk());

    await connectGood(daemon.socket);
    expect(readdirSync(directory)).toEqual([]);
    expect(lines).toContainEqual(expect.stringMatching(/^_disk0: serving .*disk\.img/));
  });

  it('keeps a second one away from its disk, which says so and changes nothing', async () => {
    const daemon = await supervisor.start(disk());
    const second = await supervise()
      .start(diskDaemon({ id: 'b', path: image, readonly: true }))
      .catch((e: Error) => e);

    expect(second).toMatchObject({
      code: 'VM',
      message: expect.stringMatching(/^b: vhost-user-blk did not start: .*in use/),
    });
    await connectGood(daemon.socket);
  });

  it('ends with the supervisor, and every descriptor is closed', async () => {
    const before = fdCount(process.pid);
    const daemons = await Promise.all([
      supervisor.start(disk()),
      supervisor.start(diskDaemon({ id: 'b', path: randomImage(join(directory, 'b.img'), 1 << 20), direct: true })),
    ]);
    const pids = daemons.map(({ pid }) => pid as number);

    await supervisor.stop();

    expect(pids.map(isGone)).toEqual([true, true]);
    expect(readdirSync(directory)).toEqual(['b.img']);
    await eventually(
      'descriptors',
      () => fdCount(process.pid),
      (count) => count === before,
    );
  });

  it('is gone when the process that started it is killed', async () => {
    const script = `
      import { DaemonSupervisor } from '${DIST}/vmm-client/vmm/supervisor.js';
      const log = { info() {}, warn() {}, error() {} };
      const supervisor = new DaemonSupervisor({ root: '${DIST}', directory: '${directory}', log });
      const daemon = await supervisor.start({ name: 'd', program: 'vhost-user-blk', args: ['--blk-file=${image}'] });
      console.log('daemon', daemon.pid);`;
    const starter = new Child(process.execPath, ['--input-type=module', '-e', script]);
    cleanup.add(() => starter.stop());
    const pid = Number((await starter.waitFor(/daemon (\d+)\n/, 15_000))[1]);
    expect(isGone(pid)).toBe(false);

    starter.kill('SIGKILL');

    await waitUntilGone(pid);
    expect(readdirSync(directory)).toEqual([]);
  });
});

describe('a daemon that does not start', () => {
  it('is an error with the sentence that it ended with, and leaves nothing', async () => {
    const before = fdCount(process.pid);

    await expect(supervisor.start(disk(join(directory, 'absent.img')))).rejects.toMatchObject({
      code: 'VM',
      message: expect.stringMatching(/^_disk0: vhost-user-blk did not start: .*absent\.img.*ENOENT/),
    });

    expect(readdirSync(directory)).toEqual([]);
    await eventually(
      'descriptors',
      () => fdCount(process.pid),
      (count) => count === before,
    );
  });

  it('because its program is not there is an error that says so', async () => {
    await expect(supervise(directory).start(disk())).rejects.toMatchObject({
      message: expect.stringMatching(/did not start: .*Cannot find module/),
    });
  });

  it('because it was ended meanwhile is an error, too', async () => {
    const starting = supervisor.start(disk());
    const failed = expect(starting).rejects.toMatchObject({ message: expect.stringMatching(/ended/) });

    await supervisor.stop();

    await failed;
  });
});

describe('a daemon that dies', () => {
  it('is started again behind the same socket', async () => {
    const daemon = await supervisor.start(disk());

    await killAndWait(daemon);

    await connectGood(daemon.socket);
    expect(lines).toContain('_disk0: vhost-user-blk was ended by SIGKILL: starting it again');
  });

  it('lets a front end wait that connected between two of its lives', async () => {
    const daemon = await supervisor.start(disk());
    process.kill(daemon.pid as number, 'SIGSTOP');
    const early = RawConnection.connect(daemon.socket);
    cleanup.add(() => early.close());

    await killAndWait(daemon);

    expect(await early.ask(REQUEST.GET_FEATURES)).toBeGreaterThan(0n);
  });

  it('again and again is given up, and says so', async () => {
    const daemon = await supervisor.start(disk());
    // From now on every new process ends at once.
    writeFileSync(image, '');

    process.kill(daemon.pid as number, 'SIGKILL');

    await eventually(
      'the log',
      () => lines.join('\n'),
      (log) => /giving it up$/m.test(log),
      40_000,
    );
    expect(lines.filter((line) => /starting it again/.test(line))).toHaveLength(5);
    expect(lines.filter((line) => /did not start: .*disk\.img/.test(line))).toHaveLength(5);
    expect(daemon.pid).toBeUndefined();
    expect(() => RawConnection.connect(daemon.socket)).toThrow();
    // A front end dials on for a while: it is not to find whoever has the descriptor's number next.
    await supervisor.start(diskDaemon({ id: 'b', path: randomImage(join(directory, 'b.img'), 1 << 20) }));
    expect(() => RawConnection.connect(daemon.socket)).toThrow();
  });

  it('and is stopped in the pause before its next life is not started again', async () => {
    const daemon = await supervisor.start(disk());
    writeFileSync(image, '');
    process.kill(daemon.pid as number, 'SIGKILL');
    await eventually(
      'the second death',
      () => lines.filter((line) => /starting it again/.test(line)).length,
      (count) => count === 2,
      10_000,
    );

    await daemon.stop();

    expect(daemon.pid === undefined || isGone(daemon.pid)).toBe(true);
  });
});

describe('a process that does not serve', () => {
  it('is given up with the reason, and is gone', async () => {
    const hangs = new DaemonProcess(['-e', 'setInterval(() => {}, 1e6)'], 0, '_disk0', log);
    cleanup.add(() => hangs.stop(0));
    hangs.giveUp('it does not serve within 30000 ms');
    await expect(hangs.serving).rejects.toThrow('it does not serve within 30000 ms');
    expect(await waitUntilGone(hangs.pid as number)).toBe(true);
  });
});

describe('a process that writes without end', () => {
  /** Writes `megabytes` without a newline to a stream, then a line, says `ready` and stays. */
  const program = (stream: 'stdout' | 'stderr', megabytes: number): string => `
    const { writeSync } = require('node:fs');
    const fd = ${stream === 'stdout' ? 1 : 2};
    const all = (bytes) => {
      for (let at = 0; at < bytes.length; ) {
        try { at += writeSync(fd, bytes, at); } catch (error) { if (error.code !== 'EAGAIN') throw error; }
      }
    };
    for (let i = 0; i < ${megabytes}; i += 1) all(Buffer.alloc(1 << 20, 'x'));
    all(Buffer.from('\\nready\\n'));
    if (fd === 2) writeSync(1, 'ready\\n');
    setInterval(() => {}, 1e6);
  `;

  it.each(['stdout', 'stderr'] as const)('takes no memory by what it says on %s', async (stream) => {
    const before = process.memoryUsage.rss();
    const child = new DaemonProcess(['-e', program(stream, 256)], 0, '_disk0', log);
    cleanup.add(() => child.stop(0));
    await child.serving;
    // 256 MiB as text, were they kept.
    expect(process.memoryUsage.rss() - before).toBeLessThan(96 << 20);
  });
});
