/**
 * The routes of the API on the HTTP framework. Answers as Cloud Hypervisor does: 200 with JSON, 204 without a body, and a
 * list of sentences with any other status. A request is checked against the schemas of the OpenAPI document before the
 * machine hears of it.
 */

import type { Socket } from 'node:net';
import fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify';
import { VmConfigError, VmConflictError, VmNotFoundError, VmStateError } from '../vmm/errors.ts';
import { API_ROOT, createOpenApi, STREAM_TYPE } from './openapi.ts';
import { explainSchemaError, type SchemaError, toArgument } from './request.ts';
import { ROUTES, type Route } from './routes.ts';
import type { ConsoleStream, VmmControl } from './vmm-control.ts';
import { WireResponse } from './wire-response.ts';

const MAX_BODY_BYTES = 1024 * 1024;
/** How long a client may take to send a request, and how often that is looked at. */
const REQUEST_TIMEOUT_MS = 10_000;
const TIMEOUT_CHECK_MS = 1000;
/** How long a connection may be silent after an answer. */
const KEEP_ALIVE_MS = 60_000;
/** Of one answer: an error, and what caused it. */
const MAX_SENTENCES = 8;
/** Name under which the validator knows the document's schemas. */
const DOCUMENT = 'openapi';

/** Where the server says what no client hears of. A pino logger is one. */
export interface ApiLog {
  info(message: string): void;
  error(message: string): void;
}

export interface ApiOptions {
  readonly control: VmmControl;
  readonly log: ApiLog;
  /** Of the program. */
  readonly version: string;
  /**
   * When the schemas are compiled, which keeps the process busy for tens of milliseconds: before the first request, or
   * (false) within the first vm.create, which is better where a guest runs already. Default true.
   */
  readonly compileSchemas?: boolean;
}

/** A request that is refused before it gets to a route's operation. */
class RequestError extends Error {
  override readonly name = 'RequestError';
  readonly statusCode: number;

  constructor(statusCode: number, message: string) {
    super(message);
    this.statusCode = statusCode;
  }
}

/**
 * The API, not listening yet. While `isClosing` requests are answered with 503. Answers without an end are in `streams` as
 * long as they last.
 */
export function createApp(
  options: ApiOptions,
  isClosing: () => boolean,
  streams: Set<ConsoleStream> = new Set(),
): FastifyInstance {
  const app = fastify({
    bodyLimit: MAX_BODY_BYTES,
    requestTimeout: REQUEST_TIMEOUT_MS,
    keepAliveTimeout: KEEP_ALIVE_MS,
    http: {
      ServerResponse: WireResponse,
      headersTimeout: REQUEST_TIMEOUT_MS,
      requestTimeout: REQUEST_TIMEOUT_MS,
      connectionsCheckingInterval: TIMEOUT_CHECK_MS,
    },
    exposeHeadRoutes: false,
    return503OnClosing: false,
    clientErrorHandler: answerMalformed,
    frameworkErrors: (error, _request, reply) => {
      refuse(reply as FastifyReply, 400, error.message);
    },
    ajv: {
      customOptions: {
        // What was sent is what is judged: nothing is converted, filled in or taken away.
        coerceTypes: false,
        useDefaults: false,
        removeAdditional: false,
        verbose: true,
        allowUnionTypes: true,
        strictRequired: false,
        keywords: ['x-absent', 'x-hint', 'components'],
      },
    },
    schemaErrorFormatter: (errors) => toConfigError(errors as unknown as SchemaError[]),
  });
  app.addHook('onRequest', async (request, reply) => {
    // Cloud Hypervisor takes any type, and none: curl -d says that it sends a form.
    delete request.raw.headers['content-type'];
    if (!isClosing()) return;
    reply.header('connection', 'close');
    throw new RequestError(503, 'the VMM is about to end');
  });
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('*', { parseAs: 'string' }, (_request, body, done) => {
    try {
      done(null, body === '' ? undefined : JSON.parse(body as string));
    } catch (error) {
      done(new RequestError(400, `the body is not JSON: ${(error as SyntaxError).message}`), undefined);
    }
  });
  app.setErrorHandler((error: Error, request, reply) => {
    const [status, sentences] = describeError(error);
    if (status === 500 && !('code' in error)) options.log.error(`${nameOf(request)}: ${error.stack}`);
    return refuse(reply, status, `${nameOf(request)}: ${sentences[0]}`, ...sentences.slice(1));
  });
  addRoutes(app, options, streams);
  return app;
}

function addRoutes(app: FastifyInstance, options: ApiOptions, streams: Set<ConsoleStream>): void {
  const { control, version, compileSchemas = true } = options;
  const document = createOpenApi(version);
  app.addSchema({ $id: DOCUMENT, components: document.components });
  app.addHook('onSend', async (_request, reply) => {
    reply.header('server', `ringside/${version}`);
    // Without the charset that the framework adds, as JSON has only one.
    const isJson = reply.statusCode !== 204 && reply.getHeader('content-type') !== STREAM_TYPE;
    if (isJson) reply.header('content-type', 'application/json');
  });
  app.get(`${API_ROOT}/openapi.json`, () => document);
  for (const route of ROUTES) {
    const schema = route.body === undefined ? undefined : { $ref: `${DOCUMENT}#/components/schemas/${route.body}` };
    app.route({
      method: route.method,
      url: `${API_ROOT}/${route.name}`,
      ...(schema === undefined || !compileSchemas ? {} : { schema: { body: schema } }),
      preValidation: async (request) => checkBody(route, request.body),
      handler: async (request, reply) => {
        if (schema !== undefined && !compileSchemas) validate(request, schema);
        const answer = await perform(control, route, request.body);
        if (route.stream !== undefined) return sendStream(reply, answer as ConsoleStream, streams);
        if (route.answer === undefined || answer === undefined) return reply.code(204).send();
        return reply.send(answer);
      },
    });
  }
  app.setNotFoundHandler((request, reply) => {
    const path = request.url.split('?')[0];
    const route = ROUTES.find(({ name }) => path === `${API_ROOT}/${name}`);
    if (route === undefined) return refuse(reply, 404, `there is no route ${request.method} ${path}`);
    return refuse(reply, 400, `${route.name}: the method is ${route.method}, not ${request.method}`);
  });
}

/** What a reader does who hangs up, or does not keep up, is no failure of the API's. */
function sendStream(reply: FastifyReply, stream: ConsoleStream, streams: Set<ConsoleStream>): FastifyReply {
  streams.add(stream);
  stream.once('close', () => streams.delete(stream));
  return reply.header('content-type', STREAM_TYPE).send(stream);
}

/** What the framework does by itself where it compiles schemas beforehand. */
function validate(request: FastifyRequest, schema: object): void {
  const accepts = request.compileValidationSchema(schema, 'body');
  if (!accepts(request.body)) throw toConfigError((accepts.errors ?? []) as unknown as SchemaError[]);
}

function toConfigError([error]: readonly SchemaError[]): VmConfigError {
  if (error === undefined) throw new TypeError('the validator refuses a body and does not say why');
  return new VmConfigError(explainSchemaError(error));
}

function checkBody(route: Route, body: unknown): void {
  if (route.body === undefined && route.method === 'PUT' && body !== undefined) {
    throw new RequestError(400, 'the request has a body, and nothing is to be said here');
  }
  if (route.body !== undefined && body === undefined) {
    throw new RequestError(400, `the request has no body, and a ${route.body} is needed`);
  }
}

function perform(control: VmmControl, { operation, body: schema }: Route, body: unknown): unknown {
  // What the schema of a route lets through is what its operation takes.
  const operate = control[operation] as (argument?: unknown) => unknown;
  return schema === undefined ? operate.call(control) : operate.call(control, toArgument(schema, body));
}

/** `vm.boot`, of a request for /api/v1/vm.boot. */
function nameOf(request: FastifyRequest): string {
  const path = request.url.split('?')[0] ?? '';
  return path.startsWith(`${API_ROOT}/`) ? path.slice(API_ROOT.length + 1) : path;
}

/** Status and sentences: what was wrong, then what caused it. */
function describeError(error: Error): [status: number, sentences: string[]] {
  const sentences: string[] = [];
  for (let each: unknown = error; each instanceof Error && sentences.length < MAX_SENTENCES; each = each.cause) {
    const sentence = each.message === '' ? each.name : each.message;
    // Whoever caught it may have said it already.
    if (!sentences.some((said) => said.endsWith(sentence))) sentences.push(sentence);
  }
  const code = 'code' in error ? error.code : undefined;
  if (code === 'FST_ERR_CTP_BODY_TOO_LARGE') sentences[0] = `the body is larger than ${MAX_BODY_BYTES} bytes`;
  if (error instanceof VmConfigError) return [400, sentences];
  if (error instanceof VmStateError) return [code === 'VM_NOT_CREATED' ? 404 : 405, sentences];
  if (error instanceof VmNotFoundError) return [404, sentences];
  if (error instanceof VmConflictError) return [409, sentences];
  // What is wrong about a request has its status from the framework, as what it throws for us (a broken stream) has.
  const status = error instanceof RequestError || String(code).startsWith('FST_') || code === 'ECONNRESET';
  return [status && 'statusCode' in error ? Number(error.statusCode) : 500, sentences];
}

function refuse(reply: FastifyReply, status: number, ...sentences: string[]): FastifyReply {
  return reply.code(status).header('content-type', 'application/json').send(JSON.stringify(sentences));
}

/** What is not HTTP, or came too slowly, never gets to a route. */
function answerMalformed(error: NodeJS.ErrnoException, socket: Socket): void {
  if (!socket.writable || error.code === 'ECONNRESET') {
    socket.destroy();
    return;
  }
  const isSlow = error.code === 'ERR_HTTP_REQUEST_TIMEOUT';
  const isLong = error.code === 'HPE_HEADER_OVERFLOW';
  const status = isSlow ? 408 : isLong ? 431 : 400;
  const sentence = isSlow ? `no whole request came within ${REQUEST_TIMEOUT_MS} ms` : `not HTTP: ${error.message}`;
  const body = JSON.stringify([sentence]);
  const head = [`HTTP/1.1 ${status} `, 'Connection: close', 'Content-Type: application/json'];
  head.push(`Content-Length: ${Buffer.byteLength(body)}`);
  socket.end(`${head.join('\r\n')}\r\n\r\n${body}`, () => socket.destroy());
}
