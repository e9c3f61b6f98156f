import { LimbeckError } from './errors.js';
import type { Link } from './link.js';
import { AGAIN } from './status.js';

/** Milliseconds before a call is tried again; doubles, less up to a half by chance. */
const FIRST_DELAY = 100;
const LONGEST_DELAY = 5_000;

/** The wait before try `count`, from 0. */
export function delayOf(count: number): number {
  return Math.min(FIRST_DELAY * 2 ** count, LONGEST_DELAY) * (0.5 + Math.random() / 2);
}

/** When an interrupted stream is tried again, and when no more. */
export class Retries {
  readonly #link: Link;
  #since: number | undefined;
  #count = 0;
  #next = 0;

  constructor(link: Link) {
    this.#link = link;
  }

  /** Something was answered: patience begins anew. */
  progress(): void {
    this.#since = undefined;
    this.#count = 0;
    this.#next = 0;
  }

  /** Milliseconds before the next try. Throws `error` where trying again is no use, or was for long enough. */
  delay(error: unknown): number {
    if (!(error instanceof LimbeckError) || !AGAIN.has(error.reason) || this.#link.closed) throw error;
    const now = performance.now();
    this.#since ??= now;
    const { retryFor, timeout } = this.#link.times;
    const left = this.#since + (this.#link.met ? retryFor : timeout) - now;
    if (left <= 0) {
      const message = `tried for ${Math.round((now - this.#since) / 1000)} s without an answer`;
      throw new LimbeckError(error.reason, [...error.problems, { message }], error.summary);
    }
    if (now >= this.#next) {
      // else it is one failure with the last: a worker's death fails many items
      if (this.#count === 0) {
        this.#link.log(
          `${this.#link.name}: trying again for up to ${Math.ceil(left / 1000)} s. ${error.message}`,
        );
      }
      this.#next = now + Math.min(delayOf(this.#count), left);
      this.#count = Math.min(this.#count + 1, 16);
    }
    return this.#next - now;
  }
}
