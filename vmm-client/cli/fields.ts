/** Options whose value is a list of fields, `path=disk.img,readonly=on`, in Cloud Hypervisor's spelling. Pure. */

import { parseInteger, parseSize, UsageError } from './quantity.ts';

/** How the text of each field becomes a value; its keys are the fields that there are. */
export type FieldParsers = Readonly<Record<string, (text: string) => unknown>>;

/** What `parseFields` returns: a field that was not given is not there. */
export type Fields<P extends FieldParsers> = { readonly [K in keyof P]?: ReturnType<P[K]> };

/** Commas between double quotes are part of a value; the quotes are not. @throws UsageError - a quote that does not end */
function split(text: string): string[] {
  const parts = [''];
  let quoted = false;
  for (const character of text) {
    if (character === '"') quoted = !quoted;
    else if (character === ',' && !quoted) parts.push('');
    else parts[parts.length - 1] += character;
  }
  if (quoted) throw new UsageError('a double quote has no end');
  return parts;
}

/**
 * `first` is the field that a value without a name at the beginning is for: `--cpus 4` is `--cpus boot=4`.
 * @throws UsageError - a field that is unknown, twice there, without a value, or of the wrong kind
 */
export function parseFields<P extends FieldParsers>(text: string, parsers: P, first?: keyof P & string): Fields<P> {
  const fields: Record<string, unknown> = {};
  for (const [index, part] of split(text).entries()) {
    const equals = part.indexOf('=');
    const isBare = equals === -1 && index === 0 && first !== undefined;
    const name = isBare ? first : equals === -1 ? part : part.slice(0, equals);
    const value = isBare ? part : equals === -1 ? '' : part.slice(equals + 1);
    const parse = Object.hasOwn(parsers, name) ? parsers[name] : undefined;
    if (parse === undefined) {
      throw new UsageError(`there is no field '${name}'; there are ${Object.keys(parsers).join(', ')}`);
    }
    if (value === '') throw new UsageError(`the field '${name}' has no value`);
    if (Object.hasOwn(fields, name)) throw new UsageError(`the field '${name}' is there twice`);
    try {
      fields[name] = parse(value);
    } catch (error) {
      if (error instanceof UsageError) throw new UsageError(`${name}: ${error.message}`);
      throw error;
    }
  }
  return fields as Fields<P>;
}

export const text = (value: string): string => value;
export const bytes = parseSize;
/** A whole number; what is too much or too little is told by the check of the whole configuration. */
export const count = parseInteger(0, Number.MAX_SAFE_INTEGER);

/** @throws UsageError */
export function toggle(value: string): boolean {
  if (value === 'on' || value === 'true') return true;
  if (value === 'off' || value === 'false') return false;
  throw new UsageError(`'${value}' is neither on (true) nor off (false)`);
}

/** A parser of one of a few words. */
export function oneOf<T extends string>(...words: readonly T[]): (value: string) => T {
  return (value) => {
    const word = words.find((each) => each === value);
    if (word === undefined) throw new UsageError(`'${value}' is not possible; possible is ${words.join(', ')}`);
    return word;
  };
}
