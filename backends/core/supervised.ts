/**
 * The bond between a daemon and the program that started it (--supervised). Standard output tells that program when the
 * daemon serves; the end of standard input tells the daemon that the program is gone, however it went: the kernel closes
 * the pipe of a process that was killed.
 */

/** Says `ready`, and calls `stop` when standard input has ended. */
export function obeyStarter(stop: () => void): void {
  const { stdin, stdout } = process;
  // Nobody is left to hear it: the end of the input follows.
  stdout.on('error', () => undefined);
  stdout.write('ready\n');
  stdin.on('error', stop).on('end', stop).on('close', stop).resume();
}
