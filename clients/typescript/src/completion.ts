// A prompt's continuation, put together from its messages.
import type { Prompt } from './ask.js';
import { decode, type Decoded } from './codec.js';
import { wrongSignal } from './errors.js';
import type { PackedSignal, SignalHeader } from './gen/limbeck/v1/signal_pb.js';
import {
  Completion_FinishReason,
  type Completion as CompletionMessage,
} from './gen/limbeck/v1/teacher_service_pb.js';
import { FIELDS, type Field } from './header.js';
import { int32s, joined } from './numbers.js';

/** What a teacher said of each token as it wrote it: row j speaks of ids[j], the written ids and the end id. */
export interface Said extends Decoded {
  readonly ids: Int32Array;
}

/** A continuation. */
export interface Completion {
  readonly itemId: bigint;
  /** Without the prompt, and without the id that ended it. */
  readonly ids: Int32Array;
  readonly finishReason: 'stop' | 'length';
  /** Where `logprobs` were asked. */
  readonly said?: Said;
}

/** Puts the messages of one continuation together. */
export class CompletionReader {
  readonly #parts: PackedSignal[] = [];

  constructor(
    readonly prompt: Prompt,
    readonly header: SignalHeader | undefined,
  ) {}

  /** Takes the next message; gives the continuation where it was the last. Throws SIGNAL_INVALID for what cannot be. */
  add(message: CompletionMessage): Completion | undefined {
    const { itemId } = message;
    if (this.header !== undefined) {
      const due = this.prompt.ids.length - 1 + this.#rows();
      if (message.said?.firstRow !== due)
        throw wrongSignal(`row ${due} was due`, `item ${itemId.toString()}`);
      this.#parts.push(message.said);
    }
    if (message.more) return undefined;
    const ids = int32s(message.ids, 'ids');
    const stopped = message.finishReason === Completion_FinishReason.STOP;
    return {
      itemId,
      ids,
      finishReason: stopped ? 'stop' : 'length',
      ...(this.header && { said: this.#said(this.header, ids, message.endId) }),
    };
  }

  #rows(): number {
    return this.#parts.reduce((rows, part) => rows + part.n, 0);
  }

  #said(header: SignalHeader, written: Int32Array, endId: number | undefined): Said {
    const ids = endId === undefined ? written : Int32Array.from([...written, endId]);
    const n = this.#rows();
    if (n !== ids.length) throw wrongSignal(`${n} rows came for ${ids.length} tokens`);
    const fields = Object.fromEntries(
      FIELDS.map((name) => [name, joined(this.#parts.map((part) => part[name]))]),
    );
    const packed = { firstRow: this.prompt.ids.length - 1, n, ...(fields as Record<Field, Uint8Array>) };
    return { ids, ...decode(packed, { ...header, target: packed.target.length > 0 }) };
  }
}
