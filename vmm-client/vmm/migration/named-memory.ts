/** RAM in a file with a name is the file's: two machines would write to it, and one of them would empty it first. */

import { statSync } from 'node:fs';
import type { CheckedConfig } from '../check-config.ts';
import { VmConfigError } from '../errors.ts';

/** @throws VmConfigError - the RAM of the machine is a file with a name */
export function refuseNamedMemory({ memory: { file } }: CheckedConfig): void {
  if (file === undefined || statSync(file, { throwIfNoEntry: false })?.isDirectory() === true) return;
  throw new VmConfigError(`memory.file: ${file} is a file, which source and destination would both write to`);
}
