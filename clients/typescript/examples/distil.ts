// Distil at a server: create a run from a recipe, watch it, steer it, fetch its student.
//
//     node build/examples/distil.js recipe.yaml --server 127.0.0.1:7411 --set losses.forward_kl.weight=0.5
//
// The recipe's paths are relative to the server's workspace. Lost connections are made again, also those of hours.
import { readFile } from 'node:fs/promises';
import { parseArgs } from 'node:util';
import { connect, errorOf, LimbeckError, Plugin_Kind, RunState } from '@limbeck/client';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    server: { type: 'string', default: '127.0.0.1:7411' },
    'token-file': { type: 'string' },
    'tls-ca': { type: 'string' },
    to: { type: 'string', default: 'fetched' },
    set: { type: 'string', multiple: true, default: [] },
  },
});

async function distil(recipeFile: string): Promise<void> {
  const { server: address, 'token-file': tokenFile, 'tls-ca': ca, to, set } = values;
  const client = connect({
    address,
    ...(tokenFile && { tokenFile }),
    ...(ca && { tls: { ca } }),
    log: console.error,
  });
  try {
    const { plugins } = await client.plugins();
    const losses = plugins.filter(({ kind }) => kind === Plugin_Kind.LOSS).map(({ name }) => name);
    console.log(`losses of this server: ${losses.join(', ')}`);

    const { runId } = await client.createRun(await readFile(recipeFile, 'utf8'));
    console.log(`run ${runId}`); // it goes on by itself, whatever becomes of this program
    for (const one of set) {
      const [knob = '', value] = one.split('=');
      await client.setKnobs(runId, { [knob]: Number(value) }); // in force as soon as the training begins
    }

    for await (const { kind, step } of client.watch(runId)) {
      if (kind.case === 'stateChanged')
        console.log(`run ${runId} is ${RunState[kind.value.state].toLowerCase()}`);
      else if (kind.case === 'progress' && kind.value.unit !== 'steps')
        // of steps the metrics tell
        console.log(`${kind.value.done} of ${kind.value.total} ${kind.value.unit}`);
      else if (kind.case === 'metrics')
        console.log(`step ${step}: loss ${kind.value.values.loss?.toFixed(4)}`);
      else if (kind.case === 'knobChanged')
        console.log(`step ${step}: ${kind.value.knob} is ${kind.value.after}`);
      else if (kind.case === 'warning') console.log(`warning: ${kind.value.message}`);
    }

    const { run } = await client.run(runId);
    if (run?.error) throw errorOf(run.error);
    if (run?.state !== RunState.SUCCEEDED) throw new Error('the run has not succeeded');
    for (const { file } of await client.fetch(runId, to)) console.log(`fetched ${file}`);
  } finally {
    client.close();
  }
}

try {
  const [recipeFile] = positionals;
  if (recipeFile === undefined) throw new Error('which recipe? node build/examples/distil.js recipe.yaml');
  await distil(recipeFile);
} catch (error) {
  console.error(error instanceof LimbeckError ? `${error.reason}: ${error.message}` : String(error));
  process.exitCode = 1;
}
