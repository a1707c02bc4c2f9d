/** No file is too long to be read at once. */

import type { Finding, SourceFile } from './sources.ts';

/** Lines that a file may have; most have less than 350. */
export const MAX_LINES = 500;

const CHECKED = /\.(ts|c|h|sh)$|^scripts\/[^./]+$/;

/** Files of more than MAX_LINES lines. */
export function findLongFiles(sources: readonly SourceFile[]): Finding[] {
  return sources.flatMap(({ path, text }) => {
    const lines = text.split('\n').length - (text.endsWith('\n') ? 1 : 0);
    if (!CHECKED.test(path) || lines <= MAX_LINES) return [];
    return [{ path, message: `${lines} lines, at most ${MAX_LINES} are allowed` }];
  });
}
