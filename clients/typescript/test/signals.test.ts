import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { decode, LimbeckError } from '@limbeck/client';
import { WIDE } from './places.js';
import { all, clientOf, each, Gate, play, refused, serve, type Replaying } from './scripted.js';
import { check, headerOf, NAMES, read } from './vectors.js';

const QUICK = { times: { timeout: 2000, retryFor: 10_000, silence: 1000 } };

assert.ok(NAMES.length >= 8);
for (const name of NAMES) {
  test(`the vector ${name} decodes to its ids and floats`, () => {
    check(name);
  });
}

test('a smaller k leaves the others to the tail', () => {
  const { packed, header } = read('temperatures_and_target');
  const { topK } = decode(packed, header);
  assert.ok(topK);
  const whole = topK.at(2);
  const part = topK.at(2, 3);
  const first = [0, 1, 2].flatMap((row) => [...whole.ids.subarray(row * 8, row * 8 + 3)]);
  assert.deepEqual(part.ids, Int32Array.from(first));
  const total = [...part.logprobs.subarray(0, 3), part.tail[0]!].reduce((sum, x) => sum + Math.exp(x), 0);
  assert.ok(Math.abs(total - 1) < 1e-12);
  for (const [temperature, k] of [
    [3, 3],
    [2, 9],
    [2, 0],
    [2, 1.5],
  ] as const) {
    assert.throws(() => topK.at(temperature, k), { reason: 'CAPABILITY_MISSING' });
  }
});

test('bytes that cannot be are refused', () => {
  const { packed, header } = read('temperatures_and_target');
  const wrong = { reason: 'SIGNAL_INVALID', name: 'LimbeckError' };
  assert.throws(() => decode({ ...packed, n: 2 }, header), wrong);
  assert.throws(() => decode({ ...packed, tails: Buffer.alloc(packed.tails.length, 0x7f) }, header), wrong);
  assert.throws(() => decode(packed, { ...header, vocabSize: 200_000 }), wrong);
});

const HEADER = headerOf({ vocab_size: 1000, k: 0, temperatures: [], target: true });
const TOKENS = Buffer.from(Int32Array.of(2, 7, 7).buffer);

function start(call: Replaying, header = HEADER, total = 5n): void {
  play(call, { case: 'started', value: { dataset: { name: 'd', total, header } } });
}

function send(call: Replaying, ...sequences: bigint[]): void {
  const signals = sequences.map((sequence) => ({
    sequence,
    signal: { n: 2, target: Buffer.from(Float32Array.of(-1, -Number(sequence % 100n)).buffer) },
    idsSha256: createHash('sha256').update(TOKENS).digest(),
    tokens: { ids: TOKENS, trained: Uint8Array.of(0, 1, 1), pair: 0n, rejected: sequence === 2n },
  }));
  play(call, { case: 'signals', value: { signals } });
}

async function replayed(...scripts: ((call: Replaying) => void)[]) {
  const asked: (bigint | undefined)[] = [];
  const script = each(...scripts);
  const address = await serve({
    streamSignals: (call: Replaying) => {
      asked.push(call.request.afterSequence);
      script(call);
    },
  });
  return { asked, client: clientOf(address, QUICK) };
}

test('each stored signal comes once over lost connections, repeats and silence', async () => {
  const gate = new Gate();
  const { asked, client } = await replayed(
    (call) => {
      start(call);
      send(call, 1n, 2n);
      gate.lose(call);
    },
    (call) => {
      start(call);
      send(call, 2n, 3n);
      play(call, { case: 'alive', value: { position: 3n } }); // then silence (C44)
    },
    (call) => {
      start(call);
      send(call, 4n);
      call.end();
    },
    (call) => {
      start(call);
      send(call, 5n);
      call.end();
    },
  );
  const found = await all(client.signals('d', { tokens: true }), gate, 2);
  assert.deepEqual(
    found.map((stored) => stored.sequence),
    [1n, 2n, 3n, 4n, 5n],
  );
  assert.deepEqual(
    found.map((stored) => stored.signal.target?.[1]),
    [-1, -2, -3, -4, -5],
  );
  assert.deepEqual(asked, [0n, 2n, 3n, 4n]);
  assert.deepEqual(found[1]?.tokens, {
    ids: Int32Array.of(2, 7, 7),
    trained: Uint8Array.of(0, 1, 1),
    pair: 0n,
    rejected: true,
  });
});

test('C47: a wide sequence keeps its digits', async () => {
  const wide = BigInt(WIDE.sequence);
  const { asked, client } = await replayed((call) => {
    start(call, HEADER, wide);
    send(call, wide);
    call.end();
  });
  const [stored] = await all(client.signals('d', { after: wide - 1n }));
  assert.equal(stored?.sequence.toString(), WIDE.sequence);
  assert.deepEqual(asked, [wide - 1n]);
  assert.throws(() => client.signals('d', { after: Number(wide) }), { reason: 'REQUEST_INVALID' });
});

test('signals of another teacher after a reconnect are refused', async () => {
  const { client } = await replayed(
    (call) => {
      start(call);
      send(call, 1n);
    },
    (call) => {
      start(call, { ...HEADER, weightsDigest: 'c' });
    },
  );
  await refused(all(client.signals('d')), 'TEACHER_MISMATCH');
});

test('a gap, and signals without a start, are refused', async () => {
  const gap = await replayed((call) => {
    start(call);
    send(call, 2n);
  });
  await refused(all(gap.client.signals('d')), 'SIGNAL_INVALID');
  const early = await replayed((call) => {
    send(call, 1n);
  });
  await refused(all(early.client.signals('d')), 'SIGNAL_INVALID');
  const unknown = await replayed((call) => {
    start(call, { ...HEADER, version: 2 });
  });
  await refused(all(unknown.client.signals('d')), 'SIGNAL_INVALID');
});

test('tokens that the signal is not of are refused', async () => {
  const { client } = await replayed((call) => {
    start(call, HEADER, 1n);
    const signal = { n: 1, target: Buffer.alloc(4) };
    play(call, { case: 'signals', value: { signals: [{ sequence: 1n, signal, tokens: { ids: TOKENS } }] } });
    call.end();
  });
  const [stored] = await all(client.signals('d'));
  assert.throws(
    () => stored?.tokens,
    (error) => error instanceof LimbeckError && error.reason === 'SIGNAL_INVALID',
  );
});
