import { createHash } from 'node:crypto';
import { equals } from '@bufbuild/protobuf';
import { decode, type Decoded } from './codec.js';
import { LimbeckError, wrongSignal } from './errors.js';
import { SignalHeaderSchema, type SignalHeader } from './gen/limbeck/v1/signal_pb.js';
import { TeacherService, type StoredSignal as StoredMessage } from './gen/limbeck/v1/teacher_service_pb.js';
import { checkedHeader } from './header.js';
import type { CallOptions, Link } from './link.js';
import { int32s, uint64, type Integer } from './numbers.js';
import { received, resumed } from './received.js';
import { unavailable } from './status.js';

/** What the caller is made for: a teacher, or signals of a teacher, that is another is refused before the first item. */
export interface Expectation {
  readonly tokenizerDigest?: string | undefined;
  readonly weightsDigest?: string | undefined;
  readonly vocabSize?: number | undefined;
}

/** Where to begin, and what with. */
export interface SignalsOptions extends CallOptions {
  /** Only signals after this sequence; 0 begins with the first. */
  readonly after?: Integer | undefined;
  /** Also send the tokens, and which of them are trained. */
  readonly tokens?: boolean;
  readonly expect?: Expectation;
}

/** A sequence of tokens. */
export interface StoredTokens {
  readonly ids: Int32Array;
  /** [ids]: 1 for a token that is trained. */
  readonly trained: Uint8Array;
  /** Number of the preference pair that it is a text of; its two texts follow each other. */
  readonly pair?: bigint | undefined;
  /** Whether it is the rejected text of its pair. */
  readonly rejected: boolean;
}

/** The signal of one sequence of a dataset. */
export class StoredSignal {
  /** Its place, from 1: where to go on from. */
  readonly sequence: bigint;
  /** The first row covered; row t speaks of token t + 1. */
  readonly firstRow: number;
  /** Rows covered. */
  readonly n: number;
  readonly #message: StoredMessage;
  readonly #header: SignalHeader;
  #decoded: Decoded | undefined;

  constructor(message: StoredMessage, header: SignalHeader) {
    this.sequence = message.sequence;
    this.firstRow = message.signal?.firstRow ?? 0;
    this.n = message.signal?.n ?? 0;
    this.#message = message;
    this.#header = header;
  }

  /** What the teacher says, decoded when it is first asked for. Throws SIGNAL_INVALID for bytes that cannot be. */
  get signal(): Decoded {
    const packed = this.#message.signal;
    if (packed === undefined) throw wrongSignal('it is not there', this.#name);
    return (this.#decoded ??= decode(packed, this.#header));
  }

  /** Its tokens. Throws SIGNAL_INVALID where they were not asked for, or the signal was captured for others. */
  get tokens(): StoredTokens {
    const { tokens, idsSha256 } = this.#message;
    if (tokens === undefined) throw wrongSignal('its tokens were not asked for: tokens: true', this.#name);
    const digest = createHash('sha256').update(tokens.ids).digest();
    const ids = int32s(tokens.ids, this.#name);
    if (!digest.equals(idsSha256) || tokens.trained.length !== ids.length) {
      throw wrongSignal('its tokens are not those that the signal was captured for', this.#name);
    }
    return { ids, trained: tokens.trained, pair: tokens.pair, rejected: tokens.rejected };
  }

  get #name(): string {
    return `sequence ${this.sequence.toString()}`;
  }
}

/** Stored signals, each once and in order over reconnects, also while the capture still grows. */
export function replay(
  link: Link,
  dataset: string,
  options: SignalsOptions,
): AsyncGenerator<StoredSignal, void> {
  let last = uint64(options.after ?? 0, 'after');
  let header: SignalHeader | undefined;
  return resumed(link, options.signal, async function* (progress) {
    const request = {
      dataset,
      afterSequence: last,
      withTokens: options.tokens ?? false,
      expectation: expectationOf(options.expect),
    };
    let total: bigint | undefined;
    const call = link.serverStream(TeacherService.method.streamSignals, request, options.signal);
    for await (const { kind } of received(call, link)) {
      if (kind.case === 'started') {
        if (kind.value.dataset?.header === undefined) throw wrongSignal('it has no header', dataset);
        const found = checkedHeader(kind.value.dataset.header);
        if (header !== undefined && !equals(SignalHeaderSchema, header, found)) {
          const message = 'the stored signals are others than before the reconnect';
          throw new LimbeckError('TEACHER_MISMATCH', [{ message, field: dataset }]);
        }
        header = found;
        total = kind.value.dataset.total;
      } else {
        progress(); // the capture may rest for as long as it likes
      }
      if (kind.case !== 'signals') continue;
      if (header === undefined) throw wrongSignal("signals came before the stream's start", dataset);
      for (const message of kind.value.signals) {
        if (message.sequence <= last) continue; // delivery is at least once
        if (message.sequence !== last + 1n) {
          const due = (last + 1n).toString();
          throw wrongSignal(`sequence ${message.sequence.toString()} came where ${due} was due`, dataset);
        }
        last = message.sequence;
        yield new StoredSignal(message, header);
      }
    }
    if (total === undefined || last < total) {
      throw unavailable(
        link.name,
        `the call ended after sequence ${last.toString()} of ${total?.toString() ?? '?'}`,
      );
    }
  });
}

/** As it is sent: without what is not expected. */
export function expectationOf(expect: Expectation = {}): {
  tokenizerDigest?: string;
  weightsDigest?: string;
  vocabSize?: number;
} {
  const { tokenizerDigest, weightsDigest, vocabSize } = expect;
  return {
    ...(tokenizerDigest !== undefined && { tokenizerDigest }),
    ...(weightsDigest !== undefined && { weightsDigest }),
    ...(vocabSize !== undefined && { vocabSize }),
  };
}
