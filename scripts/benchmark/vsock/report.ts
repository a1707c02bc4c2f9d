/** The report's section on the socket device. */
import type { ChartSection, Colours } from '../chart.ts';
import { commandBlock, disturbance, footprintTable, machineLines, table, targetTable } from '../report.ts';
import { formatSpread } from '../results.ts';
import type { VsockResults } from './measure.ts';
import { type Contestant, FOOTPRINT_TARGETS, type VsockWorkload } from './workloads.ts';

export const COLOURS: Colours = {
  ringside: '#1f6feb',
  'vhost-device': '#e07b39',
  socat: '#8a8f98',
  direct: '#b9bec6',
} satisfies Record<Contestant, string>;

export function chartSections({ rows }: VsockResults): ChartSection[] {
  const ofLoad = (...loads: VsockWorkload['load'][]) =>
    rows.filter((row) => loads.includes((row.workload as VsockWorkload).load));
  return [
    { title: 'Streams (more is better)', rows: ofLoad('tx', 'rx') },
    { title: 'Round trips per second (more is better)', rows: ofLoad('rr') },
    { title: 'Connections per second (more is better)', rows: ofLoad('connect') },
  ].filter((section) => section.rows.length > 0);
}

function valueTable(results: VsockResults): string {
  const us = (value: number | undefined) => (value === undefined ? '' : `${value.toFixed(0)} us`);
  const lines = results.rows.flatMap((row) =>
    row.cells.map((cell) => [
      row.workload.title,
      cell.contestant,
      formatSpread(cell.spread, row.workload.unit),
      us(cell.p50Us),
      us(cell.p99Us),
    ]),
  );
  return table(['work', 'who', 'median (smallest - largest)', 'p50', 'p99'], lines);
}

function methodSection(results: VsockResults): string {
  const { rounds, seconds, warmupSeconds } = results;
  return `The host's side is \`scripts/benchmark/vsock/unix-load.c\` behind AF_UNIX sockets, the same for all. Each value is the median of
${rounds} rounds (smallest - largest). In a round every participant runs once, one after the other, freshly started, for ${seconds} s after
${warmupSeconds} s of warm-up. A ratio is the median of those of each round. Nothing is pinned to a core: three processes share them. A run
during which other processes took more than 8 % of a core is repeated, at most twice, and the quietest counts; the most disturbed one in this
report had ${disturbance(results)} %.

* **ringside**: our daemon, and in the guest's place \`ringside vsock bench\`, a virtio-vsock driver in user space: 256 entries a queue, packets
  of up to 64 KiB, buffers of 256 KiB a connection on both sides. What goes out lies in the slots of the ring, what comes in is counted there.
* **socat** is the limit: it relays between two plain Unix sockets in pieces of 64 KiB, a process for each connection. The load in
  the guest's place is unix-load.
* **direct**: the same load on the host's sockets, without a relay.
* **Streams**: writes of 64 KiB as fast as they are taken; what is counted is what the sender gave away, or what the receiver got.
* **Round trips**: one byte on each connection, sent again when it has come back.
* **Connections**: opened, ended, and opened again when the other side has ended it, too; latencies of ringside are those of opening.
* **Idle** is a daemon with a guest attached that listens and hears nothing, 20 s after a transfer.`;
}

export function renderVsock(results: VsockResults, chart: string): string {
  return `## Socket device

${machineLines(results)}

${targetTable(results, 'ratio')}

![Bar chart of the values below](${chart})

${results.footprints.length > 0 ? footprintTable(results.footprints, FOOTPRINT_TARGETS) : ''}

### All values of the socket device

${valueTable(results)}

### How the socket device is measured

${methodSection(results)}

### Commands of the socket device

${commandBlock(results)}`;
}
