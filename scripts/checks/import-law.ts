/**
 * Who may import whom: downward only, as ARCHITECTURE.md says. Pointers stay in protocol/sys, the tests' second opinion
 * never looks at the code it judges, and only a program's main.ts knows that it is a process.
 */

import { posix } from 'node:path';
import ts from 'typescript';
import type { Finding, SourceFile } from './sources.ts';

interface Layer {
  /** Folder the rule is for; the longest that fits counts. */
  readonly folder: string;
  /** Folders of the project it may import from, besides itself. */
  readonly folders: readonly string[];
  /** Packages: exact names, 'node:' for the runtime's own modules, '*' for any (koffi is never any). */
  readonly packages: readonly string[];
}

const LAYERS: readonly Layer[] = [
  { folder: 'protocol/virtio', folders: [], packages: [] },
  { folder: 'protocol/sys', folders: [], packages: ['node:', 'koffi'] },
  { folder: 'protocol/memory', folders: ['protocol/sys'], packages: ['node:'] },
  { folder: 'protocol/vhost-user', folders: ['protocol/sys'], packages: ['node:'] },
  {
    folder: 'protocol/virtqueue',
    folders: ['protocol/memory', 'protocol/virtio', 'protocol/sys'],
    packages: ['node:'],
  },
  { folder: 'backends/core', folders: ['protocol'], packages: ['*'] },
  { folder: 'backends', folders: ['backends/core', 'protocol'], packages: ['*'] },
  { folder: 'vmm-client', folders: ['protocol'], packages: ['*'] },
  { folder: 'test/support', folders: ['protocol'], packages: ['*'] },
  { folder: 'scripts', folders: ['protocol', 'vmm-client'], packages: ['*'] },
  { folder: 'test', folders: ['protocol', 'backends', 'vmm-client', 'scripts'], packages: ['*'] },
];

function isIn(path: string, folder: string): boolean {
  return path.startsWith(`${folder}/`);
}

/** The folder that counts as "itself": backends/blk and backends/net are strangers. */
function ownFolder(path: string, layer: Layer): string {
  return layer.folder === 'backends' ? path.split('/').slice(0, 2).join('/') : layer.folder;
}

function layerOf(path: string): Layer | undefined {
  const fitting = LAYERS.filter(({ folder }) => isIn(path, folder));
  return fitting.sort((a, b) => b.folder.length - a.folder.length)[0];
}

function mayImportPackage(layer: Layer, name: string): boolean {
  if (layer.packages.includes(name)) return true;
  if (name.startsWith('node:')) return layer.packages.includes('node:') || layer.packages.includes('*');
  return layer.packages.includes('*') && name !== 'koffi';
}

function checkImport(path: string, layer: Layer, specifier: string): string | undefined {
  if (!specifier.startsWith('.')) {
    return mayImportPackage(layer, specifier) ? undefined : `imports ${specifier}, which ${layer.folder} may not`;
  }
  const target = posix.normalize(posix.join(posix.dirname(path), specifier));
  const allowed = [ownFolder(path, layer), ...layer.folders].some((folder) => isIn(target, folder));
  return allowed ? undefined : `imports ${target}, which ${layer.folder} may not`;
}

/** process.argv and the like, by name; process.on counts when it is for a signal. */
const PROCESS_MEMBERS: ReadonlySet<string> = new Set(['argv', 'env', 'exit', 'exitCode', 'kill']);

function mayBeProcess(path: string): boolean {
  return path.endsWith('/main.ts') || isIn(path, 'scripts') || isIn(path, 'test');
}

function findProcessUses(file: ts.SourceFile): string[] {
  const found: string[] = [];
  const visit = (node: ts.Node): void => {
    if (ts.isPropertyAccessExpression(node) && node.expression.getText(file) === 'process') {
      const member = node.name.text;
      const call = node.parent;
      const argument = ts.isCallExpression(call) ? call.arguments[0] : undefined;
      const forSignal = (member === 'on' || member === 'once') && /^['"]SIG/.test(argument?.getText(file) ?? '');
      if (PROCESS_MEMBERS.has(member) || forSignal) found.push(`process.${member}`);
    }
    ts.forEachChild(node, visit);
  };
  visit(file);
  return found;
}

/** Imports that the law forbids, and process-wide powers outside of a main.ts. */
export function findLawBreakers(sources: readonly SourceFile[]): Finding[] {
  return sources.flatMap(({ path, text }) => {
    const layer = layerOf(path);
    if (!path.endsWith('.ts') || layer === undefined) return [];
    const imports = ts.preProcessFile(text, true, true).importedFiles.map(({ fileName }) => fileName);
    const messages = imports.flatMap((specifier) => checkImport(path, layer, specifier) ?? []);
    if (!mayBeProcess(path)) {
      const file = ts.createSourceFile(path, text, ts.ScriptTarget.ES2023, true);
      messages.push(...findProcessUses(file).map((use) => `uses ${use}, which only a main.ts may`));
    }
    return messages.map((message) => ({ path, message }));
  });
}
