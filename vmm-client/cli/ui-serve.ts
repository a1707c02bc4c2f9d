/** `ringside ui`: serves the page until it is interrupted. */

import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs';
import { UiOptionsError, UiServer } from '../ui/server.ts';
import { findSockets, socketList } from '../ui/sockets.ts';
import type { CliContext } from './context.ts';
import { UsageError } from './quantity.ts';
import type { UiOptions } from './ui-program.ts';

/** Permission bits of others than the owner. */
const OTHERS = 0o077;
const MAX_TOKEN_BYTES = 4096;

/**
 * Resolves never: the command is interrupted.
 * @throws UsageError - what was asked for cannot be
 * @throws Error with `code` - the address is not to be had
 */
export async function serveUi(context: CliContext, options: UiOptions): Promise<void> {
  const { listen, apiSocket = [], apiDir = [], tokenFile, allowControl = false, hostName = [] } = options;
  if (apiSocket.length + apiDir.length === 0) {
    throw new UsageError('nothing to show: --api-socket or --api-dir is needed');
  }
  const token = tokenFile === undefined ? undefined : readToken(tokenFile);
  // A directory that is not there now is a mistake; one that goes away later is told of.
  if (apiDir.length > 0) tryDirectories(apiDir);
  const log = (line: string): void => void context.stderr.write(`ringside: ${line}\n`);
  const sockets = socketList(apiSocket, apiDir, log);
  let ui: UiServer;
  try {
    ui = await UiServer.listen({ ...listen, sockets, token, control: allowControl, hostNames: hostName, log });
  } catch (error) {
    if (error instanceof UiOptionsError) throw new UsageError(error.message);
    throw error;
  }
  try {
    context.stdout.write(`${ui.url}\n`);
    await new Promise((_, reject) => {
      const onAbort = (): void => reject(context.interrupted.reason);
      if (context.interrupted.aborted) onAbort();
      else context.interrupted.addEventListener('abort', onAbort, { once: true });
    });
  } finally {
    await ui.close();
  }
}

function tryDirectories(directories: readonly string[]): void {
  for (const directory of directories) {
    try {
      findSockets(directory);
    } catch (error) {
      throw unreadable(directory, error);
    }
  }
}

/** `ENOENT: no such file or directory, open 'x'` says it best between colon and comma. */
function unreadable(path: string, error: unknown): UsageError {
  const { message } = error as Error;
  return new UsageError(`${path} cannot be read: ${/^[A-Z0-9]+: ([^,]+)/.exec(message)?.[1] ?? message}`);
}

/** The token in a file that only its owner may read. @throws UsageError */
function readToken(file: string): string {
  let fd: number;
  try {
    fd = openSync(file, 'r');
  } catch (error) {
    throw unreadable(file, error);
  }
  try {
    const { mode, size } = fstatSync(fd);
    if ((mode & OTHERS) !== 0) {
      throw new UsageError(`${file}: others may read it (mode 0${(mode & 0o777).toString(8)}): chmod 600 ${file}`);
    }
    if (size > MAX_TOKEN_BYTES) throw new UsageError(`${file}: ${size} bytes are too many for a token`);
    return readFileSync(fd, 'utf8').trim();
  } finally {
    closeSync(fd);
  }
}
