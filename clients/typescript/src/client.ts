import type { Prompt, Sampling, ScoreItem, Want } from './ask.js';
import { pause } from './bell.js';
import {
  Generating,
  Scoring,
  type ExchangeOptions,
  type GenerateKind,
  type Scored,
  type ScoreKind,
  type ScoreOptions,
} from './calls.js';
import type { Completion } from './completion.js';
import { Connection, type ConnectionOptions } from './connection.js';
import { LimbeckError } from './errors.js';
import { exchange } from './exchange.js';
import {
  Teacher_State,
  TeacherService,
  type Dataset,
  type Teacher,
} from './gen/limbeck/v1/teacher_service_pb.js';
import { fetchHead, type OutputHead } from './head.js';
import { Link, TIMES, type CallOptions, type Times } from './link.js';
import { replay, type SignalsOptions, type StoredSignal } from './replay.js';
import { Training } from './training.js';

const POLL = 500; // milliseconds between two looks at a teacher that starts

/** How to connect. */
export interface ConnectOptions extends ConnectionOptions {
  readonly times?: Partial<Times>;
  /** Hears of lost connections and of teachers that start; nobody does where nothing is said. */
  readonly log?: (message: string) => void;
}

/** How to wait for a teacher. */
export interface TeacherOptions extends CallOptions {
  /** Milliseconds to wait for one that starts. */
  readonly wait?: number;
  /** Hears of one that starts, twice a second. */
  readonly told?: (teacher: Teacher) => void;
}

/**
 * A client of a Limbeck server; made by `connect`.
 *
 * Every method throws LimbeckError with a reason of the catalogue, or, where its signal is aborted, the signal's reason.
 */
export class Client extends Training {
  /** Ends all calls and the connection. A second call does nothing. */
  close(): void {
    this.link.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** All teachers, by name. */
  async teachers({ signal }: CallOptions = {}): Promise<Teacher[]> {
    return (await this.link.ask(TeacherService.method.listTeachers, {}, { signal })).teachers;
  }

  /** All stored signals, by name. */
  async datasets({ signal }: CallOptions = {}): Promise<Dataset[]> {
    return (await this.link.ask(TeacherService.method.listTeachers, {}, { signal })).datasets;
  }

  /** One teacher. Throws TEACHER_UNKNOWN. */
  async teacher(name: string, { wait = 0, told, signal }: TeacherOptions = {}): Promise<Teacher> {
    const end = Date.now() + wait;
    for (;;) {
      const { teacher } = await this.link.ask(TeacherService.method.getTeacher, { name }, { signal });
      if (teacher === undefined)
        throw new LimbeckError('INTERNAL', [{ message: 'the answer has no teacher' }]);
      if (teacher.vocabSize > 0) this.link.seen(teacher);
      if (teacher.state !== Teacher_State.STARTING || Date.now() >= end) return teacher;
      told?.(teacher);
      await pause(Math.min(POLL, end - Date.now()), signal);
    }
  }

  /**
   * The signal of each item, once, as they are ready. Items are taken as the server's limits and the caller's pace allow.
   *
   * `teacher`: its name, or a Teacher, which expects itself. The error of an item that cannot be scored ends the call,
   * after the answers before it, unless `failed` hears of it.
   */
  score(
    teacher: string | Teacher,
    items: Iterable<ScoreItem> | AsyncIterable<ScoreItem>,
    want: Want,
    options: ScoreOptions = {},
  ): AsyncGenerator<Scored, void> {
    const whole = expecting(teacher, options);
    return exchange<ScoreKind>(this.link, new Scoring(nameOf(teacher), want, whole), items, whole);
  }

  /** The continuation of each prompt, once, as they are ready. See `score`. */
  generate(
    teacher: string | Teacher,
    prompts: Iterable<Prompt> | AsyncIterable<Prompt>,
    sampling: Sampling,
    options: ExchangeOptions = {},
  ): AsyncGenerator<Completion, void> {
    const whole = expecting(teacher, options);
    return exchange<GenerateKind>(
      this.link,
      new Generating(nameOf(teacher), sampling, whole),
      prompts,
      whole,
    );
  }

  /** The teacher's output head, float32, its checksum verified. Throws CAPABILITY_MISSING where it has none. */
  outputHead(teacher: string | Teacher, options: CallOptions = {}): Promise<OutputHead> {
    return fetchHead(this.link, nameOf(teacher), options);
  }

  /** Stored signals, each once and in order, over lost connections, also while the capture still grows. */
  signals(dataset: string | Dataset, options: SignalsOptions = {}): AsyncGenerator<StoredSignal, void> {
    return replay(this.link, nameOf(dataset), options);
  }
}

/**
 * A client of the server at `address`. Nothing is sent before the first call.
 *
 * Throws REQUEST_INVALID with everything that is wrong with the options.
 */
export function connect(options: ConnectOptions): Client {
  const log = options.log ?? ((): void => undefined);
  return new Client(new Link(new Connection(options), { ...TIMES, ...options.times }, log));
}

function nameOf(named: string | { readonly name: string }): string {
  return typeof named === 'string' ? named : named.name;
}

function expecting<T extends ExchangeOptions>(teacher: string | Teacher, options: T): T {
  if (typeof teacher === 'string' || teacher.vocabSize === 0 || options.expect) return options;
  return { ...options, expect: teacher };
}
