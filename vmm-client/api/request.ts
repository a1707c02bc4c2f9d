/**
 * From a JSON body to what an operation is given: what a schema error means in a sentence, and the fields that are left
 * when those that say "none" are dropped.
 */

import { checkConfig } from '../vmm/check-config.ts';
import type { VmConfig } from '../vmm/config.ts';
import { REQUEST_SCHEMAS } from './request-schemas.ts';
import type { Schema } from './schema.ts';

/** What ajv says of the first thing that is wrong (its option `verbose`). */
export interface SchemaError {
  /** A JSON pointer. */
  readonly instancePath: string;
  readonly keyword: string;
  readonly params: Readonly<Record<string, unknown>>;
  readonly data?: unknown;
  readonly parentSchema?: Schema;
}

const SHOWN_CHARACTERS = 64;

/** A value as a sentence shows it: short, on one line, and never as deep as it is. */
function show(value: unknown): string {
  if (Array.isArray(value)) return 'a list';
  if (typeof value === 'object' && value !== null) return 'an object';
  const shown = typeof value === 'string' ? JSON.stringify(value) : String(value);
  return shown.length <= SHOWN_CHARACTERS ? shown : `${shown.slice(0, SHOWN_CHARACTERS)}...`;
}

/** `/disks/0/queue_size` as `disks[0].queue_size`. */
function showPath(pointer: string): string {
  const keys = pointer.split('/').slice(1);
  return keys.reduce((path, escaped) => {
    const key = escaped.replaceAll('~1', '/').replaceAll('~0', '~');
    if (/^\d+$/.test(key)) return `${path}[${key}]`;
    const name = /^\w{1,64}$/.test(key) ? key : show(key);
    return path === '' ? name : `${path}.${name}`;
  }, '');
}

const TYPES: Readonly<Record<string, string>> = {
  integer: 'a whole number',
  string: 'a string',
  boolean: 'true or false',
  object: 'an object',
  array: 'a list',
  null: 'null',
};

/** Where, which value, and what would be possible. */
export function explainSchemaError(error: SchemaError): string {
  const { keyword, params, data, parentSchema = {} } = error;
  const path = showPath(error.instancePath);
  const where = path === '' ? 'the body' : path;
  const absence = parentSchema['x-absent'];
  if (absence !== undefined) return `${where}: ${absence}`;
  switch (keyword) {
    case 'required':
      return `${path === '' ? '' : `${path}.`}${params.missingProperty} is missing`;
    case 'type': {
      const types = [params.type].flat().map((type) => TYPES[String(type)] ?? String(type));
      return `${where}: ${show(data)} is not ${types.join(' or ')}`;
    }
    case 'minimum':
      return `${where}: ${show(data)} is below the minimum of ${params.limit}`;
    case 'maximum':
      return `${where}: ${show(data)} is above the maximum of ${params.limit}`;
    case 'minLength':
      return `${where} is empty`;
    case 'maxLength':
      return `${where}: ${show(data)} is longer than ${params.limit} characters`;
    case 'enum': {
      const hint = parentSchema['x-hint'];
      const values = parentSchema.enum?.map(show).join(', ');
      return `${where}: ${show(data)} is not one of ${values}${hint === undefined ? '' : `; ${hint}`}`;
    }
    default:
      return `${where}: ${show(data)} does not match ${parentSchema.pattern ?? keyword}`;
  }
}

/** What `schema` has a use for in `value`, which it has passed. */
function pick(schema: Schema, value: unknown): unknown {
  const name = schema.$ref?.split('/').at(-1);
  const { properties, items } = (name === undefined ? undefined : REQUEST_SCHEMAS[name]) ?? schema;
  if (Array.isArray(value)) return items === undefined ? value : value.map((each) => pick(items, each));
  if (properties === undefined || typeof value !== 'object' || value === null) return value;
  const picked = Object.entries(value).flatMap(([key, each]) => {
    const property = Object.hasOwn(properties, key) ? properties[key] : undefined;
    if (property === undefined || property['x-absent'] !== undefined || each === null) return [];
    return [[key, pick(property, each)] as const];
  });
  return Object.fromEntries(picked);
}

/**
 * What an operation gets of a body that has passed the schema of the component `name`: the fields that there are, and of a
 * whole configuration all that has a default. @throws VmConfigError - what a schema cannot say is wrong
 */
export function toArgument(name: string, body: unknown): unknown {
  // The schema has seen every field, and what it takes and the operation has not is marked x-absent.
  const picked = pick({ $ref: `#/components/schemas/${name}` }, body);
  return name === 'VmConfig' ? checkConfig(picked as VmConfig) : picked;
}
