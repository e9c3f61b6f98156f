// The server of clients/serve.py, and runs that the scenarios share.
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createConnection } from 'node:net';
import { createInterface } from 'node:readline';
import {
  create,
  fromBinary,
  toBinary,
  type DescMessage,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  type MessageInitShape,
  type MessageShape,
} from '@bufbuild/protobuf';
import { Client as GrpcClient, credentials, Metadata, type ServiceError } from '@grpc/grpc-js';
import {
  connect,
  ENDED,
  errorOfCall,
  RunState,
  type Client,
  type ConnectOptions,
  type Event,
} from '@limbeck/client';
import { REPOSITORY } from '../places.js';

/** What clients/serve.py says: see clients/README.md. */
interface Facts {
  address: string;
  tls_address: string;
  ca: string;
  other_ca: string;
  tokens: Record<string, string>;
  workspace: string;
  recipes: Record<string, string>;
  invalid_lines: number[];
  teacher: string;
  dataset: string;
  proxy: string;
  drop: string;
  silent: string;
  signals: string;
}

/** A run of the tiny recipe that has ended, its text, and what a watcher saw over dropped connections. */
interface Done {
  runId: string;
  recipe: string;
  events: Event[];
  drops: number;
}

export type Scenarios = Record<string, (served: Served) => Promise<void> | void>;

export class Served {
  readonly #clients: Client[] = [];
  readonly #long: string[] = [];
  #done: Promise<Done> | undefined;

  private constructor(
    readonly facts: Facts,
    readonly process: ChildProcess,
  ) {}

  static async start(): Promise<Served> {
    const python = process.env.LIMBECK_PYTHON ?? `${REPOSITORY}.venv/bin/python`;
    const server = spawn(python, [`${REPOSITORY}clients/serve.py`], { stdio: ['pipe', 'pipe', 'inherit'] });
    const [line] = (await once(createInterface(server.stdout), 'line')) as [string];
    return new Served(JSON.parse(line) as Facts, server);
  }

  /** Ends the long runs: the server takes one run at a time. */
  async rest(): Promise<void> {
    const client = this.client();
    for (const runId of this.#long) {
      if (!ENDED.has((await client.run(runId)).run!.state)) await client.cancel(runId);
    }
  }

  /** Ends the long runs, the clients and the server. */
  async stop(): Promise<void> {
    await this.rest();
    for (const client of this.#clients) client.close();
    this.process.stdin!.end();
    const [code] = (await once(this.process, 'exit')) as [number];
    assert.equal(code, 0);
  }

  /** A client with the token of a file; closed with the server. */
  client(token: string | undefined = 'train', options: Partial<ConnectOptions> = {}): Client {
    const file = token === 'none' ? {} : { tokenFile: this.facts.tokens[token]! };
    const client = connect({ address: this.facts.address, ...file, ...options });
    this.#clients.push(client);
    return client;
  }

  /** A recipe with a folder of its own. */
  recipe(name: string): string {
    return this.facts.recipes[name]!.replaceAll('OUTPUT', randomUUID());
  }

  /** Has all connections through the proxy dropped. */
  async drop(): Promise<void> {
    const [, host, port] = /^(.*):(.*)$/.exec(this.facts.drop)!;
    const bell = createConnection(Number(port), host);
    bell.resume();
    await once(bell, 'close');
  }

  /** The run that many scenarios look at; watched through the proxy, whose connections are dropped meanwhile. */
  done(): Promise<Done> {
    this.#done ??= this.#watchTiny();
    return this.#done;
  }

  /** Makes the long run train, creating it where there is none that goes on. */
  async trains(): Promise<string> {
    const client = this.client();
    const last = this.#long.at(-1);
    if (last === undefined || ENDED.has((await client.run(last)).run!.state)) {
      this.#long.push((await client.createRun(this.recipe('long'))).runId);
    }
    const runId = this.#long.at(-1)!;
    const state = (await client.run(runId)).run!.state;
    if (state === RunState.PAUSED || state === RunState.PAUSING) {
      await until(client, runId, RunState.PAUSED);
      await client.resume(runId);
    }
    await until(client, runId, RunState.TRAINING);
    return runId;
  }

  /** A call as it travels, for what no client would ask. */
  raw<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O> | DescMethodServerStreaming<I, O>,
    request: MessageInitShape<I>,
  ): Promise<MessageShape<O>[]> {
    const { address, tokens } = this.facts;
    const client = new GrpcClient(address, credentials.createInsecure(), { 'grpc.enable_http_proxy': 0 });
    const metadata = new Metadata();
    metadata.set('authorization', `Bearer ${readFileSync(tokens.train!, 'utf8').trim()}`);
    const call = client.makeServerStreamRequest(
      `/${method.parent.typeName}/${method.name}`, // an answer is a stream of one
      (message: MessageShape<I>) => Buffer.from(toBinary(method.input, message)),
      (raw) => fromBinary(method.output, raw),
      create(method.input, request),
      metadata,
    );
    return new Promise((resolve, reject) => {
      const found: MessageShape<O>[] = [];
      call.on('data', (message: MessageShape<O>) => found.push(message));
      call.on('error', (error: ServiceError) => {
        reject(errorOfCall(error, address));
      });
      call.on('end', () => {
        resolve(found);
      });
    });
  }

  async #watchTiny(): Promise<Done> {
    const recipe = this.recipe('tiny');
    const { runId } = await this.client().createRun(recipe);
    const events: Event[] = [];
    let drops = 0;
    for await (const event of this.client('train', { address: this.facts.proxy }).watch(runId)) {
      events.push(event);
      const state = stateOf(event);
      if (event.sequence === 1n || state === RunState.TRAINING || state === RunState.EVALUATING) {
        await this.drop();
        drops++;
      }
    }
    return { runId, recipe, events, drops };
  }
}

/** Waits until the run is in a state; gives the events after `after` until then. */
export async function until(
  client: Client,
  runId: string,
  state: RunState,
  after?: bigint,
): Promise<Event[]> {
  const { run } = await client.run(runId);
  if (after === undefined && run!.state === state) return [];
  const found: Event[] = [];
  for await (const event of client.watch(runId, { after: after ?? run!.lastSequence })) {
    found.push(event);
    if (stateOf(event) === state) return found;
    if (after === undefined && ENDED.has(stateOf(event)!)) break;
  }
  throw new assert.AssertionError({ message: `it ended without ${RunState[state]}` });
}

/** The state that an event tells of. */
export function stateOf(event: Event): RunState | undefined {
  return event.kind.case === 'stateChanged' ? event.kind.value.state : undefined;
}

/** The names of the states that events tell of. */
export function statesOf(events: Event[]): string[] {
  return events.flatMap((event) => {
    const state = stateOf(event);
    return state === undefined ? [] : RunState[state].toLowerCase();
  });
}

/** 1, 2, 3, … */
export function counted(count: number, first = 1n): bigint[] {
  return Array.from({ length: count }, (_, i) => first + BigInt(i));
}
