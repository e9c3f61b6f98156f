import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { timestampMs } from '@bufbuild/protobuf/wkt';
import { formOf, Plugin_Kind, RunState, type Event, type Run } from '@limbeck/client';
import { TrainingService } from '@limbeck/client/v1';
import { all, refused } from '../scripted.js';
import { counted, stateOf, statesOf, until, type Scenarios } from './served.js';

const WEIGHT = 'losses.forward_kl.weight';

export const runs: Scenarios = {
  async list_plugins(served) {
    const { plugins } = await served.client().plugins();
    const named = new Map(plugins.map((plugin) => [`${Plugin_Kind[plugin.kind]} ${plugin.name}`, plugin]));
    for (const name of ['LOSS forward_kl', 'TEACHER transformers', 'GENERATOR prompts'])
      assert.ok(named.has(name));
    assert.equal(new Set(plugins.map(({ kind }) => kind)).size, 4);
    assert.ok(plugins.every(({ distribution, version, summary }) => distribution && version && summary));
  },

  async draw_form(served) {
    const { plugins } = await served.client().plugins();
    const plugin = plugins.find(({ name }) => name === 'forward_kl');
    const fields = new Map(formOf(plugin!.configSchema).map((field) => [field.name, field]));
    assert.equal(fields.get('plugin')?.required, true);
    assert.deepEqual(fields.get('weight')?.types, ['number', 'object']); // or a scheduler
    assert.equal(fields.get('weight')?.default, 1);
    assert.equal(fields.get('weight')?.atLeast, 0);
    assert.equal(fields.get('temperature')?.above, 0);
    assert.deepEqual(fields.get('top_k')?.types, ['integer']);
    assert.deepEqual(fields.get('tail')?.choices, ['bucket', 'renormalise', 'drop']);
    assert.ok([...fields.values()].every(({ title, description }) => title && description));
  },

  async validate_recipe(served) {
    const client = served.client();
    const good = await client.validate(served.recipe('tiny'));
    assert.equal(good.error, undefined);
    const resolved = JSON.parse(good.resolved) as {
      training: { max_steps: number };
      data: { max_length: number };
    };
    assert.equal(resolved.training.max_steps, 200);
    assert.equal(resolved.data.max_length, 256);
    assert.ok(Object.keys(JSON.parse(good.facts) as object).length > 0);
    const bad = await client.validate(served.recipe('invalid'));
    assert.equal(bad.error?.reason, 'RECIPE_INVALID');
    assert.deepEqual(
      bad.error.problems.map(({ line }) => line),
      served.facts.invalid_lines,
    );
    assert.ok(bad.error.problems.every(({ column }) => column > 0));
  },

  async create_run(served) {
    const { runId, events } = await served.done();
    const { run, states } = await served.client().run(runId);
    const order = ['created', 'validating', 'queued', 'preparing', 'labelling', 'training', 'evaluating'];
    assert.deepEqual(statesOf(events), [...order, 'reporting', 'succeeded']);
    assert.deepEqual(
      states.map(({ state }) => RunState[state].toLowerCase()),
      statesOf(events),
    );
    assert.equal(run?.state, RunState.SUCCEEDED);
    assert.equal(run.attempt, 1);
    assert.equal(run.lastSequence, BigInt(events.length));
    assert.ok((run.metrics['losses.forward_kl'] ?? -1) >= 0);
  },

  async create_is_idempotent(served) {
    const client = served.client();
    const [requestId, recipe] = [randomUUID(), served.recipe('long')];
    const { runId } = await client.createRun(recipe, { requestId });
    try {
      assert.equal((await client.createRun(recipe, { requestId })).runId, runId);
      await refused(client.createRun(`${recipe}# another\n`, { requestId }), 'RUN_EXISTS');
    } finally {
      await client.cancel(runId);
    }
    await until(client, runId, RunState.CANCELLED);
    assert.equal((await client.createRun(recipe, { requestId })).runId, runId);
  },

  async watch_across_drops(served) {
    const { runId, events, drops } = await served.done();
    assert.equal(drops, 3);
    assert.deepEqual(
      events.map(({ sequence }) => sequence),
      counted(events.length),
    );
    assert.ok(events.every((event) => event.runId === runId));
    assert.equal(statesOf(events).at(-1), 'succeeded');
  },

  async watch_from_a_cursor(served) {
    const { runId, events } = await served.done();
    const client = served.client();
    assert.deepEqual(await all(client.watch(runId, { after: 0n })), events);
    assert.deepEqual(await all(client.watch(runId)), events);
    assert.deepEqual(await all(client.watch(runId, { after: 5 })), events.slice(5));
  },

  async list_runs(served) {
    const client = served.client();
    const { runId, recipe } = await served.done();
    const found = await all(client.runs());
    const created = found.map((run) => timestampMs(run.created!));
    assert.deepEqual(
      created,
      [...created].sort((a, b) => b - a),
    );
    assert.ok(found.some((run) => run.runId === runId));
    const paged: Run[] = [];
    let pageToken = '';
    do {
      const [page] = await served.raw(TrainingService.method.listRuns, { pageSize: 1, pageToken });
      assert.ok(page!.runs.length <= 1);
      paged.push(...page!.runs);
      pageToken = page!.nextPageToken;
    } while (pageToken !== '');
    assert.deepEqual(
      paged.map((run) => run.runId),
      found.map((run) => run.runId),
    );
    assert.deepEqual(await all(client.runs({ pageSize: 1 })), found);
    const succeeded = await all(client.runs({ states: [RunState.SUCCEEDED] }));
    assert.deepEqual(new Set(succeeded.map(({ state }) => state)), new Set([RunState.SUCCEEDED]));
    const details = await client.run(runId);
    assert.equal(details.recipe, recipe);
    const times = details.states.map(({ time }) => timestampMs(time!));
    assert.deepEqual(
      times,
      [...times].sort((a, b) => a - b),
    );
  },

  async steer_a_knob(served) {
    const [runId, client] = [await served.trains(), served.client()];
    const before = (await client.run(runId)).run!;
    const value = before.metrics[`knobs.${WEIGHT}`] === 0.25 ? 0.5 : 0.25;
    await client.setKnobs(runId, { [WEIGHT]: value });
    let changed: bigint | undefined;
    for await (const { kind, step } of client.watch(runId, { after: before.lastSequence })) {
      if (kind.case === 'knobChanged') {
        assert.deepEqual([kind.value.knob, kind.value.after], [WEIGHT, value]);
        changed = step;
      } else if (kind.case === 'metrics' && changed !== undefined && step > changed) {
        assert.equal(kind.value.values[`knobs.${WEIGHT}`], value);
        break;
      }
    }
    const knob = (await client.run(runId)).run!.knobs.find(({ name }) => name === WEIGHT);
    assert.deepEqual([knob?.value, knob?.atLeast], [value, 0]);
  },

  async save_checkpoint(served) {
    const [runId, client] = [await served.trains(), served.client()];
    const saved = await client.saveCheckpoint(runId);
    assert.ok(saved.step > 0n && saved.bytes > 0n);
    const listed = (await client.checkpoints(runId)).map(({ path, step, bytes }) => ({ path, step, bytes }));
    assert.ok(
      listed.some(
        ({ path, step, bytes }) => path === saved.path && step === saved.step && bytes === saved.bytes,
      ),
    );
  },

  async pause_and_resume(served) {
    const [runId, client] = [await served.trains(), served.client()];
    const after = (await client.run(runId)).run!.lastSequence;
    const seen: Event[] = [];
    const watching = (async () => {
      for await (const event of client.watch(runId, { after })) {
        seen.push(event);
        if (stateOf(event) === RunState.TRAINING) break;
      }
    })();
    await client.pause(runId);
    await until(client, runId, RunState.PAUSED, after);
    assert.equal((await client.run(runId)).run!.state, RunState.PAUSED);
    await client.pause(runId); // again: nothing
    const whole = await until(client, runId, RunState.PAUSED, 0n);
    const stopped = whole.reduce((most, { step }) => (step > most ? step : most), 0n);
    await client.resume(runId);
    await watching;
    const states = statesOf(seen);
    assert.deepEqual([...states.slice(0, 3), states.at(-1)], ['pausing', 'paused', 'queued', 'training']);
    assert.deepEqual(
      seen.map(({ sequence }) => sequence),
      counted(seen.length, after + 1n),
    );
    for await (const { kind, step } of client.watch(runId, { after: seen.at(-1)!.sequence })) {
      if (kind.case !== 'metrics') continue;
      assert.equal(step, stopped + 1n);
      break;
    }
  },

  async cancel_run(served) {
    const [runId, client] = [await served.trains(), served.client()];
    const watching = all(client.watch(runId, { after: (await client.run(runId)).run!.lastSequence }));
    await client.cancel(runId);
    const seen = await watching;
    assert.deepEqual(statesOf(seen), ['cancelling', 'cancelled']);
    assert.equal((await client.cancel(runId)).state, RunState.CANCELLED);
    assert.equal((await client.run(runId)).run!.lastSequence, seen.at(-1)!.sequence);
  },
};
