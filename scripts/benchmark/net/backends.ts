/** The network back ends under test: their command lines. */
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import type { Children } from '../children.ts';
import { type Daemon, startDaemon } from '../daemons.ts';
import { INTERFACE, type Namespace } from './namespace.ts';
import { testpmdBackEndLine } from './testpmd.ts';

export type BackEnd = 'ringside' | 'ringside-null' | 'dpdk' | 'passt';

/** Core of the back end under test, or of the loop that stands for it. */
export const BACK_END_CPU = 0;
/** Core of the front end, of the guest and of the generator. */
export const FRONT_END_CPU = 1;

export const OUR_DAEMON = path.join('dist', 'backends', 'net', 'main.js');
const PASST = path.join('.cache', 'peers', 'passt', 'usr');
const PASST_LIBRARIES = path.join(PASST, 'lib', 'x86_64-linux-gnu');

/** Addresses of host and guest, in a network of their own. */
export const HOST_ADDRESS = '198.18.0.1';
export const GUEST_ADDRESS = '198.18.0.2';
export const PREFIX = 24;

/** passt's launcher picks the build for the CPU by the name of its own program, which is ld.so's here. */
function passtProgram(): string {
  const isAvx2 = / avx2 /.test(readFileSync('/proc/cpuinfo', 'latin1'));
  return path.join(PASST, 'bin', isAvx2 ? 'passt.avx2' : 'passt');
}

function passtCommand(): string[] {
  return [path.join(PASST_LIBRARIES, 'ld-linux-x86-64.so.2'), '--library-path', PASST_LIBRARIES, passtProgram()];
}

/** As its file says: what `passt --version` prints is lost when its output is a pipe. */
export function passtVersion(): string {
  if (!existsSync(PASST)) return 'not installed';
  return /\d+\.\d+~git[\w.+~-]+/.exec(readFileSync(passtProgram(), 'latin1'))?.[0] ?? 'unknown';
}

/** Why a back end cannot take part; undefined: it can. */
export function whyAbsent(backEnd: BackEnd): string | undefined {
  if (backEnd === 'passt') return existsSync(PASST) ? undefined : `${PASST} is not there`;
  if (backEnd === 'dpdk') return existsSync('/usr/bin/dpdk-testpmd') ? undefined : 'dpdk-testpmd is not installed';
  return existsSync(OUR_DAEMON) ? undefined : `${OUR_DAEMON} is not there`;
}

export function backEndLine(backEnd: BackEnd, socket: string, extra: readonly string[]): string[] {
  const ours = ['node', OUR_DAEMON, `--socket-path=${socket}`];
  switch (backEnd) {
    case 'ringside':
      return [...ours, `--tap=${INTERFACE}`, `--ip=${HOST_ADDRESS}/${PREFIX}`, ...extra];
    case 'ringside-null':
      return [...ours, '--null', ...extra];
    case 'dpdk':
      return testpmdBackEndLine(socket, { main: BACK_END_CPU, polling: BACK_END_CPU });
    case 'passt':
      // The guest reaches the namespace's loopback under the host's address.
      return [
        ...passtCommand(),
        ...['--vhost-user', '--socket', socket, '-f', '--ipv4-only', '--map-host-loopback', HOST_ADDRESS],
        ...['--address', GUEST_ADDRESS, '--netmask', String(PREFIX), '--gateway', HOST_ADDRESS],
      ];
  }
}

/** passt takes its idea of a network from an interface with a default route. */
const PASST_TEMPLATE = `ip link add uplink type veth peer name uplink-peer
ip link set uplink-peer up
ip address add 198.19.0.2/24 dev uplink
ip link set uplink up
ip route add default via 198.19.0.1`;

/** Starts a back end in the namespace; undefined as core: the scheduler's choice. */
export async function startBackEnd(
  children: Children,
  namespace: Namespace,
  backEnd: BackEnd,
  options: { cpu: number | undefined; extra: readonly string[] },
): Promise<Daemon> {
  if (backEnd === 'passt') await namespace.run(['sh', '-ec', PASST_TEMPLATE]);
  const socket = children.newSocketPath();
  // DPDK's threads have cores of their own.
  const cpu = backEnd === 'dpdk' ? undefined : options.cpu;
  const line = namespace.line(backEndLine(backEnd, socket, options.extra), cpu);
  return startDaemon(children, { name: backEnd, line, socket, procNet: namespace.procNet });
}
