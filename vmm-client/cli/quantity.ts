/** Sizes and durations as people type and read them. Pure. */

/** What the user typed is not what an option takes. Ends in exit code 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
  readonly code = 'USAGE';
}

const SIZE_FACTORS: Readonly<Record<string, number>> = { '': 1, k: 1024, m: 1024 ** 2, g: 1024 ** 3, t: 1024 ** 4 };
const TIME_FACTORS: Readonly<Record<string, number>> = { '': 1000, ms: 1, s: 1000, m: 60_000, h: 3_600_000 };

function parse(text: string, factors: Readonly<Record<string, number>>, pattern: RegExp): number | undefined {
  const match = pattern.exec(text.trim());
  const factor = factors[match?.[2]?.toLowerCase() ?? ''];
  if (match === null || factor === undefined) return undefined;
  return Number(match[1]) * factor;
}

/**
 * Bytes from `4096`, `4k`, `1.5M`, `1GiB`: the suffixes are powers of 1024.
 * @throws UsageError - not a size, or not a whole number of bytes
 */
export function parseSize(text: string): number {
  const bytes = parse(text, SIZE_FACTORS, /^(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?$/i);
  if (bytes === undefined || !Number.isSafeInteger(bytes)) {
    throw new UsageError(`'${text}' is not a size in bytes such as 512, 4k, 16M or 1G`);
  }
  return bytes;
}

/** Milliseconds from `5`, `5s`, `500ms`, `2m`: seconds without a suffix. @throws UsageError */
export function parseDuration(text: string): number {
  const ms = parse(text, TIME_FACTORS, /^(\d+(?:\.\d+)?)\s*(ms|s|m|h|)$/i);
  if (ms === undefined || !Number.isFinite(ms)) {
    throw new UsageError(`'${text}' is not a duration such as 5s, 500ms or 2m`);
  }
  return ms;
}

/** A parser of whole numbers from `min` to `max`. */
export function parseInteger(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (!(value >= min && value <= max)) throw new UsageError(`'${text}' is not a whole number from ${min} to ${max}`);
    return value;
  };
}

/** Bytes for people: at most four digits and a binary unit, such as `1.5 MiB`. */
export function formatSize(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = Number.isInteger(value) || value >= 1000 ? 0 : value >= 100 ? 1 : 2;
  const text = value.toFixed(digits);
  return `${text.includes('.') ? text.replace(/\.?0+$/, '') : text} ${units[unit]}`;
}

/** A count with thousands separated by commas. */
export function formatCount(value: number): string {
  return Math.round(value).toLocaleString('en-US');
}
