import { Batch } from './batch.js';
import type { Call, Kind } from './calls.js';
import { invalid } from './errors.js';

const LARGEST_MESSAGE = (4 << 20) - (1 << 16); // gRPC's default limit, less what is around the items

/** Makes batches of the caller's items. */
export class Feed<K extends Kind> {
  #items = new Map<bigint, K['item']>();
  #messages: K['message'][] = [];
  #tokens = 0;
  #bytes = 0;

  /** `most`: tokens of a batch that is scored alone. */
  constructor(
    readonly call: Call<K>,
    readonly most: number,
  ) {}

  /** Throws REQUEST_INVALID for an item that cannot be sent, or has the id of another in its batch. */
  async *batches(source: Iterable<K['item']> | AsyncIterable<K['item']>): AsyncGenerator<Batch<K>, void> {
    for await (const item of source) {
      const tokens = this.call.tokens(item);
      const { message, bytes } = this.call.encode(item);
      const size = bytes + 8;
      if (size > LARGEST_MESSAGE) {
        const text = `takes ${bytes} bytes, a message holds ${LARGEST_MESSAGE}`;
        throw invalid(text, `item ${message.itemId.toString()}`, 'ask for its rows in parts');
      }
      Feed.unique(this.#items, message.itemId);
      const full = this.#tokens + tokens > this.most || this.#bytes + size > LARGEST_MESSAGE;
      if (this.#items.size > 0 && full) yield this.#batch();
      this.#items.set(message.itemId, item);
      this.#messages.push(message);
      this.#tokens += tokens;
      this.#bytes += size;
      if (!this.call.alone) yield this.#batch();
    }
    if (this.#items.size > 0) yield this.#batch();
  }

  /** Throws REQUEST_INVALID where the name is taken. */
  static unique(taken: ReadonlyMap<bigint, unknown>, itemId: bigint): void {
    if (!taken.has(itemId)) return;
    throw invalid('another item of this itemId is not answered yet', `item ${itemId.toString()}`);
  }

  #batch(): Batch<K> {
    const batch = new Batch<K>(this.#items, this.#messages, this.#tokens, this.#bytes);
    this.#items = new Map();
    this.#messages = [];
    this.#tokens = 0;
    this.#bytes = 0;
    return batch;
  }
}
