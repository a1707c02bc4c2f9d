/**
 * The traffic that interop tests share: pings with a size, streams by iperf3 and files over HTTP, between a guest and
 * the host's side of its interface, or between two guests. What is measured is that data arrives, and arrives whole;
 * speed is never looked at.
 */

import { randomFillSync } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Cleanup } from '../cleanup.ts';
import type { Guest } from '../guest/guest.ts';
import { sha256Of } from '../image.ts';
import { type PeerName, peerPath } from '../peers.ts';
import { type NetworkNamespace, namespacePeers, type Shell } from './namespace.ts';

/** Programs that the guest needs, and the host. */
export const trafficPrograms: readonly PeerName[] = ['iperf3', 'ping', 'ethtool', 'bash'];
export const trafficPeers: readonly PeerName[] = [...trafficPrograms, ...namespacePeers, 'static busybox'];

export const HOST_ADDRESS = '10.7.0.1';
export const HOST_ADDRESS6 = 'fd00:7::1';
export const GUEST_ADDRESS = '10.7.0.2';
export const GUEST_ADDRESS6 = 'fd00:7::2';

/** Bytes of an IPv4 and an ICMP header: what a ping of the size of the MTU leaves for data. */
const PING_OVERHEAD = 28;

export interface Addresses {
  readonly device?: string;
  readonly address?: string;
  readonly address6?: string;
}

/** Sets up an interface of a guest, and waits until it has a carrier. */
export const bringUp = async (guest: Guest, addresses: Addresses = {}): Promise<void> => {
  const { device = 'eth0', address = GUEST_ADDRESS, address6 = GUEST_ADDRESS6 } = addresses;
  // Detecting duplicates takes a second or two, in which the address does not answer.
  await guest.run(`ip link set lo up
    echo 0 >/proc/sys/net/ipv6/conf/${device}/accept_dad
    ip link set ${device} up
    ip addr add ${address}/24 dev ${device}
    ip -6 addr add ${address6}/64 dev ${device}`);
  await guest.waitUntil(`[ "$(cat /sys/class/net/${device}/carrier)" = 1 ]`);
};

/** Three answered pings with packets of `mtu` bytes that nobody may fragment. */
export const ping = async (from: Shell, to: string, mtu = 84): Promise<void> => {
  const output = await from.run(`/usr/bin/ping -n -c 3 -i 0.1 -w 15 -M do -s ${mtu - PING_OVERHEAD} ${to}`);
  if (!output.includes(' 0% packet loss')) throw new Error(`lost pings to ${to}:\n${output}`);
};

/** Starts an iperf3 server on the host's side and waits until it takes clients. */
export const startIperfServer = async (namespace: NetworkNamespace, port = 5201): Promise<void> => {
  const server = namespace.spawn(peerPath('iperf3'), ['--server', '--forceflush', '--port', String(port)]);
  await server.waitFor(/Server listening/, 10_000);
};

/** Streams for a second to the iperf3 server at `to`. @throws Error - when it breaks off, or nothing has arrived. */
export const iperf = async (from: Shell, to: string, extra = ''): Promise<void> => {
  const output = await from.run(`/usr/bin/iperf3 --client ${to} --time 1 --connect-timeout 5000 --json ${extra}`);
  const report = JSON.parse(output) as { end: { sum_received: { bytes: number } } };
  if (!(report.end.sum_received.bytes > 0)) throw new Error(`nothing has arrived:\n${output}`);
};

/** A server that lost its client without a word takes no other: a load has one of its own. */
let nextLoadPort = 5300;

/** Keeps both directions between guest and host busy, for as long as the guest runs. */
export const startLoad = async (namespace: NetworkNamespace, guest: Guest): Promise<void> => {
  const port = nextLoadPort++;
  await startIperfServer(namespace, port);
  await guest.run(
    `/usr/bin/iperf3 --client ${HOST_ADDRESS} --port ${port} --time 600 --bidir --interval 0.1 --forceflush >/tmp/load 2>&1 &`,
  );
  await guest.waitUntil('grep -q bits/sec /tmp/load');
};

/** Packets of each queue of an interface of the guest, by the driver's count. */
export interface QueuePackets {
  readonly rx: readonly number[];
  readonly tx: readonly number[];
}

export const queuePackets = async (guest: Guest, device = 'eth0'): Promise<QueuePackets> => {
  const statistics = await guest.run(`/usr/bin/ethtool -S ${device}`);
  const of = (direction: string): number[] =>
    [...statistics.matchAll(new RegExp(`${direction}_queue_\\d+_packets: (\\d+)`, 'g'))].map(([, count]) =>
      Number(count),
    );
  return { rx: of('rx'), tx: of('tx') };
};

/** Which queues have carried packets between two counts. */
export const busyQueues = (before: QueuePackets, after: QueuePackets): { rx: boolean[]; tx: boolean[] } => ({
  rx: after.rx.map((count, queue) => count > (before.rx[queue] ?? 0)),
  tx: after.tx.map((count, queue) => count > (before.tx[queue] ?? 0)),
});

/** A file of random data that the host's side serves by HTTP. */
export class FileServer {
  readonly sha256: string;
  readonly #namespace: NetworkNamespace;

  private constructor(namespace: NetworkNamespace, sha256: string) {
    this.#namespace = namespace;
    this.sha256 = sha256;
  }

  static async start(cleanup: Cleanup, namespace: NetworkNamespace, sizeBytes: number): Promise<FileServer> {
    const directory = cleanup.directory();
    const data = randomFillSync(Buffer.allocUnsafe(sizeBytes));
    writeFileSync(join(directory, 'data'), data);
    namespace.spawn(peerPath('static busybox'), ['httpd', '-f', '-p', '80', '-h', directory]);
    await namespace.run('until (exec 3<>/dev/tcp/127.0.0.1/80) 2>/dev/null; do sleep 0.02; done', 10_000);
    return new FileServer(namespace, sha256Of(data));
  }

  /** Fetches the file into the guest and returns the SHA-256 of what came. */
  async sendTo(guest: Guest, deadlineMs = 90_000): Promise<string> {
    const output = await guest.run(`${fetch(HOST_ADDRESS, '/tmp/data')}; sha256sum </tmp/data`, deadlineMs);
    return sha256In(output);
  }

  /** Fetches it back out of the guest that has it, and returns the SHA-256 of what came. */
  async receiveFrom(guest: Guest, address = GUEST_ADDRESS, deadlineMs = 90_000): Promise<string> {
    // The one before has the port until it has ended.
    await guest.run('killall httpd 2>/dev/null || true; until httpd -p 80 -h /tmp 2>/dev/null; do usleep 20000; done');
    const output = await this.#namespace.run(`${fetch(address, '/dev/stdout')} | sha256sum`, deadlineMs);
    return sha256In(output);
  }
}

/** QEMU mixes its own messages into a guest's console. */
const sha256In = (output: string): string => /\b[0-9a-f]{64}\b/.exec(output)?.[0] ?? output;

/** By bash, because the wget of a static busybox crashes in its look-up of the port of HTTP. */
const fetch = (address: string, path: string): string => `/usr/bin/bash -e -c '
  exec 3<>/dev/tcp/${address}/80
  printf "GET /data HTTP/1.0\\r\\n\\r\\n" >&3
  while read -r line <&3 && [ "$line" != $(printf "\\r") ]; do :; done
  /bin/busybox cat <&3 >${path}'`;
