// A server that does what a test tells it, faults included.
import assert from 'node:assert/strict';
import { after } from 'node:test';
import {
  create,
  fromBinary,
  toBinary,
  type DescMessage,
  type DescService,
  type MessageInitShape,
} from '@bufbuild/protobuf';
import { anyPack } from '@bufbuild/protobuf/wkt';
import {
  Metadata,
  Server,
  ServerCredentials,
  status,
  type ServerDuplexStream,
  type ServerWritableStream,
  type ServiceDefinition,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js';
import { StatusSchema } from '#gen/google/rpc/status_pb.js';
import { connect, LimbeckError, type Client, type ConnectOptions, type Reason } from '@limbeck/client';
import {
  ErrorSchema,
  GenerateResponseSchema,
  PluginService,
  ScoreResponseSchema,
  StreamSignalsResponseSchema,
  Teacher_State,
  TeacherSchema,
  TeacherService,
  TrainingService,
  WatchRunResponseSchema,
  type GenerateRequest,
  type GenerateResponse,
  type ScoreRequest,
  type ScoreResponse,
  type StreamSignalsRequest,
  type StreamSignalsResponse,
  type WatchRunRequest,
  type WatchRunResponse,
} from '@limbeck/client/v1';

export type Scoring = ServerDuplexStream<ScoreRequest, ScoreResponse>;
export type Generating = ServerDuplexStream<GenerateRequest, GenerateResponse>;
export type Watching = ServerWritableStream<WatchRunRequest, WatchRunResponse>;
export type Replaying = ServerWritableStream<StreamSignalsRequest, StreamSignalsResponse>;

const SERVICES = [TeacherService, TrainingService, PluginService];

/** Starts a server with these methods; its address. It ends with the test's file. */
export async function serve(methods: Record<string, unknown>): Promise<string> {
  const server = new Server();
  for (const service of SERVICES) {
    server.addService(definitionOf(service), methods as UntypedServiceImplementation);
  }
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) => {
      if (error) reject(error);
      else resolve(bound);
    });
  });
  after(() => {
    server.forceShutdown();
  });
  return `127.0.0.1:${port}`;
}

/** A client that ends with the test's file. */
export function clientOf(address: string, options: Partial<ConnectOptions> = {}): Client {
  const client = connect({ address, ...options });
  after(() => {
    client.close();
  });
  return client;
}

/** Does the first script in the first call, and so on; the last one in all later calls. */
export function each<T>(...scripts: ((call: T) => void)[]): (call: T) => void {
  return (call) => {
    (scripts.length > 1 ? scripts.shift() : scripts[0])?.(call);
  };
}

/** What a call ends with. */
export function refusal(reason: string, code: status, messages: string[] = ['as the test wants']): Error {
  const error = create(ErrorSchema, {
    reason,
    message: `${reason}, says the test.`,
    problems: messages.map((message) => ({
      message,
      file: 'recipe',
      line: 3,
      column: 9,
      field: 'here',
      hint: 'there',
    })),
  });
  const details = toBinary(
    StatusSchema,
    create(StatusSchema, { code, details: [anyPack(ErrorSchema, error)] }),
  );
  const metadata = new Metadata();
  metadata.set('grpc-status-details-bin', Buffer.from(details));
  return Object.assign(new Error(reason), { code, details: reason, metadata });
}

/** What a call ends with that no server of Limbeck ended. */
export function bare(code: status, details: string): Error {
  return Object.assign(new Error(details), { code, details });
}

/** Opened by the client's side of a test when it has what came so far: an error overtakes messages. */
export class Gate {
  open: () => void = () => undefined;
  readonly opened = new Promise<void>((resolve) => (this.open = resolve));

  /** Loses the connection then. */
  lose(call: NodeJS.EventEmitter): void {
    void this.opened.then(() => call.emit('error', bare(status.UNAVAILABLE, 'lost')));
  }
}

/** Sends a message of a Score call. */
export function tell(
  call: Scoring,
  kind: MessageInitShape<typeof ScoreResponseSchema>['kind'] & object,
): void {
  call.write(create(ScoreResponseSchema, { kind }));
}

/** Sends a message of a Generate call. */
export function write(
  call: Generating,
  kind: MessageInitShape<typeof GenerateResponseSchema>['kind'] & object,
): void {
  call.write(create(GenerateResponseSchema, { kind }));
}

/** Sends a message of a WatchRun call. */
export function show(
  call: Watching,
  kind: MessageInitShape<typeof WatchRunResponseSchema>['kind'] & object,
): void {
  call.write(create(WatchRunResponseSchema, { kind }));
}

/** Sends a message of a StreamSignals call. */
export function play(
  call: Replaying,
  kind: MessageInitShape<typeof StreamSignalsResponseSchema>['kind'] & object,
): void {
  call.write(create(StreamSignalsResponseSchema, { kind }));
}

/** A teacher that answers. */
export const TEACHER = create(TeacherSchema, {
  name: 't',
  plugin: 'scripted',
  state: Teacher_State.READY,
  vocabSize: 1000,
  tokenizerDigest: 'a'.repeat(64),
  weightsDigest: 'b'.repeat(64),
  maxLength: 4096,
  limits: { tokensInFlight: 1n << 20n, answerBytes: 1n << 30n, streams: 8 },
});

/** Whether a promise is refused with this reason; gives the error. */
export async function refused(work: Promise<unknown>, reason: Reason): Promise<LimbeckError> {
  try {
    await work;
  } catch (error) {
    if (error instanceof LimbeckError && error.reason === reason) return error;
    throw error;
  }
  throw new assert.AssertionError({ message: `${reason} was due, and all went well` });
}

/** Everything that an iterator gives; opens the gate when it has given so many. */
export async function all<T>(source: AsyncIterable<T>, gate?: Gate, count = 0): Promise<T[]> {
  const found: T[] = [];
  for await (const one of source) if (found.push(one) === count) gate?.open();
  return found;
}

function definitionOf(service: DescService): ServiceDefinition {
  return Object.fromEntries(
    service.methods.map((method) => [
      method.localName,
      {
        path: `/${service.typeName}/${method.name}`,
        requestStream: method.methodKind === 'bidi_streaming' || method.methodKind === 'client_streaming',
        responseStream: method.methodKind === 'bidi_streaming' || method.methodKind === 'server_streaming',
        requestSerialize: encoder(method.input),
        requestDeserialize: (raw: Buffer) => fromBinary(method.input, raw),
        responseSerialize: encoder(method.output),
        responseDeserialize: (raw: Buffer) => fromBinary(method.output, raw),
      },
    ]),
  );
}

function encoder(schema: DescMessage): (message: unknown) => Buffer {
  return (message) => Buffer.from(toBinary(schema, create(schema, message as MessageInitShape<DescMessage>)));
}
