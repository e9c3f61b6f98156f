import { randomUUID } from 'node:crypto';
import { fetchArtifacts, fetchFiles, listArtifacts, type Fetched, type FetchOptions } from './download.js';
import { LimbeckError } from './errors.js';
import type { Event, RunState } from './gen/limbeck/v1/event_pb.js';
import { PluginService, type ListPluginsResponse } from './gen/limbeck/v1/plugin_service_pb.js';
import {
  RestartPolicy,
  TrainingService,
  type Artifact,
  type Checkpoint,
  type GetRunResponse,
  type Run,
  type ValidateRecipeResponse,
} from './gen/limbeck/v1/training_service_pb.js';
import type { CallOptions, Link } from './link.js';
import { AGAIN } from './status.js';
import { watch, type WatchOptions } from './watch.js';

const WORK = 600_000; // milliseconds that a server may look at a recipe, or save a checkpoint
const AGAIN_BUT_FULL = new Set([...AGAIN].filter((reason) => reason !== 'QUOTA_EXCEEDED'));

/** How a run is created. */
export interface CreateOptions extends CallOptions {
  /** The same id gives the same run, also from another process; one is made where none is given. */
  readonly requestId?: string;
  /** What becomes of the run when the server ends while it works; it is resumed where nothing is said. */
  readonly restart?: 'resume' | 'fail';
}

/** Runs of a server: start them, watch them, steer them, fetch what they made. */
export class Training {
  protected readonly link: Link;

  constructor(link: Link) {
    this.link = link;
  }

  /** What is installed at the server, those that failed too, with JSON Schemas of their configs: see `formOf`. */
  plugins(options: CallOptions = {}): Promise<ListPluginsResponse> {
    return this.link.ask(PluginService.method.listPlugins, {}, options);
  }

  /** Looks at a recipe (YAML) and all that it names, up to 10 minutes. What is wrong is in the answer, not thrown. */
  validate(recipe: string, { signal }: CallOptions = {}): Promise<ValidateRecipeResponse> {
    return this.link.ask(TrainingService.method.validateRecipe, { recipe }, { signal, work: WORK });
  }

  /**
   * Starts the run of a recipe (YAML) as soon as the server has room; a lost connection starts no second one.
   *
   * Its relative paths are relative to the server's workspace. Throws RECIPE_INVALID with every problem, RUN_EXISTS
   * where another run has its folder, QUOTA_EXCEEDED for a full queue.
   */
  async createRun(
    recipe: string,
    { requestId = randomUUID(), restart, signal }: CreateOptions = {},
  ): Promise<Run> {
    const policy = restart === 'fail' ? RestartPolicy.FAIL : RestartPolicy.RESUME;
    const request = { recipe, requestId, restart: policy };
    const again = AGAIN_BUT_FULL;
    return present(
      (await this.link.ask(TrainingService.method.createRun, request, { signal, again })).run,
      'run',
    );
  }

  /** A run as it is now, with its recipe and its states. Throws RUN_UNKNOWN. */
  run(runId: string, { signal }: CallOptions = {}): Promise<GetRunResponse> {
    return this.link.ask(TrainingService.method.getRun, { runId }, { signal });
  }

  /** All runs, the newest first, or those in one of `states`; asked for a page at a time. */
  async *runs(
    options: CallOptions & { readonly states?: readonly RunState[]; readonly pageSize?: number } = {},
  ): AsyncGenerator<Run, void> {
    const { states = [], pageSize = 0, signal } = options;
    const seen = new Set<string>(); // a run that is created meanwhile moves others to the next page
    let pageToken = '';
    do {
      const request = { states: [...states], pageSize, pageToken };
      const page = await this.link.ask(TrainingService.method.listRuns, request, { signal });
      for (const run of page.runs) {
        if (!seen.has(run.runId)) yield run;
        seen.add(run.runId);
      }
      pageToken = page.nextPageToken;
    } while (pageToken !== '');
  }

  /**
   * The events of a run, each once and in order, over lost connections; ends with the run.
   *
   * Throws CURSOR_INVALID for an `after` that is not kept any more or was never said.
   */
  watch(runId: string, options: WatchOptions = {}): AsyncGenerator<Event, void> {
    return watch(this.link, runId, options);
  }

  /** Lets a run save what is needed to go on, and rest. `watch` tells when it does. Throws RUN_STATE. */
  async pause(runId: string, { signal }: CallOptions = {}): Promise<Run> {
    return present((await this.link.ask(TrainingService.method.pauseRun, { runId }, { signal })).run, 'run');
  }

  /** Lets a run that is paused or has failed go on, as soon as there is room. Throws RUN_STATE. */
  async resume(runId: string, { signal }: CallOptions = {}): Promise<Run> {
    return present((await this.link.ask(TrainingService.method.resumeRun, { runId }, { signal })).run, 'run');
  }

  /** Ends a run for good; what it has made stays in its folder. */
  async cancel(runId: string, { signal }: CallOptions = {}): Promise<Run> {
    return present((await this.link.ask(TrainingService.method.cancelRun, { runId }, { signal })).run, 'run');
  }

  /**
   * Gives knobs other values from the next step on, for good: by name, as in `Run.knobs`.
   *
   * All of them or, KNOB_INVALID, none. Returns when they are kept; an event tells from which step they hold.
   */
  async setKnobs(
    runId: string,
    values: Readonly<Record<string, number>>,
    { signal }: CallOptions = {},
  ): Promise<Run> {
    const request = { runId, values: { ...values } };
    return present((await this.link.ask(TrainingService.method.updateKnobs, request, { signal })).run, 'run');
  }

  /** Saves a checkpoint after the step under way; returns when it is complete. Throws RUN_STATE. */
  async saveCheckpoint(runId: string, { signal }: CallOptions = {}): Promise<Checkpoint> {
    const answer = await this.link.ask(
      TrainingService.method.saveCheckpoint,
      { runId },
      { signal, work: WORK },
    );
    return present(answer.checkpoint, 'checkpoint');
  }

  /** The complete checkpoints of a run, the oldest first. */
  async checkpoints(runId: string, { signal }: CallOptions = {}): Promise<Checkpoint[]> {
    return (await this.link.ask(TrainingService.method.listCheckpoints, { runId }, { signal })).checkpoints;
  }

  /** The files of a run that can be fetched, by path. */
  artifacts(runId: string, options: CallOptions = {}): Promise<Artifact[]> {
    return listArtifacts(this.link, runId, options);
  }

  /**
   * Fetches a file of a run, or all files of a folder of it, to `folder`/path.
   *
   * Files are there only when they are whole and their checksums right. What came of one that is not is kept beside
   * it: the same call goes on from there, also in another process, and files that are there are not fetched again.
   * Throws ARTIFACT_UNKNOWN; STORE_DAMAGED where bytes are wrong; FOLDER_NOT_OURS where a link leads out of `folder`.
   */
  fetch(runId: string, folder: string, options: FetchOptions = {}): Promise<Fetched[]> {
    return fetchFiles(this.link, runId, folder, options);
  }

  /** Fetches some of the files that `artifacts` gave: no others may come in their place. */
  fetchArtifacts(
    runId: string,
    folder: string,
    artifacts: readonly Artifact[],
    options: Omit<FetchOptions, 'path'> = {},
  ): Promise<Fetched[]> {
    return fetchArtifacts(this.link, runId, folder, artifacts, options);
  }
}

/** A field that every server sets. */
function present<T>(value: T | undefined, field: string): T {
  if (value === undefined) throw new LimbeckError('INTERNAL', [{ message: `the answer has no ${field}` }]);
  return value;
}
