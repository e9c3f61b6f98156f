// What a call ended with, as an error of the catalogue.
import { fromBinary } from '@bufbuild/protobuf';
import { anyUnpack } from '@bufbuild/protobuf/wkt';
import { status as Code, type ServiceError } from '@grpc/grpc-js';
import { LimbeckError, REASONS, type Problem, type Reason } from './errors.js';
import { StatusSchema } from './gen/google/rpc/status_pb.js';
import { ErrorSchema, type Error as ErrorMessage } from './gen/limbeck/v1/error_pb.js';

/** For a status that no Limbeck server said: proxies, other servers, gRPC itself. */
const OF_STATUS: Partial<Record<Code, Reason>> = {
  [Code.UNAVAILABLE]: 'SERVER_UNAVAILABLE',
  [Code.CANCELLED]: 'SERVER_UNAVAILABLE',
  [Code.ABORTED]: 'SERVER_UNAVAILABLE',
  [Code.DEADLINE_EXCEEDED]: 'SERVER_UNAVAILABLE',
  [Code.UNAUTHENTICATED]: 'UNAUTHENTICATED',
  [Code.PERMISSION_DENIED]: 'PERMISSION_DENIED',
  [Code.RESOURCE_EXHAUSTED]: 'QUOTA_EXCEEDED',
  [Code.UNIMPLEMENTED]: 'REQUEST_INVALID',
};
const BROKEN = /RST_STREAM|GOAWAY|ECONNRESET|EPIPE|Connection dropped|Stream removed|socket/i;

/** The same call may go well a little later. */
export const AGAIN: ReadonlySet<Reason> = new Set<Reason>([
  'SERVER_UNAVAILABLE',
  'TEACHER_UNAVAILABLE',
  'PEER_SILENT',
  'QUOTA_EXCEEDED',
]);

/** The error of a failed call: the server's own where it sent one, else by the status alone. */
export function errorOfCall(error: ServiceError, address: string): LimbeckError {
  const sent = sentError(error);
  if (sent !== undefined) return sent;
  const text = error.details.split(/\s+/).join(' ').trim();
  let reason: Reason = OF_STATUS[error.code] ?? 'INTERNAL';
  // what is too large is an answer, unless the server says that it is the request
  if (text.includes('larger than max')) reason = text.includes('SERVER: ') ? 'REQUEST_INVALID' : 'INTERNAL';
  else if (BROKEN.test(text)) reason = 'SERVER_UNAVAILABLE';
  const problem = { message: `${Code[error.code]}: ${text || 'nothing more is known'}`, field: address };
  if (reason === 'SERVER_UNAVAILABLE') {
    const hint = 'see that the server runs, and that address and TLS are its own';
    return new LimbeckError(reason, [{ ...problem, hint }]);
  }
  if (error.code === Code.UNIMPLEMENTED) {
    const hint = 'see the address, or update the server';
    return new LimbeckError(reason, [{ ...problem, hint }], 'The server does not know this call.');
  }
  return new LimbeckError(reason, [problem], reason === 'INTERNAL' ? 'The call failed.' : undefined);
}

/** An error as it travels; a reason that is not known here becomes INTERNAL, told in its message. */
export function errorOf(message: ErrorMessage): LimbeckError {
  const problems = message.problems.map(({ message, file, line, column, field, hint }): Problem => ({
    message,
    ...(file && { file }),
    ...(line && { line }),
    ...(column && { column }),
    ...(field && { field }),
    ...(hint && { hint }),
  }));
  if (Object.hasOwn(REASONS, message.reason)) {
    return new LimbeckError(message.reason as Reason, problems, message.message || undefined);
  }
  return new LimbeckError('INTERNAL', problems, `${message.reason}: ${message.message}`);
}

/** The error of an item, with the item's name where it has none. */
export function ofItem(error: LimbeckError, itemId: bigint): LimbeckError {
  const name = `item ${itemId.toString()}`;
  if (error.problems.some(({ field }) => field?.startsWith(name))) return error;
  const problems = error.problems.length > 0 ? error.problems : [{ message: error.summary }];
  return new LimbeckError(
    error.reason,
    problems.map((problem) => ({ ...problem, field: problem.field ?? name })),
    error.summary,
  );
}

/** Nothing came for too long. */
export function silent(address: string, milliseconds: number): LimbeckError {
  return new LimbeckError('PEER_SILENT', [
    { message: `nothing came for ${milliseconds / 1000} s`, field: address },
  ]);
}

/** A call that ended without what was due. */
export function unavailable(address: string, message: string): LimbeckError {
  return new LimbeckError('SERVER_UNAVAILABLE', [{ message, field: address }]);
}

function sentError(error: ServiceError): LimbeckError | undefined {
  for (const value of error.metadata.get('grpc-status-details-bin')) {
    try {
      for (const detail of fromBinary(StatusSchema, value as Buffer).details) {
        const message = anyUnpack(detail, ErrorSchema);
        if (message !== undefined) return errorOf(message);
      }
    } catch {
      return undefined; // bytes of somebody else: the status must do
    }
  }
  return undefined;
}
