import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/** The repository: this file runs from clients/typescript/build/test. */
export const REPOSITORY = fileURLToPath(new URL('../../../../', import.meta.url));

/** Integers that a JSON number does not hold (case C47). */
export const WIDE = JSON.parse(readFileSync(`${REPOSITORY}tests/data/C47/values.json`, 'utf8')) as Record<
  'sequence' | 'seed' | 'offset' | 'zero',
  string
>;
