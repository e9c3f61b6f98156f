import assert from 'node:assert/strict';
import { test } from 'node:test';
import { status } from '@grpc/grpc-js';
import type { LimbeckError, ScoreItem, Scored } from '@limbeck/client';
import {
  Completion_FinishReason,
  type GenerateRequest,
  type ScoreItem as ItemMessage,
  type ScoreRequest,
  type ScoreStart,
} from '@limbeck/client/v1';
import { WIDE } from './places.js';
import {
  all,
  clientOf,
  each,
  Gate,
  refusal,
  refused,
  serve,
  TEACHER,
  tell,
  write,
  type Generating,
  type Scoring,
} from './scripted.js';

const HEADER = { codec: 'limbeck.topk', version: 1, vocabSize: 1000, target: true };
const TARGET = { target: true };
const PATIENT = { times: { retryFor: 10_000 } };

type Script = (call: Scoring, item: ItemMessage, seen: Seen) => void;

interface Seen {
  call: Scoring;
  start: ScoreStart | undefined;
  items: ItemMessage[];
  messages: bigint[][];
  granted: number;
  alive: number;
  ended: boolean;
}

function itemsOf(count: number, tokens = 4): ScoreItem[] {
  return Array.from({ length: count }, (_, itemId) => ({
    itemId,
    ids: new Int32Array(tokens).fill(7),
    n: tokens - 1,
  }));
}

/** Row j of item i is -(i + j + 1). */
function answer(call: Scoring, item: ItemMessage, rows = item.n, cost = 4 * rows): void {
  for (let row = 0; row < item.n; row += rows) {
    const n = Math.min(rows, item.n - row);
    const target = Float32Array.from({ length: n }, (_, i) => -Number(item.itemId) - row - i - 1);
    const signal = { firstRow: item.firstRow + row, n, target: Buffer.from(target.buffer) };
    tell(call, { case: 'fragment', value: { itemId: item.itemId, last: row + n === item.n, cost, signal } });
  }
}

function fail(call: Scoring, itemId: bigint, reason: string): void {
  tell(call, { case: 'failed', value: { itemId, error: { reason, message: 'as the test wants' } } });
}

/** A server whose calls of Score do this with each item, and what each call has seen. */
async function scored(...scripts: Script[]) {
  const calls: Seen[] = [];
  const address = await serve({
    score: (call: Scoring) => {
      const script = scripts.length > 1 ? scripts.shift() : scripts[0];
      const seen: Seen = {
        call,
        start: undefined,
        items: [],
        messages: [],
        granted: 0,
        alive: 0,
        ended: false,
      };
      calls.push(seen);
      call.on('data', ({ kind }: ScoreRequest) => {
        hear(kind, seen, script);
      });
      call.on('end', () => {
        seen.ended = true;
        call.end();
      });
    },
  });
  return { calls, address, client: clientOf(address, PATIENT) };
}

function hear(kind: ScoreRequest['kind'], seen: Seen, script: Script | undefined): void {
  const { call } = seen;
  if (kind.case === 'start') {
    seen.start = kind.value;
    tell(call, { case: 'started', value: { teacher: TEACHER, header: HEADER } });
  } else if (kind.case === 'items') {
    seen.messages.push(kind.value.items.map((item) => item.itemId));
    for (const item of kind.value.items) {
      seen.items.push(item);
      script?.(call, item, seen);
    }
  } else if (kind.case === 'grant') seen.granted += Number(kind.value.bytes);
  else if (kind.case === 'alive') seen.alive++;
}

function right(found: Scored[], items: ScoreItem[]): void {
  const byId = new Map(found.map((one) => [Number(one.itemId), one.signal]));
  assert.equal(found.length, items.length);
  for (const { itemId, n } of items) {
    const due = Array.from({ length: n }, (_, i) => -Number(itemId) - i - 1);
    assert.deepEqual([...(byId.get(Number(itemId))?.target ?? [])], due);
  }
}

test('each item is answered once, also in fragments', async () => {
  const { calls, client } = await scored((call, item) => {
    answer(call, item, 2);
  });
  const items = itemsOf(1000);
  right(await all(client.score('t', items, TARGET)), items);
  assert.equal(calls.length, 1);
  assert.equal(calls[0]?.start?.credit, 64n << 20n);
  assert.ok(calls[0].messages.length < 100, 'items go many in a message');
});

test('after a lost connection what is not answered is asked again, of the same teacher', async () => {
  const gate = new Gate();
  const { calls, client } = await scored(
    (call, item, seen) => {
      if (item.itemId < 3n) answer(call, item);
      else if (item.itemId === 3n)
        tell(call, {
          case: 'fragment',
          value: { itemId: 3n, cost: 4, signal: { n: 1, target: Buffer.alloc(4) } },
        });
      if (seen.items.length === 10) gate.lose(call);
    },
    (call, item) => {
      answer(call, item);
    },
  );
  const items = itemsOf(10);
  right(await all(client.score('t', items, TARGET), gate, 3), items);
  assert.deepEqual(
    calls[1]?.items.map((item) => item.itemId),
    [3n, 4n, 5n, 6n, 7n, 8n, 9n],
  );
  assert.equal(calls[0]?.start?.expectation?.weightsDigest, undefined);
  assert.equal(calls[1].start?.expectation?.weightsDigest, TEACHER.weightsDigest);
});

test('C44: a silent server is given up, and asked again', async () => {
  const { calls, address } = await scored(
    () => undefined,
    (call, item) => {
      answer(call, item);
    },
  );
  const client = clientOf(address, { times: { silence: 500 } });
  const items = itemsOf(3);
  right(await all(client.score('t', items, TARGET)), items);
  assert.ok(calls.length >= 2);
});

test('C44: a client that has nothing to say gives signs of life', async () => {
  const { calls, address } = await scored((call, item) => {
    answer(call, item);
  });
  const heard = async (): Promise<void> => {
    while ((calls[0]?.alive ?? 0) < 3) await later(5);
  };
  const source = async function* (): AsyncGenerator<ScoreItem> {
    yield* itemsOf(1);
    await heard();
  };
  const client = clientOf(address, { times: { alive: 20 } });
  assert.equal((await all(client.score('t', source(), TARGET))).length, 1);
});

test('credit is granted as answers are consumed, and what is unread stays within it', async () => {
  const cost = 300_000;
  const credit = 1 << 20;
  const waiting: ItemMessage[] = [];
  let sent = 0;
  let most = 0;
  let consumed = 0;
  const { calls, client } = await scored((_, item) => {
    waiting.push(item);
  });
  const server = setInterval(() => {
    const seen = calls[0];
    while (seen && waiting.length > 0 && Number(seen.start?.credit ?? 0n) + seen.granted > sent) {
      sent += cost;
      answer(seen.call, waiting.shift()!, 3, cost);
      most = Math.max(most, sent - consumed);
    }
  }, 1);
  const items = itemsOf(40);
  const found: Scored[] = [];
  for await (const one of client.score('t', items, TARGET, { credit })) {
    found.push(one);
    await later(2); // a slow caller
    consumed += cost;
  }
  clearInterval(server);
  right(found, items);
  assert.ok(most <= credit + cost, `${most} bytes were unread`);
});

test('an item larger than the credit gets what it needs', async () => {
  const parts: (() => void)[] = [];
  let sent = 0;
  const { calls, client } = await scored((call, item) => {
    for (let row = 0; row < item.n; row++) {
      const value = {
        itemId: item.itemId,
        last: row === item.n - 1,
        cost: 1 << 20,
        signal: { firstRow: row, n: 1, target: Buffer.alloc(4) },
      };
      parts.push(() => {
        tell(call, { case: 'fragment', value });
      });
    }
  });
  const server = setInterval(() => {
    const seen = calls[0];
    while (seen && parts.length > 0 && Number(seen.start?.credit ?? 0n) + seen.granted > sent) {
      sent += 1 << 20;
      parts.shift()?.();
    }
  }, 1);
  const [one] = await all(client.score('t', itemsOf(1, 9), TARGET, { credit: 1 << 20 }));
  clearInterval(server);
  assert.equal(one?.signal.target?.length, 8);
});

test('the error of an item ends the call after the answers before it', async () => {
  const { client } = await scored((call, item) => {
    if (item.itemId === 2n) fail(call, 2n, 'REQUEST_INVALID');
    else answer(call, item);
  });
  const found: bigint[] = [];
  const error = await refused(
    (async () => {
      for await (const { itemId } of client.score('t', itemsOf(5), TARGET)) found.push(itemId);
    })(),
    'REQUEST_INVALID',
  );
  assert.deepEqual(found, [0n, 1n]);
  assert.equal(error.problems[0]?.field, 'item 2');
});

test('an item fails by itself where somebody hears of it', async () => {
  const { client } = await scored((call, item) => {
    if (item.itemId === 2n) fail(call, 2n, 'REQUEST_INVALID');
    else answer(call, item);
  });
  const heard: string[] = [];
  const failed = (error: LimbeckError, itemId: bigint): void => {
    heard.push(`${itemId.toString()} ${error.reason}`);
  };
  const found = await all(client.score('t', itemsOf(5), TARGET, { failed }));
  assert.deepEqual(
    found.map(({ itemId }) => itemId),
    [0n, 1n, 3n, 4n],
  );
  assert.deepEqual(heard, ['2 REQUEST_INVALID']);
});

test('an item whose worker died is sent again', async () => {
  const failed = new Set<bigint>();
  const { calls, client } = await scored((call, item) => {
    if (failed.has(item.itemId)) answer(call, item);
    else fail(call, item.itemId, item.itemId % 2n === 0n ? 'TEACHER_UNAVAILABLE' : 'QUOTA_EXCEEDED');
    failed.add(item.itemId);
  });
  const items = itemsOf(4);
  right(await all(client.score('t', items, TARGET)), items);
  assert.equal(calls.length, 1);
  assert.equal(calls[0]?.items.length, 8);
});

test('the refusal of a call is not tried again', async () => {
  const address = await serve({
    score: (call: Scoring) => {
      call.emit('error', refusal('TEACHER_UNKNOWN', status.NOT_FOUND));
    },
  });
  await refused(all(clientOf(address).score('t', itemsOf(3), TARGET)), 'TEACHER_UNKNOWN');
});

test('what cannot be sent is refused, with its item', async () => {
  const { client } = await scored((call, item) => {
    answer(call, item);
  });
  const wide = { itemId: 1, ids: [2, 7], n: 1, seed: Number(WIDE.seed) };
  const error = await refused(all(client.score('t', [wide], TARGET)), 'REQUEST_INVALID');
  assert.match(error.message, /item 1: seed: .*bigint/);
  await refused(all(client.score('t', [{ itemId: -1, ids: [2, 7], n: 1 }], TARGET)), 'REQUEST_INVALID');
  await refused(all(client.score('t', [{ itemId: 1, ids: [2 ** 31], n: 1 }], TARGET)), 'REQUEST_INVALID');
  await refused(all(client.score('t', [{ itemId: 1, ids: [1], n: 1.5 }], TARGET)), 'REQUEST_INVALID');
  await refused(
    all(client.score('t', [...itemsOf(1), ...itemsOf(1)], TARGET, { alone: true })),
    'REQUEST_INVALID',
  );
  assert.throws(() => client.score('t', [], TARGET, { credit: 5 }), { reason: 'REQUEST_INVALID' });
  assert.throws(() => client.score('t', [], { topK: -1 }), { reason: 'REQUEST_INVALID' });
});

test('C47: seeds and names of items arrive to the digit', async () => {
  const { calls, client } = await scored((call, item) => {
    answer(call, item);
  });
  const items = [{ itemId: BigInt(WIDE.offset), ids: [2, 7], n: 1, seed: BigInt(WIDE.seed) }];
  const [one] = await all(client.score('t', items, TARGET));
  assert.equal(one?.itemId.toString(), WIDE.offset);
  assert.equal(calls[0]?.items[0]?.seed.toString(), WIDE.seed);
});

test("the source's own error is thrown", async () => {
  const { client } = await scored((call, item) => {
    answer(call, item);
  });
  const own = new Error('no more');
  const source = function* (): Generator<ScoreItem> {
    yield* itemsOf(1);
    throw own;
  };
  await assert.rejects(all(client.score('t', source(), TARGET)), own);
});

test('an endless source is taken at the pace of the caller, who may leave', async () => {
  const { calls, client } = await scored((call, item) => {
    answer(call, item);
  });
  let taken = 0;
  const source = function* (): Generator<ScoreItem> {
    for (;;) yield { itemId: taken++, ids: new Int32Array(1000), n: 1 };
  };
  for await (const { itemId } of client.score('t', source(), TARGET)) if (itemId === 3000n) break;
  assert.ok(taken < 20_000, `${taken} items were taken`);
  while (calls[0]?.call.cancelled === false) await later(5);
});

test('an aborted call throws the reason of its signal', async () => {
  const { client } = await scored(() => undefined);
  const controller = new AbortController();
  const reason = new Error('enough');
  setTimeout(() => {
    controller.abort(reason);
  }, 50);
  await assert.rejects(all(client.score('t', itemsOf(1), TARGET, { signal: controller.signal })), reason);
});

test('alone: all items are sent in one message, and again in one', async () => {
  const gate = new Gate();
  const { calls, client } = await scored(
    (call, item, seen) => {
      if (item.itemId === 0n) answer(call, item);
      if (seen.items.length === 3) gate.lose(call);
    },
    (call, item) => {
      answer(call, item);
    },
  );
  const items = itemsOf(3);
  right(await all(client.score('t', items, TARGET, { alone: true }), gate, 1), items);
  assert.deepEqual(
    calls.map(({ messages }) => messages),
    [[[0n, 1n, 2n]], [[0n, 1n, 2n]]],
  );
});

test('an answer that does not fit is refused', async () => {
  const { client } = await scored((call, item) => {
    tell(call, {
      case: 'fragment',
      value: { itemId: item.itemId, last: true, signal: { firstRow: 1, n: 2, target: Buffer.alloc(8) } },
    });
  });
  await refused(all(client.score('t', itemsOf(1), TARGET)), 'SIGNAL_INVALID');
});

test('texts come once each over a lost connection', async () => {
  const gate = new Gate();
  const script = (lose: boolean) => (call: Generating) => {
    call.on('data', ({ kind }: GenerateRequest) => {
      if (kind.case === 'start') write(call, { case: 'started', value: { teacher: TEACHER } });
      for (const { itemId, ids } of kind.case === 'prompts' ? kind.value.prompts : []) {
        if (lose && itemId === 2n) {
          gate.lose(call);
          return;
        }
        write(call, {
          case: 'completion',
          value: { itemId, ids, finishReason: Completion_FinishReason.STOP },
        });
      }
    });
    call.on('end', () => {
      call.end();
    });
  };
  const client = clientOf(await serve({ generate: each(script(true), script(false)) }), PATIENT);
  const prompts = Array.from({ length: 4 }, (_, itemId) => ({ itemId, ids: [2, itemId] }));
  const found = await all(
    client.generate('t', prompts, { maxNewTokens: 4, seed: BigInt(WIDE.seed) }),
    gate,
    2,
  );
  assert.deepEqual(
    found.map(({ itemId, ids }) => [itemId, ...ids]),
    [0n, 1n, 2n, 3n].map((id) => [id, 2, Number(id)]),
  );
  assert.ok(found.every(({ finishReason }) => finishReason === 'stop'));
  assert.throws(() => client.generate('t', [], { maxNewTokens: 4, seed: 2 ** 53 }), {
    reason: 'REQUEST_INVALID',
  });
});

function later(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
