/** The suite's version, from its package.json. */

import { createRequire } from 'node:module';

const manifest = createRequire(import.meta.url)('ringside/package.json') as { version: string };

export const VERSION: string = manifest.version;
