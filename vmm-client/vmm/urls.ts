/** Where snapshots are and where a migration goes, as requests say it: `file:///DIR`, `unix:PATH`, `tcp:HOST:PORT`. Pure. */

import { fileURLToPath } from 'node:url';
import { VmConfigError } from './errors.ts';

/** The other end of a migration. */
export type PeerAddress =
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number };

/** For a sentence. */
export function nameOfPeer(address: PeerAddress): string {
  return address.kind === 'unix' ? address.path : `${address.host} port ${address.port}`;
}

/** Of sun_path, without the zero byte at its end (unix(7)). */
const MAX_SOCKET_PATH_BYTES = 107;
const MAX_PORT = 65535;

/** The path in `file:///DIR`. `field` is what the sentence names. @throws VmConfigError */
export function parseFileUrl(field: string, url: string): string {
  if (!url.startsWith('file:///')) throw new VmConfigError(`${field}: ${JSON.stringify(url)} is not file:///DIRECTORY`);
  try {
    const path = fileURLToPath(url);
    if (!path.includes('\0')) return path;
  } catch (error) {
    throw new VmConfigError(`${field}: ${JSON.stringify(url)} names no file: ${(error as Error).message}`);
  }
  throw new VmConfigError(`${field} contains a zero byte`);
}

/** Likewise `unix:PATH` and `tcp:HOST:PORT`; an IPv6 address as host is between brackets. @throws VmConfigError */
export function parsePeerUrl(field: string, url: string): PeerAddress {
  const unix = /^unix:(.+)$/s.exec(url)?.[1];
  if (unix !== undefined) {
    const length = Buffer.byteLength(unix);
    if (length > MAX_SOCKET_PATH_BYTES) {
      throw new VmConfigError(`${field}: a path of ${length} bytes, at most ${MAX_SOCKET_PATH_BYTES} are possible`);
    }
    if (unix.includes('\0')) throw new VmConfigError(`${field} contains a zero byte`);
    return { kind: 'unix', path: unix };
  }
  const tcp = /^tcp:(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):(\d{1,5})$/.exec(url);
  if (tcp === null) throw new VmConfigError(`${field}: ${JSON.stringify(url)} is neither unix:PATH nor tcp:HOST:PORT`);
  const port = Number(tcp[3]);
  if (port < 1 || port > MAX_PORT) throw new VmConfigError(`${field}: port ${port} is not from 1 to ${MAX_PORT}`);
  return { kind: 'tcp', host: tcp[1] ?? tcp[2] ?? '', port };
}
