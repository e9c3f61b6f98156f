// The messages and services as they travel, for whoever calls them directly.
export * from './gen/limbeck/v1/error_pb.js';
export * from './gen/limbeck/v1/event_pb.js';
export * from './gen/limbeck/v1/plugin_service_pb.js';
export * from './gen/limbeck/v1/signal_pb.js';
export * from './gen/limbeck/v1/teacher_service_pb.js';
export * from './gen/limbeck/v1/training_service_pb.js';
