/** A terminal that becomes the guest's, and what it is afterwards: `ringside vm run` on a pseudo-terminal. */

import { join } from 'node:path';
import { expect, it } from 'vitest';
import { Child } from '../support/child.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { eventually } from '../support/frontend/process-probe.ts';
import { createImage } from '../support/image.ts';
import { describeWithPeers, projectDirectory } from '../support/peers.ts';
import { buildGuest, guestCommandLine } from '../support/vm/guest-program.ts';
import { childrenOf, isRunning, vmGuestPeers } from '../support/vm/vmm-process.ts';

const MAIN = join(projectDirectory, 'dist/vmm-client/cli/main.js');
const DEADLINE_MS = 20_000;
const CTRL_A = '\x01';
const CTRL_C = '\x03';

describeWithPeers(vmGuestPeers, 'A terminal', () => {
  const cleanup = cleanupAfterEach();

  /**
   * Runs a guest that reads a line. Before and after it the terminal's modes are printed, and then how it ended.
   * `script` is the terminal: what is written to its input is typed.
   */
  const start = async (
    nodeArgs = '',
  ): Promise<{ readonly terminal: Child; readonly vmm: number; readonly daemon: number }> => {
    const image = createImage(join(cleanup.directory(), 'disk'), 1 << 20);
    const command = guestCommandLine({ job: 'echo', end: 'poweroff' });
    const vmm = `${process.execPath} ${nodeArgs} ${MAIN} vm run --kernel ${buildGuest('pvh')} --memory 128M \
      --cmdline '${command}' --disk path=${image}`;
    const shell = `echo before=$(stty -g); ${vmm}; echo status=$?; echo after=$(stty -g)`;
    const terminal = new Child('script', ['-q', '-e', '-c', shell, '/dev/null'], { ...process.env, SHELL: '/bin/sh' });
    cleanup.add(() => terminal.stop());
    await terminal.waitFor(/echo\.ready=1/, DEADLINE_MS);
    await terminal.waitFor(/Ctrl-A x ends the machine, Ctrl-A Ctrl-A sends Ctrl-A\.\r\n/, DEADLINE_MS);
    const [sh = 0] = childrenOf(terminal.pid);
    const [node = 0] = childrenOf(sh);
    const [daemon = 0] = childrenOf(node);
    expect(daemon).toBeGreaterThan(0);
    cleanup.add(() => {
      // In a session of its own, where no group of this test's reaches it.
      if (isRunning(daemon)) process.kill(daemon, 'SIGKILL');
    });
    return { terminal, vmm: node, daemon };
  };

  /** The status that the VMM ended with, after looking that the terminal is what it was and the daemon is gone. */
  const statusOf = async ({ terminal, daemon }: Awaited<ReturnType<typeof start>>): Promise<number> => {
    await terminal.waitFor(/after=\S+\r\n/, DEADLINE_MS);
    const value = (name: string) => new RegExp(`${name}=(\\S+)\\r\\n`).exec(terminal.output())?.[1];
    expect(value('after')).toBe(value('before'));
    await eventually(
      'whether the daemon runs',
      () => isRunning(daemon),
      (runs) => !runs,
    );
    return Number(value('status'));
  };

  it('gives every key to the guest, Ctrl-C too, until the guest shuts down', async () => {
    const run = await start();
    run.terminal.stdin.write(`a${CTRL_C}b${CTRL_A}${CTRL_A}c\r`);

    await run.terminal.waitFor(new RegExp(`echo\\.text=a${CTRL_C}b${CTRL_A}c`), DEADLINE_MS);
    expect(await statusOf(run)).toBe(0);
  });

  it('ends the machine at Ctrl-A x', async () => {
    const run = await start();
    run.terminal.stdin.write(`abc${CTRL_A}`);
    run.terminal.stdin.write('x');

    expect(await statusOf(run)).toBe(0);
    expect(run.terminal.output()).not.toContain('echo.text');
  });

  it.each<[NodeJS.Signals, number]>([
    ['SIGTERM', 143],
    ['SIGINT', 130],
    ['SIGHUP', 129],
  ])('is itself again after %s', async (signal, status) => {
    const run = await start();

    process.kill(run.vmm, signal);

    expect(await statusOf(run)).toBe(status);
  });

  it('is itself again after a mistake of ours', async () => {
    const mistake = 'process.on("SIGUSR2",()=>{throw(Error("a%20mistake"))})';
    const run = await start(`--import 'data:text/javascript,${mistake}'`);

    process.kill(run.vmm, 'SIGUSR2');

    expect(await statusOf(run)).toBe(1);
    expect(run.terminal.output()).toContain('a mistake');
  });
});
