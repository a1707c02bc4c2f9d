/** Options of vhost-user-vsock. */

import { readFileSync } from 'node:fs';
import { InvalidArgumentError, Option } from 'commander';
import { SUN_PATH_BYTES } from '../../protocol/sys/unix-socket.ts';
import { VIRTIO_VSOCK_MAX_CID, VIRTIO_VSOCK_MIN_CID } from '../../protocol/virtio/vsock.ts';
import { type CoreOptions, checkCoreOptions, createCommand, UsageError, wholeNumber } from '../core/options.ts';
import type { GuestProfile } from './device.ts';
import { parseConfigFile, parseVm } from './guest-options.ts';
import { DEFAULT_LIMITS, type Limits } from './limits.ts';

/** One guest: its device and where it is served. */
export interface GuestOptions extends GuestProfile {
  /** Path of the vhost-user socket; undefined when it is an inherited descriptor. */
  readonly socketPath?: string;
}

export interface VsockOptions extends CoreOptions {
  readonly guests: readonly GuestOptions[];
  readonly limits: Limits;
}

/** What follows a guest's path at most: `_` and a port of ten digits. */
const SUFFIX_BYTES = 11;
const DEFAULT_GROUP = 'default';
const parseCid = wholeNumber(VIRTIO_VSOCK_MIN_CID, VIRTIO_VSOCK_MAX_CID);

const EXAMPLES = `
Sockets of the host, for a guest with --uds-path=U:
  U             connect, send "CONNECT <port>\\n", read "OK <port>\\n": connected to this port of the guest (stream)
  U.seqpacket   the same with SOCK_SEQPACKET, each line a message
  U_<port>      listen here (stream or SOCK_SEQPACKET) for guests that connect to this port of the host (CID 2)

Signals:
  SIGTERM  close all connections and exit

Examples:
  vhost-user-vsock --socket-path=/run/vm1-vsock.sock --guest-cid=3 --uds-path=/run/vm1.vsock
  vhost-user-vsock --vm guest-cid=3,socket=/run/vm3-vsock.sock,uds-path=/run/vm3.vsock,groups=web+all \\
                   --vm guest-cid=4,socket=/run/vm4-vsock.sock,uds-path=/run/vm4.vsock,groups=all
  vhost-user-vsock --config=guests.json
  {"vms": [{"guest_cid": 3, "socket": "/run/vm3-vsock.sock", "uds_path": "/run/vm3.vsock", "groups": "web+all"}]}
`;

interface Parsed extends CoreOptions {
  readonly guestCid?: number;
  readonly udsPath?: string;
  readonly groups?: ReadonlySet<string>;
  readonly vm?: readonly GuestOptions[];
  readonly config?: string;
  readonly maxConnections: number;
  readonly maxHalfOpen: number;
  readonly bufferSize: number;
  readonly connectTimeout: number;
  readonly closeTimeout: number;
}

/** Names joined by `+`. */
export function parseGroups(text: string): ReadonlySet<string> {
  const names = text.split('+');
  if (names.includes('')) throw new InvalidArgumentError('names joined by + are expected.');
  return new Set(names);
}

/** Path of the host's sockets. */
export function parseUdsPath(text: string): string {
  const longest = SUN_PATH_BYTES - 1 - SUFFIX_BYTES;
  if (text === '' || Buffer.byteLength(text) > longest) {
    throw new InvalidArgumentError(`a path of 1 to ${longest} bytes is expected: _<port> follows it.`);
  }
  return text;
}

/** A guest from its fields by name, as --vm and --config have them. @throws InvalidArgumentError */
export function guestFromFields(fields: ReadonlyMap<string, string>): GuestOptions {
  const need = (name: string): string => {
    const value = fields.get(name);
    if (value === undefined || value === '') throw new InvalidArgumentError(`${name} is missing.`);
    return value;
  };
  const groups = fields.get('groups');
  return {
    guestCid: parseCid(need('guest-cid')),
    socketPath: need('socket'),
    udsPath: parseUdsPath(need('uds-path')),
    groups: groups === undefined ? new Set([DEFAULT_GROUP]) : parseGroups(groups),
  };
}

function collectVm(text: string, before: readonly GuestOptions[] | undefined): readonly GuestOptions[] {
  return [...(before ?? []), guestFromFields(parseVm(text))];
}

/**
 * Parses the command line (without the program's name).
 * @throws UsageError, CommanderError - see toUsageError
 */
export function parseVsockOptions(argv: readonly string[], version: string): VsockOptions {
  const single = ['guestCid', 'udsPath', 'groups', 'socketPath', 'fd', 'client'];
  const command = createCommand(
    'vhost-user-vsock',
    'A vhost-user socket device: sockets between guest and host.',
    version,
  )
    .addOption(new Option('--guest-cid <cid>', 'context id of the guest, from 3').argParser(parseCid))
    .addOption(
      new Option('--uds-path <path>', "the host's end: sockets at and beside this path").argParser(parseUdsPath),
    )
    .addOption(
      new Option('--groups <name[+name...]>', 'groups of the guest (default: "default"); see --vm').argParser(
        parseGroups,
      ),
    )
    .addOption(
      new Option(
        '--vm <guest-cid=,socket=,uds-path=[,groups=]>',
        'a guest; repeated for more. Guests with a group in common may connect to each other by CID',
      )
        .argParser(collectVm)
        .conflicts([...single, 'config']),
    )
    .addOption(new Option('--config <file>', 'guests from a JSON file').conflicts(single))
    .addOption(
      new Option('--max-connections <count>', 'connections of a guest')
        .argParser(wholeNumber(1, 65_536))
        .default(DEFAULT_LIMITS.maxConnections),
    )
    .addOption(
      new Option('--max-half-open <count>', 'connections of a guest, and programs of the host, that wait for an answer')
        .argParser(wholeNumber(1, 65_536))
        .default(DEFAULT_LIMITS.maxHalfOpen),
    )
    .addOption(
      new Option('--buffer-size <bytes>', 'bytes of a connection that wait for a program of the host')
        .argParser(wholeNumber(4096, 16 * 1024 * 1024))
        .default(DEFAULT_LIMITS.bufferSize),
    )
    .addOption(
      new Option('--connect-timeout <ms>', 'how long a connection may take to be made')
        .argParser(wholeNumber(1, 3_600_000))
        .default(DEFAULT_LIMITS.connectTimeout),
    )
    .addOption(
      new Option('--close-timeout <ms>', 'how long either side may take to end one')
        .argParser(wholeNumber(1, 3_600_000))
        .default(DEFAULT_LIMITS.closeTimeout),
    )
    .addHelpText('after', EXAMPLES);
  command.parse(argv, { from: 'user' });
  const parsed = command.opts() as Parsed;
  const { maxConnections, maxHalfOpen, bufferSize, connectTimeout, closeTimeout } = parsed;
  const guests = parsed.vm ?? (parsed.config === undefined ? [singleGuest(parsed)] : guestsOfFile(parsed.config));
  checkGuests(guests);
  return { ...parsed, guests, limits: { maxConnections, maxHalfOpen, bufferSize, connectTimeout, closeTimeout } };
}

function singleGuest(parsed: Parsed): GuestOptions {
  checkCoreOptions(parsed);
  const { guestCid, udsPath, groups, socketPath } = parsed;
  if (guestCid === undefined || udsPath === undefined) throw new UsageError('--guest-cid and --uds-path are needed');
  const profile = { guestCid, udsPath, groups: groups ?? new Set([DEFAULT_GROUP]) };
  return socketPath === undefined ? profile : { ...profile, socketPath };
}

function guestsOfFile(path: string): GuestOptions[] {
  try {
    return parseConfigFile(readFileSync(path, 'utf8')).map((fields) => guestFromFields(fields));
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    throw new UsageError(`--config=${path}: ${error.message}`);
  }
}

function checkGuests(guests: readonly GuestOptions[]): void {
  const unique = (what: string, values: readonly (string | number | undefined)[]): void => {
    const twice = values.find((value, i) => value !== undefined && values.indexOf(value) !== i);
    if (twice !== undefined) throw new UsageError(`two guests have the ${what} ${twice}`);
  };
  unique(
    'CID',
    guests.map((guest) => guest.guestCid),
  );
  unique(
    'path',
    guests.flatMap((guest) => [guest.socketPath, guest.udsPath]),
  );
}
