/** One VMM as the page's server asks it: requests to its API socket, and the stream of its console. */

import { Agent, type IncomingMessage, request } from 'node:http';

/** Of one answer: a machine with all devices and queues it can have is told in less. */
const MAX_ANSWER_BYTES = 4 * 1024 * 1024;
/** Connections that are kept for the next round. */
const MAX_SOCKETS = 8;

/** The VMM refuses, with the sentences that it gives. */
export class Refusal extends Error {
  override readonly name = 'Refusal';
  readonly code = 'VMM_REFUSES';
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

/** There is nobody to ask, or no answer comes, or none that is one. */
export class Unreachable extends Error {
  override readonly name = 'Unreachable';
  readonly code = 'VMM_UNREACHABLE';
}

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: 'its socket is gone',
  ECONNREFUSED: 'nobody listens at its socket',
  ENOTSOCK: 'this is not a socket',
  EACCES: 'its socket belongs to another user',
  ECONNRESET: 'it hung up',
};

export class ApiClient {
  readonly #socketPath: string;
  readonly #timeoutMs: number;
  readonly #agent = new Agent({ keepAlive: true, maxSockets: MAX_SOCKETS });

  constructor(socketPath: string, timeoutMs: number) {
    this.#socketPath = socketPath;
    this.#timeoutMs = timeoutMs;
  }

  /** What a route answers; undefined where there is nothing to say. @throws Refusal, Unreachable */
  async get(route: string): Promise<unknown> {
    return this.#ask('GET', route, undefined, this.#timeoutMs);
  }

  /** Has something done, which may take `timeoutMs`. @throws Refusal, Unreachable */
  async put(route: string, body?: unknown, timeoutMs = this.#timeoutMs): Promise<void> {
    await this.#ask('PUT', route, body === undefined ? undefined : JSON.stringify(body), timeoutMs);
  }

  /** An answer without an end; aborting `signal` ends it. @throws Refusal, Unreachable */
  async stream(route: string, signal: AbortSignal): Promise<IncomingMessage> {
    const response = await this.#send('GET', route, undefined, signal, false);
    if (response.statusCode === 200) return response;
    throw refusalOf(response.statusCode ?? 0, await collect(response));
  }

  close(): void {
    this.#agent.destroy();
  }

  async #ask(method: 'GET' | 'PUT', route: string, body: string | undefined, timeoutMs: number): Promise<unknown> {
    const timeout = AbortSignal.timeout(timeoutMs);
    let text: string;
    let status: number;
    try {
      const response = await this.#send(method, route, body, timeout, true);
      status = response.statusCode ?? 0;
      text = await collect(response);
    } catch (error) {
      if (timeout.aborted) throw new Unreachable(`no answer within ${timeoutMs} ms`);
      throw toUnreachable(error);
    }
    if (status !== 200 && status !== 204) throw refusalOf(status, text);
    return text === '' ? undefined : parseJson(text);
  }

  #send(
    method: 'GET' | 'PUT',
    route: string,
    body: string | undefined,
    signal: AbortSignal,
    keep: boolean,
  ): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      const headers =
        body === undefined ? {} : { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) };
      const options = { socketPath: this.#socketPath, method, path: `/api/v1/${route}`, headers, signal };
      const sent = request({ ...options, agent: keep ? this.#agent : false }, resolve);
      sent.once('error', (error) => reject(toUnreachable(error)));
      sent.end(body);
    });
  }
}

function toUnreachable(error: unknown): unknown {
  if (!(error instanceof Error) || error instanceof Unreachable) return error;
  const code = 'code' in error ? String(error.code) : '';
  return new Unreachable(REASONS[code] ?? error.message, { cause: error });
}

async function collect(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > MAX_ANSWER_BYTES) throw new Unreachable(`an answer has more than ${MAX_ANSWER_BYTES} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString();
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    if (error instanceof SyntaxError) throw new Unreachable('its answer is not JSON');
    throw error;
  }
}

/** The API's refusals are lists of sentences. */
function refusalOf(status: number, text: string): Refusal {
  let sentences: unknown;
  try {
    sentences = JSON.parse(text);
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  const said = Array.isArray(sentences) ? sentences.filter((each) => typeof each === 'string') : [];
  return new Refusal(status, said.length > 0 ? said.join(': ') : `the VMM answers ${status}`);
}
