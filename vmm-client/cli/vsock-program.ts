/** The `vsock` commands, their options and help. */

import { Argument, Command, Option } from 'commander';
import { VIRTIO_VSOCK_HOST_CID, VIRTIO_VSOCK_MAX_CID, VIRTIO_VSOCK_MIN_CID } from '../../protocol/virtio/vsock.ts';
import { VSOCK_LOADS } from './bench-choices.ts';
import { duration, integer, option, queueOptions, SOCKET, size } from './command-options.ts';
import type { CliContext } from './context.ts';
import type { VsockBenchOptions } from './vsock-bench.ts';
import type { VsockConnectOptions } from './vsock-connect.ts';
import type { VsockListenOptions } from './vsock-listen.ts';

/** 2^32 - 1 stands for any port. Source: linux/vm_sockets.h, VMADDR_PORT_ANY. */
const MAX_PORT = 0xffff_fffe;
const MAX_CONNECTIONS = 65_536;

/** A command on a socket device: its own options, then those that all of them have. */
function vsockCommand(
  name: string,
  description: string,
  argument: Argument | undefined,
  options: readonly Option[],
): Command {
  const command = new Command(name).description(description).argument('<socket>', SOCKET);
  if (argument !== undefined) command.addArgument(argument);
  const common = [
    option('--buffer <bytes>', 'what a connection keeps unread, at most', size, 256 * 1024, '256k'),
    option(
      '--guest-cid <cid>',
      "our CID, where the back end's configuration space cannot be read",
      integer(VIRTIO_VSOCK_MIN_CID, VIRTIO_VSOCK_MAX_CID),
    ),
  ];
  for (const each of [...options, ...common, ...queueOptions()]) command.addOption(each);
  return command;
}

const portArgument = (what: string) => new Argument('<port>', what).argParser(integer(0, MAX_PORT));
const seqpacketOption = () =>
  new Option('--seqpacket', 'messages instead of a stream: each piece that is read of the input is one');

export function createVsockCommands(context: CliContext): Command {
  const vsock = new Command('vsock')
    .description("Connects, listens or measures through a socket device, in a guest's place.")
    .helpCommand(false);
  vsock.addCommand(
    vsockCommand(
      'connect',
      'Connects to a port and copies: standard input to it, what comes to standard output.',
      portArgument('port to connect to'),
      [
        option('--cid <cid>', 'whose port: 2 is the host', integer(0, VIRTIO_VSOCK_MAX_CID), VIRTIO_VSOCK_HOST_CID),
        seqpacketOption(),
      ],
    ).action(async (socket, port, options) => {
      const { connectVsock } = await import('./vsock-connect.ts');
      return connectVsock(context, socket, port, options as VsockConnectOptions);
    }),
  );
  vsock.addCommand(
    vsockCommand(
      'listen',
      'Accepts connections, one after the other, and copies what comes to standard output.',
      portArgument('port to listen at'),
      [
        new Option('--once', 'one connection, to which standard input goes, too'),
        new Option('--echo', 'send everything back instead, to many at the same time'),
        seqpacketOption(),
      ],
    ).action(async (socket, port, options) => {
      const { listenVsock } = await import('./vsock-listen.ts');
      return listenVsock(context, socket, port, options as VsockListenOptions);
    }),
  );
  vsock.addCommand(
    vsockCommand('bench', 'Measures a socket device: bytes, round trips, connections a second.', undefined, [
      new Option('--load <name>', 'tx: send, rx: receive, rr: round trips, connect: to the host, accept: from the host')
        .choices(VSOCK_LOADS)
        .default('tx'),
      option('--size <bytes>', 'size of a write (default: 64k, 1 for round trips)', size),
      option('--connections <number>', 'connections at the same time', integer(1, MAX_CONNECTIONS), 1),
      option(
        '--port <port>',
        "the peer's first of three: sink, source, echo; with accept ours",
        integer(0, MAX_PORT - 2),
        5000,
      ),
      new Option('--uds-path <path>', "the daemon's, for a peer of our own (default: somebody else listens)"),
      option('--time <time>', 'how long to measure', duration, 5000, '5s'),
      option('--ramp <time>', 'how long to run before measuring', duration, 500, '500ms'),
      option('--poll <us>', 'microseconds to poll in vain before sleeping', integer(0, 10_000_000), 0),
      new Option('--json', 'print JSON'),
    ]).action(async (socket, options) => {
      const { benchVsock } = await import('./vsock-bench.ts');
      return benchVsock(context, socket, options as VsockBenchOptions);
    }),
  );
  return vsock;
}
