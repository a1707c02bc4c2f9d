import { describe, expect, it } from 'vitest';
import { cellOf, rowOf } from '../../../scripts/benchmark/results.ts';
import { relayLine } from '../../../scripts/benchmark/vsock/backends.ts';
import { commandsOf, type LoadSettings } from '../../../scripts/benchmark/vsock/load.ts';
import { chartSections, renderVsock } from '../../../scripts/benchmark/vsock/report.ts';
import { WORKLOADS } from '../../../scripts/benchmark/vsock/workloads.ts';

const SETTINGS: LoadSettings = { unixLoad: '/x/unix-load', seconds: 2, warmupSeconds: 1, daemonOptions: ['--poll'] };

function workload(name: string) {
  const found = WORKLOADS.find((candidate) => candidate.name === name);
  if (found === undefined) throw new Error(`no workload ${name}`);
  return found;
}

describe('the socket part of the benchmark', () => {
  it('has every load with 1 and 100 connections', () => {
    expect(WORKLOADS.map(({ name, connections }) => [name, connections])).toEqual([
      ['tx', 1],
      ['tx-100', 100],
      ['rx', 1],
      ['rx-100', 100],
      ['rr', 1],
      ['rr-100', 100],
      ['connect', 1],
      ['connect-100', 100],
    ]);
  });

  it('tells what was run', () => {
    expect(commandsOf(workload('rx'), 'ringside', SETTINGS)).toEqual([
      'unix-load serve U 5000',
      'node dist/backends/vsock/main.js --socket-path=SOCKET --guest-cid=3 --uds-path=U --poll',
      'node dist/vmm-client/cli/main.js vsock bench SOCKET --load rx --size 65536 --connections 1 --port 5000 ' +
        '--ramp 1s --time 2s --json',
    ]);
    expect(commandsOf(workload('rr-100'), 'socat', SETTINGS)).toEqual([
      'unix-load serve U 5000',
      'socat -b 65536 UNIX-LISTEN:SOCKET,fork,backlog=4096 UNIX-CONNECT:U_5002',
      'unix-load rr SOCKET 100 1 1000 2000',
    ]);
    expect(commandsOf(workload('connect'), 'direct', SETTINGS)[1]).toBe('unix-load connect U_5000 1 1 1000 2000');
  });

  it('gives the other device its guest', () => {
    const line = ['vhost-device-vsock', '--vm', 'guest-cid=3,socket=S,uds-path=U'];
    expect(relayLine('vhost-device', 'S', 'U', 5000, ['--poll'])).toEqual(line);
  });

  it('judges by the relay between plain sockets', () => {
    const cells = [
      cellOf('ringside', [], [{ value: 5, foreignCpu: 0 }]),
      cellOf('socat', [], [{ value: 10, foreignCpu: 0 }]),
      cellOf('direct', [], [{ value: 100, foreignCpu: 0 }]),
    ];
    const rows = ['tx', 'rr', 'connect'].map((name) => rowOf(workload(name), cells));
    expect(rows.map(({ verdicts }) => verdicts.map(({ met }) => met))).toEqual([[true], [false], []]);
    const machine = { date: '', cpu: '', cores: 2, memoryGigabytes: 1, kernel: '', versions: {} };
    const results = { machine, rounds: 1, seconds: 1, warmupSeconds: 1, rows, footprints: [] };
    expect(chartSections(results).map((section) => section.rows.length)).toEqual([1, 1, 1]);
    expect(renderVsock(results, 'chart.svg')).toContain('0.50x (0.50 - 0.50)');
  });
});
