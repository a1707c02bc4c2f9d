/** What can be seen of a machine from outside while it runs: its queues and vCPUs, and its console, over the API. */

import { type IncomingMessage, request } from 'node:http';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { createImage } from '../support/image.ts';
import { describeWithPeers } from '../support/peers.ts';
import { VmmProcess, vmGuestPeers } from '../support/vm/vmm-process.ts';

const MiB = 1 << 20;
const DEADLINE_MS = 40_000;

interface Queue {
  readonly name: string;
  readonly state: string;
  readonly rate: number;
  readonly used: number;
  readonly in_flight: number;
  readonly waiting_ms: number;
  readonly exact: boolean;
}

interface Report {
  readonly at_ms: number;
  readonly window_ms: number;
  readonly devices: readonly { readonly id: string; readonly backend: string; readonly queues: readonly Queue[] }[];
  readonly vcpus: readonly { readonly index: number; readonly cpu_ms: number }[];
  readonly watch: { readonly period_ms: number; readonly looks: number };
}

describeWithPeers(vmGuestPeers, 'A virtual machine that is watched', () => {
  const cleanup = cleanupAfterEach();
  const startDisk = (): Promise<BlkBackend> =>
    BlkBackend.start(cleanup, { image: createImage(join(cleanup.directory(), 'disk'), 16 * MiB) });

  const queues = async (vmm: VmmProcess): Promise<Report> => {
    const { status, body } = await vmm.request('GET', 'vm.queues');
    if (status !== 200) throw new Error(`vm.queues: ${status} ${JSON.stringify(body)}`);
    return body as Report;
  };

  /** The first report whose first queue is accepted. */
  const untilQueue = async (vmm: VmmProcess, accept: (queue: Queue) => boolean): Promise<Report> => {
    for (const end = performance.now() + DEADLINE_MS; ; await delay(100)) {
      const report = await queues(vmm);
      const queue = report.devices[0]?.queues[0];
      if (queue !== undefined && accept(queue)) return report;
      if (performance.now() > end) throw new Error(`still ${JSON.stringify(queue)}`);
    }
  };

  /** Two reports, the first of which was made as the window of the second began. */
  const aWindow = async (vmm: VmmProcess): Promise<readonly [Report, Report]> => {
    for (const end = performance.now() + DEADLINE_MS; ; ) {
      const before = await queues(vmm);
      let after = before;
      for (; after.at_ms - after.window_ms < before.at_ms; await delay(10)) after = await queues(vmm);
      // Not when the machine stood still in between.
      if (after.at_ms - after.window_ms - before.at_ms < after.window_ms / 10) return [before, after];
      if (performance.now() > end) throw new Error('no report came in time');
    }
  };

  /** The stream of the console: all that came so far, and its end. */
  const listen = async (vmm: VmmProcess) => {
    await vmm.request('GET', 'vmm.ping');
    const { apiSocket: socketPath } = vmm;
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const sent = request({ socketPath, path: '/api/v1/vm.console' }, resolve);
      sent.once('error', reject);
      sent.end();
      cleanup.add(() => sent.destroy());
    });
    let text = '';
    response.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
    });
    const ended = new Promise<void>((resolve) => response.once('end', resolve));
    const waitFor = async (pattern: RegExp): Promise<void> => {
      for (const end = performance.now() + DEADLINE_MS; !pattern.test(text); await delay(10)) {
        if (performance.now() > end) throw new Error(`the console does not say ${pattern}:\n${text}`);
      }
    };
    return { response, waitFor, ended, text: () => text };
  };

  it('counts what its disk does, and says when that does nothing any more', async () => {
    const disk = await startDisk();
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'load', requests: 1_000_000 },
      disks: [`socket=${disk.socket}`],
    });
    await vmm.guest.waitFor('load.depth', DEADLINE_MS);
    const first = await untilQueue(vmm, ({ rate }) => rate > 0);
    expect(first.devices[0]).toMatchObject({
      ...{ id: '_disk0', slot: 0, kind: 'disk', status: 'running', backend: 'connected' },
      queues: [{ index: 0, name: 'request 0', role: 'requests', state: 'busy', size: 128 }],
    });
    // The rate is what used grows by in the window that it is over.
    const [before, after] = await aWindow(vmm);
    const seconds = (after.at_ms - before.at_ms) / 1000;
    const grown = (after.devices[0]?.queues[0]?.used ?? 0) - (before.devices[0]?.queues[0]?.used ?? 0);
    const rate = after.devices[0]?.queues[0]?.rate ?? 0;
    expect(rate / (grown / seconds)).toBeGreaterThan(0.5);
    expect(rate / (grown / seconds)).toBeLessThan(2);
    expect(after.vcpus[0]?.cpu_ms).toBeGreaterThan(before.vcpus[0]?.cpu_ms ?? 0);

    disk.signal('SIGSTOP');
    // Figures are exact if it was looked at in time, all the time.
    const stuck = await untilQueue(vmm, ({ state, exact }) => state === 'stuck' && exact);
    expect(stuck.devices[0]?.queues[0]).toMatchObject({ rate: 0, exact: true });
    expect(stuck.devices[0]?.queues[0]?.in_flight).toBeGreaterThan(0);
    disk.signal('SIGCONT');
    await untilQueue(vmm, ({ state }) => state === 'busy');

    await disk.kill9();
    for (const end = performance.now() + DEADLINE_MS; (await queues(vmm)).devices[0]?.backend !== 'away'; ) {
      expect(performance.now()).toBeLessThan(end);
    }
    await disk.restart();
    await untilQueue(vmm, ({ state }) => state === 'busy');
  });

  it('starts anew with its counts when it is reset', async () => {
    const disk = await startDisk();
    const vmm = VmmProcess.run(cleanup, {
      parameters: { job: 'load', requests: 3000, end: 'spin' },
      disks: [`socket=${disk.socket}`],
    });
    /** When the guest has come to its end for the given time, looked at all the while. */
    const untilEnd = async (times: number): Promise<number> => {
      await untilQueue(vmm, () => vmm.guest.all('end').length === times);
      const report = await untilQueue(vmm, ({ state, used, exact }) => state === 'idle' && used > 0 && exact);
      return report.devices[0]?.queues[0]?.used ?? 0;
    };
    const before = await untilEnd(1);
    await vmm.put('vm.reboot');
    const after = await untilEnd(2);
    // A used index that begins at 0 again is no progress of tens of thousands. Each block is read once more at the end.
    expect(Math.max(before, after)).toBeLessThanOrEqual(3000 + 16 + 256);
  });

  it('lets its console be read, from what it said on, and typed at', async () => {
    // It waits at the second echo until the second listener is there, too.
    const vmm = VmmProcess.run(cleanup, { parameters: { job: 'info,echo,info,echo' } });
    await vmm.guest.waitFor('echo.ready', DEADLINE_MS);
    const early = await listen(vmm);
    expect(early.response.headers['content-type']).toBe('application/octet-stream');
    await early.waitFor(/boot=pvh[\s\S]*echo\.ready=1/);
    await vmm.put('vm.console-input', { text: 'grüße\r' });
    await early.waitFor(/echo\.text=grüße\n[\s\S]*echo\.ready=1/);
    const late = await listen(vmm);
    await vmm.put('vm.console-input', { text: 'bye\r' });
    await Promise.all([early.ended, late.ended]);
    expect(early.text()).toBe(late.text());
    // What readers of the port itself get.
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual({ code: 0, signal: null });
    expect(vmm.child.output().replaceAll('\r\n', '\n')).toBe(early.text().replaceAll('\r\n', '\n'));
  });

  it('takes what is typed as far as its guest reads', async () => {
    const vmm = VmmProcess.run(cleanup, { parameters: { job: 'info', end: 'spin' }, extra: ['--serial', 'null'] });
    const type = (text: string) => vmm.request('PUT', 'vm.console-input', { text });
    await (await listen(vmm)).waitFor(/done=info/);
    expect((await type('x'.repeat(4096))).status).toBe(204);
    const answers: number[] = [];
    for (let i = 0; i < 3; i += 1) answers.push((await type('x'.repeat(4096))).status);
    expect(answers.at(-1)).toBe(405);
    expect((await type('x')).body).toEqual([
      'vm.console-input: the guest does not read its serial port: what came before still waits',
    ]);
    expect((await type('x'.repeat(4097))).status).toBe(400);
  });

  it('ends in time when it is told to, whoever listens', async () => {
    const vmm = VmmProcess.run(cleanup, { parameters: { job: 'echo' } });
    const listener = await listen(vmm);
    await listener.waitFor(/echo\.ready=1/);
    const before = performance.now();
    vmm.child.kill('SIGTERM');
    expect(await vmm.child.waitForClose(DEADLINE_MS)).toEqual({ code: 143, signal: null });
    // An answer that does not end would be waited for, 5 s.
    expect(performance.now() - before).toBeLessThan(4500);
    await listener.ended;
  });

  it('says so where there is nothing to see', async () => {
    const vmm = VmmProcess.serve(cleanup);
    for (const route of ['vm.queues', 'vm.console']) expect((await vmm.request('GET', route)).status).toBe(404);
    expect((await vmm.request('PUT', 'vm.console-input', { text: 'x' })).status).toBe(404);
    const without = VmmProcess.run(cleanup, { parameters: { job: 'info', end: 'spin' }, extra: ['--serial', 'off'] });
    expect(await without.request('GET', 'vm.console')).toEqual({
      status: 405,
      body: ['vm.console: the VM has no serial port: serial.mode is Off'],
    });
    expect((await without.request('PUT', 'vm.console-input', { text: 'x' })).status).toBe(405);
    expect((await queues(without)).devices).toEqual([]);
  });
});
