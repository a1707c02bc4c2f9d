import { describe, expect, it } from 'vitest';
import { Histogram } from '../../../../vmm-client/cli/histogram.ts';
import {
  renderVsockReport,
  type VsockBenchOptions,
  vsockReportToJson,
} from '../../../../vmm-client/cli/vsock-bench.ts';
import type { VsockLoadResult } from '../../../../vmm-client/cli/vsock-load.ts';

const OPTIONS: VsockBenchOptions = {
  timeout: 10_000,
  reconnect: 0,
  queueSize: 256,
  buffer: 262_144,
  load: 'tx',
  connections: 1,
  port: 5000,
  time: 2000,
  ramp: 500,
  poll: 0,
};

function result(some: Partial<VsockLoadResult>): VsockLoadResult {
  return { elapsedMs: 2000, bytes: 0, operations: 0, latency: new Histogram(), kicks: 1234, sleeps: 56, ...some };
}

function latencies(...nanoseconds: number[]): Histogram {
  const histogram = new Histogram();
  for (const each of nanoseconds) histogram.record(each);
  return histogram;
}

describe('the report of ringside vsock bench', () => {
  it('has bytes a second of a stream', () => {
    expect(renderVsockReport(OPTIONS, 65_536, result({ bytes: 2 * 1024 ** 3 }))).toBe(
      [
        'tx: 64 KiB writes, 1 connection, 2.00 s',
        '  sent 1 GiB/s (8.59 Gbit/s), 2 GiB',
        '  1,234 kicks sent, 56 times asleep',
      ].join('\n'),
    );
  });

  it('has round trips a second, and how long they take', () => {
    const text = renderVsockReport(
      { ...OPTIONS, load: 'rr', connections: 100 },
      1,
      result({ operations: 5000, latency: latencies(20_000, 20_000) }),
    );
    expect(text).toContain('rr: 1 B writes, 100 connections, 2.00 s\n  2,500 round trips/s, 5,000 round trips\n');
    expect(text).toContain('  latency us: min 20.0, mean 20.0, p50 20');
  });

  it('has connections a second', () => {
    const text = renderVsockReport({ ...OPTIONS, load: 'accept' }, 1, result({ operations: 10 }));
    expect(text).toContain('accept: 1 connection, 2.00 s\n  5 connections/s, 10 connections\n');
  });

  it('has the units in its names as JSON', () => {
    const some = result({ bytes: 3000, operations: 4, latency: latencies(1000) });
    expect(vsockReportToJson('s', { ...OPTIONS, load: 'rr' }, 1, some)).toMatchObject({
      socket: 's',
      load: 'rr',
      writeBytes: 1,
      connections: 1,
      queueSize: 256,
      seconds: 2,
      bytesPerSecond: 1500,
      operationsPerSecond: 2,
      latencyUs: { min: 1, mean: 1, max: 1 },
      kicks: 1234,
      sleeps: 56,
    });
  });

  it('is not spoiled by a run that was interrupted before it was measured', () => {
    expect(vsockReportToJson('s', OPTIONS, 1, result({ elapsedMs: 0 }))).toMatchObject({ bytesPerSecond: 0 });
  });
});
