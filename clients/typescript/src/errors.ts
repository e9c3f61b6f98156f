/** Every reason that an error can have, with what it means (docs/cli.md). */
export const REASONS = {
  RECIPE_INVALID: 'The recipe is not valid.',
  DATA_INVALID: 'Rows of the data are not valid.',
  NOTHING_TO_TRAIN: 'No token is left to train on.',
  PLUGIN_UNKNOWN: 'A plugin of this name is not installed.',
  PLUGIN_INVALID: 'A plugin breaks the rules of its hook.',
  EXTRA_MISSING: 'A part of Limbeck that is needed here is not installed.',
  MODEL_INVALID: 'A model cannot be used here.',
  TOKENIZER_MISMATCH: 'Teacher and student do not share a tokenizer.',
  CAPABILITY_MISSING: 'The teacher cannot give what a loss needs.',
  SIGNAL_INVALID: "A teacher's signal is not valid.",
  STORE_DAMAGED: 'A stored file is damaged.',
  LOG_DAMAGED: 'An append-only log is damaged before its last line.',
  FOLDER_NOT_OURS: 'The output folder holds something else.',
  RUN_LOCKED: 'Another process works on this run.',
  RESUME_REFUSED: 'The run cannot be resumed as it is.',
  GENERATION_FAILED: 'The generator gave too few usable rows.',
  SCORING_FAILED: 'The teacher could not score.',
  SELF_CHECK_FAILED: "A self-check of the model's numbers failed.",
  LOSS_NOT_FINITE: 'A loss is not finite.',
  KNOB_INVALID: 'A knob left its allowed range.',
  DISK_FULL: 'The disk is full.',
  SERVER_INVALID: 'The server cannot be started like this.',
  REQUEST_INVALID: 'The request is not valid.',
  UNAUTHENTICATED: 'The server wants a token that it knows.',
  PERMISSION_DENIED: "The token's role does not allow this.",
  TEACHER_UNKNOWN: 'The server has no teacher of this name.',
  TEACHER_MISMATCH: 'The teacher is not the one that was expected.',
  TEACHER_UNAVAILABLE: "The teacher's worker is not running.",
  TEACHER_REFUSED: "The teacher's service refuses these calls.",
  BUDGET_EXHAUSTED: "The budget for the teacher's calls is used up.",
  DATASET_UNKNOWN: 'The server has no signals of this name.',
  CURSOR_INVALID: 'The position is outside of what is kept.',
  RUN_UNKNOWN: 'The server has no run of this id.',
  RUN_STATE: "The run's state does not allow this.",
  RUN_EXISTS: 'There is another run already.',
  RUN_CRASHED: "The run's process ended without a word.",
  ARTIFACT_UNKNOWN: 'The run has no such file to fetch.',
  QUOTA_EXCEEDED: 'The client has too much under way.',
  SERVER_UNAVAILABLE: 'The server cannot be reached.',
  PEER_SILENT: 'Nothing was heard from the other side for too long.',
  INTERNAL: 'Something went wrong inside of the server; its log says more.',
} as const;

/** What a program may decide by. */
export type Reason = keyof typeof REASONS;

/** One fault of an input: what was wrong with which value and what is allowed, where, and what to do. */
export interface Problem {
  readonly message: string;
  /** A server names its files relative to its workspace, and the recipe `recipe`. */
  readonly file?: string;
  /** From 1, as is `column`. */
  readonly line?: number;
  readonly column?: number;
  /** As a user would write it: `item 7`, `losses[0].temperature`. */
  readonly field?: string;
  readonly hint?: string;
}

/** The only error of this package, with a reason of the catalogue and every problem of the input that caused it. */
export class LimbeckError extends Error {
  override readonly name = 'LimbeckError';
  readonly reason: Reason;
  /** A sentence for a person; `message` is this and a line for each problem. */
  readonly summary: string;
  readonly problems: readonly Problem[];

  constructor(reason: Reason, problems: readonly Problem[] = [], summary: string = REASONS[reason]) {
    super([summary, ...problems.map((problem) => `  ${told(problem)}`)].join('\n'));
    this.reason = reason;
    this.summary = summary;
    this.problems = problems;
  }
}

/** A request that cannot be sent like this. */
export function invalid(message: string, field: string, hint?: string): LimbeckError {
  return new LimbeckError('REQUEST_INVALID', [{ message, field, ...(hint === undefined ? {} : { hint }) }]);
}

/** Signals that cannot be. */
export function wrongSignal(message: string, field?: string): LimbeckError {
  return new LimbeckError('SIGNAL_INVALID', [{ message, ...(field === undefined ? {} : { field }) }]);
}

function told({ message, file, line, column, field, hint }: Problem): string {
  const place = [file, file || !line ? line : `line ${line}`, column].filter(Boolean).join(':');
  const where = [place, field].filter(Boolean).map((part) => `${part}: `);
  return `${where.join('')}${message}${hint ? ` (${hint})` : ''}`;
}
