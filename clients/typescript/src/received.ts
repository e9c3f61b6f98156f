// Answers of a call as they come, and calls over as many connections as it takes.
import type { ServiceError } from '@grpc/grpc-js';
import { pause } from './bell.js';
import { LimbeckError } from './errors.js';
import type { Link } from './link.js';
import { Retries } from './retries.js';
import { errorOfCall, silent } from './status.js';

/** A call of gRPC that is answered with a stream: its own type tells of messages only here. */
interface Call<T> extends AsyncIterable<unknown> {
  readonly deserialize: (chunk: Buffer) => T;
  cancel(): void;
}

/** The messages of a call, which is cancelled when its reader leaves. Throws PEER_SILENT where none comes for too long. */
export async function* received<T>(call: Call<T>, link: Link): AsyncGenerator<T, void> {
  const messages = call[Symbol.asyncIterator]() as AsyncIterator<T>;
  try {
    for (;;) {
      const next = await heard(messages.next(), link, call);
      if (next.done) return;
      link.met = true;
      yield next.value;
    }
  } catch (error) {
    throw isServiceError(error) ? errorOfCall(error, link.name) : error;
  } finally {
    call.cancel();
  }
}

/** What `connection` gives, begun again after a lost connection. It says `progress` when patience begins anew. */
export async function* resumed<T>(
  link: Link,
  signal: AbortSignal | undefined,
  connection: (progress: () => void) => AsyncGenerator<T, void>,
): AsyncGenerator<T, void> {
  const retries = new Retries(link);
  for (;;) {
    signal?.throwIfAborted();
    try {
      yield* connection(() => {
        retries.progress();
      });
      return;
    } catch (error) {
      signal?.throwIfAborted();
      await pause(retries.delay(error), signal);
    }
  }
}

async function heard<T>(next: Promise<T>, link: Link, call: Call<unknown>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      link.renew(call);
      reject(silent(link.name, link.times.silence));
    }, link.times.silence);
  });
  try {
    return await Promise.race([next, late]);
  } finally {
    clearTimeout(timer);
  }
}

function isServiceError(error: unknown): error is ServiceError {
  return !(error instanceof LimbeckError) && error instanceof Error && 'code' in error && 'metadata' in error;
}
