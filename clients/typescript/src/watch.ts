import { LimbeckError } from './errors.js';
import { RunState, type Event } from './gen/limbeck/v1/event_pb.js';
import { TrainingService } from './gen/limbeck/v1/training_service_pb.js';
import type { CallOptions, Link } from './link.js';
import { uint64, type Integer } from './numbers.js';
import { received, resumed } from './received.js';
import { unavailable } from './status.js';

/** States that a run ends in; of `FAILED` ResumeRun may let it go on. */
export const ENDED: ReadonlySet<RunState> = new Set([
  RunState.SUCCEEDED,
  RunState.FAILED,
  RunState.CANCELLED,
]);

/** Where to begin to watch. */
export interface WatchOptions extends CallOptions {
  /** Only events after this sequence: 0 begins with the first, unset with the oldest that is kept. */
  readonly after?: Integer | undefined;
}

/** The events of a run, each once and in order over reconnects; ends with the run. */
export function watch(link: Link, runId: string, options: WatchOptions): AsyncGenerator<Event, void> {
  let last = options.after === undefined ? undefined : uint64(options.after, 'after');
  return resumed(link, options.signal, async function* (progress) {
    const request = { runId, ...(last !== undefined && { afterSequence: last }) };
    let ended = false; // the last event says that the run has ended
    const call = link.serverStream(TrainingService.method.watchRun, request, options.signal);
    for await (const { kind } of received(call, link)) {
      progress(); // the run may rest for as long as it likes
      if (kind.case !== 'events') continue;
      for (const event of kind.value.events) {
        if (last !== undefined && event.sequence <= last) continue; // delivery is at least once
        if (last !== undefined && event.sequence !== last + 1n) throw gap(runId, event.sequence, last);
        last = event.sequence;
        ended = event.kind.case === 'stateChanged' && ENDED.has(event.kind.value.state);
        yield event;
      }
    }
    if (!ended) await confirmEnd(link, runId, last ?? 0n, options);
  });
}

/** Where the last event is not the run's, something between ended the call, or all was seen before. */
async function confirmEnd(link: Link, runId: string, last: bigint, { signal }: CallOptions): Promise<void> {
  const { run } = await link.ask(TrainingService.method.getRun, { runId }, { signal });
  if (run && ENDED.has(run.state) && run.lastSequence <= last) return;
  throw unavailable(link.name, `the call ended after event ${last.toString()}, and the run goes on`);
}

function gap(runId: string, sequence: bigint, last: bigint): LimbeckError {
  const message = `event ${sequence.toString()} came where ${(last + 1n).toString()} was due`;
  return new LimbeckError(
    'LOG_DAMAGED',
    [{ message, field: `run ${runId}` }],
    'Events of the run are missing.',
  );
}
