import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formOf } from '@limbeck/client';

const SCHEMA = {
  type: 'object',
  title: 'loss forward_kl',
  required: ['plugin'],
  properties: {
    plugin: { const: 'forward_kl', description: 'Kullback and Leibler' },
    weight: {
      anyOf: [{ type: 'number' }, { $ref: '#/$defs/loss.forward~1kl' }],
      default: 1,
      minimum: 0,
      title: 'Weight',
    },
    top_k: { anyOf: [{ type: 'integer', exclusiveMinimum: 0 }, { type: 'null' }], default: null },
    tail: { $ref: '#/$defs/Tail', description: 'what becomes of the rest' },
    loop: { $ref: '#/$defs/loop' },
  },
  $defs: {
    'loss.forward/kl': { type: 'object', description: 'a schedule' },
    Tail: { type: 'string', enum: ['bucket', 'drop'], description: 'of its own', default: 'bucket' },
    loop: { $ref: '#/$defs/loop' },
  },
};

test('a form has a field for each property, also of a definition', () => {
  const fields = formOf(JSON.stringify(SCHEMA));
  assert.deepEqual(fields, [
    {
      name: 'plugin',
      title: 'plugin',
      description: 'Kullback and Leibler',
      types: [],
      required: true,
      choices: ['forward_kl'],
    },
    {
      name: 'weight',
      title: 'Weight',
      description: 'a schedule',
      types: ['number', 'object'],
      required: false,
      default: 1,
      atLeast: 0,
    },
    {
      name: 'top_k',
      title: 'top_k',
      description: '',
      types: ['integer', 'null'],
      required: false,
      default: null,
      above: 0,
    },
    {
      name: 'tail',
      title: 'tail',
      description: 'what becomes of the rest',
      types: ['string'],
      required: false,
      default: 'bucket',
      choices: ['bucket', 'drop'],
    },
    { name: 'loop', title: 'loop', description: '', types: [], required: false },
  ]);
});

test('what is no schema is refused', () => {
  for (const schema of ['{', '[]', '7']) assert.throws(() => formOf(schema), { reason: 'REQUEST_INVALID' });
  assert.deepEqual(formOf('{}'), []);
});
