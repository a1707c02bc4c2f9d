/** `ringside ctl` against the API server, with a stand-in for the machine behind it. */

import { writeFileSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { PassThrough, Readable } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { ApiServer } from '../../vmm-client/api/server.ts';
import { createCtlCommand } from '../../vmm-client/cli/ctl-program.ts';
import { VmError } from '../../vmm-client/vmm/errors.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { COUNTERS, FakeControl, INFO, PING } from '../support/vm/fake-control.ts';

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

describe('ringside ctl', () => {
  async function ctl(path: string, args: readonly string[], input = ''): Promise<{ out: string; error?: Error }> {
    const stdout = new PassThrough().setEncoding('utf8');
    const command = createCtlCommand({
      stdin: Readable.from([Buffer.from(input)]),
      stdout,
      interrupted: new AbortController().signal,
    });
    for (const each of [command, ...command.commands])
      each.exitOverride().configureOutput({ writeErr: () => undefined });
    const error: unknown = await command.parseAsync(['--api-socket', path, ...args], { from: 'user' }).then(
      () => undefined,
      (reason: unknown) => reason,
    );
    const out = String(stdout.read() ?? '');
    return error instanceof Error ? { out, error } : { out };
  }

  it.each([
    ['ping', PING],
    ['info', INFO],
    ['counters', COUNTERS],
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
    ['shutdown', 'shutdown'],
    ['reboot', 'reboot'],
    ['delete', 'delete'],
    ['shutdown-vmm', 'shutdownVmm'],
  ])('%s says nothing when it is done', async (name, operation) => {
    const { path, control } = await serve();
    expect(await ctl(path, [name])).toEqual({ out: '' });
    expect(control.calls).toEqual([operation]);
  });

  it('create reads standard input, or a file', async () => {
    const { path, control } = await serve();
    const file = join(cleanup.directory(), 'vm.json');
    writeFileSync(file, '{"payload":{"kernel":"/from-file"}}');

    expect(await ctl(path, ['create'], VM)).toEqual({ out: '' });
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
    expect((await ctl(path, ['create'], '{}')).error?.message).toBe('vm.create: payload is missing');
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
