import { LimbeckError } from './errors.js';

const KNEE = 32768; // below it a step of a code is 1/2048, from it on 1/512

/** The ids of a top k with their log-probabilities, row after row. */
export interface AtTemperature {
  readonly k: number;
  /** [n, k], the likeliest first: row r has k values from r * k on. */
  readonly ids: Int32Array;
  /** [n, k], normalised: with the tail the probabilities of a row sum to 1. */
  readonly logprobs: Float64Array;
  /** [n]: log of the probability of all other ids together. */
  readonly tail: Float64Array;
}

/** The k likeliest ids of each row: codes at temperature 1, and exact tails that fix the rest (docs/signals.md). */
export class TopK {
  constructor(
    readonly n: number,
    readonly k: number,
    /** [n, k] */
    readonly ids: Int32Array,
    /** [n, k]: codes of log-probabilities at temperature 1. */
    readonly codes: Uint16Array,
    /** [n, temperatures] */
    readonly tails: Float32Array,
    readonly temperatures: readonly number[],
  ) {}

  /** At one of the `temperatures`; a smaller k leaves the rest to the tail. Throws CAPABILITY_MISSING for others. */
  at(temperature: number, k: number = this.k): AtTemperature {
    const place = this.temperatures.indexOf(temperature);
    if (place < 0 || !Number.isInteger(k) || k < 1 || k > this.k) throw this.#notCaptured(temperature, k);
    const ids = new Int32Array(this.n * k);
    const logprobs = new Float64Array(this.n * k);
    const tail = new Float64Array(this.n);
    for (let row = 0; row < this.n; row++) {
      const scaled = Float64Array.from(
        this.codes.subarray(row * this.k, (row + 1) * this.k),
        (code) => logprob(code) / temperature,
      );
      const rest = this.tails[row * this.temperatures.length + place]!;
      const shift = log1mexp(rest) - logsumexp(scaled);
      const normalised = scaled.map((value) => value + shift);
      ids.set(this.ids.subarray(row * this.k, row * this.k + k), row * k);
      logprobs.set(normalised.subarray(0, k), row * k);
      tail[row] = k < this.k ? logsumexp(Float64Array.of(rest, ...normalised.subarray(k))) : rest;
    }
    return { k, ids, logprobs, tail };
  }

  #notCaptured(temperature: number, k: number): LimbeckError {
    const known = this.temperatures.join(', ');
    const message = `temperature ${temperature} with ${k} ids was asked of a signal that holds temperature ${known} with ${this.k} ids`;
    return new LimbeckError('CAPABILITY_MISSING', [
      { message, hint: 'capture the signals again with it, or ask for what was captured' },
    ]);
  }
}

function logprob(code: number): number {
  return code < KNEE ? -code / 2048 : -16 - (code - KNEE) / 512;
}

/** log(1 - e^x) for x <= 0, exact to the last bits at both ends (Mächler, 2012). */
function log1mexp(x: number): number {
  return x > -Math.LN2 ? Math.log(-Math.expm1(x)) : Math.log1p(-Math.exp(x));
}

function logsumexp(values: Float64Array): number {
  const peak = values.reduce((most, value) => Math.max(most, value), Number.NEGATIVE_INFINITY);
  if (!Number.isFinite(peak)) return peak;
  return peak + Math.log(values.reduce((sum, value) => sum + Math.exp(value - peak), 0));
}
