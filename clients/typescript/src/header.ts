import { wrongSignal } from './errors.js';
import type { SignalHeader } from './gen/limbeck/v1/signal_pb.js';

/** The bytes fields of a packed signal, in the order of docs/signals.md. */
export const FIELDS = ['idsLow', 'idsHigh', 'logprobs', 'tails', 'target'] as const;
export type Field = (typeof FIELDS)[number];

/** Throws SIGNAL_INVALID for a codec that is not known, or for values that cannot be. */
export function checkedHeader(header: SignalHeader): SignalHeader {
  const { codec, version, vocabSize, k, temperatures, target } = header;
  if (codec !== 'limbeck.topk' || version !== 1) {
    throw wrongSignal(
      `codec '${codec}' version ${version} is not known; 'limbeck.topk' version 1 is`,
      'header',
    );
  }
  const ascending = temperatures.every(
    (t, i) => Number.isFinite(t) && t > (i === 0 ? 0 : (temperatures[i - 1] ?? 0)),
  );
  if (vocabSize < 1 || vocabSize > 2 ** 31 || k > vocabSize || !ascending) {
    throw wrongSignal(
      `k is ${k} of ${vocabSize} ids at temperatures [${temperatures.join(', ')}], which cannot be`,
      'header',
    );
  }
  if (k === 0 ? !target : temperatures.length === 0) throw wrongSignal('it holds nothing', 'header');
  return header;
}

/** h: bits of an id above the low 16. */
export function highBits(header: SignalHeader): number {
  return Math.max(0, 32 - Math.clz32(header.vocabSize - 1) - 16);
}

/** Bytes a row of each field; 0 for one that is not there. */
export function rowBytes(header: SignalHeader): Record<Field, number> {
  const { k, temperatures, target } = header;
  return {
    idsLow: 2 * k,
    idsHigh: Math.ceil((k * highBits(header)) / 8),
    logprobs: 2 * k,
    tails: k > 0 ? 4 * temperatures.length : 0,
    target: target ? 4 : 0,
  };
}

/** Bytes of a row in all. */
export function bytesOfRow(header: SignalHeader): number {
  return Object.values(rowBytes(header)).reduce((sum, bytes) => sum + bytes, 0);
}
