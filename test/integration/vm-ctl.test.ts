/** `ringside ctl` against the API server, with a stand-in for the machine behind it. */

import { writeFileSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { join, resolve } from 'node:path';
import { PassThrough, Readable } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { ApiServer } from '../../vmm-client/api/server.ts';
import { createCtlCommand } from '../../vmm-client/cli/ctl-program.ts';
import { VmConflictError, VmError, VmStateError } from '../../vmm-client/vmm/errors.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { COUNTERS, FakeControl, INFO, PING, PROGRESS, QUEUES } from '../support/vm/fake-control.ts';

const cleanup = cleanupAfterEach();
const VM = JSON.stringify({ payload: { kernel: '/k' } });

async function serve(): Promise<{ path: string; control: FakeControl }> {
  const path = join(cleanup.directory(), 'api');
  const control = new FakeControl();
  const log = { info: () => undefined, error: () => undefined };
  const api = await ApiServer.listen({ path, control, log, version: '1.2.3' });
  cleanup.add(() => api.close());
  return { path, control };
}

interface Run {
  readonly out: string;
  readonly error?: Error;
}

/** Runs a command; what it says on standard error is collected in `said`. */
async function ctl(
  path: string,
  args: readonly string[],
  { input = '', said = [], isTTY = false, interrupted = new AbortController().signal }: CtlOptions = {},
): Promise<Run> {
  const stdout = new PassThrough().setEncoding('utf8');
  const stderr = Object.assign(new PassThrough(), { isTTY, columns: 120 });
  stderr.on('data', (chunk) => said.push(String(chunk)));
  const command = createCtlCommand({
    stdin: Readable.from([Buffer.from(input)]),
    stdout,
    stderr,
    interrupted,
  });
  for (const each of [command, ...command.commands]) each.exitOverride().configureOutput({ writeErr: () => undefined });
  const error: unknown = await command.parseAsync(['--api-socket', path, ...args], { from: 'user' }).then(
    () => undefined,
    (reason: unknown) => reason,
  );
  const out = String(stdout.read() ?? '');
  return error instanceof Error ? { out, error } : { out };
}

interface CtlOptions {
  readonly input?: string;
  readonly said?: string[];
  readonly isTTY?: boolean;
  readonly interrupted?: AbortSignal;
}

describe('ringside ctl', () => {
  it('prints the console as it comes, and types at it', async () => {
    const { path, control } = await serve();
    control.consoleText = [Buffer.from('gr\u00fc'), Buffer.from('\u00dfe\r\n')];
    expect(await ctl(path, ['console'])).toEqual({ out: 'gr\u00fc\u00dfe\r\n' });
    expect(await ctl(path, ['console-input', 'ls \\\\ \\q\\x03\\r'])).toEqual({ out: '' });
    expect(control.requests).toEqual([['consoleInput', { text: 'ls \\ \\q\x03\r' }]]);
  });

  it.each([
    ['ping', PING],
    ['info', INFO],
    ['counters', COUNTERS],
    ['progress', PROGRESS],
    ['queues', QUEUES],
  ])('%s prints JSON for people', async (name, expected) => {
    const { path } = await serve();
    const { out, error } = await ctl(path, [name]);
    expect(error).toBeUndefined();
    expect(out).toBe(`${JSON.stringify(expected, undefined, 2)}\n`);
  });

  it.each([
    ['boot', 'boot'],
    ['pause', 'pause'],
    ['resume', 'resume'],
    ['power-button', 'pressPowerButton'],
    ['shutdown', 'shutdown'],
    ['reboot', 'reboot'],
    ['delete', 'delete'],
    ['shutdown-vmm', 'shutdownVmm'],
    ['cancel-migration', 'cancelMigration'],
  ])('%s says nothing when it is done', async (name, operation) => {
    const { path, control } = await serve();
    expect(await ctl(path, [name])).toEqual({ out: '' });
    expect(control.calls).toEqual([operation]);
  });

  it('create reads standard input, or a file', async () => {
    const { path, control } = await serve();
    const file = join(cleanup.directory(), 'vm.json');
    writeFileSync(file, '{"payload":{"kernel":"/from-file"}}');

    expect(await ctl(path, ['create'], { input: VM })).toEqual({ out: '' });
    expect(await ctl(path, ['create', file])).toEqual({ out: '' });

    expect(control.configs.map(({ payload }) => payload.kernel)).toEqual(['/k', '/from-file']);
  });

  it('fails with what the VMM said', async () => {
    const { path, control } = await serve();
    control.fail.set('boot', () => Promise.reject(new VmError('no memory', { cause: new Error('ENOMEM') })));

    expect((await ctl(path, ['boot'])).error).toMatchObject({
      code: 'API_REFUSED',
      message: 'vm.boot: no memory: ENOMEM',
    });
    expect((await ctl(path, ['create'], { input: '{}' })).error?.message).toBe('vm.create: payload is missing');
  });

  it('fails with one sentence where no VMM is', async () => {
    const directory = cleanup.directory();
    const nothing = join(directory, 'nothing');
    const file = join(directory, 'file');
    writeFileSync(file, '');

    expect((await ctl(nothing, ['ping'])).error).toMatchObject({
      code: 'API_UNREACHABLE',
      message: `${nothing}: there is no such socket: no VMM runs with it as --api-socket`,
    });
    expect((await ctl(file, ['ping'])).error?.message).toBe(`${file}: nobody listens there: the VMM is gone`);
    expect((await ctl(nothing, ['create', join(directory, 'no.json')])).error?.message).toBe(
      `${join(directory, 'no.json')} cannot be read: no such file or directory`,
    );
  });

  it('gives up on a VMM that does not answer', async () => {
    const path = join(cleanup.directory(), 'mute');
    const sockets: Socket[] = [];
    const mute = createServer((socket) => sockets.push(socket));
    await new Promise<void>((resolve) => mute.listen(path, resolve));
    cleanup.add(() => {
      for (const socket of sockets) socket.destroy();
      return new Promise((resolve) => mute.close(resolve));
    });

    expect((await ctl(path, ['--timeout', '50ms', 'ping'])).error).toMatchObject({
      code: 'API_TIMEOUT',
      message: `vmm.ping: no answer from ${path} within 50 ms`,
    });
  });

  it.each([[['nonsense']], [['boot', 'surplus']], [['ping', '--nonsense']], [[]]])('refuses %j', async (args) => {
    const { error } = await ctl('/nowhere', args);
    expect(error?.name).toBe('CommanderError');
  });
});

describe('ringside ctl, of devices and memory', () => {
  it.each<[readonly string[], string, object]>([
    [['add-disk', 'path=/d,readonly=on,id=d'], 'addDisk', { path: '/d', readonly: true, id: 'd' }],
    [['add-disk', 'socket=b.sock,iommu=on'], 'addDisk', { vhost_socket: resolve('b.sock'), iommu: true }],
    [['add-net', 'tap=vm1,num_queues=4'], 'addNet', { tap: 'vm1', num_queues: 4 }],
    [['add-fs', 'tag=t,socket=f.sock'], 'addFs', { tag: 't', socket: resolve('f.sock') }],
    [['add-vsock', 'cid=3,socket=/v'], 'addVsock', { cid: 3, socket: '/v' }],
  ])('%j adds what it describes, with absolute paths, and prints where it is', async (args, operation, given) => {
    const { path, control } = await serve();

    expect(await ctl(path, args)).toEqual({ out: '{\n  "id": "_disk0",\n  "slot": 3\n}\n' });

    expect(control.requests).toEqual([[operation, given]]);
  });

  it('prints nothing of a device for a machine that does not run', async () => {
    const { path, control } = await serve();
    control.added = undefined;
    expect(await ctl(path, ['add-disk', 'path=/d'])).toEqual({ out: '' });
  });

  it.each<[readonly string[], string, object]>([
    [['remove-device', 'd'], 'removeDevice', { id: 'd' }],
    [['resize', '--memory', '3G'], 'resize', { desired_ram: 3 * 2 ** 30 }],
    [['resize-disk', 'd', '20G'], 'resizeDisk', { id: 'd', desired_size: 20 * 2 ** 30 }],
  ])('%j says nothing when it is done', async (args, operation, given) => {
    const { path, control } = await serve();
    expect(await ctl(path, args)).toEqual({ out: '' });
    expect(control.requests).toEqual([[operation, given]]);
  });

  it('says what the VMM says of a device that is there already', async () => {
    const { path, control } = await serve();
    control.fail.set('addDisk', () => Promise.reject(new VmConflictError('id: "d" is the id of another device')));
    expect((await ctl(path, ['add-disk', 'path=/d,id=d'])).error).toMatchObject({
      code: 'API_REFUSED',
      message: 'vm.add-disk: id: "d" is the id of another device',
    });
  });
});

describe('ringside ctl, of what takes its time', () => {
  it.each<[readonly string[], string, object]>([
    [['snapshot', 'a b'], 'snapshot', { destination_url: `file://${resolve('a%20b')}` }],
    [['snapshot', 'file:///var/tmp/vm1'], 'snapshot', { destination_url: 'file:///var/tmp/vm1' }],
    [['restore', '/s'], 'restore', { source_url: 'file:///s', resume: false }],
    [
      ['restore', '--resume', '--device', 'id=d,path=p', '--device', 'id=n,tap=t', '/s'],
      'restore',
      {
        source_url: 'file:///s',
        resume: true,
        devices: [
          { id: 'd', path: resolve('p') },
          { id: 'n', tap: 't' },
        ],
      },
    ],
    [['send-migration', 'unix:m'], 'sendMigration', { destination_url: `unix:${resolve('m')}`, downtime_ms: 300 }],
    [
      ['send-migration', 'tcp:h:4444', '--downtime', '0.1', '--timeout', '1.5m'],
      'sendMigration',
      { destination_url: 'tcp:h:4444', downtime_ms: 100, timeout_s: 90 },
    ],
    [
      ['send-migration', 'unix:/m', '--local', '--no-auto-converge'],
      'sendMigration',
      { destination_url: 'unix:/m', local: true, auto_converge: false, downtime_ms: 300 },
    ],
    [
      ['receive-migration', 'unix:/m', '--device', 'id=b,socket=b.sock'],
      'receiveMigration',
      { receiver_url: 'unix:/m', devices: [{ id: 'b', socket: resolve('b.sock') }] },
    ],
  ])('%j asks for it and prints nothing but what it came to', async (args, operation, given) => {
    const { path, control } = await serve();
    const name = args[0] as 'send-migration';
    control.shown = { ...PROGRESS, operation: name, phase: 'completed' };
    const said: string[] = [];

    expect(await ctl(path, args, { said })).toEqual({ out: '' });

    expect(control.requests).toEqual([[operation, given]]);
    expect(said).toEqual([`${name}: 1 MiB in 1.00 s (1 MiB/s)\n`]);
  });

  /** An operation of `control` that goes on until `finish` or `fail`. */
  function goOn(control: FakeControl, operation: 'sendMigration' | 'snapshot' = 'sendMigration') {
    let finish: () => void = () => undefined;
    let fail: (error: Error) => void = () => undefined;
    const end = new Promise<void>((resolve, reject) => {
      [finish, fail] = [resolve, reject];
    });
    control.fail.set(operation, () => end);
    return { finish: () => finish(), fail: (error: Error) => fail(error) };
  }

  it('tells by lines how far it is where no terminal is', async () => {
    const { path, control } = await serve();
    const { finish } = goOn(control);
    const said: string[] = [];
    const run = ctl(path, ['send-migration', 'unix:/m'], { said });

    await eventually(
      'a line',
      () => said.length,
      (count) => count === 1,
    );
    control.shown = { ...PROGRESS, phase: 'devices', bytes_total: 0, elapsed_ms: 7300 };
    await eventually(
      'another line',
      () => said.length,
      (count) => count === 2,
    );
    control.shown = { ...PROGRESS, phase: 'completed', bytes_done: 1 << 22, downtime_ms: 120 } as typeof PROGRESS;
    finish();

    expect(await run).toEqual({ out: '' });
    expect(said).toEqual([
      `send-migration: memory, round 2 [${'#'.repeat(8)}${'-'.repeat(22)}]  25% of 4 MiB, 1 MiB/s, 3 s left\n`,
      'send-migration: devices, round 2, 7 s\n',
      'send-migration: 4 MiB in 1.00 s (4 MiB/s), the guest stood still for 120 ms\n',
    ]);
  });

  it('draws a bar on a terminal, and leaves a clean line', async () => {
    const { path, control } = await serve();
    const { finish } = goOn(control);
    const said: string[] = [];
    const run = ctl(path, ['send-migration', 'unix:/m'], { said, isTTY: true });
    await eventually(
      'the bar',
      () => said.length,
      (count) => count >= 2,
    );
    finish();
    await run;

    const bar = `[${'#'.repeat(8)}${'-'.repeat(22)}]`;
    expect(said[0]?.startsWith(`\r\x1b[Ksend-migration: memory, round 2 ${bar}`)).toBe(true);
    expect(said.at(-2)).toBe('\r\x1b[K');
    expect(said.at(-1)).toMatch(/^send-migration: 1 MiB in/);
  });

  it('cancels a migration when it is interrupted, waits for its end, and says that', async () => {
    const { path, control } = await serve();
    const { fail } = goOn(control);
    control.fail.set('cancelMigration', async () =>
      fail(new VmError('send-migration: cancelled by vm.cancel-migration')),
    );
    const interruption = new AbortController();
    const said: string[] = [];
    const run = ctl(path, ['send-migration', 'unix:/m'], { said, interrupted: interruption.signal });
    await eventually(
      'the migration',
      () => control.calls,
      (calls) => calls.includes('sendMigration'),
    );
    const reason = new Error('SIGINT');

    interruption.abort(reason);

    expect((await run).error).toBe(reason);
    expect(said.at(-1)).toBe('ringside: vm.send-migration: send-migration: cancelled by vm.cancel-migration\n');
  });

  it('that was interrupted too late has done what it should', async () => {
    const { path, control } = await serve();
    const { finish } = goOn(control);
    control.fail.set('cancelMigration', async () => {
      finish();
      throw new VmStateError('VM_STATE', 'no migration is under way');
    });
    const interruption = new AbortController();
    const run = ctl(path, ['send-migration', 'unix:/m'], { interrupted: interruption.signal });
    await eventually(
      'the migration',
      () => control.calls,
      (calls) => calls.includes('sendMigration'),
    );

    interruption.abort(new Error('SIGINT'));

    expect(await run).toEqual({ out: '' });
  });

  it('does not go on where the VMM is gone when it is to be cancelled', async () => {
    const path = join(cleanup.directory(), 'api');
    const sockets: Socket[] = [];
    const server = createServer((socket) => sockets.push(socket));
    await new Promise<void>((ready) => server.listen(path, ready));
    const interruption = new AbortController();
    const run = ctl(path, ['send-migration', 'unix:/m'], { interrupted: interruption.signal });
    await eventually(
      'the request',
      () => sockets.length,
      (count) => count > 0,
    );

    server.close();
    for (const socket of sockets) socket.destroy();

    expect((await run).error).toMatchObject({ code: 'API_UNREACHABLE' });
  });

  it('leaves a snapshot to the VMM when it is interrupted', async () => {
    const { path, control } = await serve();
    const { finish } = goOn(control, 'snapshot');
    const interruption = new AbortController();
    const run = ctl(path, ['snapshot', '/s'], { interrupted: interruption.signal });
    await eventually(
      'the snapshot',
      () => control.calls,
      (calls) => calls.includes('snapshot'),
    );
    const reason = new Error('SIGINT');

    interruption.abort(reason);

    expect((await run).error).toBe(reason);
    expect(control.calls).not.toContain('cancelMigration');
    finish();
  });

  it('has no limit but the one that is given', async () => {
    const { path, control } = await serve();
    const { finish } = goOn(control, 'snapshot');
    expect((await ctl(path, ['--timeout', '50ms', 'snapshot', '/s'])).error).toMatchObject({
      code: 'API_TIMEOUT',
      message: `vm.snapshot: no answer from ${path} within 50 ms`,
    });
    finish();
  });

  it('fails with what the VMM said', async () => {
    const { path, control } = await serve();
    control.fail.set('restore', () => Promise.reject(new VmError('/s/state is no snapshot')));
    expect((await ctl(path, ['restore', '/s'])).error?.message).toBe('vm.restore: /s/state is no snapshot');
  });
});
