/** One timed run of one contestant: the host's side, the relay if there is one, the load. */
import type { Children } from '../children.ts';
import { type Daemon, startDaemon } from '../daemons.ts';
import { watchForeignCpu } from '../foreign.ts';
import { buildProgram } from '../programs.ts';
import type { Run } from '../results.ts';
import { type Relay, relayLine, startRelay } from './backends.ts';
import type { Contestant, VsockWorkload } from './workloads.ts';

export interface LoadSettings {
  /** unix-load, compiled. */
  unixLoad: string;
  seconds: number;
  warmupSeconds: number;
  /** Options for our daemon. */
  daemonOptions: readonly string[];
}

const PORT = 5000;
/** Places of unix-load's three listeners behind PORT. */
const PLACES = { tx: 0, connect: 0, rx: 1, rr: 2 } as const;
const RINGSIDE = 'dist/vmm-client/cli/main.js';
const BITS = 8;

/** @throws COMMAND_FAILED - gcc failed */
export function buildUnixLoad(children: Children): Promise<string> {
  return buildProgram(children, 'vsock/unix-load.c', ['latency-histogram.h']);
}

function portOf(workload: VsockWorkload): number {
  return PORT + PLACES[workload.load];
}

function serveLine(program: string, udsPath: string): string[] {
  return [program, 'serve', udsPath, String(PORT)];
}

/** The load from the guest: our driver in user space, for every vhost-user back end. */
function driverLine(workload: VsockWorkload, socket: string, settings: LoadSettings): string[] {
  const { load, writeBytes, connections } = workload;
  return [
    ...['node', RINGSIDE, 'vsock', 'bench', socket, '--load', load, '--size', String(writeBytes)],
    ...['--connections', String(connections), '--port', String(PORT)],
    ...['--ramp', `${settings.warmupSeconds}s`, '--time', `${settings.seconds}s`, '--json'],
  ];
}

function unixLine(program: string, workload: VsockWorkload, socket: string, settings: LoadSettings): string[] {
  const { load, writeBytes, connections } = workload;
  const times = [settings.warmupSeconds, settings.seconds].map((seconds) => String(Math.round(seconds * 1000)));
  return [program, load, socket, String(connections), String(writeBytes), ...times];
}

/** Where the load connects to: the relay's socket, or the host's own. */
function loadLine(
  program: string,
  workload: VsockWorkload,
  contestant: Contestant,
  places: { relay: string; udsPath: string },
  settings: LoadSettings,
): string[] {
  if (contestant === 'direct') {
    return unixLine(program, workload, `${places.udsPath}_${portOf(workload)}`, settings);
  }
  if (contestant === 'socat') return unixLine(program, workload, places.relay, settings);
  return driverLine(workload, places.relay, settings);
}

interface Measured {
  bytesPerSecond: number;
  operationsPerSecond: number;
  latencyUs?: { p50: number; p99: number };
}

/** Runs `use` with somebody behind the Unix sockets at `udsPath`. */
async function withHost<T>(children: Children, program: string, udsPath: string, use: () => Promise<T>): Promise<T> {
  const line = serveLine(program, udsPath);
  const host = await startDaemon(children, { name: 'unix-load', line, socket: `${udsPath}_${PORT + 2}` });
  try {
    return await use();
  } finally {
    await host.stop();
  }
}

/** Runs `use` with a relay, for one workload, that listens. */
export async function withRelay<T>(
  children: Children,
  relay: Relay,
  port: number,
  settings: LoadSettings,
  use: (daemon: Daemon, udsPath: string) => Promise<T>,
): Promise<T> {
  const [socket, udsPath] = [children.newSocketPath(), children.newSocketPath()];
  return withHost(children, settings.unixLoad, udsPath, async () => {
    const line = relayLine(relay, socket, udsPath, port, settings.daemonOptions);
    const daemon = await startRelay(children, relay, line, socket);
    try {
      return await use(daemon, udsPath);
    } finally {
      await daemon.stop();
    }
  });
}

/** One run of the load against a relay that listens, or against the host itself. */
export async function runLoad(
  children: Children,
  workload: VsockWorkload,
  contestant: Contestant,
  places: { relay: string; udsPath: string },
  settings: LoadSettings,
): Promise<Run> {
  const [command = '', ...args] = loadLine(settings.unixLoad, workload, contestant, places, settings);
  const foreign = watchForeignCpu();
  const { stdout } = await children.run(command, args);
  const foreignCpu = foreign();
  const { bytesPerSecond, operationsPerSecond, latencyUs }: Measured = JSON.parse(stdout);
  const isStream = workload.unit === 'bits';
  return {
    value: isStream ? bytesPerSecond * BITS : operationsPerSecond,
    ...(isStream ? { bytesPerSecond } : { p50Us: latencyUs?.p50, p99Us: latencyUs?.p99 }),
    foreignCpu,
  };
}

export function runOnce(
  children: Children,
  workload: VsockWorkload,
  contestant: Contestant,
  settings: LoadSettings,
): Promise<Run> {
  if (contestant === 'direct') {
    const udsPath = children.newSocketPath();
    return withHost(children, settings.unixLoad, udsPath, () =>
      runLoad(children, workload, contestant, { relay: '', udsPath }, settings),
    );
  }
  return withRelay(children, contestant, portOf(workload), settings, (daemon, udsPath) =>
    runLoad(children, workload, contestant, { relay: daemon.socket, udsPath }, settings),
  );
}

/** What is run for a contestant, for the report. */
export function commandsOf(workload: VsockWorkload, contestant: Contestant, settings: LoadSettings): string[] {
  const places = { relay: 'SOCKET', udsPath: 'U' };
  const lines = [serveLine('unix-load', 'U'), loadLine('unix-load', workload, contestant, places, settings)];
  if (contestant !== 'direct') {
    lines.splice(1, 0, relayLine(contestant, 'SOCKET', 'U', portOf(workload), settings.daemonOptions));
  }
  return lines.map((line) => line.join(' '));
}
