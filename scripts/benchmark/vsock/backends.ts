/** What stands between the guest and the host's Unix sockets: command lines of the relays under test. */
import { accessSync, constants, existsSync } from 'node:fs';
import path from 'node:path';
import type { Children } from '../children.ts';
import { type Daemon, startDaemon } from '../daemons.ts';
import { commandVersion } from '../machine.ts';
import type { Contestant } from './workloads.ts';

/** A relay that is a process of its own. */
export type Relay = Exclude<Contestant, 'direct'>;

export const OUR_DAEMON = path.join('dist', 'backends', 'vsock', 'main.js');
/** Not packaged by Debian: used where somebody has installed it. */
const VHOST_DEVICE = 'vhost-device-vsock';
const GUEST_CID = 3;

function isInstalled(command: string): boolean {
  return (process.env.PATH ?? '').split(':').some((folder) => {
    try {
      accessSync(path.join(folder, command), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** Why a contestant cannot take part; undefined: it can. */
export function whyAbsent(contestant: Contestant): string | undefined {
  if (contestant === 'ringside') return existsSync(OUR_DAEMON) ? undefined : `${OUR_DAEMON} is not there`;
  if (contestant === 'direct') return undefined;
  const command = contestant === 'socat' ? 'socat' : VHOST_DEVICE;
  return isInstalled(command) ? undefined : `${command} is not installed`;
}

/** Versions of the others, for the report. */
export function peerVersions(): Record<string, string> {
  return {
    socat: commandVersion('dpkg-query', ['-W', 'socat'], /^\S+\s+/),
    ...(whyAbsent('vhost-device') === undefined && {
      'vhost-device-vsock': commandVersion(VHOST_DEVICE, ['--version'], /^\S+\s+/),
    }),
  };
}

/** A relay that listens at `socket` and connects to the host's socket for `port`, which is `udsPath`_`port`. */
export function relayLine(
  relay: Relay,
  socket: string,
  udsPath: string,
  port: number,
  extra: readonly string[],
): string[] {
  switch (relay) {
    case 'ringside':
      return [
        ...['node', OUR_DAEMON, `--socket-path=${socket}`, `--guest-cid=${GUEST_CID}`, `--uds-path=${udsPath}`],
        ...extra,
      ];
    case 'vhost-device':
      return [VHOST_DEVICE, '--vm', `guest-cid=${GUEST_CID},socket=${socket},uds-path=${udsPath}`];
    case 'socat':
      return ['socat', '-b', '65536', `UNIX-LISTEN:${socket},fork,backlog=4096`, `UNIX-CONNECT:${udsPath}_${port}`];
  }
}

export function startRelay(children: Children, relay: Relay, line: readonly string[], socket: string): Promise<Daemon> {
  return startDaemon(children, { name: relay, line, socket });
}
