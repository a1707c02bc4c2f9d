/** One request to an API socket, ours or Cloud Hypervisor's, and what its refusal means. */

import { request } from 'node:http';
import type { Writable } from 'node:stream';

/** The VMM refused, or it is not there. The message is what it said. */
export class ApiError extends Error {
  override readonly name = 'ApiError';
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

export interface ApiRequest {
  readonly socketPath: string;
  readonly method: 'GET' | 'PUT';
  /** Such as `vm.boot`. */
  readonly name: string;
  /** JSON. */
  readonly body?: string;
  /** Without it the answer may take as long as it takes. */
  readonly timeoutMs?: number | undefined;
  readonly interrupted: AbortSignal;
  /** Where an answer goes that has no end; it is not returned then. Stays the caller's. */
  readonly output?: Writable;
}

const UNREACHABLE: Readonly<Record<string, string>> = {
  ENOENT: 'there is no such socket: no VMM runs with it as --api-socket',
  ECONNREFUSED: 'nobody listens there: the VMM is gone',
  ENOTSOCK: 'this is not a socket',
  EACCES: 'this socket belongs to another user',
};

/** Of an answer; a document is some kilobytes long. */
const MAX_ANSWER_BYTES = 16 * 1024 * 1024;

/** The sentences of a refusal: a list in JSON, or text of an older server. */
function describeRefusal(name: string, status: number, text: string): string {
  try {
    const sentences: unknown = JSON.parse(text);
    if (Array.isArray(sentences) && sentences.length > 0) return sentences.join(': ');
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  return `${name}: the VMM answers ${status}${text === '' ? '' : `: ${text.trim()}`}`;
}

/**
 * The body of the answer, or undefined where there is none.
 * @throws ApiError - the VMM cannot be reached, does not answer in time, or refuses
 */
export async function requestApi({
  socketPath,
  method,
  name,
  body,
  timeoutMs,
  interrupted,
  output,
}: ApiRequest): Promise<string> {
  interrupted.throwIfAborted();
  const timeout = timeoutMs === undefined ? undefined : AbortSignal.timeout(timeoutMs);
  const signal = timeout === undefined ? interrupted : AbortSignal.any([timeout, interrupted]);
  const headers = {
    Accept: 'application/json',
    Connection: 'close',
    ...(body === undefined ? {} : { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) }),
  };
  try {
    const [status, text] = await new Promise<[number, string]>((resolve, reject) => {
      const sent = request({ socketPath, method, path: `/api/v1/${name}`, headers, signal }, (response) => {
        if (output !== undefined && response.statusCode === 200) {
          response.once('error', reject);
          response.once('end', () => resolve([200, '']));
          response.pipe(output, { end: false });
          return;
        }
        const chunks: Buffer[] = [];
        let length = 0;
        response.on('data', (chunk: Buffer) => {
          chunks.push(chunk);
          length += chunk.length;
          if (length > MAX_ANSWER_BYTES)
            sent.destroy(new RangeError(`the answer has more than ${MAX_ANSWER_BYTES} bytes`));
        });
        response.once('error', reject);
        response.once('end', () => resolve([response.statusCode ?? 0, Buffer.concat(chunks).toString()]));
      });
      sent.once('error', reject);
      sent.end(body);
    });
    if (status === 200 || status === 204) return text;
    throw new ApiError('API_REFUSED', describeRefusal(name, status, text));
  } catch (error) {
    if (error instanceof ApiError || !(error instanceof Error)) throw error;
    interrupted.throwIfAborted();
    if (timeout?.aborted === true)
      throw new ApiError('API_TIMEOUT', `${name}: no answer from ${socketPath} within ${timeoutMs} ms`);
    const code = 'code' in error ? String(error.code) : '';
    throw new ApiError('API_UNREACHABLE', `${socketPath}: ${UNREACHABLE[code] ?? error.message}`);
  }
}
