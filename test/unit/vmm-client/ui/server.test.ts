import { mkdirSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { ApiServer } from '../../../../vmm-client/api/server.ts';
import type { MachineView, Snapshot } from '../../../../vmm-client/ui/page/model.ts';
import { UiServer, type UiServerOptions } from '../../../../vmm-client/ui/server.ts';
import { cleanupAfterEach } from '../../../support/cleanup.ts';
import { FakeControl } from '../../../support/vm/fake-control.ts';

const TOKEN = '0123456789abcdef0123456789abcdef';

type Headers = Readonly<Record<string, string>>;

interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly body: string;
}

describe("The page's server", () => {
  const cleanup = cleanupAfterEach();

  /** A VMM whose API is there and whose machine is not. */
  const startVmm = async (): Promise<{
    readonly control: FakeControl;
    readonly socket: string;
    readonly api: ApiServer;
  }> => {
    const control = new FakeControl();
    const socket = join(cleanup.directory(), 'web.sock');
    const log = { info: () => undefined, error: () => undefined };
    const api = await ApiServer.listen({ path: socket, control, log, version: '1.2.3' });
    cleanup.add(() => api.close());
    return { control, socket, api };
  };

  const pageDirectory = (): string => {
    const directory = join(cleanup.directory(), 'page');
    mkdirSync(directory);
    for (const name of ['index.html', 'style.css', 'icon.svg', 'main.js', 'main.js.map', 'tsconfig.json']) {
      writeFileSync(join(directory, name), `content of ${name}`);
    }
    return directory;
  };

  const start = async (options: Partial<UiServerOptions> = {}): Promise<UiServer> => {
    const ui = await UiServer.listen({
      ...{ host: '127.0.0.1', port: 0, sockets: () => [], token: undefined, control: false, hostNames: [] },
      log: () => undefined,
      pageDirectory: pageDirectory(),
      ...options,
    });
    cleanup.add(() => ui.close());
    return ui;
  };

  /** One request; of a stream as much as `enough` asks for. */
  const ask = (
    ui: UiServer,
    method: string,
    path: string,
    headers: Headers = {},
    body?: string,
    enough: (text: string) => boolean = () => true,
  ): Promise<Answer> =>
    new Promise((resolve, reject) => {
      const sent = request({ host: '127.0.0.1', port: ui.port, method, path, headers }, (response) => {
        let text = '';
        const settle = (): void => resolve({ status: response.statusCode ?? 0, headers: response.headers, body: text });
        response.setEncoding('utf8').on('data', (chunk: string) => {
          text += chunk;
          if (response.headers['content-type']?.startsWith('text/event-stream') !== true || !enough(text)) return;
          settle();
          sent.destroy();
        });
        response.on('end', settle);
      });
      sent.on('error', reject);
      sent.end(body);
    });

  const sameOrigin = (ui: UiServer): Headers => ({ Origin: `http://127.0.0.1:${ui.port}` });

  const snapshotOf = async (ui: UiServer, headers: Headers = {}): Promise<Snapshot> => {
    const { body } = await ask(ui, 'GET', '/api/events', headers, undefined, (text) => /^data: .*\n\n/m.test(text));
    return JSON.parse(/^data: (.*)$/m.exec(body)?.[1] ?? '') as Snapshot;
  };

  const firstMachine = async (ui: UiServer, headers: Headers = {}): Promise<MachineView> => {
    const [machine] = (await snapshotOf(ui, headers)).machines;
    if (machine === undefined) throw new Error('no machine is shown');
    return machine;
  };

  it('serves the page with a policy, and nothing besides it', async () => {
    const ui = await start();
    const index = await ask(ui, 'GET', '/');
    expect(index).toMatchObject({ status: 200, body: 'content of index.html' });
    expect(index.headers['content-type']).toBe('text/html; charset=utf-8');
    expect(index.headers['content-security-policy']).toContain("default-src 'none'");
    expect(index.headers['x-content-type-options']).toBe('nosniff');
    expect((await ask(ui, 'GET', '/page/main.js')).headers['content-type']).toBe('text/javascript; charset=utf-8');
    for (const path of [
      ...[
        '/page/main.js.map',
        '/page/index.html',
        '/page/tsconfig.json',
        '/page/..%2findex.html',
        '/page/../server.js',
      ],
      ...['/page/', '/index.html', '/etc/passwd', '/%2e%2e/%2e%2e/etc/passwd'],
    ]) {
      const { status, headers } = await ask(ui, 'GET', path);
      expect([path, status]).toEqual([path, 404]);
      expect(headers['content-security-policy']).toContain("default-src 'none'");
    }
  });

  it('answers to no name but its own', async () => {
    const ui = await start({ hostNames: ['VMs.example.org'] });
    for (const path of ['/', '/style.css', '/login', '/api/events', '/page/main.js']) {
      expect([path, (await ask(ui, 'GET', path, { Host: 'evil.example' })).status]).toEqual([path, 421]);
    }
    expect((await ask(ui, 'GET', '/', { Host: 'vms.example.org' })).status).toBe(200);
    expect((await ask(ui, 'GET', '/', { Host: `localhost:${ui.port}` })).status).toBe(200);
  });

  it('gives data to no other site', async () => {
    const ui = await start();
    expect((await ask(ui, 'GET', '/api/events', { 'Sec-Fetch-Site': 'cross-site' })).status).toBe(403);
    expect((await ask(ui, 'GET', '/page/main.js', { 'Sec-Fetch-Site': 'same-site' })).status).toBe(403);
    // A link may lead here.
    expect((await ask(ui, 'GET', '/', { 'Sec-Fetch-Site': 'cross-site' })).status).toBe(200);
  });

  it('needs a token for who comes from elsewhere, and for control', async () => {
    await expect(start({ host: '0.0.0.0' })).rejects.toThrow('0.0.0.0 can be reached from other machines');
    await expect(start({ host: '::' })).rejects.toThrow('a token is needed (--token-file)');
    await expect(start({ control: true })).rejects.toThrow('every user of this machine could control');
    await expect(start({ token: 'short' })).rejects.toThrow('the token has 5 characters, 32 are needed');
    await expect(start({ token: `${TOKEN} and more` })).rejects.toThrow('the token has characters other than');
    await start({ host: '0.0.0.0', token: TOKEN, control: true });
  });

  it('gives nothing without the token where there is one', async () => {
    const { socket } = await startVmm();
    const ui = await start({ token: TOKEN, control: true, sockets: () => [socket] });
    const { key } = await firstMachine(ui, { Authorization: `Bearer ${TOKEN}` });
    for (const headers of [
      {},
      { Authorization: `Bearer ${TOKEN.replace('0', '1')}` },
      { Cookie: `ringside-${ui.port}=x` },
    ]) {
      for (const path of ['/page/main.js', '/api/events', `/api/machines/${key}/console`, '/nothing']) {
        const { status, body } = await ask(ui, 'GET', path, headers);
        expect([path, status, body.includes('content of')]).toEqual([path, 401, false]);
      }
      const { status } = await ask(ui, 'POST', `/api/machines/${key}/pause`, { ...headers, ...sameOrigin(ui) }, '{}');
      expect(status).toBe(401);
    }
    const index = await ask(ui, 'GET', '/');
    expect([index.status, index.headers.location]).toEqual([303, '/login']);
    expect((await ask(ui, 'GET', '/login')).body).toContain('name="token"');
    expect((await ask(ui, 'GET', '/style.css')).status).toBe(200);
  });

  it('lets a browser in with a cookie that scripts and other sites do not get', async () => {
    const ui = await start({ token: TOKEN });
    const form = { 'Content-Type': 'application/x-www-form-urlencoded' };
    expect((await ask(ui, 'POST', '/login', form, `token=${TOKEN}`)).status).toBe(403);
    const wrong = await ask(ui, 'POST', '/login', { ...form, ...sameOrigin(ui) }, 'token=wrong');
    expect([wrong.status, wrong.headers['set-cookie']]).toEqual([401, undefined]);
    for (const body of ['', 'token=', 'token=a&token=b', 'other=1']) {
      expect((await ask(ui, 'POST', '/login', { ...form, ...sameOrigin(ui) }, body)).status).toBe(401);
    }

    const right = await ask(ui, 'POST', '/login', { ...form, ...sameOrigin(ui) }, `token=${TOKEN}`);
    expect([right.status, right.headers.location]).toEqual([303, '/']);
    const [cookie = '', ...attributes] = String(right.headers['set-cookie']).split('; ');
    expect(attributes).toEqual(['Path=/', 'HttpOnly', 'SameSite=Strict', 'Max-Age=43200']);
    expect(cookie).toMatch(new RegExp(`^ringside-${ui.port}=[\\w-]{43}$`));
    expect((await ask(ui, 'GET', '/', { Cookie: cookie })).status).toBe(200);
    expect((await snapshotOf(ui, { Cookie: cookie })).login).toBe(true);

    const out = await ask(ui, 'POST', '/logout', { ...form, ...sameOrigin(ui), Cookie: cookie }, '');
    expect([out.status, out.headers.location]).toEqual([303, '/login']);
    expect((await ask(ui, 'GET', '/page/main.js', { Cookie: cookie })).status).toBe(401);
  });

  it('shows a machine, and says when it is gone', async () => {
    const { socket, api } = await startVmm();
    const ui = await start({ sockets: () => [socket] });
    expect(await firstMachine(ui)).toMatchObject({
      ...{ name: 'web', socket, state: 'Running', memoryBytes: 1 << 29, actions: [], devices: [] },
      vcpus: [{ index: 0 }],
      operation: { name: 'send-migration', phase: 'memory', bytesDone: 1 << 20, bytesTotal: 1 << 22 },
    });
    await api.close();
    expect(await firstMachine(ui)).toMatchObject({ state: 'gone', headline: 'cannot be asked: its socket is gone' });
  });

  it('finds machines as they come, and asks nobody while nobody looks', async () => {
    const { control, socket } = await startVmm();
    const sockets: string[] = [];
    const ui = await start({ sockets: () => sockets });
    expect((await snapshotOf(ui)).machines).toEqual([]);
    sockets.push(socket);
    expect(control.calls).toEqual([]);
    expect((await firstMachine(ui)).name).toBe('web');
    expect(new Set(control.calls)).toEqual(new Set(['info', 'queues', 'counters', 'progress']));
  });

  it('changes machines only for its own page, and only where that is allowed', async () => {
    const { control, socket } = await startVmm();
    const ui = await start({ sockets: () => [socket], token: TOKEN, control: true });
    const bearer = { Authorization: `Bearer ${TOKEN}` };
    const { key, actions } = await firstMachine(ui, bearer);
    expect(actions).toEqual(['pause', 'power-button', 'reboot', 'shutdown']);
    control.calls.length = 0;
    const json = { ...bearer, 'Content-Type': 'application/json' };
    const path = `/api/machines/${key}/pause`;
    expect((await ask(ui, 'POST', path, { ...json, Origin: 'http://evil.example' }, '{}')).status).toBe(403);
    expect((await ask(ui, 'POST', path, { ...json, 'Sec-Fetch-Site': 'cross-site' }, '{}')).status).toBe(403);
    expect(control.calls).not.toContain('pause');
    expect((await ask(ui, 'POST', path, { ...json, ...sameOrigin(ui) }, '{}')).status).toBe(204);
    expect(control.calls.filter((call) => call === 'pause')).toHaveLength(1);
    expect((await ask(ui, 'POST', `/api/machines/${key}/delete`, json, '{}')).status).toBe(404);
    expect((await ask(ui, 'POST', '/api/machines/0123456789ab/pause', json, '{}')).status).toBe(404);

    const looking = await start({ sockets: () => [socket] });
    expect((await firstMachine(looking)).actions).toEqual([]);
    expect((await ask(looking, 'POST', path, sameOrigin(looking), '{}')).status).toBe(404);
    expect((await ask(looking, 'POST', `/api/machines/${key}/console`, sameOrigin(looking), '{}')).status).toBe(404);
    expect(control.calls.filter((call) => call === 'pause')).toHaveLength(1);
  });

  it('says why a VMM refuses', async () => {
    const { control, socket, api } = await startVmm();
    control.fail.set('pause', () => Promise.reject(Object.assign(new Error('no, really not'), { code: 'VM' })));
    const ui = await start({ sockets: () => [socket], token: TOKEN, control: true });
    const headers = { Authorization: `Bearer ${TOKEN}`, 'Content-Type': 'application/json' };
    const { key } = await firstMachine(ui, headers);
    const refused = await ask(ui, 'POST', `/api/machines/${key}/pause`, headers, '{}');
    expect([refused.status, JSON.parse(refused.body)]).toEqual([409, { error: 'vm.pause: no, really not' }]);
    await api.close();
    const gone = await ask(ui, 'POST', `/api/machines/${key}/pause`, headers, '{}');
    expect([gone.status, JSON.parse(gone.body)]).toEqual([
      502,
      { error: 'the VMM cannot be asked: its socket is gone' },
    ]);
  });

  it('relays the console as text, characters in pieces too', async () => {
    const { control, socket } = await startVmm();
    const text = Buffer.from('grüße\n<b>\x1b[0m');
    control.consoleText = [text.subarray(0, 3), text.subarray(3), Buffer.from([0xff])];
    const ui = await start({ sockets: () => [socket] });
    const { key } = await firstMachine(ui);
    const { body } = await ask(ui, 'GET', `/api/machines/${key}/console`, {}, undefined, (all) => all.includes('end'));
    const events = [...body.matchAll(/^data: (.*)$/gm)].map(
      ([, data = '']) => JSON.parse(data) as Record<string, string>,
    );
    expect(events.map((event) => event.text ?? '').join('')).toBe('grüße\n<b>\x1b[0m\ufffd');
    expect(events.at(-1)).toEqual({ end: 'the machine has ended' });
    expect((await ask(ui, 'GET', '/api/machines/0123456789ab/console')).status).toBe(404);
  });

  it('types at the console what is text', async () => {
    const { control, socket } = await startVmm();
    const ui = await start({ sockets: () => [socket], token: TOKEN, control: true });
    const headers = { Authorization: `Bearer ${TOKEN}`, 'Content-Type': 'application/json' };
    const { key } = await firstMachine(ui, headers);
    const type = (body: string) => ask(ui, 'POST', `/api/machines/${key}/console`, headers, body);
    expect((await type('{"text":"ls\\r"}')).status).toBe(204);
    expect(control.requests).toEqual([['consoleInput', { text: 'ls\r' }]]);
    for (const body of ['{}', '{"text":""}', '{"text":7}', '[]', '"x"', `{"text":"${'x'.repeat(4097)}"}`, '{']) {
      expect([body.slice(0, 20), (await type(body)).status]).toEqual([body.slice(0, 20), 400]);
    }
    expect((await type(`{"text":"${'x'.repeat(20_000)}"}`)).status).toBe(413);
  });

  it('ends its streams when it is closed', async () => {
    const { socket } = await startVmm();
    const ui = await start({ sockets: () => [socket] });
    const ended = new Promise<void>((resolve, reject) => {
      const sent = request({ host: '127.0.0.1', port: ui.port, path: '/api/events' }, (response) => {
        response.resume().on('end', resolve);
        response.once('data', () => void ui.close().catch(reject));
      });
      sent.on('error', reject);
      sent.end();
    });
    await ended;
  });
});
