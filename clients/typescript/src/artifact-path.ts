// Where fetched files go: below the caller's folder, whatever a server says.
import { lstat } from 'node:fs/promises';
import { join } from 'node:path';
import { LimbeckError, type Problem } from './errors.js';

const FORBIDDEN = /[\x00-\x1f\x7f\\:]/; // eslint-disable-line no-control-regex
const MOST_NAME = 255; // bytes of a name, by Linux's own rule

/** The place of each path below `folder`. Throws before anything is written where one would lie elsewhere. */
export async function placesOf(folder: string, paths: readonly string[]): Promise<string[]> {
  const known = new Set<string>();
  const above = new Set(paths.flatMap(foldersOf));
  const bad = paths.filter((path) => {
    const wrong = !isInside(path) || known.has(path) || above.has(path);
    known.add(path);
    return wrong;
  });
  if (bad.length > 0) {
    const problems = bad.map((path): Problem => ({
      message: `${JSON.stringify(path)} is no path of a file in the run's folder`,
    }));
    throw new LimbeckError(
      'INTERNAL',
      problems,
      'The server names files that lead elsewhere: nothing was fetched.',
    );
  }
  const problems: Problem[] = [];
  for (const path of [...above].sort()) {
    const place = join(folder, path);
    if (await isLink(place)) {
      problems.push({
        message: `${place} is a link: what is fetched would lie elsewhere`,
        hint: 'move it away',
      });
    }
  }
  if (problems.length > 0) throw new LimbeckError('FOLDER_NOT_OURS', problems, 'The files cannot lie there.');
  return paths.map((path) => join(folder, path));
}

/** Whether a path of a server is relative, goes down only, and has no sign that means something elsewhere. */
function isInside(path: string): boolean {
  const good = (part: string): boolean =>
    !['', '.', '..'].includes(part) && Buffer.byteLength(part) <= MOST_NAME;
  return !FORBIDDEN.test(path) && path.split('/').every(good);
}

/** Every folder that a path lies in: `a` and `a/b` of `a/b/c`. */
function foldersOf(path: string): string[] {
  const parts = path.split('/').slice(0, -1);
  return parts.map((_, i) => parts.slice(0, i + 1).join('/'));
}

async function isLink(place: string): Promise<boolean> {
  try {
    return (await lstat(place)).isSymbolicLink();
  } catch {
    return false; // it is not there, or whoever writes there tells
  }
}
