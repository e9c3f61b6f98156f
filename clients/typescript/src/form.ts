// The form of a plugin's config, drawn from its JSON Schema.
import { invalid } from './errors.js';

type Schema = Readonly<Record<string, unknown>>;
type Bounds = Partial<Record<'atLeast' | 'above' | 'atMost' | 'below', number>>;

const BOUNDS: readonly (readonly [string, keyof Bounds])[] = [
  ['minimum', 'atLeast'],
  ['exclusiveMinimum', 'above'],
  ['maximum', 'atMost'],
  ['exclusiveMaximum', 'below'],
];

/** One field of a form. */
export interface FormField {
  readonly name: string;
  readonly title: string;
  readonly description: string;
  /** `number`, `integer`, `string`, `boolean`, `array`, `object`, or several of them; `null`: it may be left empty. */
  readonly types: readonly string[];
  readonly required: boolean;
  readonly default?: unknown;
  /** The only values that are allowed. */
  readonly choices?: readonly unknown[];
  readonly atLeast?: number;
  readonly above?: number;
  readonly atMost?: number;
  readonly below?: number;
}

/** The fields of a config, in their order. `schema`: `Plugin.configSchema`. Throws REQUEST_INVALID for what is none. */
export function formOf(schema: string): FormField[] {
  let root: unknown;
  try {
    root = JSON.parse(schema);
  } catch (error) {
    throw invalid(`is no JSON: ${(error as Error).message}`, 'schema');
  }
  if (!isSchema(root)) throw invalid('is no JSON Schema of an object', 'schema');
  const required = Array.isArray(root.required) ? root.required : [];
  const properties = isSchema(root.properties) ? root.properties : {};
  return Object.entries(properties).map(([name, property]) =>
    fieldOf(name, whole(property, root), root, required.includes(name)),
  );
}

function fieldOf(name: string, schema: Schema, root: Schema, required: boolean): FormField {
  const kinds = [schema, ...alternatives(schema).map((one) => whole(one, root))];
  const known = <T>(key: string, isGood: (value: unknown) => value is T): T | undefined =>
    kinds.map((kind) => kind[key]).find(isGood);
  const bounds: Bounds = {};
  for (const [key, bound] of BOUNDS) {
    const value = known(key, isNumber);
    if (value !== undefined) bounds[bound] = value;
  }
  const choices = kinds.flatMap((kind) => ('const' in kind ? [kind.const] : (kind.enum ?? []))) as unknown[];
  return {
    name,
    title: known('title', isString) ?? name,
    description: known('description', isString) ?? '',
    types: [...new Set(kinds.flatMap((kind) => (kind.type ?? []) as string | string[]))],
    required,
    ...('default' in schema && { default: schema.default }),
    ...(choices.length > 0 && { choices }),
    ...bounds,
  };
}

/** A schema with what it refers to put in; what it says itself counts first. */
function whole(value: unknown, root: Schema, depth = 0): Schema {
  const schema = isSchema(value) ? value : {};
  const { $ref: reference, ...own } = schema;
  if (!isString(reference) || depth > 16) return own;
  const target = reference
    .replace(/^#\/?/, '')
    .split('/')
    .map((part) => part.replaceAll('~1', '/').replaceAll('~0', '~'))
    .reduce<unknown>((at, part) => (isSchema(at) ? at[part] : undefined), root);
  return { ...whole(target, root, depth + 1), ...own };
}

function alternatives(schema: Schema): unknown[] {
  return ['anyOf', 'oneOf', 'allOf'].flatMap((key) => (schema[key] ?? []) as unknown[]);
}

function isSchema(value: unknown): value is Schema {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isNumber(value: unknown): value is number {
  return typeof value === 'number';
}

function isString(value: unknown): value is string {
  return typeof value === 'string';
}
