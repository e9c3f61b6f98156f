// The scenarios of clients/scenarios.json against a real server: a test for each of their names.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { REPOSITORY } from './places.js';
import { connections } from './scenarios/connections.js';
import { errors } from './scenarios/errors.js';
import { files } from './scenarios/files.js';
import { runs } from './scenarios/runs.js';
import { Served } from './scenarios/served.js';
import { teachers } from './scenarios/teachers.js';

const SCENARIOS = { ...runs, ...files, ...teachers, ...errors, ...connections };
const LISTED = JSON.parse(readFileSync(`${REPOSITORY}clients/scenarios.json`, 'utf8')) as { name: string }[];

let served: Served;
before(async () => {
  served = await Served.start();
});
after(async () => {
  await served.stop();
});

test('the scenarios are those of the list', () => {
  assert.deepEqual(Object.keys(SCENARIOS).sort(), LISTED.map(({ name }) => name).sort());
});

for (const { name } of LISTED) {
  test(name, { timeout: 300_000 }, async () => {
    await SCENARIOS[name]!(served);
  });
}
