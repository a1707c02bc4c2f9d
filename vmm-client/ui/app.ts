/**
 * The routes of the page's server:
 *
 *     GET  /, /style.css, /icon.svg, /page/*.js      the page                 GET, POST /login; POST /logout
 *     GET  /api/events                               snapshots, as server-sent events
 *     GET  /api/machines/KEY/console                 what the guest prints, as server-sent events
 *     POST /api/machines/KEY/console                 { text }: what it is to read          only with control
 *     POST /api/machines/KEY/ACTION                  boot, pause, resume, ...              only with control
 *
 * Every request passes the checks of guard.ts before a route hears of it.
 */

import fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify';
import { Refusal, Unreachable } from './api-client.ts';
import { relayConsole } from './console-relay.ts';
import { EventStream } from './event-stream.ts';
import { bearerOf, checkHost, checkReader, checkWriter, cookieOf, SECURITY_HEADERS, TokenCheck } from './guard.ts';
import { renderLogin } from './login-page.ts';
import { ACTIONS, type Action, type Snapshot } from './page/model.ts';
import { SESSION_SECONDS, Sessions } from './sessions.ts';
import type { StaticFile } from './static-files.ts';
import type { Watcher } from './watcher.ts';

const MAX_BODY_BYTES = 16 * 1024;
const REQUEST_TIMEOUT_MS = 10_000;
/** Streams at one time; a browser has two. */
const MAX_STREAMS = 64;
/** Characters of console input in one request. */
const MAX_INPUT = 4096;

export interface AppOptions {
  readonly watcher: Watcher;
  readonly control: boolean;
  readonly token: string | undefined;
  /** Names besides addresses and localhost under which the page is asked for, in lower case. */
  readonly hostNames: ReadonlySet<string>;
  /** Tells cookies of two servers on one host apart. */
  readonly port: () => number;
  readonly files: ReadonlyMap<string, StaticFile>;
  readonly log: (line: string) => void;
}

/** A request that is not answered as it hoped. */
class RequestError extends Error {
  override readonly name = 'RequestError';
  readonly statusCode: number;

  constructor(statusCode: number, message: string) {
    super(message);
    this.statusCode = statusCode;
  }
}

/** The files that a browser may have before it has logged in. */
const OPEN_PATHS: ReadonlySet<string> = new Set(['/login', '/style.css', '/icon.svg']);

interface KeyParameters {
  readonly key: string;
}

export class UiApp {
  readonly server: FastifyInstance;
  readonly #options: AppOptions;
  readonly #tokenCheck: TokenCheck | undefined;
  readonly #sessions = new Sessions();
  readonly #streams = new Set<EventStream>();

  constructor(options: AppOptions) {
    this.#options = options;
    this.#tokenCheck = options.token === undefined ? undefined : new TokenCheck(options.token);
    this.server = fastify({
      bodyLimit: MAX_BODY_BYTES,
      requestTimeout: REQUEST_TIMEOUT_MS,
      exposeHeadRoutes: false,
      forceCloseConnections: true,
    });
    this.server.addHook('onRequest', async (request, reply) => {
      reply.headers(SECURITY_HEADERS);
      return this.#admit(request, reply);
    });
    this.server.addContentTypeParser('application/x-www-form-urlencoded', { parseAs: 'string' }, (_, body, done) =>
      done(null, Object.fromEntries(new URLSearchParams(body as string))),
    );
    this.server.setErrorHandler((error: Error, request, reply) => this.#answerError(error, request, reply));
    this.server.setNotFoundHandler((_request, reply) => reply.code(404).send({ error: 'there is no such page' }));
    this.#addPages();
    this.#addStreams();
    if (options.control) this.#addControl();
  }

  /** Ends all streams: answers that would keep the server from closing. */
  endStreams(): void {
    for (const stream of [...this.#streams]) stream.close();
  }

  get #cookieName(): string {
    return `ringside-${this.#options.port()}`;
  }

  /** Lets a request pass, or throws what is to be answered. */
  async #admit(request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply | undefined> {
    const { host, origin, authorization, cookie } = request.headers;
    const site = request.headers['sec-fetch-site'];
    const bearer = bearerOf(authorization);
    const isWrite = request.method !== 'GET';
    const path = request.url.split('?')[0] ?? '';
    const asked = { host, origin, site: typeof site === 'string' ? site : undefined, hasBearer: bearer !== undefined };
    // A link from elsewhere may lead to the page, and gets no further than that without a cookie, which is SameSite=Strict.
    const isDocument = path === '/' || path === '/login';
    const refusal =
      checkHost(host, this.#options.hostNames) ??
      (isWrite ? checkWriter(asked) : isDocument ? undefined : checkReader(asked));
    if (refusal !== undefined) throw new RequestError(refusal.status, refusal.sentence);
    if (this.#tokenCheck === undefined || OPEN_PATHS.has(path)) return undefined;
    if (bearer !== undefined && this.#tokenCheck.accepts(bearer)) return undefined;
    const session = cookieOf(cookie, this.#cookieName);
    if (session !== undefined && this.#sessions.has(session)) return undefined;
    if (path === '/' && !isWrite) return reply.redirect('/login', 303);
    reply.header('WWW-Authenticate', 'Bearer realm="ringside"');
    throw new RequestError(401, 'a token is needed: log in, or send it as Authorization: Bearer');
  }

  #answerError(error: Error, request: FastifyRequest, reply: FastifyReply): FastifyReply {
    if (error instanceof Refusal) return reply.code(409).send({ error: error.message });
    if (error instanceof Unreachable)
      return reply.code(502).send({ error: `the VMM cannot be asked: ${error.message}` });
    const code = 'code' in error ? String(error.code) : '';
    const isTheirs = error instanceof RequestError || code.startsWith('FST_');
    if (isTheirs && 'statusCode' in error) return reply.code(Number(error.statusCode)).send({ error: error.message });
    this.#options.log(`${request.method} ${request.url}: ${error.stack}`);
    return reply.code(500).send({ error: 'the server made a mistake, which its log describes' });
  }

  #addPages(): void {
    const { files } = this.#options;
    const send = (reply: FastifyReply, name: string): FastifyReply => {
      const file = files.get(name);
      if (file === undefined) throw new RequestError(404, 'there is no such file');
      return reply.type(file.type).send(file.content);
    };
    this.server.get('/', (_request, reply) => send(reply, 'index.html'));
    this.server.get('/style.css', (_request, reply) => send(reply, 'style.css'));
    this.server.get('/icon.svg', (_request, reply) => send(reply, 'icon.svg'));
    this.server.get<{ Params: { readonly name: string } }>('/page/:name', ({ params }, reply) => {
      if (!params.name.endsWith('.js')) throw new RequestError(404, 'there is no such file');
      return send(reply, params.name);
    });
    this.server.get('/login', (_request, reply) => reply.type('text/html; charset=utf-8').send(renderLogin('ask')));
    this.server.post('/login', (request, reply) => this.#logIn(request.body, reply));
    this.server.post('/logout', (request, reply) => {
      const session = cookieOf(request.headers.cookie, this.#cookieName);
      if (session !== undefined) this.#sessions.close(session);
      return reply.header('Set-Cookie', `${this.#cookieName}=; Path=/; Max-Age=0`).redirect('/login', 303);
    });
  }

  #logIn(body: unknown, reply: FastifyReply): FastifyReply {
    const token = typeof body === 'object' && body !== null && 'token' in body ? body.token : undefined;
    if (typeof token !== 'string' || this.#tokenCheck?.accepts(token.trim()) !== true) {
      return reply.code(401).type('text/html; charset=utf-8').send(renderLogin('wrong'));
    }
    const attributes = `Path=/; HttpOnly; SameSite=Strict; Max-Age=${SESSION_SECONDS}`;
    return reply.header('Set-Cookie', `${this.#cookieName}=${this.#sessions.open()}; ${attributes}`).redirect('/', 303);
  }

  #addStreams(): void {
    const { watcher, control, token } = this.#options;
    this.server.get('/api/events', (_request, reply) => {
      const stream = this.#openStream(reply);
      stream.onClose = watcher.subscribe((machines) => {
        const snapshot: Snapshot = { machines, control, login: token !== undefined };
        stream.send('snapshot', snapshot);
      });
    });
    this.server.get<{ Params: KeyParameters }>('/api/machines/:key/console', async ({ params }, reply) => {
      const client = watcher.client(params.key);
      if (client === undefined) throw new RequestError(404, 'there is no such machine');
      await relayConsole(client, this.#openStream(reply));
    });
  }

  #openStream(reply: FastifyReply): EventStream {
    if (this.#streams.size >= MAX_STREAMS) throw new RequestError(503, `${MAX_STREAMS} streams are open already`);
    reply.hijack();
    const stream: EventStream = new EventStream(reply.raw, SECURITY_HEADERS);
    this.#streams.add(stream);
    reply.raw.once('close', () => this.#streams.delete(stream));
    return stream;
  }

  #addControl(): void {
    const { watcher } = this.#options;
    this.server.post<{ Params: KeyParameters }>('/api/machines/:key/console', async ({ params, body }, reply) => {
      const text = typeof body === 'object' && body !== null && 'text' in body ? body.text : undefined;
      if (typeof text !== 'string' || text === '' || text.length > MAX_INPUT) {
        throw new RequestError(400, `text: 1 to ${MAX_INPUT} characters are needed`);
      }
      const client = watcher.client(params.key);
      if (client === undefined) throw new RequestError(404, 'there is no such machine');
      await client.put('vm.console-input', { text });
      return reply.code(204).send();
    });
    this.server.post<{ Params: KeyParameters & { readonly action: string } }>(
      '/api/machines/:key/:action',
      async ({ params }, reply) => {
        const action = ACTIONS.find((each): each is Action => each === params.action);
        if (action === undefined || !(await watcher.act(params.key, action))) {
          throw new RequestError(404, 'there is no such machine, or no such action');
        }
        return reply.code(204).send();
      },
    );
  }
}
