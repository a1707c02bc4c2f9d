/** The project's source files, as the checks see them. */

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

export interface SourceFile {
  /** From the project's directory, with slashes. */
  readonly path: string;
  readonly text: string;
}

/** Something that breaks a rule. */
export interface Finding {
  readonly path: string;
  readonly message: string;
}

const FOLDERS = ['protocol', 'backends', 'vmm-client', 'scripts', 'test'];

function list(directory: string, path: string): string[] {
  return readdirSync(join(directory, path), { withFileTypes: true }).flatMap((entry) => {
    const inside = `${path}/${entry.name}`;
    if (entry.isDirectory()) return list(directory, inside);
    return entry.isFile() ? [inside] : [];
  });
}

/** Every file below the five folders of the project in `directory`. */
export function readSources(directory: string): SourceFile[] {
  return FOLDERS.flatMap((folder) => list(directory, folder)).map((path) => ({
    path,
    text: readFileSync(join(directory, path), 'utf8'),
  }));
}
