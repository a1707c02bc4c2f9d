/** Latency of requests to the HTTP API: bare sockets, because an HTTP client's own time is not to be counted. */
import { createConnection, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { CommandError } from '../children.ts';
import { percentile } from '../statistics.ts';

const ANSWER_TIMEOUT_MS = 10_000;

/** Whether an answer is complete. @throws COMMAND_FAILED - it is not one with status 200 and a length */
export function isWhole(answer: string): boolean {
  const headEnd = answer.indexOf('\r\n\r\n');
  if (headEnd < 0) return false;
  const length = /^content-length: (\d+)\r$/im.exec(answer.slice(0, headEnd + 1))?.[1];
  if (!answer.startsWith('HTTP/1.1 200') || length === undefined) {
    throw new CommandError(`the API answers ${JSON.stringify(answer.slice(0, 200))}`);
  }
  // The API's JSON is ASCII.
  return answer.length >= headEnd + 4 + Number(length);
}

function connect(path: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = createConnection(path, () => resolve(socket));
    socket.setEncoding('latin1').once('error', (error) => reject(new CommandError(`${path}: ${error.message}`)));
  });
}

/** One request and its answer on a connection. @throws COMMAND_FAILED */
function ask(socket: Socket, route: string): Promise<void> {
  return new Promise((resolve, reject) => {
    let answer = '';
    const finish = (error?: Error) => {
      clearTimeout(timer);
      socket.removeAllListeners('data').removeAllListeners('end');
      if (error === undefined) resolve();
      else reject(error);
    };
    const fail = (what: string) => finish(new CommandError(`${route}: ${what}`));
    const timer = setTimeout(() => fail(`no answer within ${ANSWER_TIMEOUT_MS} ms`), ANSWER_TIMEOUT_MS);
    socket.on('end', () => fail('the connection was closed'));
    socket.on('data', (text: string) => {
      answer += text;
      try {
        if (isWhole(answer)) finish();
      } catch (error) {
        finish(error as Error);
      }
    });
    socket.write(`GET /api/v1/${route} HTTP/1.1\r\nHost: localhost\r\n\r\n`);
  });
}

/** Waits until the API answers: it is served a moment after the guest was started. @throws COMMAND_FAILED - within 10 s */
export async function awaitApi(path: string): Promise<void> {
  const deadline = performance.now() + ANSWER_TIMEOUT_MS;
  for (;;) {
    try {
      const socket = await connect(path);
      await ask(socket, 'vmm.ping').finally(() => socket.destroy());
      return;
    } catch (error) {
      if (!(error instanceof CommandError) || performance.now() > deadline) throw error;
      await sleep(5);
    }
  }
}

export interface Latencies {
  count: number;
  p50Us: number;
  p99Us: number;
}

/** Asks for some time, one request after the other; a connection is counted where each request has its own. */
export async function measureLatency(
  path: string,
  route: string,
  keepAlive: boolean,
  seconds: number,
  warmupSeconds: number,
): Promise<Latencies> {
  const latencies: number[] = [];
  const kept = keepAlive ? await connect(path) : undefined;
  try {
    const begin = performance.now() + warmupSeconds * 1000;
    const end = begin + seconds * 1000;
    for (let now = performance.now(); now < end; ) {
      const socket = kept ?? (await connect(path));
      await ask(socket, route);
      const after = performance.now();
      if (now >= begin) latencies.push((after - now) * 1000);
      if (kept === undefined) socket.destroy();
      now = performance.now();
    }
  } finally {
    kept?.destroy();
  }
  return { count: latencies.length, p50Us: percentile(latencies, 50), p99Us: percentile(latencies, 99) };
}
