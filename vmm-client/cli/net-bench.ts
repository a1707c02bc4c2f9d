/** `ringside net bench`: options, run and report. */

import { PeerError } from '../../protocol/vhost-user/errors.ts';
import {
  ETHERNET_HEADER_BYTES,
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_HDR_F_NEEDS_CSUM,
  VIRTIO_NET_HDR_GSO_NONE,
  VIRTIO_NET_HDR_GSO_TCPV4,
} from '../../protocol/virtio/net.ts';
import { featureMask, hasFeature } from '../../protocol/virtio/reserved-features.ts';
import type { NetDriver } from '../driver/net-driver.ts';
import {
  encodeTcp,
  encodeUdp,
  MAX_IPV4_FRAME_BYTES,
  TCP_CHECKSUM_AT,
  TCP_HEADERS_BYTES,
  TRANSPORT_AT,
  UDP_HEADERS_BYTES,
} from '../packet/ipv4.ts';
import type { Direction } from './bench-choices.ts';
import type { CliContext, QueueOptions } from './context.ts';
import { parseIpv4 } from './net-addresses.ts';
import { DEFAULT_MAC, withNet } from './net-context.ts';
import { type LoadHeader, NetLoad, type NetLoadResult } from './net-load.ts';
import { Progress } from './progress.ts';
import { formatCount, formatSize, UsageError } from './quantity.ts';

export interface NetBenchOptions extends QueueOptions {
  readonly direction: Direction;
  /** Bytes of one frame; default by what is sent. */
  readonly size?: number;
  readonly gso?: boolean;
  readonly toMac: Uint8Array;
  readonly pairs: number;
  readonly batch: number;
  /** Milliseconds. */
  readonly seconds: number;
  readonly ramp: number;
  /** Microseconds. */
  readonly poll: number;
  readonly json?: boolean;
}

const DEFAULT_SIZE = 64;
const DEFAULT_GSO_SIZE = 65_000;
const DEFAULT_MTU = 1500;
/** Bytes of IPv4 and TCP headers: what a segment of the MTU has no room for. */
const SEGMENT_HEADERS_BYTES = 40;
/** Addresses for measurements. Source: RFC 2544, C.2.2. */
const FROM_IP = parseIpv4('198.18.0.1');
const TO_IP = parseIpv4('198.18.0.2');
/** Discard. Source: RFC 863. */
const TO_PORT = 9;
const FROM_PORT = 49152;

export async function benchNet(context: CliContext, socket: string, options: NetBenchOptions): Promise<void> {
  const isGso = options.gso === true;
  const packetBytes = options.size ?? (isGso ? DEFAULT_GSO_SIZE : DEFAULT_SIZE);
  const least = isGso ? TCP_HEADERS_BYTES + 1 : UDP_HEADERS_BYTES;
  const most = MAX_IPV4_FRAME_BYTES;
  if (packetBytes < least || packetBytes > most) {
    throw new UsageError(`--size ${packetBytes}: packets here have from ${least} to ${most} bytes`);
  }
  const sends = options.direction !== 'rx';
  const driverOptions = {
    pairs: options.pairs,
    offloads: isGso ? offloadsOf(options.direction) : 0n,
    mtu: isGso ? DEFAULT_MTU : Math.max(DEFAULT_MTU, packetBytes - ETHERNET_HEADER_BYTES),
  };
  await withNet(context, socket, options, driverOptions, async (driver) => {
    if (isGso) checkOffloads(driver, options.direction);
    else if (sends && packetBytes > driver.maxFrameBytes) {
      throw new UsageError(
        `--size ${packetBytes}: the device takes frames of up to ${driver.maxFrameBytes} bytes (MTU ${driver.config.mtu})`,
      );
    }
    const load = new NetLoad(driver, {
      direction: options.direction,
      batch: options.batch,
      rampMs: options.ramp,
      durationMs: options.seconds,
      pollMs: options.poll / 1000,
      timeoutMs: Math.max(options.timeout, 1000),
      packets: createPackets(driver, options, packetBytes),
      header: createHeader(driver, isGso),
    });
    const progress = new Progress(context.stderr, options.direction, options.seconds, 'time');
    let result: NetLoadResult;
    try {
      result = await load.run(context.interrupted, (elapsed) => progress.update(elapsed));
    } finally {
      progress.clear();
    }
    const report =
      options.json === true
        ? JSON.stringify(netReportToJson(socket, options, packetBytes, result), undefined, 2)
        : renderNetReport(options, packetBytes, result);
    context.stdout.write(`${report}\n`);
  });
}

/** What `--gso` asks for: to send segments to be, and to be sent some. */
function offloadsOf(direction: Direction): bigint {
  const host = direction === 'rx' ? 0n : featureMask(VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4);
  const guest =
    direction === 'tx' ? 0n : featureMask(VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6);
  return host | guest;
}

/** @throws PeerError - the device cannot do what `--gso` needs */
function checkOffloads({ features }: NetDriver, direction: Direction): void {
  const need = (bit: number, name: string) => {
    if (!hasFeature(features, bit)) throw new PeerError(`--gso needs ${name}, which the device does not offer`);
  };
  if (direction !== 'rx') {
    need(VIRTIO_NET_F_CSUM, 'CSUM');
    need(VIRTIO_NET_F_HOST_TSO4, 'HOST_TSO4');
  }
  if (direction !== 'tx') {
    need(VIRTIO_NET_F_GUEST_CSUM, 'GUEST_CSUM');
    need(VIRTIO_NET_F_GUEST_TSO4, 'GUEST_TSO4');
  }
}

/** One packet for each pair: its port tells flows apart. */
function createPackets(driver: NetDriver, options: NetBenchOptions, packetBytes: number): Uint8Array[] {
  const from = { mac: driver.config.mac ?? DEFAULT_MAC, ip: FROM_IP };
  const to = { mac: options.toMac, ip: TO_IP };
  const encode = options.gso === true ? encodeTcp : encodeUdp;
  return driver.transmitQueues.map((_, pair) => encode(from, to, FROM_PORT + pair, TO_PORT, packetBytes));
}

function createHeader(driver: NetDriver, isGso: boolean): LoadHeader {
  if (!isGso) {
    return { flags: 0, gsoType: VIRTIO_NET_HDR_GSO_NONE, headerBytes: 0, gsoSize: 0, csumStart: 0, csumOffset: 0 };
  }
  return {
    flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
    gsoType: VIRTIO_NET_HDR_GSO_TCPV4,
    headerBytes: TCP_HEADERS_BYTES,
    gsoSize: (driver.config.mtu ?? DEFAULT_MTU) - SEGMENT_HEADERS_BYTES,
    csumStart: TRANSPORT_AT,
    csumOffset: TCP_CHECKSUM_AT,
  };
}

interface Rate {
  readonly packets: number;
  readonly bytes: number;
  readonly packetsPerSecond: number;
  readonly bytesPerSecond: number;
}

function rateOf(packets: number, bytes: number, elapsedMs: number): Rate {
  const perSecond = elapsedMs > 0 ? 1000 / elapsedMs : 0;
  return { packets, bytes, packetsPerSecond: packets * perSecond, bytesPerSecond: bytes * perSecond };
}

function ratesOf(options: NetBenchOptions, result: NetLoadResult): { sent?: Rate; received?: Rate } {
  const { direction } = options;
  const { elapsedMs } = result;
  return {
    ...(direction !== 'rx' && { sent: rateOf(result.sentPackets, result.sentBytes, elapsedMs) }),
    ...(direction !== 'tx' && { received: rateOf(result.receivedPackets, result.receivedBytes, elapsedMs) }),
  };
}

/** The summary for people. */
export function renderNetReport(options: NetBenchOptions, packetBytes: number, result: NetLoadResult): string {
  const { elapsedMs } = result;
  const what = options.direction === 'rx' ? '' : `${packetBytes}-byte ${options.gso === true ? 'TSO ' : ''}packets, `;
  const pairs = `${options.pairs} ${options.pairs === 1 ? 'pair' : 'pairs'} of ${options.queueSize} entries`;
  const lines = [
    `${options.direction}: ${what}${pairs}, batches of ${options.batch}, ${(elapsedMs / 1000).toFixed(2)} s`,
  ];
  for (const [name, rate] of Object.entries(ratesOf(options, result))) {
    const bits = ((rate.bytesPerSecond * 8) / 1e9).toFixed(3);
    lines.push(
      `  ${name.padEnd(8)} ${formatCount(rate.packetsPerSecond)} packets/s, ${formatSize(rate.bytesPerSecond)}/s ` +
        `(${bits} Gbit/s), ${formatCount(rate.packets)} packets`,
    );
  }
  if (result.spreadPackets > 0) lines.push(`  ${formatCount(result.spreadPackets)} came in several buffers`);
  if (result.runts > 0) lines.push(`  ${formatCount(result.runts)} were shorter than an Ethernet header`);
  if (result.cutOff > 0) lines.push(`  ${formatCount(result.cutOff)} were cut off when the back end went away`);
  lines.push(`  ${formatCount(result.kicks)} kicks sent, ${formatCount(result.wakeups)} times asleep`);
  return lines.join('\n');
}

/** The same for programs; units are in the names. */
export function netReportToJson(
  socket: string,
  options: NetBenchOptions,
  packetBytes: number,
  result: NetLoadResult,
): Record<string, unknown> {
  return {
    socket,
    direction: options.direction,
    packetBytes,
    gso: options.gso === true,
    pairs: options.pairs,
    queueSize: options.queueSize,
    packed: options.packed === true,
    inOrder: options.inOrder === true,
    batch: options.batch,
    seconds: result.elapsedMs / 1000,
    ...ratesOf(options, result),
    spreadPackets: result.spreadPackets,
    runts: result.runts,
    cutOff: result.cutOff,
    kicks: result.kicks,
    wakeups: result.wakeups,
  };
}
