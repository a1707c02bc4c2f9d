/** `ringside vsock bench`: options, peer, run and report. */

import { rmSync } from 'node:fs';
import { extname } from 'node:path';
import { Worker } from 'node:worker_threads';
import { PeerError } from '../../protocol/vhost-user/errors.ts';
import { VIRTIO_VSOCK_MAX_PACKET_BYTES } from '../../protocol/virtio/vsock.ts';
import type { VsockLoadName } from './bench-choices.ts';
import type { CliContext } from './context.ts';
import { Progress } from './progress.ts';
import { formatCount, formatSize, UsageError } from './quantity.ts';
import { type VsockOptions, withVsock } from './vsock-context.ts';
import { VsockLoad, type VsockLoadResult } from './vsock-load.ts';
import type { VsockPeerData, VsockPeerMessage } from './vsock-peer.ts';

export interface VsockBenchOptions extends VsockOptions {
  readonly load: VsockLoadName;
  /** Bytes; default by the load. */
  readonly size?: number;
  readonly connections: number;
  readonly port: number;
  /** The daemon's, for a peer of our own; undefined: somebody else listens. */
  readonly udsPath?: string;
  /** Milliseconds. */
  readonly time: number;
  readonly ramp: number;
  /** Microseconds. */
  readonly poll: number;
  readonly json?: boolean;
}

const DEFAULT_STREAM_BYTES = 64 * 1024;
const DEFAULT_ROUND_TRIP_BYTES = 1;
const PERCENTILES = [50, 90, 99, 99.9] as const;
const PEER_MODULE = new URL(`./vsock-peer${extname(import.meta.url)}`, import.meta.url);

export async function benchVsock(context: CliContext, socket: string, options: VsockBenchOptions): Promise<void> {
  const { load, connections, port, time, ramp, poll, udsPath } = options;
  const sizeBytes = options.size ?? (load === 'rr' ? DEFAULT_ROUND_TRIP_BYTES : DEFAULT_STREAM_BYTES);
  if (sizeBytes < 1 || sizeBytes > VIRTIO_VSOCK_MAX_PACKET_BYTES) {
    throw new UsageError(`--size ${sizeBytes}: a write here has from 1 to ${VIRTIO_VSOCK_MAX_PACKET_BYTES} bytes`);
  }
  if (load === 'accept' && udsPath === undefined) throw new UsageError('--load accept needs --uds-path');
  await withVsock(context, socket, options, { pollMs: poll / 1000 }, async (driver) => {
    const bench = new VsockLoad(driver, {
      load,
      sizeBytes,
      connections,
      port,
      rampMs: ramp,
      durationMs: time,
      timeoutMs: Math.max(options.timeout, 1000),
    });
    const progress = new Progress(context.stderr, load, time, 'time');
    const run = () => bench.run(context.interrupted, (elapsed) => progress.update(elapsed));
    let result: VsockLoadResult;
    try {
      const connectors = load === 'accept' ? connections : 0;
      result = udsPath === undefined ? await run() : await withPeer({ udsPath, port, connectors }, run);
    } finally {
      progress.clear();
    }
    const report =
      options.json === true
        ? JSON.stringify(vsockReportToJson(socket, options, sizeBytes, result), undefined, 2)
        : renderVsockReport(options, sizeBytes, result);
    context.stdout.write(`${report}\n`);
  });
}

/** Runs `use` with a peer on a thread of its own. @throws PeerError - the peer failed */
async function withPeer<T>(data: VsockPeerData, use: () => Promise<T>): Promise<T> {
  let paths: readonly string[] = [];
  const worker = new Worker(PEER_MODULE, { workerData: data, name: 'vsock peer' });
  try {
    let onReady: () => void = () => undefined;
    const ready = new Promise<void>((resolve) => {
      onReady = resolve;
    });
    const failed = new Promise<never>((_, reject) => {
      worker.once('error', reject);
      worker.on('message', (message: VsockPeerMessage) => {
        if ('error' in message) reject(new PeerError(message.error));
        else {
          paths = message.paths;
          onReady();
        }
      });
    });
    await Promise.race([ready, failed]);
    return await Promise.race([use(), failed]);
  } finally {
    await worker.terminate();
    // The thread ended where it was.
    for (const path of paths) rmSync(path, { force: true });
  }
}

function rateOf(count: number, elapsedMs: number): number {
  return elapsedMs > 0 ? (count / elapsedMs) * 1000 : 0;
}

/** The summary for people. */
export function renderVsockReport(options: VsockBenchOptions, sizeBytes: number, result: VsockLoadResult): string {
  const { load, connections } = options;
  const { elapsedMs, bytes, operations, latency } = result;
  const many = `${connections} ${connections === 1 ? 'connection' : 'connections'}`;
  const isStream = load === 'tx' || load === 'rx';
  const what = load === 'connect' || load === 'accept' ? '' : `${formatSize(sizeBytes)} writes, `;
  const lines = [`${load}: ${what}${many}, ${(elapsedMs / 1000).toFixed(2)} s`];
  if (isStream) {
    const rate = rateOf(bytes, elapsedMs);
    const name = load === 'tx' ? 'sent' : 'received';
    lines.push(`  ${name} ${formatSize(rate)}/s (${((rate * 8) / 1e9).toFixed(2)} Gbit/s), ${formatSize(bytes)}`);
  } else {
    const name = load === 'rr' ? 'round trips' : 'connections';
    lines.push(`  ${formatCount(rateOf(operations, elapsedMs))} ${name}/s, ${formatCount(operations)} ${name}`);
  }
  if (latency.count > 0) {
    const us = (nanoseconds: number) => (nanoseconds / 1000).toFixed(1);
    const percentiles = PERCENTILES.map((p) => `p${p} ${us(latency.percentile(p))}`).join(', ');
    lines.push(
      `  latency us: min ${us(latency.min)}, mean ${us(latency.mean)}, ${percentiles}, max ${us(latency.max)}`,
    );
  }
  lines.push(`  ${formatCount(result.kicks)} kicks sent, ${formatCount(result.sleeps)} times asleep`);
  return lines.join('\n');
}

/** The same for programs; units are in the names. */
export function vsockReportToJson(
  socket: string,
  options: VsockBenchOptions,
  sizeBytes: number,
  result: VsockLoadResult,
): Record<string, unknown> {
  const { elapsedMs, bytes, operations, latency } = result;
  const latencyUs = Object.fromEntries(PERCENTILES.map((p) => [`p${p}`, latency.percentile(p) / 1000]));
  return {
    socket,
    load: options.load,
    writeBytes: sizeBytes,
    connections: options.connections,
    queueSize: options.queueSize,
    packed: options.packed === true,
    inOrder: options.inOrder === true,
    seconds: elapsedMs / 1000,
    bytes,
    bytesPerSecond: rateOf(bytes, elapsedMs),
    operations,
    operationsPerSecond: rateOf(operations, elapsedMs),
    ...(latency.count > 0 && {
      latencyUs: { min: latency.min / 1000, mean: latency.mean / 1000, ...latencyUs, max: latency.max / 1000 },
    }),
    kicks: result.kicks,
    sleeps: result.sleeps,
  };
}
