// An item's answer, put together from its fragments.
import type { ScoreItem, Want } from './ask.js';
import { decode, type Decoded } from './codec.js';
import { wrongSignal } from './errors.js';
import { Dtype, type SignalHeader } from './gen/limbeck/v1/signal_pb.js';
import type { Fragment, Teacher } from './gen/limbeck/v1/teacher_service_pb.js';
import { bytesOfRow, FIELDS, type Field } from './header.js';
import { bfloat16s, float32s, int32s, joined } from './numbers.js';

/** Draws at temperature 1, [n, columns]: distinct ids a row, count 0 pads. */
export interface Samples {
  readonly ids: Int32Array;
  readonly counts: Int32Array;
  readonly logprobs: Float32Array;
}

/** What a teacher says of the rows of an item, as much as was asked. Numbers lie row after row. */
export interface Signal extends Decoded {
  readonly firstRow: number;
  readonly n: number;
  /** Of the item's `tokenIds`, as they lie there. */
  readonly tokenLogprobs?: Float32Array;
  readonly samples?: Samples;
  /** [n, d] by layer, as it was asked. */
  readonly hidden: ReadonlyMap<number, Float32Array>;
  /** [n, V]: log-probabilities of the whole vocabulary. */
  readonly full?: Float32Array;
}

/** Bytes of the answer to an item, at most. */
export function answerBytes(
  item: ScoreItem,
  want: Want,
  header: SignalHeader | undefined,
  teacher: Teacher,
): number {
  const hidden = (want.layers?.length ?? 0) * (teacher.hiddenSize ?? 0) * (want.bfloat16 ? 2 : 4);
  const full = want.full ? 4 * teacher.vocabSize : 0;
  const row = (header ? bytesOfRow(header) : 0) + 12 * (want.samples ?? 0) + hidden + full;
  return item.n * row + (want.tokenIds ? 4 * (item.tokenIds?.length ?? 0) : 0);
}

/** Puts the fragments of one item together. */
export class Assembler {
  readonly #parts: Fragment[] = [];
  #rows = 0;

  constructor(
    readonly item: ScoreItem,
    readonly want: Want,
    readonly header: SignalHeader | undefined,
  ) {}

  /** Takes the next fragment; gives the signal where it was the last. Throws SIGNAL_INVALID for what does not fit. */
  add(fragment: Fragment): Signal | undefined {
    const { firstRow = 0, n } = this.item;
    const part = fragment.signal;
    const due = firstRow + this.#rows;
    if (part?.firstRow !== due || part.n < 1 || this.#rows + part.n > n) {
      throw wrongSignal(
        `rows ${part?.firstRow ?? '?'} and ${part?.n ?? 0} on came, rows from ${due} on were due`,
      );
    }
    this.#rows += part.n;
    this.#parts.push(fragment);
    if (fragment.last !== (this.#rows === n)) throw wrongSignal(`${this.#rows} of ${n} rows came in all`);
    return fragment.last ? this.#signal() : undefined;
  }

  #signal(): Signal {
    const { item, want } = this;
    const { firstRow = 0, n } = item;
    const tokenLogprobs = want.tokenIds && this.#floats((part) => part.tokenLogprobs);
    if (tokenLogprobs && tokenLogprobs.length !== item.tokenIds?.length) {
      throw wrongSignal(`${tokenLogprobs.length} values came for ${item.tokenIds?.length ?? 0} ids`);
    }
    const full = want.full && this.#floats((part) => part.full);
    if (full && full.length % n > 0) throw wrongSignal(`full has ${full.length} numbers for ${n} rows`);
    return {
      firstRow,
      n,
      ...(this.header && decode({ firstRow, n, ...this.#packed() }, this.header)),
      ...(tokenLogprobs && { tokenLogprobs }),
      ...(want.samples && { samples: this.#samples() }),
      hidden: new Map((want.layers ?? []).map((layer, place) => [layer, this.#hidden(layer, place)])),
      ...(full && { full }),
    };
  }

  #packed(): Record<Field, Uint8Array> {
    const field = (name: Field): Uint8Array =>
      joined(this.#parts.flatMap((part) => part.signal?.[name] ?? []));
    return Object.fromEntries(FIELDS.map((name) => [name, field(name)])) as Record<Field, Uint8Array>;
  }

  #samples(): Samples {
    const columns = {
      ids: int32s(joined(this.#parts.flatMap((part) => part.samples?.ids ?? [])), 'samples.ids'),
      counts: int32s(joined(this.#parts.flatMap((part) => part.samples?.counts ?? [])), 'samples.counts'),
      logprobs: this.#floats((part) => part.samples?.logprobs ?? new Uint8Array()),
    };
    const { length } = columns.ids;
    if (length % this.item.n > 0 || columns.counts.length !== length || columns.logprobs.length !== length) {
      throw wrongSignal("the draws' ids, counts and log-probabilities are not of one shape");
    }
    return columns;
  }

  #hidden(layer: number, place: number): Float32Array {
    const pieces = this.#parts.flatMap((part) => part.hidden[place] ?? []);
    if (pieces.length !== this.#parts.length || pieces.some((piece) => piece.layer !== layer)) {
      throw wrongSignal(`layer ${layer} is missing`);
    }
    const raw = joined(pieces.map((piece) => piece.values));
    const half = pieces[0]?.dtype === Dtype.BFLOAT16;
    const values = half ? bfloat16s(raw, 'hidden') : float32s(raw, 'hidden');
    if (values.length % this.item.n > 0) throw wrongSignal(`layer ${layer} has ${values.length} numbers`);
    return values;
  }

  #floats(field: (part: Fragment) => Uint8Array): Float32Array {
    return float32s(joined(this.#parts.map(field)), 'numbers');
  }
}
