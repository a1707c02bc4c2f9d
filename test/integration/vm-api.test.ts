/** The API server on a real Unix socket, with a stand-in for the machine behind it. */

import { existsSync, linkSync, lstatSync, readdirSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { ApiServer } from '../../vmm-client/api/server.ts';
import { VmConfigError, VmConflictError, VmError, VmNotFoundError, VmStateError } from '../../vmm-client/vmm/errors.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { countOwnFds, eventually } from '../support/frontend/process-probe.ts';
import { COUNTERS, FakeControl, INFO, PING, PROGRESS } from '../support/vm/fake-control.ts';
import { ask, Wire } from '../support/vm/http-wire.ts';

const cleanup = cleanupAfterEach();

const dial = (path: string): Wire => {
  const wire = new Wire(path);
  cleanup.add(() => wire.socket.destroy());
  return wire;
};

interface Rig {
  readonly path: string;
  readonly control: FakeControl;
  readonly errors: string[];
  readonly api: ApiServer;
}

async function serve(): Promise<Rig> {
  const path = join(cleanup.directory(), 'api');
  const control = new FakeControl();
  const errors: string[] = [];
  const log = { info: () => undefined, error: (message: string) => errors.push(message) };
  const api = await ApiServer.listen({ path, control, log, version: '1.2.3' });
  cleanup.add(() => api.close());
  return { path, control, errors, api };
}

const api = (name: string) => `/api/v1/${name}`;
const VM = JSON.stringify({ payload: { kernel: '/k' } });

describe('routes', () => {
  const puts = ['boot', 'pause', 'resume', 'shutdown', 'reboot', 'delete'];
  it.each([
    ...puts.map((name) => [`vm.${name}`, name] as const),
    ['vmm.shutdown', 'shutdownVmm'] as const,
    ['vm.cancel-migration', 'cancelMigration'] as const,
  ])('PUT %s answers 204 without a body', async (name, operation) => {
    const { path, control } = await serve();

    const answer = await ask(path, 'PUT', api(name));

    expect(answer).toMatchObject({ status: 204, body: '' });
    expect(answer.headers).not.toMatch(/content-(length|type)/i);
    expect(control.calls).toEqual([operation]);
  });

  it.each([
    ['vmm.ping', PING],
    ['vm.info', INFO],
    ['vm.counters', COUNTERS],
    ['vm.progress', PROGRESS],
  ])('GET %s answers 200 with JSON', async (name, expected) => {
    const { path } = await serve();

    const answer = await ask(path, 'GET', api(name));

    expect(answer.status).toBe(200);
    expect(answer.headers).toContain('\r\nContent-Type: application/json\r\n');
    expect(JSON.parse(answer.body)).toEqual(expected);
  });

  it('PUT vm.create hands over the configuration with its defaults', async () => {
    const { path, control } = await serve();

    expect(await ask(path, 'PUT', api('vm.create'), VM)).toMatchObject({ status: 204, body: '' });

    expect(control.configs).toMatchObject([{ payload: { kernel: '/k' }, memory: { size: 536870912, shared: true } }]);
  });

  it('PUT vm.add-disk answers 200 with a place, or 204 where the machine is only created', async () => {
    const { path, control } = await serve();
    const add = () => ask(path, 'PUT', api('vm.add-disk'), '{"path":"/d"}');

    const running = await add();
    expect(running).toMatchObject({ status: 200, body: '{"id":"_disk0","slot":3}' });
    expect(running.headers).toContain('\r\nContent-Type: application/json\r\n');

    control.added = undefined;
    const created = await add();
    expect(created).toMatchObject({ status: 204, body: '' });
    expect(created.headers).not.toMatch(/content-(length|type)/i);
    expect(control.requests).toEqual(Array(2).fill(['addDisk', { path: '/d' }]));
  });

  it('GET openapi.json is the document that describes them', async () => {
    const { path } = await serve();
    const answer = await ask(path, 'GET', api('openapi.json'));
    expect(JSON.parse(answer.body)).toMatchObject({ openapi: '3.1.0', info: { version: '1.2.3' } });
  });

  it('answers as the client of Cloud Hypervisor reads it: no reason phrase, capital letters', async () => {
    const { path } = await serve();
    // ch-remote takes all of the line behind "HTTP/1.1 " as a number and looks for "Content-Length: ".
    const answer = await ask(path, 'GET', api('vmm.ping'));
    const [line, ...fields] = answer.headers.split('\r\n');
    expect(line).toBe('HTTP/1.1 200 ');
    expect(fields).toContain(`Content-Length: ${Buffer.byteLength(answer.body)}`);
  });
});

describe('refusals', () => {
  const causes: readonly (readonly [status: number, error: Error, sentences: string[]])[] = [
    [400, new VmConfigError('kernel /k is neither ELF nor bzImage'), ['vm.boot: kernel /k is neither ELF nor bzImage']],
    [404, new VmStateError('VM_NOT_CREATED', 'no VM is created'), ['vm.boot: no VM is created']],
    [405, new VmStateError('VM_STATE', 'the VM runs already'), ['vm.boot: the VM runs already']],
    [404, new VmNotFoundError('no device has the id "x"'), ['vm.boot: no device has the id "x"']],
    [409, new VmConflictError('id: "x" is the id of another device'), ['vm.boot: id: "x" is the id of another device']],
    [500, new VmError('vCPU 1 is gone'), ['vm.boot: vCPU 1 is gone']],
    [500, new VmError('no memory', { cause: new Error('mmap: ENOMEM') }), ['vm.boot: no memory', 'mmap: ENOMEM']],
    [500, new VmError('open /x: ENOENT', { cause: new Error('ENOENT') }), ['vm.boot: open /x: ENOENT']],
    [500, Object.assign(new Error('statusless'), { statusCode: 200 }), ['vm.boot: statusless']],
  ];
  it.each(causes)('%i is for %s', async (status, error, sentences) => {
    const { path, control, errors } = await serve();
    control.fail.set('boot', () => Promise.reject(error));

    const answer = await ask(path, 'PUT', api('vm.boot'));

    expect(answer.status).toBe(status);
    expect(JSON.parse(answer.body)).toEqual(sentences);
    expect(errors).toHaveLength('code' in error ? 0 : 1);
  });

  it('logs where an unexpected failure comes from, and goes on', async () => {
    const { path, control, errors } = await serve();
    control.fail.set('pause', () => Promise.reject(new TypeError('x is undefined')));

    expect(await ask(path, 'PUT', api('vm.pause'))).toMatchObject({
      status: 500,
      body: '["vm.pause: x is undefined"]',
    });

    expect(errors[0]).toMatch(/^vm\.pause: TypeError: x is undefined\n +at .*vm-api\.test\.ts/);
    expect((await ask(path, 'GET', api('vmm.ping'))).status).toBe(200);
  });

  const requests: readonly (readonly [number, string, string, string, string | undefined])[] = [
    [404, 'there is no route GET /', 'GET', '/', undefined],
    [404, 'there is no route PUT /api/v1/vm.coredump', 'PUT', api('vm.coredump'), '{}'],
    [400, 'vm.add-disk: the request has no body, and a DiskConfig is needed', 'PUT', api('vm.add-disk'), undefined],
    [400, 'vm.progress: the method is GET, not PUT', 'PUT', api('vm.progress'), undefined],
    [400, 'vm.snapshot: the method is PUT, not GET', 'GET', api('vm.snapshot'), undefined],
    [404, 'there is no route GET /api/v1/vm.info/', 'GET', api('vm.info/'), undefined],
    [404, 'there is no route GET /api/v2/vmm.ping', 'GET', '/api/v2/vmm.ping?a=b', undefined],
    [400, 'vm.boot: the method is PUT, not GET', 'GET', api('vm.boot'), undefined],
    [400, 'vm.info: the method is GET, not PUT', 'PUT', api('vm.info'), undefined],
    [400, 'vmm.ping: the method is GET, not POST', 'POST', api('vmm.ping'), '{}'],
    [400, 'vm.create: the method is PUT, not DELETE', 'DELETE', api('vm.create'), undefined],
    [400, 'vm.boot: the request has a body, and nothing is to be said here', 'PUT', api('vm.boot'), '{}'],
    [400, 'vm.create: the request has no body, and a VmConfig is needed', 'PUT', api('vm.create'), undefined],
    [400, 'vm.create: the request has no body, and a VmConfig is needed', 'PUT', api('vm.create'), ''],
    [400, 'vm.create: payload is missing', 'PUT', api('vm.create'), '{}'],
    [400, 'vm.create: the body is not JSON: Unexpected end of JSON input', 'PUT', api('vm.create'), '{"payload":'],
    [413, 'vm.create: the body is larger than 1048576 bytes', 'PUT', api('vm.create'), ' '.repeat(1048577)],
  ];
  it.each(requests)('%i: %s', async (expected, sentence, method, target, body) => {
    const { path, control } = await serve();

    const answer = await ask(path, method, target, body);

    expect(answer.status).toBe(expected);
    expect(JSON.parse(answer.body)).toEqual([sentence]);
    expect(control.calls).toEqual([]);
  });

  it('says of a HEAD request that it is no GET, without a body', async () => {
    const { path } = await serve();
    expect(await ask(path, 'HEAD', api('vmm.ping'))).toMatchObject({ status: 400, body: '' });
  });
});

describe('bodies', () => {
  it('of exactly 1 MiB are read', async () => {
    const { path } = await serve();
    const answer = await ask(path, 'PUT', api('vm.create'), VM.padEnd(1048576));
    expect(answer.status).toBe(204);
  });

  it('in chunks are read, and refused beyond 1 MiB', async () => {
    const { path } = await serve();
    const chunked = (text: string) => `${Buffer.byteLength(text).toString(16)}\r\n${text}\r\n`;
    const header = 'Transfer-Encoding: chunked\r\n';
    const send = async (...chunks: string[]) => {
      const wire = dial(path);
      const head = `PUT ${api('vm.create')} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n${header}\r\n`;
      wire.socket.write(`${head}${chunks.map(chunked).join('')}0\r\n\r\n`);
      return await wire.rest();
    };

    expect(await send(VM.slice(0, 7), VM.slice(7))).toMatch(/^HTTP\/1\.1 204 \r\n/);
    expect(await send(VM, ...Array<string>(17).fill(' '.repeat(65536)))).toMatch(/^HTTP\/1\.1 413 \r\n/);
  });

  it.each(['text/plain', 'application/x-www-form-urlencoded', 'nonsense', 'multipart/form-data; boundary=x', ''])(
    'are JSON whatever their type says: %s',
    async (type) => {
      const { path } = await serve();
      expect((await ask(path, 'PUT', api('vm.create'), VM, `Content-Type: ${type}\r\n`)).status).toBe(204);
    },
  );

  it('that are cut short are refused, and the server goes on', async () => {
    const { path, control } = await serve();
    const wire = dial(path);
    wire.socket.end(`PUT ${api('vm.create')} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n${VM}`);
    expect(await wire.rest()).toMatch(/^HTTP\/1\.1 400 \r\n/);

    const gone = dial(path);
    gone.socket.write(`PUT ${api('vm.create')} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n${VM}`);
    gone.socket.destroy();

    expect((await ask(path, 'GET', api('vmm.ping'))).status).toBe(200);
    expect(control.calls).toEqual(['ping']);
  });

  it.each(['hello\r\n\r\n', '\0\x01\x02\r\n\r\n', `GET ${api('vmm.ping')} HTTP/9.9\r\n\r\n`, 'GET\r\n\r\n'])(
    'and heads that are not HTTP are refused: %j',
    async (bytes) => {
      const { path, control } = await serve();
      const wire = dial(path);
      wire.socket.write(bytes);
      expect(await wire.rest()).toMatch(/^HTTP\/1\.1 400 \r\n[\s\S]*\r\n\r\n\["not HTTP: /);
      expect(control.calls).toEqual([]);
    },
  );

  it('may be announced by Expect, as curl does', async () => {
    const { path } = await serve();
    const wire = dial(path);
    const head = `PUT ${api('vm.create')} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n`;
    wire.socket.write(`${head}Content-Length: ${VM.length}\r\n\r\n`);
    expect(await wire.take('\r\n\r\n')).toMatch(/^HTTP\/1\.1 100 /);
    wire.socket.write(VM);
    expect(await wire.rest()).toMatch(/^HTTP\/1\.1 204 /);
  });
});

describe('connections', () => {
  it('answer in order what was sent at once', async () => {
    const { path } = await serve();
    const wire = dial(path);
    const get = (name: string, last: boolean) =>
      `GET ${api(name)} HTTP/1.1\r\nHost: x\r\n${last ? 'Connection: close\r\n' : ''}\r\n`;
    wire.socket.write(get('vmm.ping', false) + get('nothing', false) + get('vm.counters', true));
    const statuses = (await wire.rest()).match(/HTTP\/1\.1 \d+/g);
    expect(statuses).toEqual(['HTTP/1.1 200', 'HTTP/1.1 404', 'HTTP/1.1 200']);
  });

  it('do not wait for one whose operation takes its time', async () => {
    const { path, control } = await serve();
    let finish: () => void = () => undefined;
    const finished = new Promise<void>((resolve) => {
      finish = resolve;
    });
    control.fail.set('boot', () => finished);
    const boot = ask(path, 'PUT', api('vm.boot'));
    await eventually(
      'the call of boot',
      () => control.calls,
      (calls) => calls.includes('boot'),
    );

    expect((await ask(path, 'GET', api('vmm.ping'))).status).toBe(200);
    expect((await ask(path, 'GET', api('vm.info'))).status).toBe(200);

    finish();
    expect((await boot).status).toBe(204);
  });

  it('may be 200 at once, 100 of which say nothing', async () => {
    const { path, control } = await serve();
    const silent = Array.from({ length: 100 }, () => dial(path));

    const answers = await Promise.all(Array.from({ length: 100 }, () => ask(path, 'GET', api('vmm.ping'))));

    expect(answers.map(({ status }) => status)).toEqual(Array(100).fill(200));
    expect(control.calls).toHaveLength(100);
    expect(silent.every(({ ended }) => !ended)).toBe(true);
  });

  it('that send half a request are ended after 10 s', { timeout: 30_000 }, async () => {
    const { path } = await serve();
    const half = dial(path);
    half.socket.write('GET /api/v1/vmm.ping HTTP/1.1\r\nHost: x\r\n');
    expect(await half.rest()).toMatch(/^HTTP\/1\.1 408 \r\n[\s\S]*no whole request came within 10000 ms/);
  });
});

describe('the socket', () => {
  it('is for its owner alone, and the mask of the process stays as it was', async () => {
    const before = process.umask();
    const { path } = await serve();
    expect(lstatSync(path).mode & 0o777).toBe(0o600);
    expect(process.umask()).toBe(before);
  });

  it('is gone after close, with every connection and descriptor', async () => {
    const directory = cleanup.directory();
    const path = join(directory, 'api');
    const log = { info: () => undefined, error: () => undefined };
    const fds = countOwnFds();
    const server = await ApiServer.listen({ path, control: new FakeControl(), log, version: '1' });
    const idle = dial(path);
    idle.socket.write(`GET ${api('vmm.ping')} HTTP/1.1\r\nHost: x\r\n\r\n`);
    await idle.take('}');
    const half = dial(path);
    half.socket.write(`PUT ${api('vm.create')} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n`);
    const silent = dial(path);
    await new Promise((resolve) => silent.socket.once('connect', resolve));
    const started = performance.now();

    await Promise.all([server.close(), server.close()]);

    // Well below the 5 s that an answer under way would be waited for.
    expect(performance.now() - started).toBeLessThan(2000);
    await Promise.all([idle.rest(), half.rest(), silent.rest()]);
    expect(readdirSync(directory)).toEqual([]);
    await eventually('descriptors', countOwnFds, (count) => count === fds);
  });

  it('lets an answer under way finish, and tells others that the end is near', async () => {
    const { path, control, api: server } = await serve();
    const kept = dial(path);
    kept.socket.write(`GET ${api('vmm.ping')} HTTP/1.1\r\nHost: x\r\n\r\n`);
    await kept.take('}');
    let closed: Promise<void> | undefined;
    control.fail.set('shutdownVmm', async () => {
      closed = server.close();
    });

    expect(await ask(path, 'PUT', api('vmm.shutdown'))).toMatchObject({ status: 204 });

    await closed;
    expect(existsSync(path)).toBe(false);
    expect(await kept.rest()).toBe('');
  });

  it('closes at once when those who waited for answers have gone', async () => {
    const { path, control, api: server } = await serve();
    const never = new Promise<void>(() => undefined);
    control.fail.set('boot', () => never);
    const gone = dial(path);
    gone.socket.write(
      `PUT ${api('vm.boot')} HTTP/1.1\r\nHost: x\r\n\r\nGET ${api('vmm.ping')} HTTP/1.1\r\nHost: x\r\n\r\n`,
    );
    await eventually(
      'the calls',
      () => control.calls.join(),
      (calls) => calls === 'boot,ping',
    );
    gone.socket.destroy();
    await gone.rest();
    const started = performance.now();

    await server.close();

    expect(performance.now() - started).toBeLessThan(2000);
  });

  it('that a dead process left is replaced', async () => {
    const directory = cleanup.directory();
    const path = join(directory, 'api');
    const first = createServer();
    await new Promise<void>((resolve) => first.listen(join(directory, 'first'), resolve));
    // What a crash leaves: the file of a socket that nobody listens on any more.
    linkSync(join(directory, 'first'), path);
    await new Promise((resolve) => first.close(resolve));
    const log = { info: () => undefined, error: () => undefined };

    const server = await ApiServer.listen({ path, control: new FakeControl(), log, version: '1' });
    cleanup.add(() => server.close());

    expect((await ask(path, 'GET', api('vmm.ping'))).status).toBe(200);
  });

  it('that another process listens on is refused and stays', async () => {
    const { path, control } = await serve();
    const log = { info: () => undefined, error: () => undefined };

    await expect(ApiServer.listen({ path, control, log, version: '1' })).rejects.toMatchObject({
      code: 'EADDRINUSE',
      message: expect.stringContaining(path),
    });

    expect((await ask(path, 'GET', api('vmm.ping'))).status).toBe(200);
  });

  it('does not take the place of a file, nor of a path that is too long', async () => {
    const file = join(cleanup.directory(), 'file');
    writeFileSync(file, 'precious');
    const log = { info: () => undefined, error: () => undefined };
    const listen = (path: string) => ApiServer.listen({ path, control: new FakeControl(), log, version: '1' });

    await expect(listen(file)).rejects.toMatchObject({ code: 'EADDRINUSE' });
    await expect(listen(`/tmp/${'x'.repeat(110)}`)).rejects.toMatchObject({ code: 'ENAMETOOLONG' });

    expect(lstatSync(file).size).toBe(8);
  });
});
