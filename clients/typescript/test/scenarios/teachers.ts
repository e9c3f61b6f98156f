import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import type { LimbeckError, ScoreItem } from '@limbeck/client';
import { all, refused } from '../scripted.js';
import { check, NAMES } from '../vectors.js';
import { counted, type Scenarios } from './served.js';

interface Expected {
  sequence: number;
  first_row: number;
  n: number;
  tokens: number[];
  ids: number[][];
  at: Record<string, { logprobs: number[][]; tails: number[] }>;
}

/** Items of `tokens` ids that follow from their number. */
export function itemsOf(count: number, tokens = 200): ScoreItem[] {
  return Array.from({ length: count }, (_, itemId) => ({
    itemId,
    ids: Array.from({ length: tokens }, (_, i) => 5 + ((31 * itemId + 17 * i) % 256)),
    n: tokens - 1,
  }));
}

export const WANT = { topK: 64, target: true };

function close(found: ArrayLike<number>, expected: number[]): void {
  assert.equal(found.length, expected.length);
  expected.forEach((value, i) => {
    assert.ok(
      Object.is(found[i], value) || Math.abs(found[i]! - value) <= 1e-10 * Math.max(1, Math.abs(value)),
    );
  });
}

export const teachers: Scenarios = {
  signal_vectors() {
    assert.ok(NAMES.length >= 8);
    NAMES.forEach(check);
  },

  async stream_signals(served) {
    const { signals, dataset, proxy } = served.facts;
    const lines = readFileSync(signals, 'utf8').trim().split('\n');
    const expected = lines.map((line) => JSON.parse(line) as Expected);
    const client = served.client('score', { address: proxy });
    let count = 0;
    for await (const { sequence, firstRow, n, tokens, signal } of client.signals(dataset, { tokens: true })) {
      const due = expected[count++]!;
      if (count % 10 === 1) await served.drop();
      assert.deepEqual([sequence, firstRow, n], [BigInt(due.sequence), due.first_row, due.n]);
      assert.deepEqual([...tokens.ids], due.tokens);
      const topK = signal.topK!;
      assert.deepEqual([...topK.ids], due.ids.flat());
      assert.deepEqual(topK.temperatures.map(String), Object.keys(due.at));
      for (const temperature of topK.temperatures) {
        const { logprobs, tail } = topK.at(temperature);
        close(logprobs, due.at[String(temperature)]!.logprobs.flat());
        close(tail, due.at[String(temperature)]!.tails);
      }
    }
    assert.equal(count, expected.length);
    const after = BigInt(count - 2);
    const rest = await all(client.signals(dataset, { after }));
    assert.deepEqual(
      rest.map(({ sequence }) => sequence),
      counted(2, after + 1n),
    );
  },

  async score_with_credits(served) {
    const credit = 1 << 20;
    const client = served.client('score');
    const found = new Map<bigint, number>();
    for await (const { itemId, signal } of client.score(served.facts.teacher, itemsOf(100), WANT, {
      credit,
    })) {
      assert.ok(!found.has(itemId));
      found.set(itemId, signal.n);
      assert.equal(signal.target?.length, 199);
      const { logprobs, tail } = signal.topK!.at(1);
      const total = logprobs.subarray(0, 64).reduce((sum, x) => sum + Math.exp(x), Math.exp(tail[0]!));
      assert.ok(Math.abs(total - 1) < 1e-6);
    }
    assert.equal(found.size, 100); // score.test.ts counts what is unread, at a server that counts
  },

  async error_item(served) {
    const items = itemsOf(3);
    items[1] = { itemId: 1, ids: new Int32Array(600).fill(70), n: 5 };
    const client = served.client('score');
    const error = await refused(all(client.score(served.facts.teacher, items, WANT)), 'REQUEST_INVALID');
    assert.deepEqual(
      error.problems.map(({ field }) => field),
      ['item 1'],
    );
    assert.match(error.message, /512/);
    const heard: [bigint, string][] = [];
    const failed = ({ reason }: LimbeckError, itemId: bigint): void => {
      heard.push([itemId, reason]);
    };
    const found = await all(client.score(served.facts.teacher, items, WANT, { failed }));
    assert.deepEqual(new Set(found.map(({ itemId }) => itemId)), new Set([0n, 2n]));
    assert.deepEqual(heard, [[1n, 'REQUEST_INVALID']]);
  },

  async error_teacher_unknown(served) {
    const client = served.client();
    await refused(client.teacher('nobody'), 'TEACHER_UNKNOWN');
    await refused(all(client.score('nobody', itemsOf(1), WANT)), 'TEACHER_UNKNOWN');
    await refused(
      all(client.generate('nobody', [{ itemId: 1, ids: [1] }], { maxNewTokens: 1 })),
      'TEACHER_UNKNOWN',
    );
  },

  async error_teacher_mismatch(served) {
    const client = served.client();
    for (const [field, reason] of [
      ['tokenizerDigest', 'TOKENIZER_MISMATCH'],
      ['weightsDigest', 'TEACHER_MISMATCH'],
    ] as const) {
      const scores = client.score(served.facts.teacher, itemsOf(2), WANT, {
        expect: { [field]: '0'.repeat(64) },
      });
      await refused(scores.next(), reason); // before the first answer
    }
  },

  async error_capability_missing(served) {
    const { teacher } = served.facts;
    const scores = served.client().score(teacher, itemsOf(1), { layers: [-1] });
    await refused(all(scores), 'CAPABILITY_MISSING');
  },

  async error_dataset_unknown(served) {
    await refused(all(served.client().signals('nothing')), 'DATASET_UNKNOWN');
  },
};
