/** The `ctl` commands for the serial port of a machine: what the guest says there, and what is typed. */

import { Command } from 'commander';
import type { CtlRequest } from './ctl-program.ts';

/** Backslash sequences of an argument that a shell leaves alone: `\r`, `\n`, `\t`, `\xHH`, `\\`. */
export function unescapeText(text: string): string {
  const simple: Readonly<Record<string, string>> = { r: '\r', n: '\n', t: '\t', '\\': '\\' };
  return text.replace(/\\(?:x([0-9a-f]{2})|(.))/gi, (whole, code: string | undefined, letter: string | undefined) =>
    code === undefined ? (simple[letter ?? ''] ?? whole) : String.fromCharCode(Number.parseInt(code, 16)),
  );
}

/** `send` asks the VMM; `stream` prints an answer as it comes. */
export function createConsoleCommands(
  send: (request: CtlRequest) => Promise<void>,
  stream: (name: string) => Promise<void>,
): Command[] {
  return [
    new Command('console')
      .description('Prints the last 64 KiB that the guest sent by its serial port, and what it sends from then on.')
      .action(() => stream('vm.console')),
    new Command('console-input')
      .description('Types at the serial port; \\r is Enter, \\xHH any byte below 80.')
      .argument('<text>', 'what to type')
      .action((text: string) =>
        send({ method: 'PUT', name: 'vm.console-input', body: JSON.stringify({ text: unescapeText(text) }) }),
      ),
  ];
}
