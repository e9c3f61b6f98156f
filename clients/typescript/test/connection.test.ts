import assert from 'node:assert/strict';
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { connect, LimbeckError, type ConnectOptions } from '@limbeck/client';
import { REPOSITORY } from './places.js';
import { clientOf, serve } from './scripted.js';

const C11 = `${REPOSITORY}tests/data/C11/`;
const FOLDER = mkdtempSync(join(tmpdir(), 'limbeck-'));

function problemsOf(options: ConnectOptions): readonly string[] {
  try {
    connect(options);
  } catch (error) {
    assert.ok(error instanceof LimbeckError && error.reason === 'REQUEST_INVALID');
    assert.doesNotMatch(error.message, /hv-token/);
    return error.problems.map(({ field, message }) => `${field ?? ''}: ${message}`);
  }
  return [];
}

function file(name: string, content: string): string {
  writeFileSync(join(FOLDER, name), content);
  return join(FOLDER, name);
}

for (const name of ['token_with_newline.txt', 'token_crlf_bom.txt']) {
  test(`C11: what an editor leaves in ${name} is no part of the token, and a proxy is passed by`, async (t) => {
    const before = { ...process.env };
    t.after(() => {
      process.env = before;
    });
    process.env.http_proxy = process.env.https_proxy = 'http://127.0.0.1:9';
    delete process.env.no_proxy;
    delete process.env.NO_PROXY;
    let sent: unknown;
    const address = await serve({
      listPlugins: (
        call: { metadata: { get(key: string): unknown[] } },
        reply: (error: null, answer: object) => void,
      ) => {
        sent = call.metadata.get('authorization')[0];
        reply(null, {});
      },
    });
    await clientOf(address, { tokenFile: C11 + name }).plugins();
    assert.equal(sent, 'Bearer hv-token-123');
  });
}

test('C11: a file of two lines is refused before connecting', () => {
  assert.deepEqual(problemsOf({ address: 'localhost', tokenFile: `${C11}token_two_lines.txt` }), [
    `tokenFile: ${C11}token_two_lines.txt holds 2 lines, 1 is allowed`,
  ]);
});

test('a token is never in a message', () => {
  assert.match(problemsOf({ address: 'localhost', token: 'hv-token 123' })[0] ?? '', /at sign 9/);
  assert.match(problemsOf({ address: 'localhost', token: '\n' })[0] ?? '', /holds no token/);
  assert.match(problemsOf({ address: 'localhost', tokenFile: file('latin', '\xff') })[0] ?? '', /sign 1/);
});

test('the file of a token is read anew for each call', async () => {
  const sent: unknown[] = [];
  const address = await serve({
    listPlugins: (
      call: { metadata: { get(key: string): unknown[] } },
      reply: (error: null, answer: object) => void,
    ) => {
      sent.push(...call.metadata.get('authorization'));
      reply(null, {});
    },
  });
  const client = clientOf(address, { tokenFile: file('token', 'first') });
  await client.plugins();
  file('token', 'second');
  await client.plugins();
  assert.deepEqual(sent, ['Bearer first', 'Bearer second']);
});

test('everything that is wrong is told at once', () => {
  const problems = problemsOf({
    address: ['http://there', 'there:500611', ''],
    token: 'a',
    tokenFile: '/nowhere',
    tls: { ca: file('ca.pem', 'no certificate'), cert: '/nowhere' },
  });
  assert.deepEqual(
    problems.map((problem) => problem.split(':')[0]),
    ['address', 'address', 'address', 'tokenFile', 'tokenFile', 'tls.cert', 'tls.cert, tls.key', 'tls.ca'],
  );
});

test('insecure and TLS exclude each other', () => {
  assert.equal(problemsOf({ address: 'there', insecure: true, tls: {} }).length, 1);
  assert.equal(problemsOf({ address: [] }).length, 1);
});

for (const address of [
  'localhost',
  '127.0.0.1:7411',
  '127.9.9.9',
  '[::1]:1',
  '[::1]',
  'there.example:65535',
]) {
  test(`${address} is an address`, () => {
    assert.deepEqual(problemsOf({ address }), []);
  });
}

for (const address of ['there:', 'there:0', 'there:65536', '::1', 'a b', 'there/path', 'there:1x']) {
  test(`${address} is none`, () => {
    assert.equal(problemsOf({ address }).length, 1);
  });
}

test('of two servers a lost one is passed over', async () => {
  let asked = 0;
  const address = await serve({
    listPlugins: (_: unknown, reply: (error: null, answer: object) => void) => {
      asked++;
      reply(null, {});
    },
  });
  const client = connect({ address: ['127.0.0.1:1', address, address] });
  for (let i = 0; i < 6; i++) await client.plugins();
  client.close();
  assert.equal(asked, 6);
});
