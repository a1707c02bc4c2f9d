/**
 * What the programs offer, serve and use, as they say themselves: the daemons are started in each way that changes
 * what they offer, and sent every message; of the front end, the sources are searched for the names of the standards.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SysError } from '../../../protocol/sys/errors.ts';
import { UnixStream } from '../../../protocol/sys/unix-socket.ts';
import { closeAll, Endpoint } from '../../../protocol/vhost-user/endpoint.ts';
import { FRONTEND, type MessageType } from '../../../protocol/vhost-user/messages.ts';
import { EMPTY } from '../../../protocol/vhost-user/payloads.ts';
import { VhostUserFrontend } from '../../../vmm-client/frontend/frontend.ts';
import type { SourceFile } from '../sources.ts';

/** The daemons, by their folders. */
export const DAEMONS = ['blk', 'net', 'vsock'] as const;
export type DaemonName = (typeof DAEMONS)[number];

interface Program {
  /** What it needs to start, without hardware or privileges. */
  options(directory: string): string[];
  /** Options that change what is offered. */
  readonly variants: readonly string[];
}

const DISK_BYTES = 1024 * 1024;

const PROGRAMS: Readonly<Record<DaemonName, Program>> = {
  blk: {
    options: (directory) => [`--blk-file=${makeDisk(directory)}`],
    variants: ['--iommu', '--in-band', '--read-only'],
  },
  net: {
    options: () => ['--null'],
    variants: ['--iommu', '--in-band', '--mac=02:00:00:00:00:01', '--ctrl-vq', '--num-queue-pairs=2'],
  },
  vsock: { options: (directory) => ['--guest-cid=3', `--uds-path=${directory}/v`], variants: ['--iommu', '--in-band'] },
};

/** Feature bits, by the option that the daemon was started with; '' is none. */
export type Masks = ReadonlyMap<string, bigint>;

export interface Observed {
  readonly features: Masks;
  readonly protocolFeatures: Masks;
  /** Names of the messages of the front end that it does not know. */
  readonly unknown: ReadonlySet<string>;
}

/** No standard has it: shows that refusals are seen. */
const NO_MESSAGE = 1000;
const LIFE_MS = 30_000;
const REFUSAL = /([A-Z][A-Z_]+|message \d+) is not supported/g;

function makeDisk(directory: string): string {
  const path = join(directory, 'disk');
  writeFileSync(path, '');
  truncateSync(path, DISK_BYTES);
  return path;
}

/** Starts a daemon, lets `ask` talk to it, stops it. Returns what that returned, and its log. */
async function withDaemon<T>(main: string, options: readonly string[], ask: (socket: string) => Promise<T>) {
  const directory = mkdtempSync(join(tmpdir(), 'conformance-'));
  const socket = join(directory, 'socket');
  let log = '';
  let daemon: ChildProcess | undefined;
  try {
    daemon = spawn(process.execPath, [main, `--socket-path=${socket}`, '--log-format=json', ...options], {
      stdio: ['ignore', 'ignore', 'pipe'],
      timeout: LIFE_MS,
      killSignal: 'SIGKILL',
    });
    daemon.stderr?.setEncoding('utf8').on('data', (text: string) => {
      log += text;
    });
    const ended = once(daemon, 'close');
    const died = ended.then(() => {
      throw new Error('it ended before it was told to');
    });
    died.catch(() => undefined);
    const answer = await Promise.race([ask(socket), died]);
    daemon.kill('SIGTERM');
    const [status] = await ended;
    if (status !== 0) throw new Error(`${main} ended with status ${status}`);
    return { answer, log };
  } catch (error) {
    daemon?.kill('SIGKILL');
    throw new Error(`${main} ${options.join(' ')}: ${(error as Error).message}\n${log}`, { cause: error });
  } finally {
    rmSync(directory, { recursive: true });
  }
}

async function askFeatures(socket: string): Promise<{ features: bigint; protocolFeatures: bigint }> {
  const frontend = await VhostUserFrontend.connect(socket, { waitMs: LIFE_MS });
  const { features, offeredProtocolFeatures } = frontend.capabilities;
  frontend.close();
  return { features, protocolFeatures: offeredProtocolFeatures };
}

/** Sends a message without payload and waits until it was looked at: one that is known is served, or malformed. */
async function sendMessage(socket: string, id: number): Promise<void> {
  const message: MessageType<void> = { id, name: `${id}`, request: EMPTY, fds: { min: 0, max: 0 }, reply: undefined };
  const endpoint = new Endpoint(UnixStream.connect(socket));
  try {
    endpoint.sendRequest(message, undefined);
    endpoint.sendRequest(FRONTEND.GET_FEATURES, undefined);
    for (let reply = await endpoint.next(); reply !== undefined; reply = await endpoint.next()) {
      closeAll(reply.fds);
      if (reply.id === FRONTEND.GET_FEATURES.id) break;
    }
  } catch (error) {
    // The daemon may close the connection with the second message unread.
    if (!(error instanceof SysError)) throw error;
  } finally {
    endpoint.close();
  }
}

/** Starts a daemon of the build in `directory` in all its ways and asks it. @throws Error - it does not answer */
export async function observe(directory: string, name: DaemonName): Promise<Observed> {
  const { options, variants } = PROGRAMS[name];
  const main = join(directory, `dist/backends/${name}/main.js`);
  const features = new Map<string, bigint>();
  const protocolFeatures = new Map<string, bigint>();
  const scratch = mkdtempSync(join(tmpdir(), 'conformance-'));
  let refusals = '';
  try {
    for (const variant of ['', ...variants]) {
      const extra = variant === '' ? [] : [variant];
      const { answer, log } = await withDaemon(main, [...options(scratch), ...extra], async (socket) => {
        const answer = await askFeatures(socket);
        if (variant !== '') return answer;
        const ids = Object.values(FRONTEND).map(({ id }) => id);
        for (const id of [...ids, NO_MESSAGE]) await sendMessage(socket, id);
        return answer;
      });
      features.set(variant, answer.features);
      protocolFeatures.set(variant, answer.protocolFeatures);
      if (variant === '') refusals = log;
    }
  } finally {
    rmSync(scratch, { recursive: true });
  }
  const unknown = new Set([...refusals.matchAll(REFUSAL)].map(([, message]) => message as string));
  if (!unknown.delete(`message ${NO_MESSAGE}`)) throw new Error(`${main} does not say which messages it refuses`);
  return { features, protocolFeatures, unknown };
}

/** Words of the sources in `folders` (files whose path matches), such as `FRONTEND.SET_OWNER` and `VIRTIO_F_VERSION_1`. */
export function wordsOf(sources: readonly SourceFile[], folders: RegExp): ReadonlySet<string> {
  const texts = sources.filter(({ path }) => path.endsWith('.ts') && folders.test(path)).map(({ text }) => text);
  return new Set(texts.flatMap((text) => text.match(/\b(?:FRONTEND\.|BACKEND\.)?[A-Za-z_]\w*/g) ?? []));
}
