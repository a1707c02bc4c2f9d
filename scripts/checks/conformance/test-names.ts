/** The titles of the tests, as the conformance tables name them: `integration/ring-setup: a started ring > that ...`. */

import ts from 'typescript';
import type { SourceFile } from '../sources.ts';

const TEST_FILE = /^test\/(.+)\.test\.ts$/;
const TEST_FUNCTION = /^(describe|it|test)([A-Z]\w*)?$/;

/** The identifier that a call begins with: `it` of `it.each(rows)(title, ...)`. */
function rootOf(node: ts.Expression): string {
  if (ts.isIdentifier(node)) return node.text;
  if (ts.isCallExpression(node) || ts.isPropertyAccessExpression(node)) return rootOf(node.expression);
  return '';
}

/** The title of a call that declares a test or a group of tests; undefined when it does not. */
function titleOf(node: ts.CallExpression): string | undefined {
  const isDeclaration = node.arguments.some((argument) => ts.isFunctionLike(argument));
  if (!isDeclaration || !TEST_FUNCTION.test(rootOf(node.expression))) return undefined;
  return node.arguments.find((argument) => ts.isStringLiteralLike(argument))?.text;
}

/** What the tests of a file are called, with the groups that they are in; tables by the title of their rows. */
function titlesOf(path: string, text: string): string[] {
  const found: string[] = [];
  const visit = (node: ts.Node, groups: readonly string[]): void => {
    const title = ts.isCallExpression(node) ? titleOf(node) : undefined;
    const inside = title === undefined ? groups : [...groups, title];
    if (title !== undefined) found.push(inside.join(' > '));
    ts.forEachChild(node, (child) => visit(child, inside));
  };
  visit(ts.createSourceFile(path, text, ts.ScriptTarget.ES2023), []);
  return found;
}

/** The names of all tests and groups of tests. */
export function testNames(sources: readonly SourceFile[]): ReadonlySet<string> {
  const names = sources.flatMap(({ path, text }) => {
    const file = TEST_FILE.exec(path)?.[1];
    return file === undefined ? [] : titlesOf(path, text).map((title) => `${file}: ${title}`);
  });
  return new Set(names);
}
