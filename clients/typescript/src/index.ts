export type { Prompt, Sampling, ScoreItem, Want } from './ask.js';
export type { ExchangeOptions, Scored, ScoreOptions } from './calls.js';
export { Client, connect, type ConnectOptions, type TeacherOptions } from './client.js';
export { decode, type Decoded, type Packed } from './codec.js';
export type { Completion, Said } from './completion.js';
export type { ConnectionOptions, TlsFiles } from './connection.js';
export type { Fetched, Fetching, FetchOptions } from './download.js';
export { LimbeckError, REASONS, type Problem, type Reason } from './errors.js';
export { formOf, type FormField } from './form.js';
export type { Samples, Signal } from './fragments.js';
export type { OutputHead } from './head.js';
export type { CallOptions, Times } from './link.js';
export type { Integer } from './numbers.js';
export { StoredSignal, type Expectation, type SignalsOptions, type StoredTokens } from './replay.js';
export { errorOf, errorOfCall } from './status.js';
export { TopK, type AtTemperature } from './topk.js';
export type { CreateOptions } from './training.js';
export { ENDED, type WatchOptions } from './watch.js';
export { RunState, type Event } from './gen/limbeck/v1/event_pb.js';
export type { ListPluginsResponse, Plugin } from './gen/limbeck/v1/plugin_service_pb.js';
export { Plugin_Kind } from './gen/limbeck/v1/plugin_service_pb.js';
export type { SignalHeader } from './gen/limbeck/v1/signal_pb.js';
export { Teacher_State, type Dataset, type Teacher } from './gen/limbeck/v1/teacher_service_pb.js';
export type {
  Artifact,
  Checkpoint,
  GetRunResponse,
  Knob,
  Run,
  ValidateRecipeResponse,
} from './gen/limbeck/v1/training_service_pb.js';
