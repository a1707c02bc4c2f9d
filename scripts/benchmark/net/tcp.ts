/**
 * TCP between guest and host by iperf3. The guest is tap-guest: a network namespace whose TAP is joined to the back end's rings, the
 * TCP stack is this machine's. User-mode Linux cannot drive passt (which has no channel for the back end's requests), and QEMU without
 * KVM is slower than any of the back ends. The guest is the client both ways: passt takes no connections that it was not told of.
 */
import { readFileSync } from 'node:fs';
import { CommandError } from '../children.ts';
import { watchForeignCpu } from '../foreign.ts';
import type { Run } from '../results.ts';
import { BACK_END_CPU, FRONT_END_CPU, GUEST_ADDRESS, HOST_ADDRESS, PREFIX } from './backends.ts';
import { INTERFACE, type Namespace } from './namespace.ts';
import type { Contestant, NetWorkload } from './workloads.ts';

const SERVER = ['iperf3', '--server', '--one-off', '--version4'];
const OMIT_SECONDS = 1;
/** iperf3's port 5201 and the state of a listening socket, in the columns of /proc/net/tcp. */
const LISTENING = /^ *\d+: [0-9A-F]+:1451 [0-9A-F:]+ 0A /m;

export function isTcp(workload: NetWorkload): boolean {
  return workload.kind === 'tcp-transmit' || workload.kind === 'tcp-receive';
}

/** passt takes segments as long as the MTU, and 65520 is what it proposes; ours segments (TSO), with the MTU of an Ethernet. */
function mtuFor(contestant: Contestant): number {
  return contestant === 'passt' ? 65_520 : 1500;
}

export function guestLine(program: string, socket: string): string[] {
  return [program, INTERFACE, socket];
}

export function clientLine(kind: NetWorkload['kind'], seconds: number): string[] {
  const reverse = kind === 'tcp-receive' ? ['--reverse'] : [];
  const times = ['--time', String(Math.ceil(seconds)), '--omit', String(OMIT_SECONDS)];
  return ['iperf3', '--client', HOST_ADDRESS, '--connect-timeout', '2000', ...times, ...reverse, '--json'];
}

/** What came to the receiver, bits per second, by the report of iperf3's client. */
export function parseIperf(json: string): number {
  const report: { end?: { sum_received?: { bits_per_second: number } }; error?: string } = JSON.parse(json);
  const sum = report.end?.sum_received;
  if (sum === undefined) throw new CommandError(`iperf3: ${report.error ?? 'no result'}`);
  return sum.bits_per_second;
}

/** Attaches a guest with an address, and waits for it. */
export async function startGuest(guest: Namespace, line: readonly string[], contestant: Contestant): Promise<void> {
  guest.start(line, { cpu: FRONT_END_CPU });
  await guest.waitUntil("the guest's TAP", () => guest.hasInterface());
  await guest.run(['ip', 'link', 'set', INTERFACE, 'mtu', String(mtuFor(contestant)), 'up']);
  await guest.run(['ip', 'address', 'add', `${GUEST_ADDRESS}/${PREFIX}`, 'dev', INTERFACE]);
}

/** One transfer. The server shares the back end's core, the client that of the guest. */
export async function transfer(
  host: Namespace,
  guest: Namespace,
  kind: NetWorkload['kind'],
  seconds: number,
): Promise<Run> {
  host.start(SERVER, { cpu: BACK_END_CPU, ends: true });
  await host.waitUntil('iperf3', () => LISTENING.test(readFileSync(`${host.procNet}/tcp`, 'utf8')));
  const foreign = watchForeignCpu();
  const { stdout } = await guest.run(clientLine(kind, seconds), FRONT_END_CPU);
  const bitsPerSecond = parseIperf(stdout);
  return { value: bitsPerSecond, bytesPerSecond: bitsPerSecond / 8, foreignCpu: foreign() };
}
