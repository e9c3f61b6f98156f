import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { status } from '@grpc/grpc-js';
import { REASONS, type Reason } from '@limbeck/client';
import { REPOSITORY } from './places.js';
import { bare, clientOf, refusal, refused, serve } from './scripted.js';

const NOW = { times: { timeout: 1000 } };

async function erring(error: Error): Promise<(reason: Reason) => ReturnType<typeof refused>> {
  const address = await serve({
    getRun: (_: unknown, reply: (error: Error) => void) => {
      reply(error);
    },
  });
  const client = clientOf(address, NOW);
  return (reason) => refused(client.run('x'), reason);
}

test('the catalogue is the one of the server', () => {
  const source = readFileSync(`${REPOSITORY}engine/limbeck/errors.py`, 'utf8');
  const names = [...source.matchAll(/^ {4}([A-Z_]+) = "\1"$/gm)].map((match) => match[1]);
  assert.ok(names.length > 30);
  assert.deepEqual(Object.keys(REASONS), names);
});

test('every reason arrives with all its problems', async () => {
  let sent = new Error();
  const address = await serve({
    getRun: (_: unknown, reply: (error: Error) => void) => {
      reply(sent);
    },
  });
  const client = clientOf(address, NOW);
  for (const reason of Object.keys(REASONS) as Reason[]) {
    sent = refusal(reason, status.FAILED_PRECONDITION, ['first', 'second']);
    const error = await refused(client.run('x'), reason);
    assert.deepEqual(
      error.problems.map((problem) => problem.message),
      ['first', 'second'],
    );
    const place = { file: 'recipe', line: 3, column: 9 };
    assert.deepEqual(error.problems[0], { message: 'first', ...place, field: 'here', hint: 'there' });
    assert.equal(error.summary, `${reason}, says the test.`);
    assert.match(error.message, /^ {2}recipe:3:9: here: second \(there\)$/m);
  }
});

test('a reason of a newer server is told', async () => {
  const error = await (await erring(refusal('NEW_FAULT', status.INTERNAL)))('INTERNAL');
  assert.match(error.message, /NEW_FAULT/);
});

for (const [code, details, reason] of [
  [status.UNAVAILABLE, 'no', 'SERVER_UNAVAILABLE'],
  [status.UNAUTHENTICATED, 'no', 'UNAUTHENTICATED'],
  [status.PERMISSION_DENIED, 'no', 'PERMISSION_DENIED'],
  [status.RESOURCE_EXHAUSTED, 'no', 'QUOTA_EXCEEDED'],
  [status.RESOURCE_EXHAUSTED, 'Received message larger than max (5 vs 4)', 'INTERNAL'],
  [status.RESOURCE_EXHAUSTED, 'SERVER: Received message larger than max (5 vs. 4)', 'REQUEST_INVALID'],
  [status.UNKNOWN, 'Received RST_STREAM with code 2', 'SERVER_UNAVAILABLE'],
  [status.DATA_LOSS, 'no', 'INTERNAL'],
] as const) {
  test(`${status[code]} (${details}) of somebody else is ${reason}`, async () => {
    const error = await (await erring(bare(code, details)))(reason);
    assert.match(error.message, new RegExp(`${status[code]}: `));
  });
}

test('details that are none are passed over', async () => {
  const broken = refusal('RUN_UNKNOWN', status.NOT_FOUND) as Error & {
    metadata: { set(key: string, value: Buffer): void };
  };
  broken.metadata.set('grpc-status-details-bin', Buffer.from([0xff, 0xff, 0xff]));
  await (
    await erring(broken)
  )('INTERNAL');
});

test('a server without the service is told', async () => {
  const client = clientOf(await serve({}), NOW);
  const error = await refused(client.plugins(), 'REQUEST_INVALID');
  assert.match(error.message, /does not know this call/);
});

test('a port where nobody listens is told within the timeout', async () => {
  const client = clientOf('127.0.0.1:1', { times: { timeout: 300 } });
  const error = await refused(client.plugins(), 'SERVER_UNAVAILABLE');
  assert.match(error.message, /127\.0\.0\.1:1/);
});

test('a closed client says so', async () => {
  const client = clientOf('127.0.0.1:1');
  client.close();
  const error = await refused(client.plugins(), 'SERVER_UNAVAILABLE');
  assert.match(error.message, /closed/);
});

test('an unavailable server is asked again', async () => {
  let calls = 0;
  const answer = { plugins: [{ name: 'forward_kl' }] };
  const address = await serve({
    listPlugins: (_: unknown, reply: (error: Error | null, answer?: object) => void) => {
      if (++calls < 3) reply(bare(status.UNAVAILABLE, 'not yet'));
      else reply(null, answer);
    },
  });
  assert.equal((await clientOf(address).plugins()).plugins[0]?.name, 'forward_kl');
  assert.equal(calls, 3);
});

test('an aborted call throws the reason of its signal', async () => {
  const address = await serve({ listPlugins: () => undefined }); // never answers
  const reason = new Error('the caller has had enough');
  const controller = new AbortController();
  const asked = clientOf(address).plugins({ signal: controller.signal });
  setTimeout(() => {
    controller.abort(reason);
  }, 50);
  await assert.rejects(asked, reason);
});
