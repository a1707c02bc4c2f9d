/** The benchmark's own programs in C, compiled when they are first needed. */
import { existsSync, mkdirSync, statSync } from 'node:fs';
import path from 'node:path';
import type { Children } from './children.ts';

const SOURCE_FOLDER = path.join('scripts', 'benchmark');
export const PROGRAM_FOLDER = path.resolve('.cache', 'bench');

/**
 * Compiles a source file where its program is older than it or its headers.
 * @returns the path of the program
 * @throws COMMAND_FAILED - gcc failed
 */
export async function buildProgram(
  children: Children,
  source: string,
  headers: readonly string[],
  gccArguments: readonly string[] = [],
): Promise<string> {
  const program = path.join(PROGRAM_FOLDER, path.basename(source, '.c'));
  const files = [source, ...headers].map((name) => path.join(SOURCE_FOLDER, name));
  const newest = Math.max(...files.map((file) => statSync(file).mtimeMs));
  if (existsSync(program) && statSync(program).mtimeMs > newest) return program;
  mkdirSync(PROGRAM_FOLDER, { recursive: true });
  const flags = ['-O2', '-Wall', '-Wextra', '-Werror'];
  await children.run('gcc', [...flags, '-o', program, path.join(SOURCE_FOLDER, source), ...gccArguments]);
  return program;
}
