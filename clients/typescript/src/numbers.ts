// Numbers on their way: never changed in silence.
import { endianness } from 'node:os';
import { invalid, wrongSignal } from './errors.js';

/** A whole number up to 2⁶⁴ − 1. A JavaScript number holds those up to 2⁵³ − 1 exactly; above, give a bigint. */
export type Integer = bigint | number;

/** The number as it travels. Throws REQUEST_INVALID for what a uint64, or a JavaScript number, cannot hold exactly. */
export function uint64(value: Integer, field: string): bigint {
  if (typeof value === 'number' && !Number.isSafeInteger(value)) {
    const hint = Number.isInteger(value)
      ? 'digits are lost above 2 ** 53: give a bigint, as 7n'
      : 'give a bigint';
    throw invalid(`is ${value}, a whole number up to 2 ** 53 - 1 or a bigint is needed`, field, hint);
  }
  const whole = BigInt(value);
  if (whole < 0n || whole >= 1n << 64n)
    throw invalid(`is ${whole.toString()}, 0 to 2 ** 64 - 1 is allowed`, field);
  return whole;
}

/** Throws REQUEST_INVALID for what a uint32 cannot hold. */
export function uint32(value: number, field: string): number {
  if (Number.isInteger(value) && value >= 0 && value < 2 ** 32) return value;
  throw invalid(`is ${value}, a whole number from 0 to 2 ** 32 - 1 is needed`, field);
}

/** Token ids as little-endian bytes. */
export function int32Bytes(values: Int32Array | readonly number[], field: string): Uint8Array {
  if (!(values instanceof Int32Array)) {
    const wrong = values.find((value) => (value | 0) !== value);
    if (wrong !== undefined) throw invalid(`holds ${wrong}, which is no int32`, field);
  }
  return swapped(new Uint8Array(Int32Array.from(values).buffer), 4);
}

/** Offsets as little-endian int64. */
export function int64Bytes(values: readonly number[], field: string): Uint8Array {
  return swapped(new Uint8Array(BigInt64Array.from(values.map((value) => uint64(value, field))).buffer), 8);
}

export const int32s = (raw: Uint8Array, field: string): Int32Array => new Int32Array(aligned(raw, 4, field));
export const uint16s = (raw: Uint8Array, field: string): Uint16Array =>
  new Uint16Array(aligned(raw, 2, field));
export const float32s = (raw: Uint8Array, field: string): Float32Array =>
  new Float32Array(aligned(raw, 4, field));

/** The upper halves of float32 numbers. */
export function bfloat16s(raw: Uint8Array, field: string): Float32Array {
  return new Float32Array(Uint32Array.from(uint16s(raw, field), (bits) => bits << 16).buffer);
}

/** One after another. */
export function joined(parts: readonly Uint8Array[]): Uint8Array {
  return parts.length === 1 && parts[0] !== undefined ? parts[0] : Buffer.concat(parts);
}

/** A copy where the numbers of `size` bytes lie as this machine reads them. */
function aligned(raw: Uint8Array, size: 2 | 4, field: string): ArrayBuffer {
  if (raw.length % size > 0)
    throw wrongSignal(`${raw.length} bytes are no whole number of ${size}-byte numbers`, field);
  return swapped(new Uint8Array(raw), size).buffer;
}

function swapped(bytes: Uint8Array<ArrayBuffer>, size: 2 | 4 | 8): Uint8Array<ArrayBuffer> {
  if (endianness() === 'BE') {
    const view = Buffer.from(bytes.buffer);
    if (size === 2) view.swap16();
    else if (size === 4) view.swap32();
    else view.swap64();
  }
  return bytes;
}
