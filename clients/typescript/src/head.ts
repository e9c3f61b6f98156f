import { createHash } from 'node:crypto';
import { wrongSignal } from './errors.js';
import { Dtype } from './gen/limbeck/v1/signal_pb.js';
import { TeacherService, type OutputHead as HeadMessage } from './gen/limbeck/v1/teacher_service_pb.js';
import type { CallOptions, Link } from './link.js';
import { bfloat16s, float32s } from './numbers.js';
import { received, resumed } from './received.js';
import { unavailable } from './status.js';

/** An output head: logits = softCap * tanh(z / softCap) with z = scale * (W h + b); without a softCap logits = z. */
export interface OutputHead {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  /** W [V, d], row after row. */
  readonly weight: Float32Array;
  /** b [V] */
  readonly bias?: Float32Array;
  readonly scale: number;
  readonly softCap?: number;
}

/** A teacher's output head, its checksum verified; asked again after a lost connection. */
export async function fetchHead(link: Link, teacher: string, { signal }: CallOptions): Promise<OutputHead> {
  const attempts = resumed(link, signal, async function* () {
    yield await fetchOnce(link, teacher, signal);
  });
  for await (const head of attempts) return head;
  throw wrong('it is not there', teacher);
}

async function fetchOnce(link: Link, teacher: string, signal: AbortSignal | undefined): Promise<OutputHead> {
  let head: HeadMessage | undefined;
  let content = new Uint8Array();
  let there = 0;
  const call = link.serverStream(TeacherService.method.getOutputHead, { teacher }, signal);
  for await (const { kind } of received(call, link)) {
    if (kind.case === 'head') {
      head = kind.value;
      content = new Uint8Array(sizeOf(head, teacher));
    } else if (kind.case === 'chunk') {
      const { offset, data } = kind.value;
      if (head === undefined || offset !== BigInt(there) || there + data.length > content.length) {
        throw wrong(`bytes at ${offset.toString()} came where those at ${there} were due`, teacher);
      }
      content.set(data, there);
      there += data.length;
    }
  }
  if (head === undefined || there < content.length) {
    throw unavailable(link.name, `the call ended after ${there} of ${content.length} bytes`);
  }
  const digest = createHash('sha256').update(content).digest('hex');
  if (digest !== head.sha256)
    throw wrong(`its bytes have the checksum ${digest}, ${head.sha256} is stated`, teacher);
  return headOf(head, content);
}

/** Bytes of the head, which must be what its shape says: nothing larger is ever held. */
function sizeOf(head: HeadMessage, teacher: string): number {
  const { dtype, vocabSize, hiddenSize, bias, bytes } = head;
  const expected = (dtype === Dtype.BFLOAT16 ? 2 : 4) * vocabSize * (hiddenSize + (bias ? 1 : 0));
  if (expected === 0 || bytes !== BigInt(expected)) {
    const shape = `[${vocabSize}, ${hiddenSize}]`;
    throw wrong(`${bytes.toString()} bytes are announced, ${shape} takes ${expected}`, teacher);
  }
  return expected;
}

function headOf(head: HeadMessage, content: Uint8Array): OutputHead {
  const { vocabSize, hiddenSize, scale, softcap } = head;
  const values = head.dtype === Dtype.BFLOAT16 ? bfloat16s(content, 'head') : float32s(content, 'head');
  return {
    vocabSize,
    hiddenSize,
    weight: values.subarray(0, vocabSize * hiddenSize),
    ...(head.bias && { bias: values.subarray(vocabSize * hiddenSize) }),
    scale,
    ...(softcap > 0 && { softCap: softcap }),
  };
}

function wrong(message: string, teacher: string): Error {
  return wrongSignal(message, `output head of ${teacher}`);
}
