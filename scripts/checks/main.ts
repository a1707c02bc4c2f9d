/** Runs the checks that no tool brings: `node dist/scripts/checks/main.js DIRECTORY`. Exit status 1 on a finding. */

import { findLongFiles } from './file-size.ts';
import { findLawBreakers } from './import-law.ts';
import { readSources } from './sources.ts';

const sources = readSources(process.argv[2] ?? '.');
const findings = [...findLawBreakers(sources), ...findLongFiles(sources)];
for (const { path, message } of findings) process.stderr.write(`${path}: ${message}\n`);
process.stdout.write(`${sources.length} files, ${findings.length} findings\n`);
process.exitCode = findings.length === 0 ? 0 : 1;
