import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { toJson } from '@bufbuild/protobuf';
import { timestampMs } from '@bufbuild/protobuf/wkt';
import { LimbeckError, Teacher_State } from '@limbeck/client';
import { EventSchema, TrainingService } from '@limbeck/client/v1';
import { WIDE } from '../places.js';
import { all, refused } from '../scripted.js';
import { counted, type Scenarios } from './served.js';

const digits = ({ message }: Error): string => message.replace(/[,_]/g, '');

export const connections: Scenarios = {
  async tls_and_token(served) {
    const { tls_address: address, ca, other_ca, teacher } = served.facts;
    const client = served.client('train', { address, tls: { ca } });
    assert.equal((await client.teacher(teacher, { wait: 60_000 })).state, Teacher_State.READY);
    assert.deepEqual(await all(client.runs()), []);
    const other = served.client('train', { address, tls: { ca: other_ca }, times: { timeout: 2000 } });
    await refused(other.teachers(), 'SERVER_UNAVAILABLE');
  },

  async token_files(served) {
    for (const name of ['newline', 'crlf_bom'])
      assert.ok((await served.client(name).plugins()).plugins.length > 0);
    const secrets = readFileSync(served.facts.tokens.two_lines!, 'utf8').trim().split('\n');
    assert.throws(
      () => served.client('two_lines'),
      (error) =>
        error instanceof LimbeckError &&
        error.reason === 'REQUEST_INVALID' &&
        secrets.every((secret) => !error.message.includes(secret)),
    );
  },

  async proxy_environment(served) {
    const before = process.env;
    const proxies = ['http_proxy', 'https_proxy', 'grpc_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'];
    process.env = { ...before, ...Object.fromEntries(proxies.map((name) => [name, 'http://127.0.0.1:9'])) };
    for (const name of ['no_proxy', 'NO_PROXY', 'no_grpc_proxy']) Reflect.deleteProperty(process.env, name);
    try {
      const { tls_address: address, ca } = served.facts;
      assert.ok((await served.client().teachers()).length > 0);
      assert.ok((await served.client('train', { address, tls: { ca } }).teachers()).length > 0);
    } finally {
      process.env = before;
    }
  },

  async silent_peer(served) {
    const runId = await served.trains();
    const first = (await served.client().run(runId)).run!.lastSequence;
    const said: string[] = [];
    const silence = 3000; // 80 s are a promise, and too long for a test
    const log = (line: string): void => void said.push(line);
    const client = served.client('train', { address: served.facts.silent, times: { silence }, log });
    const seen: bigint[] = [];
    let began: number | undefined;
    for await (const { sequence, time } of client.watch(runId, { after: first })) {
      seen.push(sequence);
      began ??= timestampMs(time!);
      if (timestampMs(time!) - began > 8000) break; // three connections at least, each of which passes 2 s on
    }
    assert.deepEqual(seen, counted(seen.length, first + 1n));
    assert.ok(said.some((line) => line.includes('nothing came for 3 s')));
  },

  async wide_integers(served) {
    const [{ runId, events }, client] = [await served.done(), served.client()];
    const sequence = BigInt(WIDE.sequence);
    const error = await refused(all(client.watch(runId, { after: sequence })), 'CURSOR_INVALID');
    assert.ok(digits(error).includes(WIDE.sequence));
    for (const after of [Number(sequence), -1, 1n << 64n]) {
      assert.throws(() => client.watch(runId, { after }), { reason: 'REQUEST_INVALID' });
    }
    const request = { runId, path: 'recipe.yaml', offset: BigInt(WIDE.offset) };
    const refusal = served.raw(TrainingService.method.downloadArtifact, request);
    await assert.rejects(
      refusal,
      (error) => error instanceof LimbeckError && digits(error).includes(WIDE.offset),
    );
    const draws = async (seed: bigint | number): Promise<Int32Array> => {
      const item = { itemId: sequence, ids: Array.from({ length: 35 }, (_, i) => 5 + i), n: 30, seed };
      const [one] = await all(client.score(served.facts.teacher, [item], { samples: 8 }));
      assert.equal(one!.itemId, sequence);
      return one!.signal.samples!.ids;
    };
    const seed = BigInt(WIDE.seed);
    assert.deepEqual(await draws(seed), await draws(seed));
    assert.notDeepEqual(await draws(seed), await draws(seed - 1n)); // the same as a double
    await refused(draws(Number(seed)), 'REQUEST_INVALID');
    for await (const event of client.watch(runId, { after: BigInt(WIDE.zero) })) {
      assert.equal(event.sequence, 1n);
      assert.deepEqual(event, events[0]);
      assert.equal(
        (toJson(EventSchema, { ...event, sequence }) as { sequence: string }).sequence,
        WIDE.sequence,
      );
      break;
    }
  },
};
