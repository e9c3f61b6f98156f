import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { dirname } from 'node:path';
import { toJsonString } from '@bufbuild/protobuf';
import { RunState, type Client, type LimbeckError, type Reason } from '@limbeck/client';
import { EventSchema, RunSchema, TrainingService } from '@limbeck/client/v1';
import { all, refused } from '../scripted.js';
import { folder } from './files.js';
import { statesOf, until, type Scenarios } from './served.js';
import { itemsOf, WANT } from './teachers.js';

/** All of them end like this. */
async function allRefused(calls: Promise<unknown>[], reason: Reason): Promise<LimbeckError[]> {
  return Promise.all(calls.map((call) => refused(call, reason)));
}

/** All calls that take a run's id. */
function callsOf(client: Client, runId: string): Promise<unknown>[] {
  return [
    client.run(runId),
    client.pause(runId),
    client.resume(runId),
    client.cancel(runId),
    client.setKnobs(runId, { 'losses.forward_kl.weight': 1 }),
    client.saveCheckpoint(runId),
    client.checkpoints(runId),
    all(client.watch(runId)),
    client.artifacts(runId),
    client.fetch(runId, folder()),
  ];
}

export const errors: Scenarios = {
  async error_recipe_invalid(served) {
    const error = await refused(served.client().createRun(served.recipe('invalid')), 'RECIPE_INVALID');
    const fields = error.problems.map(({ field }) => field);
    assert.deepEqual(fields, ['student.layers', 'losses[0].plugin', 'training.learning_rate']);
    assert.deepEqual(
      error.problems.map(({ line }) => line),
      served.facts.invalid_lines,
    );
    assert.ok(error.problems.every(({ file, column }) => file === 'recipe' && column));
  },

  async error_rows_invalid(served) {
    const client = served.client();
    const { runId } = await client.createRun(served.recipe('broken'));
    const events = await all(client.watch(runId));
    assert.deepEqual(statesOf(events), ['created', 'validating', 'failed']);
    const { run } = await client.run(runId);
    const last = events.at(-1)?.kind;
    assert.ok(run?.error && last?.case === 'stateChanged' && last.value.error);
    assert.deepEqual(run.error, last.value.error);
    assert.equal(run.error.reason, 'DATA_INVALID');
    assert.deepEqual(
      run.error.problems.map(({ file, line }) => [file, line]),
      [['broken.jsonl', 3]],
    );
    const said = [...events.map((event) => toJsonString(EventSchema, event)), toJsonString(RunSchema, run)];
    assert.ok(!said.join().includes(dirname(served.facts.workspace)));
  },

  async error_path_outside(served) {
    const texts: string[] = [];
    for (const name of ['outside', 'absent']) {
      const error = await refused(served.client().createRun(served.recipe(name)), 'RECIPE_INVALID');
      assert.ok(!error.message.includes(dirname(served.facts.workspace)));
      texts.push(error.message.replaceAll(name, '…'));
    }
    assert.equal(texts[0], texts[1]);
  },

  async error_run_unknown(served) {
    await allRefused(callsOf(served.client(), randomUUID()), 'RUN_UNKNOWN');
  },

  async error_run_state(served) {
    const [{ runId, events }, client] = [await served.done(), served.client()];
    await refused(client.resume(runId), 'RUN_STATE');
    await refused(client.pause(runId), 'RUN_STATE');
    await refused(client.saveCheckpoint(runId), 'RUN_STATE');
    assert.equal((await client.run(runId)).run!.lastSequence, BigInt(events.length));
  },

  async error_run_exists(served) {
    const { recipe } = await served.done();
    await refused(served.client().createRun(recipe), 'RUN_EXISTS');
  },

  async error_knob_invalid(served) {
    const [runId, client] = [await served.trains(), served.client()];
    const valuesOf = async (): Promise<unknown> =>
      (await client.run(runId)).run!.knobs.map(({ name, value }) => [name, value]);
    const before = await valuesOf();
    const values = {
      'losses.nothing.weight': 1,
      'losses.cross_entropy.weight': 0.3,
      'losses.forward_kl.weight': -1,
    };
    const error = await refused(client.setKnobs(runId, values), 'KNOB_INVALID');
    assert.match(error.message, /losses\.nothing\.weight/);
    assert.match(error.message, /losses\.forward_kl\.weight/);
    assert.deepEqual(await valuesOf(), before);
  },

  async error_cursor_invalid(served) {
    const [{ runId, events }, client] = [await served.done(), served.client()];
    await refused(all(client.watch(runId, { after: events.length + 1 })), 'CURSOR_INVALID');
    await refused(all(client.signals(served.facts.dataset, { after: 1_000_000 })), 'CURSOR_INVALID');
  },

  async error_artifact_unknown(served) {
    const [{ runId }, client] = [await served.done(), served.client()];
    const [saved] = await client.checkpoints(runId);
    const texts = new Set<string>();
    const bad = [
      'student/nothing',
      `${saved!.path}/manifest.json`,
      '../../rows.jsonl',
      '/etc/hostname',
      'student/..',
    ];
    for (const path of bad) {
      const download = served.raw(TrainingService.method.downloadArtifact, { runId, path });
      const error = await refused(download, 'ARTIFACT_UNKNOWN');
      assert.ok(!error.message.includes(served.facts.workspace));
      texts.add(error.message.replace(/'.*?'/, '…'));
    }
    assert.equal(texts.size, 1);
    const at = folder();
    await refused(client.fetch(runId, at, { path: 'student/nothing' }), 'ARTIFACT_UNKNOWN');
    assert.deepEqual(readdirSync(at), []);
  },

  async error_quota_exceeded(served) {
    const client = served.client('greedy');
    const made: string[] = [];
    const greedily = async (): Promise<void> => {
      while (made.length < 40) made.push((await client.createRun(served.recipe('long'))).runId);
    };
    try {
      await refused(greedily(), 'QUOTA_EXCEEDED');
    } finally {
      for (const runId of made) await client.cancel(runId);
    }
    assert.ok(made.length > 0);
    for (const runId of made) await until(client, runId, RunState.CANCELLED);
    const { runId } = await client.createRun(served.recipe('long'));
    await client.cancel(runId);
    await until(client, runId, RunState.CANCELLED);
  },

  async error_request_invalid(served) {
    for (const requestId of ['', 'x'.repeat(129)]) {
      await refused(served.client().createRun(served.recipe('tiny'), { requestId }), 'REQUEST_INVALID');
    }
    await refused(served.raw(TrainingService.method.listRuns, { pageToken: 'none' }), 'REQUEST_INVALID');
  },

  async error_unauthenticated(served) {
    for (const token of ['none', 'unknown', 'expired']) {
      const client = served.client(token);
      const calls = [client.teachers(), client.plugins(), all(client.runs()), client.createRun('{}')];
      const found = await allRefused(calls, 'UNAUTHENTICATED');
      if (token === 'none') continue;
      const secret = readFileSync(served.facts.tokens[token]!, 'utf8');
      assert.ok(found.every(({ message }) => !message.includes(secret)));
    }
  },

  async error_permission_denied(served) {
    const client = served.client('score');
    const { runId } = await served.done();
    assert.equal((await all(client.score(served.facts.teacher, itemsOf(2), WANT))).length, 2);
    for await (const { sequence } of client.signals(served.facts.dataset)) {
      assert.equal(sequence, 1n);
      break;
    }
    const others = [client.plugins(), all(client.runs()), client.validate('{}'), client.createRun('{}')];
    await allRefused([...others, ...callsOf(client, runId)], 'PERMISSION_DENIED');
  },

  async error_server_unavailable(served) {
    const nobody = createServer();
    await new Promise<void>((resolve) => nobody.listen(0, '127.0.0.1', resolve));
    const { port } = nobody.address() as { port: number };
    await new Promise((resolve) => nobody.close(resolve));
    const client = served.client('train', { address: `127.0.0.1:${port}`, times: { timeout: 1000 } });
    await refused(client.teachers(), 'SERVER_UNAVAILABLE');
    await refused(all(client.watch(randomUUID())), 'SERVER_UNAVAILABLE');
  },
};
