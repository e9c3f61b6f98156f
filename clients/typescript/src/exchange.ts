// A call that sends items and gets answers, over as many connections as it takes: each answer is given once.
import type { ClientDuplexStream } from '@grpc/grpc-js';
import { Batch } from './batch.js';
import { Bell, pause } from './bell.js';
import type { Share } from './budget.js';
import { LEAST_CREDIT, type Call, type ExchangeOptions, type Heard, type Kind } from './calls.js';
import { Feed } from './feed.js';
import type { LimbeckError } from './errors.js';
import { wrongSignal } from './errors.js';
import type { Link } from './link.js';
import { received } from './received.js';
import { Retries } from './retries.js';
import { ofItem, unavailable } from './status.js';

const MESSAGE = 1 << 20; // bytes of items that a message aims at
const MOST_ITEMS = 256; // of a message
const MOST_WAITING = 4096; // answers that wait for the caller before nothing more is sent
const MOST_HELD = 64 << 20; // bytes of them, where there is no credit
const GOODBYE = 2_000; // milliseconds for the server to end an answered call

type Items<K extends Kind> = Iterable<K['item']> | AsyncIterable<K['item']>;

/** The answers of a call, each once, as they are ready. */
export async function* exchange<K extends Kind>(
  link: Link,
  call: Call<K>,
  items: Items<K>,
  options: ExchangeOptions,
): AsyncGenerator<K['answer'], void> {
  const work = new Exchange(link, call, options);
  const running = work.run(items);
  running.catch(() => undefined); // it is thrown below, after the answers before it
  try {
    for (;;) {
      const answer = await work.next();
      if (answer === undefined) break;
      yield answer.value;
      work.consumed(answer.cost);
    }
    if (!work.finished) await running;
  } finally {
    await work.stop(running);
  }
}

class Exchange<K extends Kind> {
  readonly #link: Link;
  readonly #call: Call<K>;
  readonly #options: ExchangeOptions;
  readonly #retries: Retries;
  readonly #share: Share = { tokens: 0 };
  readonly #stop = new AbortController();
  /** The caller's wish and our own end. */
  readonly #signal: AbortSignal;
  /** By item, what is not answered. */
  readonly #of = new Map<bigint, Batch<K>>();
  #unsent: Batch<K>[] = [];
  /** Whether the source has ended. */
  #fed = false;
  #over = false;
  #final: Error | undefined;
  readonly #ready: { value: K['answer']; cost: number }[] = [];
  /** Bytes of whole answers that the caller has not done with; of items that are not whole; credit that is left. */
  #held = 0;
  #partial = 0;
  #left = 0;
  readonly #news = new Bell();
  readonly #wake = new Bell();
  readonly #room = new Bell();
  #phase = '';

  constructor(link: Link, call: Call<K>, options: ExchangeOptions) {
    this.#link = link;
    this.#call = call;
    this.#options = options;
    this.#retries = new Retries(link);
    this.#signal = AbortSignal.any([this.#stop.signal, ...(options.signal ? [options.signal] : [])]);
  }

  get finished(): boolean {
    return this.#fed && this.#of.size === 0;
  }

  /** The next answer; nothing after the last, or where the call has ended. */
  async next(): Promise<{ value: K['answer']; cost: number } | undefined> {
    while (this.#ready.length === 0 && !this.finished && !this.#over) await this.#news.wait();
    return this.#ready.shift();
  }

  /** The caller has done with an answer of so many bytes. */
  consumed(cost: number): void {
    this.#held -= cost;
    this.#wake.ring();
    this.#room.ring();
  }

  /** What is under way at the server is dropped; an answered call only says goodbye, and nobody waits for that. */
  async stop(running: Promise<void>): Promise<void> {
    if (!this.finished) {
      this.#stop.abort();
      await running.catch(() => undefined);
    }
    this.#link.budget.give(this.#share, this.#share.tokens);
  }

  // ---------------------------------------------------------------------------------------------- connections

  async run(items: Items<K>): Promise<void> {
    const feeding = this.#feed(items);
    feeding.catch((error: unknown) => (this.#final ??= error as Error));
    const broken = failureOf(feeding);
    try {
      for (;;) {
        try {
          await this.#connected(broken);
          return;
        } catch (error) {
          this.#signal.throwIfAborted();
          if (this.finished) return;
          if (this.#final !== undefined) throw this.#final; // an item's error, or the source's own
          await pause(this.#retries.delay(error), this.#signal);
        }
        this.#beginAgain();
      }
    } finally {
      this.#over = true;
      this.#news.ring();
    }
  }

  /** Nothing was kept at the server. */
  #beginAgain(): void {
    this.#unsent = [...new Set(this.#of.values())];
    this.#partial = 0;
    for (const batch of this.#unsent) batch.beginAgain();
  }

  /** One connection. Returns when everything is answered. Throws what it, or the source of items, ended with. */
  async #connected(broken: Promise<never>): Promise<void> {
    const stream = this.#call.open(this.#link, this.#signal);
    const ended = new Ended();
    const writing = this.#write(stream, ended);
    try {
      await Promise.race([this.#read(stream), broken, failureOf(writing)]);
    } finally {
      stream.cancel();
      ended.now();
      this.#wake.ring();
      await Promise.allSettled([writing]);
    }
  }

  // ------------------------------------------------------------------------------------------------- sending

  /** Takes items from the source as the server's limit and the caller's pace allow. */
  async #feed(items: Items<K>): Promise<void> {
    const limit = await this.#link.budget.limit(this.#signal);
    for await (const batch of new Feed(this.#call, limit / 2).batches(items)) {
      while (this.#ready.length >= MOST_WAITING || this.#held > Math.max(this.#call.credit, MOST_HELD)) {
        await this.#room.wait({ signal: this.#signal });
      }
      await this.#link.budget.take(this.#share, batch.tokens, this.#signal);
      for (const name of batch.items.keys()) Feed.unique(this.#of, name);
      for (const name of batch.items.keys()) this.#of.set(name, batch);
      this.#unsent.push(batch);
      this.#wake.ring();
    }
    this.#fed = true;
    this.#wake.ring();
    this.#news.ring();
  }

  async #write(stream: ClientDuplexStream<K['request'], K['response']>, ended: Ended): Promise<void> {
    const send = (message: K['request']): Promise<void> =>
      ended.or((resolve) => stream.write(message, resolve));
    this.#left = Math.max(this.#call.credit - this.#held, 0);
    await send(this.#call.start(this.#left));
    let spoke = performance.now();
    while (!this.finished && !ended.is) {
      let message = this.#grant() ?? this.#items();
      if (message === undefined) {
        const milliseconds = spoke + this.#link.times.alive - performance.now();
        if (await this.#wake.wait({ milliseconds })) continue;
        message = this.#call.alive(this.#of.size);
      }
      await send(message);
      spoke = performance.now();
    }
    if (ended.is) return;
    stream.end();
    setTimeout(() => {
      stream.cancel();
    }, GOODBYE).unref();
  }

  /** The next message of items, if there is something to send. */
  #items(): K['request'] | undefined {
    const messages: K['message'][] = [];
    let bytes = 0;
    for (let batch = this.#unsent[0]; batch !== undefined; batch = this.#unsent[0]) {
      const full = this.#call.alone || bytes + batch.bytes > MESSAGE || messages.length >= MOST_ITEMS;
      if (messages.length > 0 && full) break;
      this.#unsent.shift();
      bytes += batch.bytes;
      messages.push(...batch.messages);
      batch.sent();
    }
    return messages.length > 0 ? this.#call.items(messages) : undefined;
  }

  /**
   * More credit, where it is due: for what the caller has done with.
   *
   * While the caller waits, and items are in parts, these get what they need, or nothing would ever be whole.
   */
  #grant(): K['request'] | undefined {
    const { credit } = this.#call;
    if (credit === 0) return undefined;
    let target = credit - this.#held - this.#partial;
    if (this.#held === 0 && this.#partial > 0) target = Math.max(target, 2 * LEAST_CREDIT);
    const due = target - this.#left;
    const low = this.#left < LEAST_CREDIT && due >= LEAST_CREDIT / 4;
    if (due < credit / 4 && !low) return undefined;
    this.#left += due;
    return this.#call.grant(due);
  }

  // ------------------------------------------------------------------------------------------------- reading

  async #read(stream: ClientDuplexStream<K['request'], K['response']>): Promise<void> {
    for await (const response of received<K['response']>(stream, this.#link)) {
      const heard = this.#call.hear(response);
      if (heard?.case === 'started') this.#link.seen(heard.teacher);
      else if (heard?.case === 'part') this.#take(heard);
      else if (heard?.case === 'failed') this.#fail(heard.itemId, ofItem(heard.error, heard.itemId));
      else if (heard?.case === 'alive') this.#wait(heard.phase, heard.seconds);
    }
    if (!this.finished)
      throw unavailable(this.#link.name, `the call ended with ${this.#of.size} items unanswered`);
  }

  #take({ itemId, cost, last, part }: Extract<Heard<K['part']>, { case: 'part' }>): void {
    this.#left -= cost;
    const batch = this.#of.get(itemId);
    if (batch === undefined)
      throw wrongSignal('an answer came for what was not asked', `item ${itemId.toString()}`);
    if (batch.answered.has(itemId)) {
      if (last) this.#settle(batch, itemId); // asked again only for its company
      return;
    }
    const answer = batch.add(itemId, part, cost, this.#call);
    this.#partial += cost;
    if (answer === undefined) {
      this.#wake.ring();
      return;
    }
    this.#held += answer.cost;
    this.#ready.push(answer);
    this.#news.ring();
    this.#retries.progress();
    batch.answered.add(itemId);
    this.#settle(batch, itemId);
  }

  /** An item is done with in this connection; so is its batch, or what of it failed is sent again. */
  #settle(batch: Batch<K>, itemId: bigint): void {
    this.#partial -= batch.settle(itemId);
    this.#wake.ring();
    if (batch.waiting.size > 0) return;
    if (batch.answered.size < batch.items.size) {
      setTimeout(() => {
        this.#sendAgain(batch);
      }, batch.delay);
      return;
    }
    for (const name of batch.items.keys()) this.#of.delete(name);
    this.#link.budget.give(this.#share, batch.tokens);
    this.#news.ring();
  }

  #sendAgain(batch: Batch<K>): void {
    const current = [...batch.items.keys()].every((name) => this.#of.get(name) === batch);
    if (!current || batch.waiting.size > 0 || this.#unsent.includes(batch)) return;
    this.#unsent.push(batch);
    this.#wake.ring();
  }

  /** An item that is not answered: its error ends the call or is told, or it is sent again where that may help. */
  #fail(itemId: bigint, error: LimbeckError): void {
    const batch = this.#of.get(itemId);
    const item = batch?.items.get(itemId);
    const again =
      error.reason === 'TEACHER_UNAVAILABLE' ||
      (error.reason === 'QUOTA_EXCEEDED' &&
        item !== undefined &&
        this.#call.couldFit(item, this.#link.limits));
    if (batch === undefined || (!again && this.#options.failed === undefined)) {
      this.#final = error;
      throw error;
    }
    if (again) {
      try {
        batch.delay = this.#retries.delay(error);
      } catch (final) {
        this.#final = final as Error;
        throw final;
      }
    } else if (!batch.answered.has(itemId)) {
      batch.answered.add(itemId);
      this.#options.failed?.(error, itemId);
    }
    this.#settle(batch, itemId);
  }

  #wait(phase: string, seconds: number): void {
    if (phase !== '' && phase !== this.#phase) {
      this.#link.log(`teacher ${this.#call.teacher}: ${phase}, ${Math.round(seconds)} s`);
    }
    this.#phase = phase;
  }
}

/** Rejects where the work fails, and is silent where it goes well. */
function failureOf(work: Promise<void>): Promise<never> {
  const failure = new Promise<never>((_, reject) => {
    work.catch(reject);
  });
  failure.catch(() => undefined); // nobody may be waiting for it yet
  return failure;
}

/** The end of a connection, for whoever waits for a write that will never be done. */
class Ended {
  is = false;
  #release = (): void => undefined;

  now(): void {
    this.is = true;
    this.#release();
  }

  or(begin: (resolve: () => void) => void): Promise<void> {
    return new Promise((resolve) => {
      this.#release = resolve;
      begin(resolve);
      if (this.is) resolve();
    });
  }
}
