import type { Call, Kind } from './calls.js';

/** Items that are sent, and sent again, together: one, or all of a message that is scored alone. */
export class Batch<K extends Kind> {
  readonly answered = new Set<bigint>();
  /** Sent in this connection and neither answered nor failed. */
  readonly waiting = new Set<bigint>();
  /** Milliseconds before it is sent again. */
  delay = 0;
  readonly #readers = new Map<bigint, { add(part: K['part']): K['answer'] | undefined }>();
  /** Bytes that came of items which are not whole. */
  readonly #partial = new Map<bigint, number>();

  constructor(
    readonly items: ReadonlyMap<bigint, K['item']>,
    readonly messages: readonly K['message'][],
    readonly tokens: number,
    readonly bytes: number,
  ) {}

  sent(): void {
    for (const name of this.items.keys()) this.waiting.add(name);
  }

  /** Nothing of it is under way any more. */
  beginAgain(): void {
    this.waiting.clear();
    this.#readers.clear();
    this.#partial.clear();
  }

  /** Takes a part of an item's answer; gives the answer, with the bytes of all its parts, where it was the last. */
  add(
    itemId: bigint,
    part: K['part'],
    cost: number,
    call: Call<K>,
  ): { value: K['answer']; cost: number } | undefined {
    let reader = this.#readers.get(itemId);
    if (reader === undefined) {
      reader = call.reader(this.items.get(itemId)!);
      this.#readers.set(itemId, reader);
    }
    const bytes = (this.#partial.get(itemId) ?? 0) + cost;
    this.#partial.set(itemId, bytes);
    const value = reader.add(part);
    return value === undefined ? undefined : { value, cost: bytes };
  }

  /** Done with an item; gives the bytes that came of it. */
  settle(itemId: bigint): number {
    const bytes = this.#partial.get(itemId) ?? 0;
    this.waiting.delete(itemId);
    this.#readers.delete(itemId);
    this.#partial.delete(itemId);
    return bytes;
  }
}
