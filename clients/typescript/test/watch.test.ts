import assert from 'node:assert/strict';
import { test } from 'node:test';
import { status } from '@grpc/grpc-js';
import { RunState, type Event } from '@limbeck/client';
import { WIDE } from './places.js';
import { all, bare, clientOf, each, Gate, refusal, refused, serve, show, type Watching } from './scripted.js';

const QUICK = { times: { timeout: 2000, retryFor: 10_000, silence: 1000 } };

function events(call: Watching, from: bigint, to: bigint, end = false): void {
  const sequences = Array.from({ length: Number(to - from) + 1 }, (_, i) => from + BigInt(i));
  const last = { case: 'stateChanged' as const, value: { state: RunState.SUCCEEDED } };
  const other = { case: 'log' as const, value: { message: 'well' } };
  const value = {
    events: sequences.map((sequence) => ({ sequence, kind: end && sequence === to ? last : other })),
  };
  show(call, { case: 'events', value });
}

const sequencesOf = (found: Event[]): bigint[] => found.map((event) => event.sequence);

/** A server with these WatchRun calls, what it was asked, and a run that has ended after `lastSequence`. */
async function watched(lastSequence: bigint, ...scripts: ((call: Watching) => void)[]) {
  const asked: (bigint | undefined)[] = [];
  const script = each(...scripts);
  const address = await serve({
    watchRun: (call: Watching) => {
      asked.push(call.request.afterSequence);
      script(call);
    },
    getRun: (_: unknown, reply: (error: null, answer: object) => void) => {
      reply(null, { run: { state: RunState.SUCCEEDED, lastSequence } });
    },
  });
  return { asked, client: clientOf(address, QUICK) };
}

test('each event comes once over lost connections, repeats and silence', async () => {
  const gate = new Gate();
  const { asked, client } = await watched(
    9n,
    (call) => {
      events(call, 1n, 3n);
      gate.lose(call);
    },
    (call) => {
      events(call, 2n, 5n);
      show(call, { case: 'alive', value: { lastSequence: 5n } }); // then silence (C44)
    },
    (call) => {
      events(call, 6n, 7n);
      call.end(); // something between ended it
    },
    (call) => {
      events(call, 6n, 9n, true);
      call.end();
    },
  );
  assert.deepEqual(sequencesOf(await all(client.watch('r'), gate, 3)), [1n, 2n, 3n, 4n, 5n, 6n, 7n, 8n, 9n]);
  assert.deepEqual(asked, [undefined, 3n, 5n, 7n]);
});

test('C47: 0 and nothing differ, and wide sequences keep their digits', async () => {
  const wide = BigInt(WIDE.sequence);
  const { asked, client } = await watched(wide, (call) => {
    events(call, (call.request.afterSequence ?? 0n) + 1n, (call.request.afterSequence ?? 0n) + 1n, true);
    call.end();
  });
  await all(client.watch('r'));
  await all(client.watch('r', { after: BigInt(WIDE.zero) }));
  await all(client.watch('r', { after: 0 }));
  const [event] = await all(client.watch('r', { after: wide - 1n }));
  assert.deepEqual(asked, [undefined, 0n, 0n, wide - 1n]);
  assert.equal(event?.sequence.toString(), WIDE.sequence);
});

test('C47: a number that may have lost digits is refused', async () => {
  const { asked, client } = await watched(0n, (call) => {
    call.end();
  });
  for (const after of [2 ** 53, -1, 0.5, Number.NaN, 1n << 64n, -1n]) {
    assert.throws(() => client.watch('r', { after }), { reason: 'REQUEST_INVALID', name: 'LimbeckError' });
  }
  assert.deepEqual(asked, []);
  await all(client.watch('r', { after: 2 ** 53 - 1 }));
  assert.deepEqual(asked, [9007199254740991n]);
});

test('a run that has ended and is seen to its end ends at once', async () => {
  const { client } = await watched(4n, (call) => {
    call.end();
  });
  assert.deepEqual(await all(client.watch('r', { after: 4 })), []);
});

test('a gap is an error', async () => {
  const { client } = await watched(9n, (call) => {
    events(call, 1n, 2n);
    events(call, 4n, 4n);
  });
  const error = await refused(all(client.watch('r')), 'LOG_DAMAGED');
  assert.match(error.message, /event 4 came where 3 was due/);
});

test("the server's refusal is not tried again", async () => {
  const { asked, client } = await watched(9n, (call) => {
    call.emit('error', refusal('CURSOR_INVALID', status.OUT_OF_RANGE));
  });
  await refused(all(client.watch('r', { after: 7n })), 'CURSOR_INVALID');
  assert.deepEqual(asked, [7n]);
});

test('a silent server is given up after retryFor', async () => {
  const address = await serve({ watchRun: () => undefined });
  const client = clientOf(address, { times: { timeout: 300, retryFor: 300, silence: 100 } });
  const error = await refused(all(client.watch('r')), 'PEER_SILENT');
  assert.match(error.message, /without an answer/);
});

test('whoever leaves the loop ends the call', async () => {
  const cancelled = new Promise<void>((resolve) => {
    void watched(9n, (call) => {
      call.on('cancelled', resolve);
      events(call, 1n, 3n);
    }).then(async ({ client }) => {
      for await (const event of client.watch('r')) if (event.sequence === 2n) break;
    });
  });
  await cancelled;
});

test('an aborted watch throws the reason of its signal', async () => {
  const { client } = await watched(9n, (call) => {
    events(call, 1n, 1n);
  });
  const controller = new AbortController();
  const reason = new Error('enough');
  await assert.rejects(async () => {
    for await (const event of client.watch('r', { signal: controller.signal })) {
      assert.equal(event.sequence, 1n);
      controller.abort(reason);
    }
  }, reason);
});

test('lost connections are logged once', async () => {
  const said: string[] = [];
  const script = each<Watching>(
    (call) => {
      call.emit('error', bare(status.UNAVAILABLE, 'lost'));
    },
    (call) => {
      call.emit('error', bare(status.UNAVAILABLE, 'lost'));
    },
    (call) => {
      events(call, 1n, 1n, true);
      call.end();
    },
  );
  const client = clientOf(await serve({ watchRun: script }), { log: (line) => said.push(line) });
  assert.equal((await all(client.watch('r'))).length, 1);
  assert.equal(said.length, 1);
  assert.match(said[0] ?? '', /trying again for up to 10 s/);
});
