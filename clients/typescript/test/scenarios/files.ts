import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { promisify } from 'node:util';
import { TrainingService } from '@limbeck/client/v1';
import { REPOSITORY } from '../places.js';
import { refused } from '../scripted.js';
import type { Scenarios } from './served.js';

export const folder = (): string => mkdtempSync(join(tmpdir(), 'limbeck-'));

function filesOf(at: string): string[] {
  const names = readdirSync(at, { recursive: true }) as string[];
  return names.filter((name) => statSync(join(at, name)).isFile()).sort();
}

export const files: Scenarios = {
  async fetch_student(served) {
    const { runId } = await served.done();
    const client = served.client('train', { address: served.facts.proxy });
    const dropped = new Map<string, Promise<void>>();
    const told = ({ path }: { path: string }): void => {
      if (!dropped.has(path) && dropped.size < 3) dropped.set(path, served.drop());
    };
    const at = folder();
    const fetched = await client.fetch(runId, at, { told });
    await Promise.all(dropped.values());
    assert.ok(dropped.size > 0);
    const listed = new Map((await client.artifacts(runId)).map(({ path, sha256 }) => [path, sha256]));
    const output = (await client.run(runId)).run!.output;
    assert.deepEqual(filesOf(at), [...listed.keys()].filter((path) => path.startsWith('student/')).sort());
    assert.deepEqual(fetched.map(({ file }) => relative(at, file)).sort(), filesOf(at));
    for (const { path, file } of fetched) {
      const content = readFileSync(file);
      assert.deepEqual(createHash('sha256').update(content).digest(), Buffer.from(listed.get(path)!));
      assert.deepEqual(content, readFileSync(join(served.facts.workspace, output, path)));
    }
    assert.ok(![...listed.keys()].some((path) => path.startsWith('checkpoints/')));
  },

  async fetch_refuses_another_file(served) {
    const { runId } = await served.done();
    const client = served.client();
    const artifact = (await client.artifacts(runId)).find(({ path }) => path === 'student/config.json')!;
    const at = folder();
    const expected = { ...artifact, sha256: new Uint8Array(32) };
    await refused(client.fetchArtifacts(runId, at, [expected]), 'STORE_DAMAGED');
    assert.ok(!filesOf(at).includes(artifact.path));
    const request = { runId, path: artifact.path, offset: 10n, sha256: expected.sha256 };
    await refused(served.raw(TrainingService.method.downloadArtifact, request), 'STORE_DAMAGED');
  },

  async example(served) {
    await served.rest();
    const at = folder();
    writeFileSync(join(at, 'recipe.yaml'), served.recipe('tiny'));
    const example = `${REPOSITORY}clients/typescript/build/examples/distil.js`;
    const { address, tokens } = served.facts;
    const options = [
      '--server',
      address,
      '--token-file',
      tokens.train!,
      '--to',
      'here',
      '--set',
      'losses.forward_kl.weight=0.5',
    ];
    const asked = (...more: string[]) =>
      promisify(execFile)(process.execPath, [example, 'recipe.yaml', ...options, ...more], { cwd: at });
    const { stdout } = await asked();
    assert.match(stdout, /^run \S+$/m);
    assert.match(stdout, /step 200: loss /);
    assert.ok(filesOf(join(at, 'here/student')).includes('model.safetensors'));
    writeFileSync(join(at, 'recipe.yaml'), served.recipe('tiny'));
    const failed = (await asked('--set', 'foo=1').catch((error: unknown) => error)) as Record<string, string>;
    assert.match(failed.stderr ?? '', /^KNOB_INVALID: [^]*foo/);
    const [, begun] = /^run (\S+)$/m.exec(failed.stdout ?? '') ?? [];
    await served.client().cancel(begun!);
  },
};
