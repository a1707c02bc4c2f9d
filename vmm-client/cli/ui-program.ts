/** The `ui` command, its options and help. */

import { isIP } from 'node:net';
import { Command, Option } from 'commander';
import { option, parser } from './command-options.ts';
import type { CliContext } from './context.ts';
import { UsageError } from './quantity.ts';

export interface ListenAddress {
  readonly host: string;
  readonly port: number;
}

export interface UiOptions {
  readonly listen: ListenAddress;
  readonly apiSocket?: readonly string[];
  readonly apiDir?: readonly string[];
  readonly tokenFile?: string;
  readonly allowControl?: boolean;
  readonly hostName?: readonly string[];
}

const DEFAULT_LISTEN: ListenAddress = { host: '127.0.0.1', port: 8600 };
const MAX_PORT = 65535;

/** `127.0.0.1:8600`, `[::1]:8600`, `localhost:8600`. @throws UsageError */
export function parseListen(text: string): ListenAddress {
  const match = /^(?:\[([0-9a-f:.]+)\]|([^:[\]]+)):(\d{1,5})$/i.exec(text);
  const host = match?.[1] ?? match?.[2] ?? '';
  const port = Number(match?.[3]);
  const isAddress = match?.[1] === undefined ? isIP(host) === 4 || host === 'localhost' : isIP(host) === 6;
  if (!isAddress || !(port <= MAX_PORT)) {
    throw new UsageError(`'${text}' is not an address and a port, such as 127.0.0.1:8600 or [::1]:8600`);
  }
  return { host, port };
}

/** A name as it is in a Host header, without a port. @throws UsageError */
export function parseHostName(text: string): string {
  if (/^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$/i.test(text) && isIP(text) === 0) return text.toLowerCase();
  throw new UsageError(`'${text}' is not the name of a host`);
}

const repeated = (flags: string, text: string, parse: (value: string) => string): Option => {
  const parseOne = parser(parse);
  return new Option(flags, text).argParser((value, previous: readonly string[] | undefined) => [
    ...(previous ?? []),
    parseOne(value),
  ]);
};

const HELP = `
Without a token the page is for this machine alone, and for looking: every user of the machine can open it. With one,
whoever has the token may open it, from anywhere that the address can be reached; --allow-control needs one.
The connection is not encrypted: go through ssh -L or a proxy with TLS to reach it from elsewhere.

Exit codes: 1 it failed, 2 wrong usage, 130 interrupted, 143 terminated.

Examples:
  ringside ui --api-socket /run/vm1.sock
  (umask 077; openssl rand -hex 32 >token); ringside ui --api-dir /run/vms --token-file token --allow-control
`;

export function createUiCommand(context: CliContext): Command {
  const ui = new Command('ui')
    .description('Serves a web page that shows virtual machines, their queues and consoles.')
    .helpCommand(false);
  for (const each of [
    option('--listen <address:port>', 'where browsers come', parser(parseListen), DEFAULT_LISTEN, '127.0.0.1:8600'),
    repeated('--api-socket <path>', "a VMM's --api-socket; may be repeated", (path) => path),
    repeated('--api-dir <directory>', 'every socket in it; may be repeated', (path) => path),
    new Option('--token-file <path>', 'file with the token that browsers are to give'),
    new Option('--allow-control', 'let the page pause, reboot, shut down, and type at consoles'),
    repeated('--host-name <name>', 'a name besides localhost that leads here; may be repeated', parseHostName),
  ]) {
    ui.addOption(each);
  }
  return ui.addHelpText('after', HELP).action(async (options) => {
    const { serveUi } = await import('./ui-serve.ts');
    return serveUi(context, options as UiOptions);
  });
}
