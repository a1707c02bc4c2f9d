/** Options of vhost-user-net. */

import { InvalidArgumentError, Option } from 'commander';
import { IFNAMSIZ } from '../../protocol/sys/tap.ts';
import { VIRTIO_NET_MAX_MTU, VIRTIO_NET_MIN_MTU } from '../../protocol/virtio/net.ts';
import {
  type CoreOptions,
  checkCoreOptions,
  createCommand,
  threadsOption,
  UsageError,
  wholeNumber,
} from '../core/options.ts';
import { parseIpv4, parseIpv6, parseMac } from './addresses.ts';
import { MAX_PAIRS } from './limits.ts';
import type { TapOptions } from './tap-setup.ts';

export interface NetOptions extends CoreOptions, TapOptions {
  /** No TAP. */
  readonly null?: boolean;
  /** The guest's address, 6 bytes. */
  readonly mac?: Uint8Array;
  readonly ctrlVq: boolean;
  readonly threads: number;
  /** Mbit/s; 0 when unknown. */
  readonly speed: number;
}

const EXAMPLES = `
Signals:
  SIGHUP   look at the TAP again; make it again if it was deleted
  SIGTERM  finish what is in flight and exit

Examples:
  vhost-user-net --socket-path=/run/vm1-net.sock --tap=vm1 --ip=192.168.100.1/24
  vhost-user-net --socket-path=/run/vm1-net.sock --tap=vm1 --bridge=br0 --mac=52:54:00:12:34:56 --num-queue-pairs=2

  A TAP for a user without privileges:
  ip tuntap add vm1 mode tap user alice && ip link set vm1 up
`;

function parseFds(text: string): number[] {
  const fds = text.split(',').map(wholeNumber(0, 0x7fff_ffff));
  if (new Set(fds).size !== fds.length) throw new InvalidArgumentError('a descriptor is named twice.');
  return fds;
}

function parseInterface(text: string): string {
  if (!/^[^\s/:]+$/.test(text) || text === '.' || text === '..' || Buffer.byteLength(text) >= IFNAMSIZ) {
    throw new InvalidArgumentError(`an interface name of up to ${IFNAMSIZ - 1} bytes is expected.`);
  }
  return text;
}

/**
 * Parses the command line (without the program's name).
 * @throws UsageError, CommanderError - see toUsageError
 */
export function parseNetOptions(argv: readonly string[], version: string): NetOptions {
  const command = createCommand('vhost-user-net', 'A vhost-user network device on a TAP interface.', version)
    .addOption(
      new Option('--tap <name>', 'TAP interface; made when there is none of this name').argParser(parseInterface),
    )
    .addOption(
      new Option('--tap-fd <number[,number...]>', 'use these inherited TAP queues, one per queue pair')
        .argParser(parseFds)
        .conflicts('tap'),
    )
    .addOption(
      new Option('--null', 'no TAP: drop what the guest sends, receive nothing (measures the rings alone)').conflicts([
        'tap',
        'tapFd',
        'ip',
        'ip6',
        'bridge',
        'hostMac',
      ]),
    )
    .addOption(new Option('--ip <address/prefix>', "IPv4 address of the host's side").argParser(parseIpv4))
    .addOption(new Option('--ip6 <address/prefix>', "IPv6 address of the host's side").argParser(parseIpv6))
    .addOption(new Option('--bridge <name>', 'make the TAP a port of this bridge').argParser(parseInterface))
    .addOption(
      new Option(
        '--mac <address>',
        "the guest's Ethernet address (default: the front end's or the driver's choice)",
      ).argParser(parseMac),
    )
    .addOption(
      new Option(
        '--host-mac <address>',
        'Ethernet address of the TAP (default: for a TAP made here, one that is the same at every start)',
      ).argParser(parseMac),
    )
    .addOption(
      new Option('--mtu <bytes>', 'MTU of the TAP, told to the guest (default: that of the TAP)').argParser(
        wholeNumber(VIRTIO_NET_MIN_MTU, VIRTIO_NET_MAX_MTU),
      ),
    )
    .addOption(
      new Option('--num-queue-pairs <count>', 'most pairs of receive and transmit queues')
        .argParser(wholeNumber(1, MAX_PAIRS))
        .default(1),
    )
    .addOption(threadsOption())
    .option(
      '--ctrl-vq',
      'serve the control queue: for User-mode Linux; QEMU and Cloud Hypervisor serve it themselves',
      false,
    )
    .addOption(
      new Option('--speed <mbit/s>', 'link speed told to the guest; 0 is unknown')
        .argParser(wholeNumber(0, 0x7fff_ffff))
        .default(0),
    )
    .addHelpText('after', EXAMPLES);
  command.parse(argv, { from: 'user' });
  const options = command.opts() as NetOptions;
  checkCoreOptions(options);
  if (options.tap === undefined && options.tapFd === undefined && options.null !== true) {
    throw new UsageError('one of --tap, --tap-fd and --null is needed');
  }
  const { threads, numQueuePairs } = options;
  if (threads > numQueuePairs) {
    throw new UsageError(`--threads=${threads}: --num-queue-pairs=${numQueuePairs} leaves nothing to do for so many`);
  }
  return options;
}
