import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { create } from '@bufbuild/protobuf';
import type { ServerWritableStream } from '@grpc/grpc-js';
import { Teacher_State } from '@limbeck/client';
import {
  Completion_FinishReason,
  Dtype,
  GetOutputHeadResponseSchema,
  type GenerateRequest,
  type GetOutputHeadRequest,
  type GetOutputHeadResponse,
  type ScoreRequest,
} from '@limbeck/client/v1';
import { WIDE } from './places.js';
import {
  all,
  clientOf,
  each,
  refused,
  serve,
  TEACHER,
  tell,
  write,
  type Generating,
  type Scoring,
} from './scripted.js';

type Heading = ServerWritableStream<GetOutputHeadRequest, GetOutputHeadResponse>;
type Reply = (error: null, answer: object) => void;

const f32 = (...values: number[]): Buffer => Buffer.from(Float32Array.from(values).buffer);
const i32 = (...values: number[]): Buffer => Buffer.from(Int32Array.from(values).buffer);
const u16 = (...values: number[]): Buffer => Buffer.from(Uint16Array.from(values).buffer);

test('a teacher that starts is waited for', async () => {
  const starting = { ...TEACHER, state: Teacher_State.STARTING, phase: 'loading the weights' };
  let asked = 0;
  const address = await serve({
    getTeacher: (_: unknown, reply: Reply) => {
      reply(null, { teacher: asked++ === 0 ? starting : TEACHER });
    },
  });
  const told: string[] = [];
  const found = await clientOf(address).teacher('t', { wait: 60_000, told: ({ phase }) => told.push(phase) });
  assert.equal(found.state, Teacher_State.READY);
  assert.deepEqual(told, ['loading the weights']);
  asked = 0;
  assert.equal((await clientOf(address).teacher('t')).state, Teacher_State.STARTING);
});

test('a Teacher in place of a name is expected', async () => {
  let expected: string | undefined;
  const address = await serve({
    score: (call: Scoring) => {
      call.on('data', ({ kind }: ScoreRequest) => {
        if (kind.case === 'start') expected = kind.value.expectation?.weightsDigest;
        tell(call, { case: 'started', value: { teacher: TEACHER } });
        call.end();
      });
    },
  });
  await all(clientOf(address).score(TEACHER, [], { samples: 1 }));
  assert.equal(expected, TEACHER.weightsDigest);
});

test('everything that can be asked of a row is read, also in fragments', async () => {
  const bf16 = (...values: number[]): Buffer =>
    u16(...values.map((value) => new Uint32Array(Float32Array.of(value).buffer)[0]! >>> 16));
  const fragment = (row: number) => ({
    itemId: 3n,
    last: row === 1,
    cost: 10,
    signal: { firstRow: 2 + row, n: 1 },
    tokenLogprobs: row === 0 ? f32(-1) : f32(-2, -3),
    samples: { ids: i32(row, 9), counts: i32(2, 0), logprobs: f32(-row, 0) },
    hidden: [{ layer: -1, dtype: Dtype.BFLOAT16, values: bf16(row + 0.5, -2) }],
    full: f32(-row, -1, -2),
  });
  const address = await serve({
    score: (call: Scoring) => {
      call.on('data', ({ kind }: ScoreRequest) => {
        if (kind.case === 'start') tell(call, { case: 'started', value: { teacher: TEACHER } });
        if (kind.case !== 'items') return;
        const [item] = kind.value.items;
        assert.deepEqual(Buffer.from(item!.offsets), Buffer.from(BigInt64Array.of(0n, 1n, 3n).buffer));
        tell(call, { case: 'fragment', value: fragment(0) });
        tell(call, { case: 'fragment', value: fragment(1) });
      });
      call.on('end', () => {
        call.end();
      });
    },
  });
  const item = { itemId: 3, ids: [2, 7, 7, 7], firstRow: 2, n: 2, tokenIds: [5, 6, 7], offsets: [0, 1, 3] };
  const want = { tokenIds: true, samples: 2, layers: [-1], bfloat16: true, full: true };
  const [one] = await all(clientOf(address).score('t', [item], want));
  const { signal } = one!;
  assert.deepEqual(signal.tokenLogprobs, Float32Array.of(-1, -2, -3));
  assert.deepEqual(signal.samples?.ids, Int32Array.of(0, 9, 1, 9));
  assert.deepEqual(signal.samples.counts, Int32Array.of(2, 0, 2, 0));
  assert.deepEqual(signal.hidden.get(-1), Float32Array.of(0.5, -2, 1.5, -2));
  assert.deepEqual(signal.full, Float32Array.of(-0, -1, -2, -1, -1, -2));
  assert.equal(signal.topK, undefined);
});

test('what was said while a text was written is read, also in parts', async () => {
  const header = {
    codec: 'limbeck.topk',
    version: 1,
    vocabSize: 1000,
    k: 2,
    temperatures: [1],
    target: true,
  };
  const said = (row: number) => ({
    firstRow: 1 + row,
    n: 1,
    idsLow: u16(row, 9),
    logprobs: u16(0, 2048),
    tails: f32(Number.NEGATIVE_INFINITY),
    target: f32(-row),
  });
  const address = await serve({
    generate: (call: Generating) => {
      call.on('data', ({ kind }: GenerateRequest) => {
        if (kind.case === 'start') write(call, { case: 'started', value: { teacher: TEACHER, header } });
        if (kind.case !== 'prompts') return;
        write(call, { case: 'completion', value: { itemId: 0n, more: true, said: said(0) } });
        const finishReason = Completion_FinishReason.STOP;
        write(call, {
          case: 'completion',
          value: { itemId: 0n, ids: i32(0), finishReason, endId: 1, said: said(1) },
        });
      });
      call.on('end', () => {
        call.end();
      });
    },
  });
  const [text] = await all(
    clientOf(address).generate('t', [{ itemId: 0, ids: [2, 7] }], { maxNewTokens: 4, logprobs: 2 }),
  );
  assert.deepEqual(text?.ids, Int32Array.of(0));
  assert.deepEqual(text.said?.ids, Int32Array.of(0, 1));
  assert.deepEqual(text.said.topK?.ids, Int32Array.of(0, 9, 1, 9));
  assert.deepEqual(text.said.target, Float32Array.of(-0, -1));
});

test('a server that tells no log-probabilities of texts is refused', async () => {
  const address = await serve({
    generate: (call: Generating) => {
      write(call, { case: 'started', value: { teacher: TEACHER } });
    },
  });
  const texts = clientOf(address).generate('t', [{ itemId: 0, ids: [2] }], { maxNewTokens: 4, logprobs: 2 });
  await refused(all(texts), 'CAPABILITY_MISSING');
});

const WEIGHT = f32(1, 2, 3, 4, 5, 6);
const HEAD = {
  vocabSize: 2,
  hiddenSize: 2,
  dtype: Dtype.FLOAT32,
  bias: true,
  scale: 0.5,
  softcap: 30,
  bytes: 24n,
};

function head(call: Heading, ...chunks: [number | bigint, Buffer][]): void {
  const sha256 = createHash('sha256').update(WEIGHT).digest('hex');
  call.write(create(GetOutputHeadResponseSchema, { kind: { case: 'head', value: { ...HEAD, sha256 } } }));
  for (const [offset, data] of chunks) {
    const value = { offset: BigInt(offset), data };
    call.write(create(GetOutputHeadResponseSchema, { kind: { case: 'chunk', value } }));
  }
  call.end();
}

test('an output head is asked again from the start where it ended early', async () => {
  const script = each<Heading>(
    (call) => {
      head(call, [0, WEIGHT.subarray(0, 8)]);
    },
    (call) => {
      head(call, [0, WEIGHT.subarray(0, 8)], [8, WEIGHT.subarray(8)]);
    },
  );
  const found = await clientOf(await serve({ getOutputHead: script })).outputHead('t');
  assert.deepEqual(found.weight, Float32Array.of(1, 2, 3, 4));
  assert.deepEqual(found.bias, Float32Array.of(5, 6));
  assert.deepEqual([found.scale, found.softCap], [0.5, 30]);
});

test('C47: an output head of wrong bytes is refused, its offset told to the digit', async () => {
  const script = each<Heading>(
    (call) => {
      head(call, [BigInt(WIDE.offset), WEIGHT]);
    },
    (call) => {
      head(call, [0, Buffer.alloc(24)]);
    },
  );
  const client = clientOf(await serve({ getOutputHead: script }));
  const error = await refused(client.outputHead('t'), 'SIGNAL_INVALID');
  assert.ok(error.message.includes(WIDE.offset));
  assert.match((await refused(client.outputHead('t'), 'SIGNAL_INVALID')).message, /checksum/);
});
