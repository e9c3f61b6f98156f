// C44: a proxy answers HTTP/2's pings itself, and its far side is gone.
import assert from 'node:assert/strict';
import { createConnection, createServer, type AddressInfo, type Socket } from 'node:net';
import { after, test } from 'node:test';
import { RunState } from '@limbeck/client';
import { all, clientOf, refused, serve, show, type Watching } from './scripted.js';

/** A relay to `address`; what its first connections get, `silent` of them, is nothing. */
async function relay(
  address: string,
  silent: number,
): Promise<{ address: string; connections: () => number }> {
  let connections = 0;
  const open: Socket[] = [];
  const [host, port] = address.split(':') as [string, string];
  const server = createServer((near) => {
    const far = createConnection(Number(port), host);
    open.push(near, far);
    near.on('error', () => far.destroy()).on('close', () => far.destroy());
    far.on('error', () => near.destroy());
    near.pipe(far);
    if (++connections > silent) far.pipe(near);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  after(() => {
    for (const socket of open) socket.destroy();
    server.close();
  });
  return { address: `127.0.0.1:${(server.address() as AddressInfo).port}`, connections: () => connections };
}

const last = { sequence: 1n, kind: { case: 'stateChanged' as const, value: { state: RunState.FAILED } } };

async function watched(): Promise<string> {
  return serve({
    watchRun: (call: Watching) => {
      show(call, { case: 'events', value: { events: [last] } });
      call.end();
    },
    listPlugins: (_: unknown, reply: (error: null, answer: object) => void) => {
      reply(null, {});
    },
  });
}

test('a stream that fell silent goes over another connection', async () => {
  const proxy = await relay(await watched(), 1);
  const client = clientOf(proxy.address, { times: { silence: 500, timeout: 30_000 } });
  assert.equal((await all(client.watch('r'))).length, 1);
  assert.equal(proxy.connections(), 2);
});

test('so does the question after one that was not answered', async () => {
  const proxy = await relay(await watched(), 1);
  const client = clientOf(proxy.address, { times: { timeout: 1000 } });
  await refused(client.plugins(), 'SERVER_UNAVAILABLE');
  await client.plugins();
  assert.equal(proxy.connections(), 2);
});

test('a call under way goes on when another one leaves the connection', async () => {
  let calls = 0;
  let finish = (): void => undefined;
  const address = await serve({
    watchRun: (call: Watching) => {
      calls++;
      show(call, { case: 'alive', value: {} });
      finish = () => {
        show(call, { case: 'events', value: { events: [last] } });
        call.end();
      };
    },
    getRun: () => undefined, // never answers
  });
  const client = clientOf(address, { times: { timeout: 1000 } });
  const watching = all(client.watch('r'));
  while (calls === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  await refused(client.run('r'), 'SERVER_UNAVAILABLE');
  finish();
  assert.equal((await watching).length, 1);
  assert.equal(calls, 1);
});
