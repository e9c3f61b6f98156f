// Packed signals as numbers. docs/signals.md says what each byte is.
import { wrongSignal } from './errors.js';
import type { SignalHeader } from './gen/limbeck/v1/signal_pb.js';
import { FIELDS, highBits, rowBytes, type Field } from './header.js';
import { float32s, uint16s } from './numbers.js';
import { TopK } from './topk.js';

/** Rows `firstRow` to `firstRow + n - 1` as bytes. */
export type Packed = { readonly firstRow: number; readonly n: number } & Readonly<Record<Field, Uint8Array>>;

/** What a packed signal says. */
export interface Decoded {
  readonly topK?: TopK;
  /** [n]: log-probability of the actual next token. */
  readonly target?: Float32Array;
}

/** Reads packed bytes. Throws SIGNAL_INVALID for sizes, ids or tails that cannot be. */
export function decode(packed: Packed, header: SignalHeader): Decoded {
  const { n } = packed;
  const sizes = rowBytes(header);
  for (const field of FIELDS) {
    if (packed[field].length !== n * sizes[field]) {
      throw wrongSignal(
        `${field} holds ${packed[field].length} bytes, ${n} rows of ${sizes[field]} are needed`,
      );
    }
  }
  return {
    ...(header.k > 0 && { topK: topKOf(packed, header) }),
    ...(header.target && { target: float32s(packed.target, 'target') }),
  };
}

function topKOf(packed: Packed, header: SignalHeader): TopK {
  const { n } = packed;
  const { k, temperatures } = header;
  const bits = highBits(header);
  const width = rowBytes(header).idsHigh;
  const ids = Int32Array.from(uint16s(packed.idsLow, 'idsLow'));
  for (let i = 0; bits > 0 && i < ids.length; i++) {
    const row = Math.floor(i / k) * width;
    for (let bit = 0, at = (i % k) * bits; bit < bits; bit++, at++) {
      const set = (packed.idsHigh[row + (at >> 3)]! >> (at & 7)) & 1;
      ids[i] = ids[i]! | (set << (16 + bit));
    }
  }
  const outside = ids.find((id) => id >= header.vocabSize);
  if (outside !== undefined)
    throw wrongSignal(`id ${outside} is outside of the vocabulary of ${header.vocabSize}`);
  const tails = float32s(packed.tails, 'tails');
  if (!tails.every((tail) => tail <= 0)) throw wrongSignal('a tail is NaN or above 0');
  return new TopK(n, k, ids, uint16s(packed.logprobs, 'logprobs'), tails, temperatures);
}
