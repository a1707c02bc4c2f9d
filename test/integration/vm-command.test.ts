/** `ringside vm` as a command: what it says about what cannot be, how it ends, and that nothing is left. */

import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { UnixListener } from '../../protocol/sys/unix-socket.ts';
import { Child, type ChildExit } from '../support/child.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { createImage } from '../support/image.ts';
import { describeWithPeers, projectDirectory } from '../support/peers.ts';
import { buildGuest, guestCommandLine } from '../support/vm/guest-program.ts';
import { childrenOf, isRunning, vmGuestPeers } from '../support/vm/vmm-process.ts';

const MAIN = join(projectDirectory, 'dist/vmm-client/cli/main.js');
const DEADLINE_MS = 20_000;
const cleanup = cleanupAfterEach();
let directory: string;
let runtime: string;
let api: string;

beforeEach(() => {
  directory = cleanup.directory();
  runtime = cleanup.directory();
  api = join(directory, 'api');
});

/** Runs the command with a runtime directory of its own, in which nothing is to be left. */
const start = (...args: string[]): Child => {
  const child = new Child(process.execPath, [MAIN, 'vm', ...args], { ...process.env, XDG_RUNTIME_DIR: runtime });
  cleanup.add(() => child.stop());
  return child;
};

/** Ends the command by a signal, and looks for what is left. */
const endBy = async (child: Child, signal: NodeJS.Signals): Promise<ChildExit> => {
  const children = childrenOf(child.pid);
  child.kill(signal);
  const exit = await child.waitForClose(DEADLINE_MS);
  await eventually(
    'children that run',
    () => children.filter(isRunning),
    (running) => running.length === 0,
  );
  expect([existsSync(api), readdirSync(runtime)]).toEqual([false, []]);
  return exit;
};

describe('ringside vm serve', () => {
  it.each<[NodeJS.Signals, number]>([
    ['SIGTERM', 143],
    ['SIGINT', 130],
  ])('serves until %s, which is its status', async (signal, code) => {
    const child = start('serve', '--api-socket', `path=${api}`);
    await child.waitFor(/"msg":"API on /, DEADLINE_MS);

    expect(await endBy(child, signal)).toEqual({ code, signal: null });
  });

  it('refuses a socket that another one serves, which goes on', async () => {
    const first = start('serve', '--api-socket', api);
    await first.waitFor(/"msg":"API on /, DEADLINE_MS);

    const second = start('serve', '--api-socket', api);

    expect((await second.waitForClose(DEADLINE_MS)).code).toBe(1);
    expect(second.output()).toMatch(/^ringside: [^\n]*EADDRINUSE[^\n]*\n$/);
    expect(existsSync(api)).toBe(true);
  });

  it('writes its log to a file, and to no other place', async () => {
    const log = join(directory, 'log');
    const child = start('serve', '--api-socket', api, '--log-file', log);
    await eventually(
      'the log',
      () => (existsSync(log) ? readFileSync(log, 'utf8') : ''),
      (text) => text.endsWith('\n'),
      DEADLINE_MS,
    );

    expect((await endBy(child, 'SIGTERM')).code).toBe(143);
    expect(JSON.parse(readFileSync(log, 'utf8').split('\n')[0] ?? '')).toMatchObject({
      msg: `API on ${api}`,
      level: 30,
    });
    expect(child.output()).toBe('');
  });
});

describeWithPeers(vmGuestPeers, 'ringside vm run', () => {
  const machine = (end: string, ...more: string[]): string[] => [
    ...['run', '--kernel', buildGuest('pvh'), '--memory', '64M'],
    ...['--cmdline', guestCommandLine({ job: 'info', end }), ...more],
  ];

  const refused = async (child: Child): Promise<[number | null, string]> => {
    const { code } = await child.waitForClose(DEADLINE_MS);
    expect(child.output()).toMatch(/^ringside: [^\n]+\n$/);
    expect([existsSync(api), readdirSync(runtime)]).toEqual([false, []]);
    return [code, child.output()];
  };

  it.each<[string, string[], number, RegExp]>([
    ['a kernel that is not there', ['--kernel', '/nonexistent/kernel'], 2, /\/nonexistent\/kernel/],
    ['a kernel that is none', ['--kernel', '/etc/passwd'], 2, /neither an ELF file nor a bzImage/],
    ['a socket where nobody is', ['--kernel', 'GUEST', '--disk', 'socket=/nonexistent/s'], 1, /\/nonexistent\/s/],
    [
      'a disk that is not there',
      ['--kernel', 'GUEST', '--disk', 'path=/nonexistent/d'],
      1,
      /did not start: .*\/nonexistent\/d/,
    ],
    ['more memory than addresses reach', ['--kernel', 'GUEST', '--memory', '60T'], 2, /60T|65970697666560/],
    [
      'two disks of one name',
      ['--kernel', 'k', '--disk', 'path=a,id=x', 'path=b,id=x'],
      2,
      /"x" is the id of disks\[0\]/,
    ],
    ['a log that cannot be written', ['--kernel', 'k', '--log-file', '/nonexistent/log'], 1, /\/nonexistent\/log/],
  ])('says in one sentence that it cannot have %s', async (_, args, status, sentence) => {
    const own = args.map((arg) => (arg === 'GUEST' ? buildGuest('pvh') : arg));
    const [code, said] = await refused(start('run', ...own, '--api-socket', api));
    expect(said).toMatch(sentence);
    expect(code).toBe(status);
  });

  it('ends with its guest, and leaves nothing', async () => {
    const disk = createImage(join(directory, 'disk'), 1 << 20);
    const child = start(...machine('poweroff', '--disk', `path=${disk}`, '--api-socket', api));

    expect(await child.waitForClose(DEADLINE_MS)).toEqual({ code: 0, signal: null });
    expect([existsSync(api), readdirSync(runtime)]).toEqual([false, []]);
  });

  it("reads no input that is not the guest's", async () => {
    const child = start(...machine('poweroff', '--serial', 'null'));

    expect(await child.waitForClose(DEADLINE_MS)).toEqual({ code: 0, signal: null });
    expect(child.output()).toBe('');
  });

  it('writes the serial port to a file', async () => {
    const file = join(directory, 'serial');
    const child = start(...machine('poweroff', '--serial', `file=${file}`));

    expect(await child.waitForClose(DEADLINE_MS)).toEqual({ code: 0, signal: null });
    expect(readFileSync(file, 'utf8')).toMatch(/^boot=pvh\r?\n[\s\S]*end=poweroff\r?\n$/);
  });

  it.each<[NodeJS.Signals, number]>([
    ['SIGTERM', 143],
    ['SIGINT', 130],
  ])('ends by %s while its guest spins', async (signal, code) => {
    const disk = createImage(join(directory, 'disk'), 1 << 20);
    const child = start(...machine('spin', '--disk', `path=${disk}`, '--api-socket', api));
    await child.waitFor(/end=spin/, DEADLINE_MS);
    await eventually(
      'the API socket',
      () => existsSync(api),
      (there) => there,
      DEADLINE_MS,
    );

    expect(await endBy(child, signal)).toEqual({ code, signal: null });
  });

  it('ends by a signal while a back end says nothing, at once at the second one', async () => {
    const socket = join(directory, 'silent');
    const listener = UnixListener.listen(socket);
    cleanup.add(() => listener.close());
    const child = start(...machine('poweroff', '--disk', `socket=${socket}`));
    await eventually(
      'the connection',
      () => listener.accept(),
      (stream) => stream !== undefined,
      DEADLINE_MS,
    );

    child.kill('SIGTERM');
    child.kill('SIGINT');

    expect((await child.waitForClose(5_000)).code).toBeGreaterThanOrEqual(130);
  });

  it('is not ended by the end of its input', async () => {
    writeFileSync(join(directory, 'empty'), '');
    const child = start(...machine('spin'));
    child.stdin.end();
    await child.waitFor(/end=spin/, DEADLINE_MS);

    expect(child.running).toBe(true);
    expect((await endBy(child, 'SIGTERM')).code).toBe(143);
  });
});
