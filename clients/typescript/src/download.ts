// Files of a run, fetched into a folder: resumed where they stopped, checked, and put in place only when whole.
import { createHash, type Hash } from 'node:crypto';
import { constants } from 'node:fs';
import { lstat, mkdir, open, rename, type FileHandle } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { placesOf } from './artifact-path.js';
import { LimbeckError } from './errors.js';
import { TrainingService, type Artifact } from './gen/limbeck/v1/training_service_pb.js';
import type { CallOptions, Link } from './link.js';
import { received, resumed } from './received.js';
import { unavailable } from './status.js';

const MOST_STEM = 200; // bytes of a name that the name of what came so far holds: there must be room for the rest
const MOST_BEGINNINGS = 8; // of a file that is another one after each reconnect

/** How far a fetch is: the file at work, and the bytes of all files that are there. */
export interface Fetching {
  readonly path: string;
  readonly done: number;
  readonly total: number;
}

/** What is fetched. */
export interface FetchOptions extends CallOptions {
  /** A file of the run or a folder of it, `student` where nothing is said; `.` for all. */
  readonly path?: string;
  /** Hears how far it is. */
  readonly told?: (fetching: Fetching) => void;
}

/** A file that was fetched. */
export interface Fetched {
  /** Relative to the run's folder. */
  readonly path: string;
  /** Where it lies now. */
  readonly file: string;
}

/** The files of a run that can be fetched, by path. */
export async function listArtifacts(
  link: Link,
  runId: string,
  { signal }: CallOptions = {},
): Promise<Artifact[]> {
  return (await link.ask(TrainingService.method.listArtifacts, { runId }, { signal })).artifacts;
}

/** Fetches a file, or all files of a folder, of a run to `folder`/path. */
export async function fetchFiles(
  link: Link,
  runId: string,
  folder: string,
  options: FetchOptions,
): Promise<Fetched[]> {
  const wanted = (options.path ?? 'student').replace(/^\/+|\/+$/g, '') || '.';
  const all = await listArtifacts(link, runId, options);
  const chosen = all.filter(({ path }) => wanted === '.' || path === wanted || path.startsWith(`${wanted}/`));
  if (chosen.length === 0) throw unknown(wanted, all);
  return fetchArtifacts(link, runId, folder, chosen, options);
}

/** Fetches these files, as `listArtifacts` gave them. */
export async function fetchArtifacts(
  link: Link,
  runId: string,
  folder: string,
  artifacts: readonly Artifact[],
  options: Omit<FetchOptions, 'path'>,
): Promise<Fetched[]> {
  const places = await placesOf(
    folder,
    artifacts.map(({ path }) => path),
  );
  const total = artifacts.reduce((sum, { size }) => sum + Number(size), 0);
  const fetched: Fetched[] = [];
  let before = 0;
  for (const [i, artifact] of artifacts.entries()) {
    const file = places[i]!;
    const tell = (done: number): void => options.told?.({ path: artifact.path, done: before + done, total });
    try {
      if (!(await isThere(file, artifact)))
        await new Download(link, runId, artifact, file, tell, options).run();
    } catch (error) {
      throw ofDisk(error, file);
    }
    before += Number(artifact.size);
    tell(0);
    fetched.push({ path: artifact.path, file });
  }
  return fetched;
}

/** One file. What came of it is kept beside it, under a name with its checksum, until it is whole. */
class Download {
  readonly #partial: string;
  #sha256: Uint8Array;
  #size: number;
  #hash: Hash = createHash('sha256');
  #there = 0;
  #beginnings = 0;

  constructor(
    readonly link: Link,
    readonly runId: string,
    readonly artifact: Artifact,
    readonly file: string,
    readonly tell: (done: number) => void,
    readonly options: CallOptions,
  ) {
    const known = artifact.sha256.length > 0 ? `.${hex(artifact.sha256).slice(0, 16)}` : '';
    this.#partial = join(dirname(file), `.${stemOf(basename(file))}${known}.partial`);
    this.#sha256 = artifact.sha256;
    this.#size = Number(artifact.size);
  }

  async run(): Promise<void> {
    await mkdir(dirname(this.file), { recursive: true });
    const handle = await open(
      this.#partial,
      constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW,
      0o666,
    );
    try {
      await this.#count(handle);
      const connection = this.#connection.bind(this, handle);
      for await (const done of resumed(this.link, this.options.signal, connection)) this.tell(done);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(this.#partial, this.file);
  }

  /** Counts what is good to go on from. */
  async #count(handle: FileHandle): Promise<void> {
    const { size } = await handle.stat();
    if (this.artifact.sha256.length === 0 || size > this.#size) {
      await handle.truncate(0);
      return;
    }
    for await (const piece of handle.createReadStream({ start: 0, autoClose: false })) {
      this.#hash.update(piece as Buffer);
      this.#there += (piece as Buffer).length;
    }
  }

  /** One connection: gives how many bytes are there, and ends when all are and are right. */
  async *#connection(handle: FileHandle, progress: () => void): AsyncGenerator<number, void> {
    for (;;) {
      try {
        if (this.#there < this.#size || this.artifact.sha256.length === 0)
          yield* this.#receive(handle, progress);
        const found = this.#hash.digest('hex');
        if (found === hex(this.#sha256)) return;
        throw this.#damaged(`its bytes have the checksum ${found}, ${hex(this.#sha256)} is stated`);
      } catch (error) {
        // what was there may be of another file: from the first byte, if not for ever
        const damaged = error instanceof LimbeckError && error.reason === 'STORE_DAMAGED';
        if (!damaged || this.#there === 0 || ++this.#beginnings >= this.#mostBeginnings) throw error;
        await handle.truncate(0);
        this.#hash = createHash('sha256');
        this.#there = 0;
      }
    }
  }

  async *#receive(handle: FileHandle, progress: () => void): AsyncGenerator<number, void> {
    const { link, runId } = this;
    const offset = BigInt(this.#there);
    const request = { runId, path: this.artifact.path, offset, ...(offset > 0n && { sha256: this.#sha256 }) };
    const call = link.serverStream(TrainingService.method.downloadArtifact, request, this.options.signal);
    let began = false;
    for await (const { kind } of received(call, link)) {
      if (kind.case === 'started') {
        this.#begin(kind.value);
        began = true;
      } else if (kind.case === 'data') {
        const { length } = kind.value;
        if (!began || this.#there + length > this.#size)
          throw this.#damaged(`more came than its ${this.#size} bytes`);
        await writeAll(handle, kind.value, this.#there);
        this.#hash.update(kind.value);
        this.#there += length;
        progress();
        yield this.#there;
      }
    }
    if (!began || this.#there < this.#size) {
      throw unavailable(link.name, `the call ended after ${this.#there} of ${this.#size} bytes`);
    }
  }

  /** What comes must be what was listed, and what was begun; a file that grows is what it is at the start. */
  #begin(stated: Artifact): void {
    const bound = this.#there > 0 || this.artifact.sha256.length > 0;
    const same = hex(stated.sha256) === hex(this.#sha256) && Number(stated.size) === this.#size;
    if (stated.path !== this.artifact.path || stated.sha256.length === 0 || (bound && !same)) {
      throw this.#damaged('it is another file now than when it was listed');
    }
    this.#sha256 = stated.sha256;
    this.#size = Number(stated.size);
  }

  get #mostBeginnings(): number {
    return this.artifact.sha256.length > 0 ? 2 : MOST_BEGINNINGS;
  }

  #damaged(message: string): LimbeckError {
    const hint = "fetch it again; if that does not help, see the server's disk";
    const problem = { message, field: this.artifact.path, hint };
    return new LimbeckError('STORE_DAMAGED', [problem], 'A file did not arrive whole.');
  }
}

/** What the name of what came so far holds of the file's name. */
function stemOf(name: string): string {
  return Buffer.byteLength(name) > MOST_STEM ? createHash('sha256').update(name).digest('hex') : name;
}

async function writeAll(handle: FileHandle, data: Uint8Array, position: number): Promise<void> {
  for (let written = 0; written < data.length;) {
    written += (await handle.write(data, written, data.length - written, position + written)).bytesWritten;
  }
}

/** Whether the file was fetched before. */
async function isThere(file: string, artifact: Artifact): Promise<boolean> {
  const found = await lstat(file).catch(() => undefined);
  if (artifact.sha256.length === 0 || !found?.isFile() || found.size !== Number(artifact.size)) return false;
  const hash = createHash('sha256');
  const handle = await open(file);
  try {
    for await (const piece of handle.createReadStream()) hash.update(piece as Buffer);
  } finally {
    await handle.close();
  }
  return hash.digest('hex') === hex(artifact.sha256);
}

function unknown(wanted: string, all: readonly Artifact[]): LimbeckError {
  const tops = [...new Set(all.map(({ path }) => path.split('/')[0]))].sort();
  const hint = tops.length > 0 ? `there are ${tops.join(', ')}` : 'there is nothing to fetch yet';
  const problem = { message: `the run has no file and no folder ${wanted}`, field: 'path', hint };
  return new LimbeckError('ARTIFACT_UNKNOWN', [problem]);
}

/** An error of this disk as one of the catalogue; any other as it is. */
function ofDisk(error: unknown, file: string): unknown {
  if (!(error instanceof Error) || !('syscall' in error) || !('code' in error)) return error;
  const problem = { message: `${file} cannot be written: ${error.message}` };
  if (error.code === 'ENOSPC' || error.code === 'EDQUOT') return new LimbeckError('DISK_FULL', [problem]);
  return new LimbeckError('FOLDER_NOT_OURS', [problem], 'The files cannot lie there.');
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex');
}
