/**
 * docs/benchmarks.md: a section for each part of the benchmark. A run that measures one part rewrites its section and keeps the
 * others', which are found by the comments around it; each section names machine, versions and day of its own.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import {
  describeMet,
  describeTarget,
  type Footprint,
  formatCompared,
  formatSpread,
  type PartResults,
} from './results.ts';

export type PartName = 'blk' | 'rings' | 'net' | 'vsock' | 'vm' | 'migration';

/** In the order of the report. */
export const PART_NAMES: readonly PartName[] = ['blk', 'rings', 'net', 'vsock', 'vm', 'migration'];

export type Sections = Partial<Record<PartName, string>>;

const HEAD = `# Benchmarks

Written by \`scripts/bench --report\`; do not edit.`;

function marks(part: PartName): { begin: string; end: string } {
  return { begin: `<!-- ${part}: begin -->`, end: `<!-- ${part}: end -->` };
}

/** The sections of a report as it was written. */
export function findSections(report: string): Sections {
  const sections: Sections = {};
  for (const part of PART_NAMES) {
    const { begin, end } = marks(part);
    const [from, to] = [report.indexOf(begin), report.indexOf(end)];
    if (from >= 0 && to > from) sections[part] = report.slice(from + begin.length, to).trim();
  }
  return sections;
}

export function joinSections(sections: Sections): string {
  const parts = PART_NAMES.flatMap((part) => {
    const text = sections[part];
    const { begin, end } = marks(part);
    return text === undefined ? [] : [`${begin}\n\n${text}\n\n${end}`];
  });
  return `${[HEAD, ...parts].join('\n\n')}\n`;
}

/** Writes the new sections into the report and keeps the others. */
export function writeReport(file: string, sections: Sections): void {
  const before = existsSync(file) ? findSections(readFileSync(file, 'utf8')) : {};
  writeFileSync(file, joinSections({ ...before, ...sections }));
}

export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`;
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n');
}

/** Two lines on machine and versions; `more` is what else matters for a part. */
export function machineLines({ machine }: PartResults, more?: string): string {
  const versions = Object.entries(machine.versions).map(([name, version]) => `${name} ${version}`);
  const { date, cpu, cores, memoryGigabytes, kernel } = machine;
  const facts = [date, `${cpu}, ${cores} cores, ${memoryGigabytes} GB`, `Linux ${kernel}`, ...(more ? [more] : [])];
  return [`* ${facts.join('; ')}`, `* ${versions.join('; ')}`].join('\n');
}

/** A line for each target of the rows; `comparison` heads what ours is to the other. */
export function targetTable({ rows }: PartResults, comparison: string): string {
  const lines = rows.flatMap((row) => {
    const unit = row.workload.unit;
    const ours = row.cells.find((cell) => cell.contestant === row.workload.contestants[0]);
    return row.verdicts.map((verdict) => [
      row.workload.title,
      ours ? formatSpread(ours.spread, unit) : '',
      verdict.to ? `${verdict.to.contestant}: ${formatSpread(verdict.to.spread, unit)}` : '',
      formatCompared(verdict),
      describeTarget(verdict.target, unit),
      describeMet(verdict.met),
    ]);
  });
  return table(['work', 'ringside', 'compared with', comparison, 'target', ''], lines);
}

export interface FootprintTargets {
  idleCpuPercent: number;
  rssMegabytes: number;
  startMs: number;
}

/** Ours, then the others, in the order in which they were measured. */
export function footprintTable(footprints: readonly Footprint[], targets: FootprintTargets): string {
  const ours = footprints.find((footprint) => footprint.contestant === 'ringside');
  const line = (
    what: string,
    show: (footprint: Footprint) => string,
    target = '',
    met?: (ours: Footprint) => boolean,
  ) => [what, ...footprints.map(show), target, met ? describeMet(ours && met(ours)) : ''];
  const start = ({ startMs: { median, min, max } }: Footprint) =>
    `${median.toFixed(0)} ms (${min.toFixed(0)} - ${max.toFixed(0)})`;
  const { idleCpuPercent, rssMegabytes, startMs } = targets;
  return table(
    ['an attached daemon', ...footprints.map((footprint) => footprint.contestant), 'target', ''],
    [
      line(
        'idle CPU',
        (f) => `${f.idleCpuPercent.toFixed(2)} %`,
        '0 %',
        (f) => f.idleCpuPercent <= idleCpuPercent,
      ),
      line(
        'RSS, idle',
        (f) => `${f.rssMegabytes.toFixed(0)} MB`,
        `<= ${rssMegabytes} MB`,
        (f) => f.rssMegabytes <= rssMegabytes,
      ),
      line('RSS, idle after load', (f) => `${f.rssAfterLoadMegabytes.toFixed(0)} MB`),
      line('exec to listening', start, `<= ${startMs} ms`, (f) => f.startMs.median <= startMs),
    ],
  );
}

/** The most disturbed run of a part: what others took, in per cent of a core. */
export function disturbance(results: PartResults): string {
  const shares = results.rows.flatMap((row) => row.cells.map((cell) => cell.foreignCpu));
  return (100 * Math.max(0, ...shares)).toFixed(0);
}

/** Each command line once. */
export function commandBlock(results: PartResults): string {
  const seen = new Set(results.rows.flatMap((row) => row.cells.flatMap((cell) => cell.commands)));
  return ['```', ...seen, '```'].join('\n');
}
