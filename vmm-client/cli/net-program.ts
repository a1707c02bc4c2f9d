/** The `net` commands, their options and help. */

import { Argument, Command, Option } from 'commander';
import { VIRTIO_NET_MAX_PAIRS } from '../../protocol/virtio/net.ts';
import { VIRTQ_MAX_SIZE } from '../../protocol/virtio/split-ring.ts';
import { DIRECTIONS } from './bench-choices.ts';
import { duration, integer, option, parser, queueOptions, SOCKET, size } from './command-options.ts';
import type { CliContext } from './context.ts';
import { parseIpv4, parseIpv4Prefix, parseMac } from './net-addresses.ts';
import type { NetBenchOptions } from './net-bench.ts';
import type { PcapOptions } from './net-pcap.ts';
import type { PingOptions } from './net-ping.ts';

const mac = parser(parseMac);

/** A command on a network device: its own options, then those that all of them have. */
function netCommand(
  name: string,
  description: string,
  argument: Argument | undefined,
  options: readonly Option[],
): Command {
  const command = new Command(name).description(description).argument('<socket>', SOCKET);
  if (argument !== undefined) command.addArgument(argument);
  for (const each of [...options, ...queueOptions()]) command.addOption(each);
  return command;
}

export function createNetCommands(context: CliContext): Command {
  const net = new Command('net')
    .description('Pings, captures or measures through a network device.')
    .helpCommand(false);
  net.addCommand(
    netCommand(
      'ping',
      'Asks a host whether it is there (ARP, ICMP echo), and answers those who ask us meanwhile.',
      new Argument('<address>', 'IPv4 address of the host').argParser(parser(parseIpv4)),
      [
        option(
          '--ip <address/prefix>',
          'our IPv4 address and the length of its prefix',
          parser(parseIpv4Prefix),
        ).makeOptionMandatory(),
        option('--mac <address>', "our MAC address (default: the device's, or 02:00:00:00:00:02)", mac),
        option('--count <number>', 'packets to send, 0: until interrupted', integer(0, 0xffff_ffff), 4),
        option('--interval <time>', 'time from one to the next', duration, 1000, '1s'),
        option('--wait <time>', 'how long to wait for the last answer', duration, 1000, '1s'),
        option('--size <bytes>', 'data in each packet', size, 56),
      ],
    ).action(async (socket, address, options) => {
      const { pingHost } = await import('./net-ping.ts');
      return pingHost(context, socket, address, options as PingOptions);
    }),
  );
  net.addCommand(
    netCommand(
      'pcap',
      'Writes the packets that arrive to a capture file, until interrupted.',
      new Argument('<file>', 'where to, - is standard output'),
      [
        option('--count <number>', 'packets to capture (default: no limit)', integer(1, Number.MAX_SAFE_INTEGER)),
        option('--seconds <time>', 'how long to capture (default: no limit)', duration),
      ],
    ).action(async (socket, file, options) => {
      const { capturePackets } = await import('./net-pcap.ts');
      return capturePackets(context, socket, file, options as PcapOptions);
    }),
  );
  net.addCommand(
    netCommand('bench', 'Measures a network device: packets and bytes a second.', undefined, [
      new Option('--direction <way>', 'tx: send, rx: count what arrives').choices(DIRECTIONS).default('tx'),
      option('--size <bytes>', 'size of one frame (default: 64, or 65000 with --gso)', size),
      new Option('--gso', 'send TCP for the device to segment (HOST_TSO4), take unsegmented TCP (GUEST_TSO4)'),
      option('--to-mac <address>', 'whom to send to', mac, parseMac('02:00:00:00:00:01'), '02:00:00:00:00:01'),
      option('--seconds <time>', 'how long to measure', duration, 5000, '5s'),
      option('--ramp <time>', 'how long to run before measuring', duration, 500, '500ms'),
      option('--pairs <number>', 'queue pairs to use', integer(1, VIRTIO_NET_MAX_PAIRS), 1),
      option('--batch <packets>', 'packets made available at a time', integer(1, VIRTQ_MAX_SIZE), 32),
      option('--poll <us>', 'microseconds to poll in vain before sleeping', integer(0, 10_000_000), 200),
      new Option('--json', 'print JSON'),
    ]).action(async (socket, options) => {
      const { benchNet } = await import('./net-bench.ts');
      return benchNet(context, socket, options as NetBenchOptions);
    }),
  );
  return net;
}
