// What is asked of a teacher, in the caller's words and as it travels.
import { create } from '@bufbuild/protobuf';
import { Dtype } from './gen/limbeck/v1/signal_pb.js';
import {
  PromptSchema,
  SamplingSchema,
  ScoreItemSchema,
  WantSchema,
  type Prompt as PromptMessage,
  type Sampling as SamplingMessage,
  type ScoreItem as ScoreItemMessage,
  type Want as WantMessage,
} from './gen/limbeck/v1/teacher_service_pb.js';
import { invalid } from './errors.js';
import { int32Bytes, int64Bytes, uint32, uint64, type Integer } from './numbers.js';

/** What is asked of every row; several may be asked at once, at least one must be. */
export interface Want {
  /** Likeliest ids a row, with tails at `temperatures`. */
  readonly topK?: number;
  /** Positive and ascending; [1] where nothing is said. */
  readonly temperatures?: readonly number[];
  /** Log-probability of the actual next token. */
  readonly target?: boolean;
  /** Log-probabilities of ids that each item says. */
  readonly tokenIds?: boolean;
  /** Draws a row at temperature 1. */
  readonly samples?: number;
  /** Hidden states of these layers: 0 the embeddings, i the output of block i, -1 the last, after the final norm. */
  readonly layers?: readonly number[];
  /** Hidden states come half as large, in bfloat16. */
  readonly bfloat16?: boolean;
  /** Log-probabilities of the whole vocabulary. */
  readonly full?: boolean;
}

/** One sequence to score: all ids are read, rows `firstRow` to `firstRow + n - 1` are answered. */
export interface ScoreItem {
  /** The caller's name of it; unique among the unanswered items of a call. */
  readonly itemId: Integer;
  /** With the leading <bos>. */
  readonly ids: Int32Array | readonly number[];
  /** 0 where nothing is said. Row t speaks of token t + 1. */
  readonly firstRow?: number;
  readonly n: number;
  /** Where `tokenIds` are wanted: [n, m], or [nnz] with `offsets`. */
  readonly tokenIds?: Int32Array | readonly number[];
  /** [n + 1]: row j asks tokenIds from offsets[j] to before offsets[j + 1]. */
  readonly offsets?: readonly number[];
  /** Makes draws repeatable. */
  readonly seed?: Integer;
}

/** How a text is drawn. */
export interface Sampling {
  readonly maxNewTokens: number;
  /** 0, which is greedy, where nothing is said. */
  readonly temperature?: number;
  readonly topP?: number;
  readonly topK?: number;
  /** A draw depends on (seed, itemId). */
  readonly seed?: Integer;
  /** So many likeliest ids are told of each written token; wants the capability generate_top_k. */
  readonly logprobs?: number;
}

/** A prompt to continue. */
export interface Prompt {
  readonly itemId: Integer;
  /** With the leading <bos>. */
  readonly ids: Int32Array | readonly number[];
}

/** Throws REQUEST_INVALID for what cannot be sent. */
export function wantMessage(want: Want): WantMessage {
  const wrong = want.layers?.find((layer) => (layer | 0) !== layer);
  if (wrong !== undefined) throw invalid(`holds ${wrong}, which is no int32`, 'want.layers');
  return create(WantSchema, {
    topK: uint32(want.topK ?? 0, 'want.topK'),
    temperatures: [...(want.temperatures ?? [1])],
    target: want.target ?? false,
    tokenIds: want.tokenIds ?? false,
    samples: uint32(want.samples ?? 0, 'want.samples'),
    layers: [...(want.layers ?? [])],
    hiddenDtype: want.bfloat16 ? Dtype.BFLOAT16 : Dtype.FLOAT32,
    full: want.full ?? false,
  });
}

/** Throws REQUEST_INVALID for what cannot be sent. */
export function itemMessage(item: ScoreItem, want: Want): ScoreItemMessage {
  const itemId = uint64(item.itemId, 'itemId');
  const name = `item ${itemId.toString()}`;
  if (want.tokenIds && item.tokenIds === undefined)
    throw invalid('tokenIds are wanted and it says none', name);
  return create(ScoreItemSchema, {
    itemId,
    ids: int32Bytes(item.ids, `${name}: ids`),
    firstRow: uint32(item.firstRow ?? 0, `${name}: firstRow`),
    n: uint32(item.n, `${name}: n`),
    ...(item.tokenIds && { tokenIds: int32Bytes(item.tokenIds, `${name}: tokenIds`) }),
    ...(item.offsets && { offsets: int64Bytes(item.offsets, `${name}: offsets`) }),
    seed: uint64(item.seed ?? 0, `${name}: seed`),
  });
}

/** Throws REQUEST_INVALID for what cannot be sent. */
export function samplingMessage(sampling: Sampling): SamplingMessage {
  return create(SamplingSchema, {
    maxNewTokens: uint32(sampling.maxNewTokens, 'sampling.maxNewTokens'),
    temperature: sampling.temperature ?? 0,
    ...(sampling.topP !== undefined && { topP: sampling.topP }),
    topK: uint32(sampling.topK ?? 0, 'sampling.topK'),
    seed: uint64(sampling.seed ?? 0, 'sampling.seed'),
    logprobs: uint32(sampling.logprobs ?? 0, 'sampling.logprobs'),
  });
}

/** Throws REQUEST_INVALID for what cannot be sent. */
export function promptMessage(prompt: Prompt): PromptMessage {
  const itemId = uint64(prompt.itemId, 'itemId');
  return create(PromptSchema, { itemId, ids: int32Bytes(prompt.ids, `item ${itemId.toString()}: ids`) });
}
