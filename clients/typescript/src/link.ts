// One client's connection: its channels, its unary calls, what it has under way.
import {
  create,
  fromBinary,
  toBinary,
  type DescMessage,
  type DescMethodBiDiStreaming,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  type MessageInitShape,
  type MessageShape,
} from '@bufbuild/protobuf';
import {
  connectivityState as State,
  status,
  type Client,
  type ClientDuplexStream,
  type ClientReadableStream,
  type ServiceError,
} from '@grpc/grpc-js';
import { pause } from './bell.js';
import { Budget } from './budget.js';
import type { Connection } from './connection.js';
import { LimbeckError, type Reason } from './errors.js';
import type { Limits, Teacher } from './gen/limbeck/v1/teacher_service_pb.js';
import { delayOf } from './retries.js';
import { AGAIN, errorOfCall, unavailable } from './status.js';

/** Milliseconds. */
export interface Times {
  /** Of a call that asks for one thing, and of the first contact with a server: 10 s. */
  readonly timeout: number;
  /** How long an interrupted stream is tried again without an answer: 300 s. */
  readonly retryFor: number;
  /** A sign of life is sent where nothing else was for so long: 15 s. */
  readonly alive: number;
  /** A call that nothing comes from for so long is given up, and tried again: 80 s. */
  readonly silence: number;
}

export const TIMES: Times = { timeout: 10_000, retryFor: 300_000, alive: 15_000, silence: 80_000 };

/** What can be said with each call. */
export interface CallOptions {
  /** Ends the call; it throws the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

/** What is said of a question. */
export interface AskOptions extends CallOptions {
  /** Milliseconds that the server may take in addition, once it was reached. */
  readonly work?: number;
  /** Reasons to try again for. */
  readonly again?: ReadonlySet<Reason>;
}

interface Cancellable {
  cancel(): void;
}

/** The channels, and what all calls over them share. */
export class Link {
  readonly name: string;
  readonly budget = new Budget();
  /** Whether the server was ever reached. */
  met = false;
  closed = false;
  /** What the server lets one client ask; unset until a teacher was seen. */
  limits: Limits | undefined;
  readonly #connection: Connection;
  /** One for each address. */
  #clients: Client[] = [];
  #turn = 0;
  /** What is under way, and over which connection. */
  readonly #calls = new Map<Cancellable, Client>();

  constructor(
    connection: Connection,
    readonly times: Times,
    readonly log: (message: string) => void,
  ) {
    this.#connection = connection;
    this.name = connection.name;
  }

  /** One question, one answer, within `timeout`; tried again where that may help. */
  async ask<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
    { signal, work = 0, again = AGAIN }: AskOptions = {},
  ): Promise<MessageShape<O>> {
    const message = create(method.input, request);
    let end = Date.now() + this.times.timeout;
    const last = end + work;
    let told: unknown; // what the try before ended with
    for (let count = 0; ; count++) {
      signal?.throwIfAborted();
      const began = Date.now();
      const deadline = work > 0 ? last : end;
      try {
        const answer = await this.#answer(method, message, deadline, signal);
        this.met = true;
        return answer;
      } catch (error) {
        signal?.throwIfAborted();
        const now = Date.now();
        // it was at work when it was lost: patience begins anew
        if (now - began > this.times.timeout) end = Math.min(now + this.times.timeout, last);
        const wait = delayOf(count);
        const useful = error instanceof LimbeckError && again.has(error.reason) && !this.closed;
        if (!useful || now + wait >= end) throw now >= deadline ? (told ?? error) : error;
        told = error;
        await pause(wait, signal);
      }
    }
  }

  /** Begins a call that is answered with a stream. */
  serverStream<I extends DescMessage, O extends DescMessage>(
    method: DescMethodServerStreaming<I, O>,
    request: MessageInitShape<I>,
    signal?: AbortSignal,
  ): ClientReadableStream<MessageShape<O>> {
    const client = this.#client();
    const call = client.makeServerStreamRequest(
      pathOf(method),
      (message: MessageShape<I>) => encoded(method.input, message),
      (raw) => decoded(method.output, raw),
      create(method.input, request),
      this.#connection.metadata(),
    );
    this.#keep(call, client, signal);
    return call;
  }

  /** Begins a call of two directions. */
  duplex<I extends DescMessage, O extends DescMessage>(
    method: DescMethodBiDiStreaming<I, O>,
    signal?: AbortSignal,
  ): ClientDuplexStream<MessageShape<I>, MessageShape<O>> {
    const client = this.#client();
    const call = client.makeBidiStreamRequest(
      pathOf(method),
      (message: MessageShape<I>) => encoded(method.input, message),
      (raw) => decoded(method.output, raw),
      this.#connection.metadata(),
    );
    this.#keep(call, client, signal);
    return call;
  }

  /** Notes what a server says of a teacher: the limits hold for all calls. */
  seen(teacher: Teacher): void {
    this.limits = teacher.limits;
    this.budget.learn(Number(teacher.limits?.tokensInFlight ?? 0n));
  }

  /** Ends what is under way and the connection. A second call does nothing. */
  close(): void {
    this.closed = true;
    for (const call of this.#calls.keys()) call.cancel();
    for (const client of this.#clients) client.close();
    this.#clients = [];
  }

  /**
   * Nothing was heard of a call for too long: later ones go over another connection.
   *
   * HTTP/2's own pings may be answered by a proxy whose far side is gone.
   */
  renew(call: Cancellable): void {
    const place = this.#clients.findIndex((client) => client === this.#calls.get(call));
    if (place < 0) return; // another call has seen to it
    this.#clients[place]!.close(); // calls under way go on
    this.#clients[place] = this.#connection.dial(this.#connection.addresses[place]!);
  }

  #answer<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    message: MessageShape<I>,
    deadline: number,
    signal: AbortSignal | undefined,
  ): Promise<MessageShape<O>> {
    return new Promise((resolve, reject) => {
      const client = this.#client();
      const call = client.makeUnaryRequest(
        pathOf(method),
        (request: MessageShape<I>) => encoded(method.input, request),
        (raw) => decoded(method.output, raw),
        message,
        this.#connection.metadata(),
        { deadline },
        (error: ServiceError | null, answer?: MessageShape<O>) => {
          if (error?.code === status.DEADLINE_EXCEEDED) this.renew(call);
          if (answer !== undefined) resolve(answer);
          else
            reject(error === null ? unavailable(this.name, 'nothing came') : errorOfCall(error, this.name));
        },
      );
      this.#keep(call, client, signal);
    });
  }

  /** The next client in turn, past those whose server is lost. */
  #client(): Client {
    if (this.closed) throw new LimbeckError('SERVER_UNAVAILABLE', [], 'The client is closed.');
    if (this.#clients.length === 0) {
      this.#clients = this.#connection.addresses.map((address) => this.#connection.dial(address));
    }
    const clients = this.#clients;
    const turn = this.#turn++;
    const order = clients.map((_, i) => clients[(turn + i) % clients.length]!);
    const usable = order.find((client) => {
      const state = client.getChannel().getConnectivityState(true);
      return state === State.READY || state === State.IDLE;
    });
    return usable ?? order[0]!;
  }

  #keep(call: Cancellable & NodeJS.EventEmitter, client: Client, signal: AbortSignal | undefined): void {
    const abort = (): void => {
      call.cancel();
    };
    this.#calls.set(call, client);
    signal?.addEventListener('abort', abort);
    call.on('error', () => undefined); // whoever reads hears of it; one that nobody reads any more must not be thrown
    call.once('status', () => {
      this.#calls.delete(call);
      signal?.removeEventListener('abort', abort);
    });
    if (signal?.aborted) abort();
  }
}

function pathOf(method: { parent: { typeName: string }; name: string }): string {
  return `/${method.parent.typeName}/${method.name}`;
}

function encoded<D extends DescMessage>(schema: D, message: MessageShape<D>): Buffer {
  const raw = toBinary(schema, message);
  return Buffer.from(raw.buffer, raw.byteOffset, raw.byteLength);
}

function decoded<D extends DescMessage>(schema: D, raw: Buffer): MessageShape<D> {
  return fromBinary(schema, new Uint8Array(raw.buffer, raw.byteOffset, raw.byteLength));
}
