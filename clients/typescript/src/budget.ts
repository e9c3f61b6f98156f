import { Bell } from './bell.js';

/** What one call has taken of the budget. */
export interface Share {
  tokens: number;
}

/** Tokens that a client has under way, over all its calls: the server's limit is kept before it has to refuse. */
export class Budget {
  /** Unset until a teacher was seen. */
  #limit: number | undefined;
  #used = 0;
  readonly #changed = new Bell();

  /** Notes the server's limit; 0 for none. */
  learn(limit: number): void {
    this.#limit = limit || Number.POSITIVE_INFINITY;
    this.#changed.ring();
  }

  /** The limit, as soon as it is known. */
  async limit(signal: AbortSignal): Promise<number> {
    while (this.#limit === undefined) await this.#changed.wait({ signal });
    return this.#limit;
  }

  /**
   * Waits until `tokens` more may be sent for `share`.
   *
   * A call takes half of what the others leave, so that one whose caller waits never stops another for good. What is
   * too large for the limit goes alone: the server says why it cannot be.
   */
  async take(share: Share, tokens: number, signal: AbortSignal): Promise<void> {
    while (!this.#fits(share, tokens)) await this.#changed.wait({ signal });
    this.#used += tokens;
    share.tokens += tokens;
  }

  /** Gives back what was taken. */
  give(share: Share, tokens: number): void {
    this.#used -= tokens;
    share.tokens -= tokens;
    this.#changed.ring();
  }

  #fits(share: Share, tokens: number): boolean {
    if (this.#limit === undefined) return false;
    if (this.#used === 0) return true;
    if (share.tokens === 0) return this.#used + tokens <= this.#limit;
    return share.tokens + tokens <= (this.#limit - this.#used + share.tokens) / 2;
  }
}
