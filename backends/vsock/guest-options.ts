/** The fields of guests, as --vm and the file of --config say them. */

import { InvalidArgumentError } from 'commander';

const NAMES = ['guest-cid', 'socket', 'uds-path', 'groups'];

function checkName(name: string): string {
  // Files of other daemons write the names with underscores.
  const plain = name.replaceAll('_', '-');
  if (!NAMES.includes(plain)) throw new InvalidArgumentError(`${name} is not one of ${NAMES.join(', ')}.`);
  return plain;
}

/** The fields of `name=value,name=value`. @throws InvalidArgumentError */
export function parseVm(text: string): Map<string, string> {
  const fields = new Map<string, string>();
  for (const part of text.split(',')) {
    const at = part.indexOf('=');
    if (at < 0) throw new InvalidArgumentError(`name=value is expected in place of "${part}".`);
    const name = checkName(part.slice(0, at));
    if (fields.has(name)) throw new InvalidArgumentError(`${name} is there twice.`);
    fields.set(name, part.slice(at + 1));
  }
  return fields;
}

/** The fields of each guest in `{"vms": [{...}]}`. @throws SyntaxError, InvalidArgumentError */
export function parseConfigFile(text: string): Map<string, string>[] {
  const root: unknown = JSON.parse(text);
  const vms = typeof root === 'object' && root !== null && 'vms' in root ? root.vms : undefined;
  if (!Array.isArray(vms) || vms.length === 0)
    throw new InvalidArgumentError('an object with a list "vms" is expected.');
  return vms.map((vm: unknown, i) => {
    if (typeof vm !== 'object' || vm === null) throw new InvalidArgumentError(`vms[${i}] is not an object.`);
    const fields = new Map<string, string>();
    for (const [name, value] of Object.entries(vm)) {
      const isText = typeof value === 'string' || typeof value === 'number';
      if (!isText) throw new InvalidArgumentError(`vms[${i}].${name} is neither a string nor a number.`);
      fields.set(checkName(name), String(value));
    }
    return fields;
  });
}
