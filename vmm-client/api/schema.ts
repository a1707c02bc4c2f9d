/** JSON schemas of the OpenAPI document, and what those of requests are made of. */

/** A JSON schema (2020-12, the part that this file uses). */
export interface Schema {
  readonly $ref?: string;
  readonly type?: string | readonly string[];
  readonly enum?: readonly unknown[];
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly additionalProperties?: Schema;
  readonly items?: Schema;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly minLength?: number;
  readonly maxLength?: number;
  readonly pattern?: string;
  readonly default?: unknown;
  readonly description?: string;
  /** Why there is no such thing here. The value has been looked at and is dropped. */
  readonly 'x-absent'?: string;
  /** What else to say when the value is not one of `enum`. */
  readonly 'x-hint'?: string;
}

/** A field that may only say "none", or one of `defaults`. */
export const absent = (reason: string, ...defaults: readonly unknown[]): Schema => ({
  enum: [null, false, [], {}, ...defaults],
  'x-absent': reason,
});
const UNKNOWN = absent('there is no such field');

export type Properties = Readonly<Record<string, Schema>>;

/** Fields that are not named may only say "none". */
export const object = (
  properties: Properties,
  required: readonly string[] = [],
  type: Schema['type'] = 'object',
): Schema => ({
  type,
  properties,
  required,
  additionalProperties: UNKNOWN,
});
/** The same for an object, whose fields take what is listed for each. */
export const absentObject = (reason: string, fields: Readonly<Record<string, readonly unknown[]>>): Schema => ({
  ...object(
    Object.fromEntries(Object.entries(fields).map(([name, defaults]) => [name, absent(reason, ...defaults)])),
    [],
    ['object', 'null'],
  ),
  'x-absent': reason,
});
/** Null is as good as nothing. */
export const optional = (type: string, more: Schema = {}): Schema => ({ ...more, type: [type, 'null'] });
/** Of a component. */
export const list = (name: string): Schema => optional('array', { items: { $ref: `#/components/schemas/${name}` } });
export const flag = (value: boolean): Schema => ({ type: 'boolean', default: value });
export const integer = (limits: { readonly minimum: number; readonly maximum: number }, value?: number): Schema => ({
  type: 'integer',
  ...limits,
  ...(value === undefined ? {} : { default: value }),
});
export const text: Schema = { type: 'string', minLength: 1 };
export const optionalText = optional('string', { minLength: 1 });
