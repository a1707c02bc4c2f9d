/** The report's section on the network device. */
import type { ChartSection, Colours } from '../chart.ts';
import { commandBlock, disturbance, footprintTable, machineLines, table, targetTable } from '../report.ts';
import { formatSpread, type Row } from '../results.ts';
import type { NetResults } from './measure.ts';
import { type Contestant, FOOTPRINT_TARGETS } from './workloads.ts';

export const COLOURS: Colours = {
  ringside: '#1f6feb',
  'ringside-null': '#8bb8f8',
  dpdk: '#e07b39',
  passt: '#b35fb8',
  'write loop': '#8a8f98',
  'io_uring loop': '#b9bec6',
  'read loop': '#8a8f98',
  'echo loop': '#8a8f98',
} satisfies Record<Contestant, string>;

export function chartSections({ rows }: NetResults): ChartSection[] {
  const isNull = (row: Row) => row.workload.contestants[0] === 'ringside-null';
  const ofUnit =
    (unit: string, prefix = '') =>
    (row: Row) =>
      row.workload.unit === unit && !isNull(row) && row.workload.name.startsWith(prefix);
  return [
    { title: 'Frames per second (more is better)', rows: rows.filter(ofUnit('packets')) },
    { title: 'Frames per second without a TAP: rings alone (a scale of its own)', rows: rows.filter(isNull) },
    {
      title: 'Large frames (more is better)',
      rows: rows.filter((row) => ofUnit('bits')(row) && !ofUnit('bits', 'tcp')(row)),
    },
    { title: 'TCP between a Linux guest and the host (more is better)', rows: rows.filter(ofUnit('bits', 'tcp')) },
    { title: 'Round trip of a ping (less is better)', rows: rows.filter(ofUnit('us')) },
  ];
}

function valueTable(results: NetResults): string {
  const lines = results.rows.flatMap((row) =>
    row.cells.map((cell) => [row.workload.title, cell.contestant, formatSpread(cell.spread, row.workload.unit)]),
  );
  return table(['work', 'who', 'median (smallest - largest)'], lines);
}

function methodSection(results: NetResults): string {
  const { rounds, seconds, warmupSeconds, pings } = results;
  return `Each run has network namespaces of its own. The back end, or the loop that stands for it, is pinned to core 0; front end, guest
and generator to core 1. Each value is the median of ${rounds} rounds (smallest - largest). In a round every participant runs once, one
after the other, freshly started, for ${seconds} s after ${warmupSeconds} s of warm-up. A ratio or a difference is the median of those of each
round. A run during which other processes took more than 8 % of a core is repeated, at most twice, and the quietest counts;
the most disturbed one in this report had ${disturbance(results)} %.

* **The loops** are \`scripts/benchmark/net/tap-load.c\`, 64-byte frames or 65,000-byte TSO frames with the 12-byte virtio-net header: write(2),
  io_uring in batches of 32 with a registered file, read(2) that asks again at once. What comes from the TAP is counted by the kernel, on the
  interface, for loops and back ends alike.
* **Guest to TAP**: DPDK testpmd's txonly on a virtio-user port, split ring of 256 entries. Frames of 65,000 bytes are in 4 pieces and carry
  no TSO mark (testpmd's txonly makes none); the loops' do. Without a TAP (\`--null\`) the frames are counted by testpmd.
* **TAP to guest**: \`packet-load.c\` sends by packet sockets (PACKET_QDISC_BYPASS) and is the guest as well, a virtio-net driver that polls its
  ring between two batches and counts what came: a testpmd that polls would need a core of its own. Buffers are 2 KiB, or pages
  (mergeable) for the 65,000-byte frames. For the loop it only sends.
* **TCP**: iperf3, one connection. The guest is \`tap-guest.c\`: a namespace with a TAP whose frames a small virtio-net driver carries to the
  rings and back, that is, Linux's own TCP with mergeable buffers and the offloads that were negotiated, without a virtual machine. MTU 1500
  with TSO; with passt, which has no TSO, 65520, what it proposes itself. iperf3's server runs beside the back end, the client
  beside the guest. In some runs TCP from the guest to passt comes to a standstill: after a loss, whose cause is not known, passt (which offers no
  SACK) acknowledges only what is sent again, frame by frame, after timeouts. So guest to host all rounds are compared with passt's
  best one, and nothing is decided where that one is below 1 Gbit/s, too.
* **Ping**: ${pings} echo requests, one each millisecond, from a packet socket on the TAP. A guest (testpmd's icmpecho) answers through the
  back end, or the echo loop, a blocking read(2) and a write(2) on a bare TAP. Both sides sleep in between. The sender shares core 0 with who
  answers.
* **Idle** is a daemon with a guest attached that is silent, 20 s after a transfer.`;
}

export function renderNet(results: NetResults, chart: string): string {
  return `## Network device

${machineLines(results)}

${targetTable(results, 'ratio or difference')}

![Bar chart of the values below](${chart})

${results.footprints.length > 0 ? footprintTable(results.footprints, FOOTPRINT_TARGETS) : ''}

### All values

${valueTable(results)}

### How it is measured

${methodSection(results)}

### Commands

${commandBlock(results)}`;
}
