// What Score and Generate ask and how their answers are read; exchange.ts does the rest.
import { create, toBinary, type MessageInitShape } from '@bufbuild/protobuf';
import type { ClientDuplexStream } from '@grpc/grpc-js';
import {
  itemMessage,
  promptMessage,
  samplingMessage,
  wantMessage,
  type Prompt,
  type Sampling,
  type ScoreItem,
  type Want,
} from './ask.js';
import { CompletionReader, type Completion } from './completion.js';
import { invalid, LimbeckError } from './errors.js';
import { answerBytes, Assembler, type Signal } from './fragments.js';
import type { SignalHeader } from './gen/limbeck/v1/signal_pb.js';
import {
  GenerateRequestSchema,
  PromptSchema,
  ScoreItemSchema,
  ScoreRequestSchema,
  TeacherService,
  type Completion as CompletionMessage,
  type Fragment,
  type GenerateRequest,
  type GenerateResponse,
  type Limits,
  type Prompt as PromptMessage,
  type Sampling as SamplingMessage,
  type ScoreItem as ScoreItemMessage,
  type ScoreRequest,
  type ScoreResponse,
  type Teacher,
  type Want as WantMessage,
} from './gen/limbeck/v1/teacher_service_pb.js';
import { bytesOfRow, checkedHeader } from './header.js';
import type { Link } from './link.js';
import type { Integer } from './numbers.js';
import { expectationOf, type Expectation } from './replay.js';
import { errorOf } from './status.js';

export const LEAST_CREDIT = 1 << 20; // bytes; with less the server begins nothing
const CREDIT = 64 << 20;

/** What the server says in a call. */
export type Heard<Part> =
  | { readonly case: 'started'; readonly teacher: Teacher }
  | {
      readonly case: 'part';
      readonly itemId: bigint;
      readonly cost: number;
      readonly last: boolean;
      readonly part: Part;
    }
  | { readonly case: 'failed'; readonly itemId: bigint; readonly error: LimbeckError }
  | { readonly case: 'alive'; readonly phase: string; readonly seconds: number };

/** What differs between the two calls. */
export interface Kind {
  item: { readonly itemId: Integer };
  message: { readonly itemId: bigint };
  request: unknown;
  response: unknown;
  part: unknown;
  answer: unknown;
}

/** One of the two calls. */
export interface Call<K extends Kind> {
  readonly teacher: string;
  /** Items are scored together, in their order, with nobody else's. */
  readonly alone: boolean;
  /** Bytes of answers that may be under way and unread; 0: there is no credit. */
  readonly credit: number;
  open(link: Link, signal: AbortSignal): ClientDuplexStream<K['request'], K['response']>;
  start(credit: number): K['request'];
  items(messages: K['message'][]): K['request'];
  grant(bytes: number): K['request'];
  alive(position: number): K['request'];
  encode(item: K['item']): { message: K['message']; bytes: number };
  tokens(item: K['item']): number;
  /** Whether it is within the limits where nothing else is under way. */
  couldFit(item: K['item'], limits: Limits | undefined): boolean;
  hear(response: K['response']): Heard<K['part']> | undefined;
  reader(item: K['item']): { add(part: K['part']): K['answer'] | undefined };
}

/** What is said of a call of either kind. */
export interface ExchangeOptions {
  /** Refuses any other teacher before the first item. */
  readonly expect?: Expectation;
  readonly signal?: AbortSignal | undefined;
  /** Hears of each item that is not answered, and the call goes on; without it such an item ends the call. */
  readonly failed?: (error: LimbeckError, itemId: bigint) => void;
}

/** What is said of a Score call. */
export interface ScoreOptions extends ExchangeOptions {
  /** Bytes of answers that may be under way and unread, 1 MiB or more: 64 MiB. */
  readonly credit?: number;
  /** Items share batches with nobody else's, so that the same items give the same bits. */
  readonly alone?: boolean;
}

/** The signal of an item. */
export interface Scored {
  readonly itemId: bigint;
  readonly signal: Signal;
}

export interface ScoreKind extends Kind {
  item: ScoreItem;
  message: ScoreItemMessage;
  request: ScoreRequest;
  response: ScoreResponse;
  part: Fragment;
  answer: Scored;
}

export interface GenerateKind extends Kind {
  item: Prompt;
  message: PromptMessage;
  request: GenerateRequest;
  response: GenerateResponse;
  part: CompletionMessage;
  answer: Completion;
}

/** What of a teacher is pinned once it has answered: answers of two would be mixed in silence. */
function pinned(expect: Expectation | undefined, seen: Teacher | undefined): Expectation {
  return seen ?? expect ?? {};
}

/** Score. */
export class Scoring implements Call<ScoreKind> {
  readonly alone: boolean;
  readonly credit: number;
  readonly #message: WantMessage;
  #header: SignalHeader | undefined;
  #seen: Teacher | undefined;

  constructor(
    readonly teacher: string,
    readonly want: Want,
    readonly options: ScoreOptions,
  ) {
    this.alone = options.alone ?? false;
    this.credit = options.credit ?? CREDIT;
    if (!Number.isSafeInteger(this.credit) || this.credit < LEAST_CREDIT) {
      throw invalid(`is ${this.credit} bytes, ${LEAST_CREDIT} or more is allowed`, 'credit');
    }
    this.#message = wantMessage(want);
  }

  open(link: Link, signal: AbortSignal): ClientDuplexStream<ScoreRequest, ScoreResponse> {
    return link.duplex(TeacherService.method.score, signal);
  }

  start(credit: number): ScoreRequest {
    const expectation = expectationOf(pinned(this.options.expect, this.#seen));
    const value = { teacher: this.teacher, want: this.#message, expectation, credit: BigInt(credit) };
    return scoreRequest({ case: 'start', value });
  }

  items(items: ScoreItemMessage[]): ScoreRequest {
    return scoreRequest({ case: 'items', value: { items, alone: this.alone } });
  }

  grant(bytes: number): ScoreRequest {
    return scoreRequest({ case: 'grant', value: { bytes: BigInt(bytes) } });
  }

  alive(position: number): ScoreRequest {
    return scoreRequest({ case: 'alive', value: { position: BigInt(position) } });
  }

  encode(item: ScoreItem): { message: ScoreItemMessage; bytes: number } {
    const message = itemMessage(item, this.want);
    return { message, bytes: toBinary(ScoreItemSchema, message).length };
  }

  tokens(item: ScoreItem): number {
    return item.ids.length;
  }

  couldFit(item: ScoreItem, limits: Limits | undefined): boolean {
    if (this.#seen === undefined) return true;
    return within(limits, this.tokens(item), answerBytes(item, this.want, this.#header, this.#seen));
  }

  hear({ kind }: ScoreResponse): Heard<Fragment> | undefined {
    if (kind.case === 'fragment') {
      const { itemId, cost, last } = kind.value;
      return { case: 'part', itemId, cost, last, part: kind.value };
    }
    if (kind.case !== 'started') return common(kind);
    this.#header = kind.value.header && checkedHeader(kind.value.header);
    this.#seen = kind.value.teacher;
    return started(kind.value.teacher);
  }

  reader(item: ScoreItem): { add(part: Fragment): Scored | undefined } {
    const parts = new Assembler(item, this.want, this.#header);
    return {
      add: (part) => {
        const signal = parts.add(part);
        return signal && { itemId: part.itemId, signal };
      },
    };
  }
}

/** Generate. */
export class Generating implements Call<GenerateKind> {
  readonly alone = false;
  readonly credit = 0;
  readonly #message: SamplingMessage;
  #header: SignalHeader | undefined;
  #seen: Teacher | undefined;

  constructor(
    readonly teacher: string,
    readonly sampling: Sampling,
    readonly options: ExchangeOptions,
  ) {
    this.#message = samplingMessage(sampling);
  }

  open(link: Link, signal: AbortSignal): ClientDuplexStream<GenerateRequest, GenerateResponse> {
    return link.duplex(TeacherService.method.generate, signal);
  }

  start(): GenerateRequest {
    const expectation = expectationOf(pinned(this.options.expect, this.#seen));
    return generateRequest({
      case: 'start',
      value: { teacher: this.teacher, sampling: this.#message, expectation },
    });
  }

  items(prompts: PromptMessage[]): GenerateRequest {
    return generateRequest({ case: 'prompts', value: { prompts } });
  }

  grant(): never {
    throw new TypeError('Generate has no credit');
  }

  alive(position: number): GenerateRequest {
    return generateRequest({ case: 'alive', value: { position: BigInt(position) } });
  }

  encode(item: Prompt): { message: PromptMessage; bytes: number } {
    const message = promptMessage(item);
    return { message, bytes: toBinary(PromptSchema, message).length };
  }

  tokens(item: Prompt): number {
    return item.ids.length + this.sampling.maxNewTokens;
  }

  couldFit(item: Prompt, limits: Limits | undefined): boolean {
    const { maxNewTokens } = this.sampling;
    const said = this.#header ? (maxNewTokens + 1) * bytesOfRow(this.#header) : 0;
    return within(limits, this.tokens(item), 4 * maxNewTokens + said);
  }

  hear({ kind }: GenerateResponse): Heard<CompletionMessage> | undefined {
    if (kind.case === 'completion') {
      const { itemId, more } = kind.value;
      return { case: 'part', itemId, cost: partBytes(kind.value), last: !more, part: kind.value };
    }
    if (kind.case !== 'started') return common(kind);
    const { header, teacher } = kind.value;
    if (this.sampling.logprobs && header === undefined) {
      const message = 'the server is of a version that tells no log-probabilities of texts';
      throw new LimbeckError('CAPABILITY_MISSING', [{ message, field: 'sampling.logprobs' }]);
    }
    this.#header = header && checkedHeader(header);
    this.#seen = teacher;
    return started(teacher);
  }

  reader(item: Prompt): CompletionReader {
    return new CompletionReader(item, this.#header);
  }
}

type Common = Extract<ScoreResponse['kind'], { case: 'failed' | 'alive' | undefined }>;

function common(kind: Common): Heard<never> | undefined {
  if (kind.case === 'alive')
    return { case: 'alive', phase: kind.value.phase, seconds: kind.value.phaseSeconds };
  if (kind.case === undefined) return undefined; // of a newer server
  const { itemId, error } = kind.value;
  const found = error ? errorOf(error) : new LimbeckError('INTERNAL');
  return { case: 'failed', itemId, error: found };
}

function started(teacher: Teacher | undefined): Heard<never> {
  if (teacher === undefined)
    throw new LimbeckError('INTERNAL', [{ message: 'the call began without a teacher' }]);
  return { case: 'started', teacher };
}

function within(limits: Limits | undefined, tokens: number, bytes: number): boolean {
  const most = (limit: bigint | undefined): number => Number(limit ?? 0n) || Number.POSITIVE_INFINITY;
  return tokens <= most(limits?.tokensInFlight) && bytes <= most(limits?.answerBytes);
}

function partBytes({ ids, said }: CompletionMessage): number {
  if (said === undefined) return ids.length;
  const { idsLow, idsHigh, logprobs, tails, target } = said;
  return [ids, idsLow, idsHigh, logprobs, tails, target].reduce((sum, field) => sum + field.length, 0);
}

function scoreRequest(kind: NonNullable<MessageInitShape<typeof ScoreRequestSchema>['kind']>): ScoreRequest {
  return create(ScoreRequestSchema, { kind });
}

function generateRequest(
  kind: NonNullable<MessageInitShape<typeof GenerateRequestSchema>['kind']>,
): GenerateRequest {
  return create(GenerateRequestSchema, { kind });
}
