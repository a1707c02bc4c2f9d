/**
 * The promise that no child outlives its test, and no directory either. One shell per test process holds the process
 * groups to kill and reads from a pipe whose other end only this process has: however this process ends, SIGKILL and a
 * crash included, the pipe closes, and the shell kills and removes what is left. A list in an exit handler would not
 * survive a worker that is killed for its time.
 */

import { type ChildProcess, spawn } from 'node:child_process';

const SCRIPT = `
groups=' '
while read -r sign subject; do
  case $sign in
    +) groups="$groups$subject " ;;
    -) groups="\${groups%% $subject *} \${groups#* $subject }" ;;
    /) set -- "$@" "$subject" ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
[ $# = 0 ] || rm -rf -- "$@"
`;

let shell: ChildProcess | undefined;

const tell = (sign: '+' | '-' | '/', subject: number | string): void => {
  if (shell === undefined) {
    // detached: a Ctrl-C at the terminal must not kill the one that cleans up after it.
    shell = spawn('sh', ['-c', SCRIPT], { detached: true, stdio: ['pipe', 'ignore', 'ignore'] });
    shell.stdin?.on('error', () => {});
    shell.unref();
    // Its pipe would keep the event loop alive; a net.Socket underneath, so it can be let go of.
    (shell.stdin as unknown as { unref?: () => void }).unref?.();
  }
  shell.stdin?.write(`${sign} ${subject}\n`);
};

/** Has process group `group` killed when this process ends. */
export const watchGroup = (group: number): void => tell('+', group);

/** Forgets `group`, which is gone: its number may be used again. */
export const forgetGroup = (group: number): void => tell('-', group);

/** Has a directory removed when this process ends. */
export const watchDirectory = (path: string): void => tell('/', path);
