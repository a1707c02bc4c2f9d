/** The report's section on the virtual machine monitor. */
import type { ChartSection, Colours } from '../chart.ts';
import { commandBlock, disturbance, machineLines, table } from '../report.ts';
import { describeMet, describeTarget, formatSpread, formatValue, type Row } from '../results.ts';
import { pairwiseRatio } from '../statistics.ts';
import type { VmResults } from './measure.ts';
import { type Contestant, WORKLOADS } from './workloads.ts';

export const COLOURS: Colours = {
  ringside: '#1f6feb',
  qemu: '#e07b39',
} satisfies Record<Contestant, string>;

const KINDS = new Map(WORKLOADS.map(({ name, task }) => [name, task.kind]));

function isOf(row: Row, kind: string): boolean {
  return KINDS.get(row.workload.name) === kind;
}

export function chartSections({ rows }: VmResults): ChartSection[] {
  const of = (kind: string) => rows.filter((row) => isOf(row, kind));
  return [
    { title: 'From exec to the first byte of the guest (less is better)', rows: of('start') },
    { title: "Memory that is not the guest's (less is better)", rows: of('memory') },
    { title: 'An exit to the monitor and back (less is better)', rows: of('exit') },
    { title: 'I/Os per second of the guest (more is better)', rows: of('read') },
  ];
}

function ratioText(row: Row): string {
  const [ours, theirs] = row.cells;
  const ratio = pairwiseRatio(ours?.values ?? [], theirs?.values ?? []);
  return ratio ? `${ratio.median.toFixed(2)}x (${ratio.min.toFixed(2)} - ${ratio.max.toFixed(2)})` : '';
}

function valueTable(results: VmResults): string {
  const lines = results.rows
    .filter((row) => !isOf(row, 'api'))
    .map((row) => {
      const text = (contestant: Contestant, otherwise: string) => {
        const cell = row.cells.find((candidate) => candidate.contestant === contestant);
        return cell ? formatSpread(cell.spread, row.workload.unit) : otherwise;
      };
      const [verdict] = row.verdicts;
      return [
        row.workload.title,
        text('ringside', ''),
        text('qemu', row.workload.contestants.includes('qemu') ? 'no peer' : ''),
        ratioText(row),
        verdict ? describeTarget(verdict.target, row.workload.unit) : '',
        verdict ? describeMet(verdict.met) : '',
      ];
    });
  return table(['', 'ringside', 'QEMU microvm', 'ratio', 'target', ''], lines);
}

function apiTable(results: VmResults): string {
  const lines = results.rows
    .filter((row) => isOf(row, 'api'))
    .flatMap((row) =>
      row.cells.map((cell) => [
        row.workload.title.replace(' (p99)', ''),
        formatValue((cell.p50Us ?? 0) / 1000, 'ms'),
        formatSpread(cell.spread, row.workload.unit),
        ...row.verdicts.flatMap(({ target, met }) => [describeTarget(target, row.workload.unit), describeMet(met)]),
      ]),
    );
  return lines.length > 0 ? table(['request', 'median', 'p99', 'target of the p99', ''], lines) : '';
}

function exitsText({ exits }: VmResults): string {
  if (exits === undefined) return '';
  const { kicks, memoryExits } = exits;
  return `${kicks} reads, each with a kick, an interrupt and its acknowledgement, made ${memoryExits} exits to the monitor for a device
(\`vm.counters\`): ${(memoryExits / kicks).toFixed(2)} for a kick and ${(memoryExits / kicks).toFixed(2)} for an interrupt; the target is 0: ${describeMet(memoryExits === 0)}.`;
}

function methodSection(results: VmResults): string {
  const { rounds, seconds, warmupSeconds, starts, idleSeconds, imageBytes, absent } = results;
  const peer = absent.qemu === undefined ? '' : `\n\nNo peer here: \`${absent.qemu.split('\n')[0]}\`.`;
  return `The peer is QEMU's microvm with \`-accel kvm\`: the same /dev/kvm, the same guest (\`test/support/vm/guest\`, a freestanding program that
polls), the same 128 MiB of shared memory, and for disks the same \`vhost-user-blk\` behind virtio-mmio. QEMU runs its firmware before the guest.
Each value is the median of ${rounds} rounds (smallest - largest); in a round both run once, one after the other, freshly started. A ratio
is the median of those of each round. A run during which other processes took more than 8 % of a core is repeated, at most twice,
and the quietest counts; the most disturbed one in this report had ${disturbance(results)} %.

* **First byte**: \`scripts/benchmark/vm/first-byte.c\` starts the monitor and waits for the first byte of its standard output, which is
  the guest's serial port; the guest writes it before anything else. A run is the median of ${starts} starts.
* **Memory** is RssAnon and RssFile of the monitor; the guest's own is RssShmem. Our API is served and has been asked.
* **CPU time**: ${idleSeconds} s in which the guest is halted, of all threads.
* **API**: one client, one request after the other for ${seconds} s after ${warmupSeconds} s, from the connection, where each request has its own, or the request to the
  whole answer.
* **Exit**: the guest writes to a port or an address at which nothing is, for ${seconds} s.
* **Reads**: about ${seconds} s, of an image of ${imageBytes / 2 ** 20} MiB in the page cache. The monitor is pinned to core 0, the back end to core 1.
  Where /dev/kvm emulates the guest's instructions, its driver takes most of the time.${peer}`;
}

export function renderVm(results: VmResults, chart: string): string {
  return `## Virtual machine

${machineLines(results)}

${valueTable(results)}

![Bar chart of the table above](${chart})

${[apiTable(results), exitsText(results)].filter((text) => text !== '').join('\n\n')}

### How it is measured

${methodSection(results)}

### Commands

${commandBlock(results)}`;
}
