import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { create } from '@bufbuild/protobuf';
import { status, type ServerWritableStream } from '@grpc/grpc-js';
import {
  DownloadArtifactResponseSchema,
  type DownloadArtifactRequest,
  type DownloadArtifactResponse,
} from '@limbeck/client/v1';
import { clientOf, each, Gate, refusal, refused, serve } from './scripted.js';

type Downloading = ServerWritableStream<DownloadArtifactRequest, DownloadArtifactResponse>;

const CONTENT = Buffer.from(Array.from({ length: 1000 }, (_, i) => i % 251));
const sha256 = (content: Buffer): Buffer => createHash('sha256').update(content).digest();
const folder = (): string => mkdtempSync(join(tmpdir(), 'limbeck-'));
const artifactOf = (path: string, content: Buffer = CONTENT) => ({
  path,
  size: BigInt(content.length),
  sha256: sha256(content),
});

function send(call: Downloading, content: Buffer, to = content.length, stated = content): void {
  const { path, offset } = call.request;
  call.write(
    create(DownloadArtifactResponseSchema, { kind: { case: 'started', value: artifactOf(path, stated) } }),
  );
  for (let at = Number(offset); at < to; at += 100) {
    const data = content.subarray(at, Math.min(at + 100, to));
    call.write(create(DownloadArtifactResponseSchema, { kind: { case: 'data', value: data } }));
  }
}

async function holding(artifacts: object[], ...scripts: ((call: Downloading) => void)[]) {
  const asked: { offset: bigint; sha256: string }[] = [];
  const script = each(...scripts);
  const address = await serve({
    listArtifacts: (_: unknown, reply: (error: null, answer: object) => void) => {
      reply(null, { artifacts });
    },
    downloadArtifact: (call: Downloading) => {
      asked.push({ offset: call.request.offset, sha256: Buffer.from(call.request.sha256).toString('hex') });
      script(call);
    },
  });
  return { asked, client: clientOf(address, { times: { retryFor: 5000 } }) };
}

const whole = (call: Downloading): void => {
  send(call, CONTENT);
  call.end();
};
const half =
  (gate: Gate) =>
  (call: Downloading): void => {
    send(call, CONTENT, 500);
    gate.lose(call);
  };
const opens =
  (gate: Gate) =>
  ({ done }: { done: number }): void => {
    if (done === 500) gate.open();
  };

test('the student is fetched, and the others are not', async () => {
  const files = ['report/index.html', 'student/config.json', 'student/deep/model.safetensors', 'student2/a'];
  const { asked, client } = await holding(
    files.map((path) => artifactOf(path)),
    whole,
  );
  const at = folder();
  const told: number[] = [];
  const fetched = await client.fetch('r', at, { told: ({ done }) => told.push(done) });
  assert.deepEqual(
    fetched.map(({ path }) => path),
    files.slice(1, 3),
  );
  for (const { file } of fetched) assert.deepEqual(readFileSync(file), CONTENT);
  assert.deepEqual(fetched[1]?.file, join(at, 'student/deep/model.safetensors'));
  assert.equal(told.at(-1), 2000);
  assert.deepEqual(readdirSync(join(at, 'student')), ['config.json', 'deep']);
  await client.fetch('r', at);
  assert.equal(asked.length, 2, 'what is there is not fetched again');
});

test('a lost download goes on from where it was', async () => {
  const gate = new Gate();
  const { asked, client } = await holding([artifactOf('student/a')], half(gate), whole);
  const [fetched] = await client.fetch('r', folder(), { told: opens(gate) });
  assert.deepEqual(readFileSync(fetched!.file), CONTENT);
  assert.deepEqual(
    asked.map(({ offset }) => offset),
    [0n, 500n],
  );
  assert.equal(asked[1]?.sha256, sha256(CONTENT).toString('hex'));
});

test('another process goes on from where the first was', async () => {
  const at = folder();
  const controller = new AbortController();
  const first = await holding([artifactOf('student/a')], (call) => {
    send(call, CONTENT, 500);
  });
  const told = ({ done }: { done: number }): void => {
    if (done === 500) controller.abort(new Error('killed'));
  };
  await assert.rejects(first.client.fetch('r', at, { signal: controller.signal, told }), /killed/);
  assert.ok(!existsSync(join(at, 'student/a')));
  const second = await holding([artifactOf('student/a')], whole);
  const [fetched] = await second.client.fetch('r', at);
  assert.deepEqual(readFileSync(fetched!.file), CONTENT);
  assert.deepEqual(
    second.asked.map(({ offset }) => offset),
    [500n],
  );
});

for (const name of ['n'.repeat(200), 'n'.repeat(201), `${'ä'.repeat(127)}n`]) {
  test(`a name of ${Buffer.byteLength(name)} bytes is fetched, and gone on with`, async () => {
    const at = folder();
    const gate = new Gate();
    const { asked, client } = await holding([artifactOf(`student/${name}`)], half(gate), whole);
    const stem = name.length === 200 ? name : sha256(Buffer.from(name)).toString('hex');
    const partial = `.${stem}.${sha256(CONTENT).toString('hex').slice(0, 16)}.partial`;
    const told = ({ done }: { done: number }): void => {
      if (done !== 500) return;
      assert.deepEqual(readdirSync(join(at, 'student')), [partial]);
      gate.open();
    };
    await client.fetch('r', at, { told });
    assert.deepEqual(readdirSync(join(at, 'student')), [name]);
    assert.deepEqual(
      asked.map(({ offset }) => offset),
      [0n, 500n],
    );
  });
}

test('bytes that are not those stated leave no file behind', async () => {
  const wrong = Buffer.alloc(1000, 7);
  const { asked, client } = await holding([artifactOf('student/a')], (call) => {
    send(call, wrong, 1000, CONTENT);
    call.end();
  });
  const at = folder();
  const error = await refused(client.fetch('r', at), 'STORE_DAMAGED');
  assert.match(error.message, /checksum/);
  assert.ok(!existsSync(join(at, 'student/a')));
  assert.deepEqual(
    asked.map(({ offset }) => offset),
    [0n, 0n],
    'once more from the start',
  );
});

test('another file than was listed is refused', async () => {
  const { client } = await holding([artifactOf('student/a')], (call) => {
    send(call, Buffer.alloc(1000, 7));
    call.end();
  });
  await refused(client.fetch('r', folder()), 'STORE_DAMAGED');
});

test('more bytes than stated are refused', async () => {
  const { client } = await holding([artifactOf('student/a')], (call) => {
    send(call, Buffer.alloc(2000), 2000, CONTENT);
    call.end();
  });
  await refused(client.fetch('r', folder()), 'STORE_DAMAGED');
});

test('a file that grew meanwhile is fetched from the start', async () => {
  const gate = new Gate();
  const grown = Buffer.concat([CONTENT, CONTENT]);
  const { asked, client } = await holding(
    [{ path: 'events.jsonl', size: 900n }],
    half(gate),
    (call) => {
      call.emit('error', refusal('STORE_DAMAGED', status.DATA_LOSS));
    },
    (call) => {
      send(call, grown);
      call.end();
    },
  );
  const [fetched] = await client.fetch('r', folder(), { path: 'events.jsonl', told: opens(gate) });
  assert.deepEqual(readFileSync(fetched!.file), grown);
  assert.deepEqual(
    asked.map(({ offset }) => offset),
    [0n, 500n, 0n],
  );
});

test('an empty file is fetched', async () => {
  const empty = Buffer.alloc(0);
  const { client } = await holding([artifactOf('student/a', empty)], (call) => {
    send(call, empty);
    call.end();
  });
  const [fetched] = await client.fetch('r', folder());
  assert.equal(readFileSync(fetched!.file).length, 0);
});

for (const path of [
  '../a',
  'student/../../a',
  '/etc/a',
  'student//a',
  'student/./a',
  'student/a\\b',
  'C:/a',
  'student/\0',
  'n'.repeat(256),
  '',
]) {
  test(`a server that names ${JSON.stringify(path)} is not followed`, async () => {
    const { asked, client } = await holding([artifactOf('student/b'), artifactOf(path)], whole);
    const at = folder();
    await refused(client.fetch('r', at, { path: '.' }), 'INTERNAL');
    assert.deepEqual(readdirSync(at), []);
    assert.equal(asked.length, 0);
  });
}

test('a path that is a folder of another is refused', async () => {
  const { client } = await holding([artifactOf('student'), artifactOf('student/a')], whole);
  await refused(client.fetch('r', folder()), 'INTERNAL');
});

test('a link in the folder leads nowhere', async () => {
  const { client } = await holding([artifactOf('student/a')], whole);
  const at = folder();
  const elsewhere = folder();
  symlinkSync(elsewhere, join(at, 'student'));
  await refused(client.fetch('r', at), 'FOLDER_NOT_OURS');
  assert.deepEqual(readdirSync(elsewhere), []);
});

test('a link in the place of the file is replaced, not followed', async () => {
  const { client } = await holding([artifactOf('student/a')], whole);
  const at = folder();
  const precious = join(folder(), 'precious');
  writeFileSync(precious, 'precious');
  mkdirSync(join(at, 'student'));
  symlinkSync(precious, join(at, 'student/a'));
  await client.fetch('r', at);
  assert.equal(readFileSync(precious, 'utf8'), 'precious');
  assert.deepEqual(readFileSync(join(at, 'student/a')), CONTENT);
});

test('a folder in the place of the file is told', async () => {
  const { client } = await holding([artifactOf('student/a')], whole);
  const at = folder();
  mkdirSync(join(at, 'student/a'), { recursive: true });
  await refused(client.fetch('r', at), 'FOLDER_NOT_OURS');
});

test('what is not there is told with what is', async () => {
  const { client } = await holding([artifactOf('report/a')], whole);
  const error = await refused(client.fetch('r', folder()), 'ARTIFACT_UNKNOWN');
  assert.match(error.message, /there are report/);
});
