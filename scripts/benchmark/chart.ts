/** A bar chart as SVG text: one group a workload, one bar a contestant, a whisker from slowest to fastest run. */
import { formatValue, type Row } from './results.ts';

/** Rows that share a scale. */
export interface ChartSection {
  title: string;
  rows: readonly Row[];
}

/** Colour of each contestant. */
export type Colours = Readonly<Record<string, string>>;

const WIDTH = 920;
const LABEL_WIDTH = 310;
const VALUE_WIDTH = 90;
const BAR_HEIGHT = 15;
const BAR_GAP = 3;
const GROUP_GAP = 14;
const HEAD = 46;
const SECTION_HEAD = 30;
const LEGEND_LINE = 20;
const PLOT_WIDTH = WIDTH - LABEL_WIDTH - VALUE_WIDTH;

function escapeText(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}

function text(x: number, y: number, content: string, attributes = ''): string {
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${attributes}>${escapeText(content)}</text>`;
}

/** Bars are drawn to a scale that the rows of one section share. */
function drawRow(row: Row, top: number, scale: number, colours: Colours): { parts: string[]; height: number } {
  const parts: string[] = [];
  let y = top;
  for (const cell of row.cells) {
    const { median, min, max } = cell.spread;
    const middle = y + BAR_HEIGHT / 2;
    const [length, from, to] = [median * scale, LABEL_WIDTH + min * scale, LABEL_WIDTH + max * scale];
    parts.push(
      `<rect x="${LABEL_WIDTH}" y="${y}" width="${length.toFixed(1)}" height="${BAR_HEIGHT}" fill="${colours[cell.contestant]}"/>`,
    );
    parts.push(`<path d="M${from.toFixed(1)} ${middle}H${to.toFixed(1)}" stroke="#24292f" stroke-width="1"/>`);
    parts.push(text(Math.max(LABEL_WIDTH + length, to) + 6, y + 12, formatValue(median, row.workload.unit)));
    y += BAR_HEIGHT + BAR_GAP;
  }
  const height = y - top;
  parts.push(text(LABEL_WIDTH - 10, top + height / 2 + 3, row.workload.title, 'text-anchor="end"'));
  return { parts, height: height + GROUP_GAP };
}

/** As many lines as it takes; `height` is that of those below the first. */
function drawLegend(sections: readonly ChartSection[], colours: Colours): { parts: string[]; height: number } {
  const rows = sections.flatMap((section) => section.rows);
  const present = new Set(rows.flatMap((row) => row.cells.map((cell) => cell.contestant)));
  const parts: string[] = [];
  let [x, height] = [20, 0];
  for (const contestant of present) {
    const width = 36 + contestant.length * 7;
    if (x + width > WIDTH) [x, height] = [20, height + LEGEND_LINE];
    parts.push(`<rect x="${x}" y="${18 + height}" width="12" height="12" fill="${colours[contestant]}"/>`);
    parts.push(text(x + 17, 28 + height, contestant));
    x += width;
  }
  return { parts, height };
}

export function drawChart(sections: readonly ChartSection[], colours: Colours): string {
  const { parts, height } = drawLegend(sections, colours);
  let y = HEAD + height;
  for (const { title, rows } of sections) {
    const largest = Math.max(0, ...rows.flatMap((row) => row.cells.map((cell) => cell.spread.max)));
    if (largest === 0) continue;
    parts.push(text(LABEL_WIDTH, y + 16, title, 'font-weight="bold"'));
    y += SECTION_HEAD;
    for (const row of rows) {
      const drawn = drawRow(row, y, PLOT_WIDTH / largest, colours);
      parts.push(...drawn.parts);
      y += drawn.height;
    }
  }
  const size = `width="${WIDTH}" height="${y}" viewBox="0 0 ${WIDTH} ${y}"`;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" ${size} font-family="sans-serif" font-size="12" fill="#24292f">`,
    `<rect width="${WIDTH}" height="${y}" fill="#ffffff"/>`,
    ...parts,
    '</svg>',
    '',
  ].join('\n');
}
