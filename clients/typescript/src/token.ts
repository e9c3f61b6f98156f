// A bearer token, without what editors add to a file. Its value is never in a message.
import { readFileSync } from 'node:fs';
import type { Problem } from './errors.js';

/** The token of a file, read anew. Pushes a problem where there is none. */
export function readToken(path: string, problems: Problem[]): string | undefined {
  let raw: Buffer;
  try {
    raw = readFileSync(path);
  } catch (error) {
    problems.push({ message: `${path} cannot be read: ${(error as Error).message}`, field: 'tokenFile' });
    return undefined;
  }
  try {
    return cleanToken(
      new TextDecoder('utf-8', { fatal: true }).decode(raw),
      `${path} `,
      'tokenFile',
      problems,
    );
  } catch {
    problems.push({ message: `${path} is not text in UTF-8`, field: 'tokenFile' });
    return undefined;
  }
}

/** The token without byte order mark and final newline. `where` begins the message. */
export function cleanToken(
  text: string,
  where: string,
  field: string,
  problems: Problem[],
): string | undefined {
  const lines = text.trim().split(/\r\n|\r|\n/); // trim takes a byte order mark too
  const token = lines[0] ?? '';
  const place = token.search(/[^!-~]/);
  if (lines.length > 1) {
    problems.push({ message: `${where}holds ${lines.length} lines, 1 is allowed`, field });
  } else if (token === '') {
    problems.push({ message: `${where}holds no token`, field });
  } else if (place >= 0) {
    problems.push({ message: `${where}has a blank or no visible ASCII at sign ${place + 1}`, field });
  } else {
    return token;
  }
  return undefined;
}
