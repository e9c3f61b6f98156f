// The signal test vectors: tests/data/signal_vectors, docs/signals.md.
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { create } from '@bufbuild/protobuf';
import { decode, type SignalHeader } from '@limbeck/client';
import { SignalHeaderSchema } from '@limbeck/client/v1';
import { REPOSITORY } from './places.js';

interface Vector {
  header: { vocab_size: number; k: number; temperatures: number[]; target: boolean };
  first_row: number;
  n: number;
  bytes: Record<string, number>;
  ids: number[][];
  codes: number[][];
  tails: (number | string)[][];
  target?: (number | string)[];
  normalised: Record<string, number[][]>;
}

const VECTORS = `${REPOSITORY}tests/data/signal_vectors/`;
export const NAMES = readdirSync(VECTORS).flatMap((file) => /^(.*)\.json$/.exec(file)?.[1] ?? []);
const FIELDS = {
  ids_low: 'idsLow',
  ids_high: 'idsHigh',
  logprobs: 'logprobs',
  tails: 'tails',
  target: 'target',
} as const;
export function read(name: string) {
  const vector = JSON.parse(readFileSync(`${VECTORS}${name}.json`, 'utf8')) as Vector;
  const raw = readFileSync(`${VECTORS}${name}.bin`);
  const packed = {
    firstRow: vector.first_row,
    n: vector.n,
    idsLow: raw,
    idsHigh: raw,
    logprobs: raw,
    tails: raw,
    target: raw,
  };
  let at = 0;
  for (const [name, field] of Object.entries(FIELDS)) {
    packed[field] = raw.subarray(at, (at += vector.bytes[name] ?? 0));
  }
  return { vector, packed, header: headerOf(vector.header) };
}

export function headerOf({ vocab_size, k, temperatures, target }: Vector['header']): SignalHeader {
  const digests = { tokenizerDigest: 'a', weightsDigest: 'b', teacher: 'vectors' };
  return create(SignalHeaderSchema, {
    codec: 'limbeck.topk',
    version: 1,
    vocabSize: vocab_size,
    k,
    temperatures,
    target,
    ...digests,
  });
}

const numbers = (rows: (number | string)[][]): number[] =>
  rows.flat().map((value) => (value === '-Infinity' ? -Infinity : Number(value)));

/** Compares what a vector decodes to with what it should. */
export function check(name: string): void {
  const { vector, packed, header } = read(name);
  const { topK, target } = decode(packed, header);
  assert.deepEqual(target && [...target], vector.target && numbers([vector.target]));
  assert.equal(topK === undefined, vector.header.k === 0);
  if (topK === undefined) return;
  assert.deepEqual([...topK.ids], numbers(vector.ids));
  assert.deepEqual([...topK.codes], numbers(vector.codes));
  assert.deepEqual([...topK.tails], numbers(vector.tails));
  assert.equal(Object.keys(vector.normalised).length, vector.header.temperatures.length);
  for (const [temperature, rows] of Object.entries(vector.normalised)) {
    const { logprobs, tail } = topK.at(Number(temperature));
    numbers(rows).forEach((value, i) => {
      const found = logprobs[i] ?? Number.NaN;
      assert.ok(
        found === value || Math.abs(found - value) < 1e-10 * Math.max(1, Math.abs(value)),
        `${found} for ${value}`,
      );
    });
    for (let row = 0; row < topK.n; row++) {
      const inside = logprobs
        .subarray(row * topK.k, (row + 1) * topK.k)
        .reduce((sum, x) => sum + Math.exp(x), 0);
      assert.ok(Math.abs(inside + Math.exp(tail[row] ?? Number.NaN) - 1) < 1e-6);
    }
  }
}
