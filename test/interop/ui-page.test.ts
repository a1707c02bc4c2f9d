/** The web page in Chromium, on real virtual machines: what a person sees of busy, stuck and vanished ones. */

import { symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { BlkBackend } from '../support/backend-process.ts';
import { Browser, type Page } from '../support/browser.ts';
import { cleanupAfterEach } from '../support/cleanup.ts';
import { createImage } from '../support/image.ts';
import { describeWithPeers } from '../support/peers.ts';
import { UiProcess } from '../support/vm/ui-process.ts';
import { VmmProcess, vmGuestPeers } from '../support/vm/vmm-process.ts';

const MiB = 1 << 20;
const DEADLINE_MS = 60_000;
const TOKEN = '0123456789abcdef0123456789abcdef';

/** What is to be read of one machine: its headline, and its queues as `name | state | in flight | rate | latency`. */
interface Shown {
  readonly name: string;
  readonly headline: string;
  readonly queues: readonly string[];
}

const SHOWN = `[...document.querySelectorAll('.machine')].map((machine) => ({
  name: machine.querySelector('h2').textContent,
  headline: machine.querySelector('.headline').textContent,
  queues: [...machine.querySelectorAll('.queues tbody tr')].map((row) =>
    [...row.cells].slice(0, 5).map((cell) => cell.textContent).join(' | ')),
}))`;

/** The machines as they are shown, from the first on that are accepted. */
const untilShown = (page: Page, accept: (shown: readonly Shown[]) => boolean): Promise<readonly Shown[]> =>
  page.until<readonly Shown[]>(SHOWN, accept, DEADLINE_MS);

/** Of the first queue of the first machine, a second. */
const rateOf = ([machine]: readonly Shown[]): number => {
  const text = machine?.queues[0]?.split(' | ')[3] ?? '';
  const [, digits = '0', unit] = /^(?:about )?([\d,.]+)([kM]?)\/s/.exec(text) ?? [];
  return Number(digits.replaceAll(',', '')) * (unit === 'k' ? 1000 : unit === 'M' ? 1_000_000 : 1);
};

describeWithPeers([...vmGuestPeers, 'chromium'], 'The web page', () => {
  const cleanup = cleanupAfterEach();

  const start = async (parameters: Record<string, string | number>, extra: readonly string[] = []) => {
    const disk = await BlkBackend.start(cleanup, { image: createImage(join(cleanup.directory(), 'disk'), 16 * MiB) });
    const vmm = VmmProcess.run(cleanup, { parameters, disks: [`socket=${disk.socket}`], extra });
    await vmm.request('GET', 'vmm.ping');
    return { disk, vmm };
  };

  /** A page that shows `sockets`, and complains of nothing. */
  const openPage = async (sockets: readonly string[], options: readonly string[] = []): Promise<[UiProcess, Page]> => {
    const ui = await UiProcess.start(cleanup, [...sockets.flatMap((socket) => ['--api-socket', socket]), ...options]);
    const page = await (await Browser.start(cleanup)).open();
    await page.goTo(ui.url);
    return [ui, page];
  };

  const tokenFile = (): string => {
    const path = join(cleanup.directory(), 'token');
    writeFileSync(path, `${TOKEN}\n`, { mode: 0o600 });
    return path;
  };

  const logIn = async (page: Page): Promise<void> => {
    await page.click('#token');
    await page.type(`${TOKEN}\n`);
    await page.until('location.pathname', (path) => path === '/');
  };

  it('shows a busy queue with a rate that changes, and nothing from elsewhere', async () => {
    const { vmm } = await start({ job: 'load', requests: 1_000_000 });
    const [ui, page] = await openPage([vmm.apiSocket]);
    const first = await untilShown(page, (shown) => rateOf(shown) > 0);
    expect(first).toHaveLength(1);
    expect(first[0]?.headline).toMatch(/^busy: _disk0 request 0, [\d,.]+[kM]? a second$/);
    expect(first[0]?.queues[0]).toMatch(/^_disk0 request 0 \| busy \| [\d.]+ of 128 \| /);
    const rate = rateOf(first);
    await untilShown(page, (shown) => rateOf(shown) > 0 && rateOf(shown) !== rate);
    expect(await page.text('#summary')).toBe('1 machine: 1 busy');
    await page.waitForText('.vcpus li', /vCPU 0.*busy \d+ %/);
    expect(await page.text('.devices li')).toMatch(/^_disk0\s*disk, connected$/);
    // Scripts, style and data are the server's; none was forbidden by the policy.
    expect(page.requests.every((url) => url.startsWith(ui.url) || url === 'about:blank')).toBe(true);
    expect(page.complaints).toEqual([]);
  });

  it('says within seconds that a queue is stuck whose back end does nothing, and which machine it is', async () => {
    const stuck = await start({ job: 'load', requests: 1_000_000 });
    const busy = await start({ job: 'load', requests: 1_000_000 });
    const [, page] = await openPage([busy.vmm.apiSocket, stuck.vmm.apiSocket]);
    await untilShown(page, (shown) => shown.length === 2 && shown.every(({ headline }) => headline.startsWith('busy')));
    const before = performance.now();
    stuck.disk.signal('SIGSTOP');
    const shown = await untilShown(page, (now) => now.some(({ headline }) => headline.startsWith('stuck')));
    expect(performance.now() - before).toBeLessThan(15_000);
    // What is wrong comes first.
    expect(shown[0]?.headline).toMatch(/^stuck for \d+ s: _disk0 request 0, \d+ requests wait$/);
    expect(shown[0]?.queues[0]).toMatch(/^_disk0 request 0 \| stuck for \d+ s \| [1-9][\d.]* of 128 \| 0\/s/);
    expect(shown[1]?.headline).toMatch(/^busy/);
    expect(await page.evaluate('document.title')).toMatch(/^\(!\) 2 machines: 1 in trouble/);
    stuck.disk.signal('SIGCONT');
    await untilShown(page, (now) => now.every(({ headline }) => headline.startsWith('busy')));

    await stuck.disk.kill9();
    await untilShown(page, (now) => now[0]?.headline === 'the back end of _disk0 is away');
    await stuck.disk.restart();
    await untilShown(page, (now) => now.every(({ headline }) => headline.startsWith('busy')));
    expect(page.complaints).toEqual([]);
  });

  it('shows a machine that goes away as gone, and one that stands still as paused', async () => {
    const [gone, still] = [
      await start({ job: 'load', requests: 1_000_000 }),
      await start({ job: 'echo', end: 'spin' }),
    ];
    const [, page] = await openPage([gone.vmm.apiSocket, still.vmm.apiSocket]);
    await untilShown(page, (shown) => shown.some(({ headline }) => headline.startsWith('busy: _disk0')));
    await still.vmm.put('vm.pause');
    await untilShown(page, (shown) => shown.some(({ headline }) => headline === 'paused'));
    await gone.vmm.child.stop();
    const shown = await untilShown(page, (now) => now.some(({ headline }) => headline.startsWith('cannot be asked')));
    expect(shown.map(({ headline }) => headline)).toEqual(['cannot be asked: nobody listens at its socket', 'paused']);
    expect(page.complaints).toEqual([]);
  });

  it('shows the console as text, whatever is in it, and types at it', async () => {
    const markup = '<img/src=x/onerror=document.title="owned"><script>document.title="owned"</script>';
    const { vmm } = await start({ job: 'info,echo,info', hostile: markup });
    const [ui, page] = await openPage([vmm.apiSocket], ['--token-file', tokenFile(), '--allow-control']);
    await logIn(page);
    await page.click('.console-button');
    await page.waitForText('.console pre', /echo\.ready=1/, DEADLINE_MS);
    // The guest prints its command line, which is what a hostile one would print.
    expect(await page.text('.console pre')).toContain(`hostile=${markup}`);
    expect(await page.evaluate('document.querySelectorAll(".console img, .console script").length')).toBe(0);
    await page.click('.console pre');
    await page.type('hello from the page\n');
    await page.waitForText('.console pre', /echo\.text=hello from the page/, DEADLINE_MS);
    expect(await vmm.guest.waitFor('echo.text', DEADLINE_MS)).toBe('hello from the page');
    expect(await page.evaluate('document.title')).toBe('ringside');
    expect(page.requests.every((url) => url.startsWith(ui.url) || url === 'about:blank')).toBe(true);
    expect(page.complaints).toEqual([]);
  });

  it('fits a phone and a desk, by day and by night', async () => {
    const busy = await start({ job: 'load', requests: 1_000_000 });
    const stuck = await start({ job: 'load', requests: 1_000_000 });
    const idle = await start({ job: 'echo,echo,echo' });
    const directory = cleanup.directory();
    const names = Object.entries({ build: busy.vmm, database: stuck.vmm, web: idle.vmm });
    for (const [name, { apiSocket }] of names) symlinkSync(apiSocket, join(directory, `${name}.sock`));
    const options = ['--api-dir', directory, '--token-file', tokenFile(), '--allow-control'];
    const ui = await UiProcess.start(cleanup, options);
    const browser = await Browser.start(cleanup);
    const pictures = process.env.RINGSIDE_TEST_PICTURES;
    const points = pictures === undefined ? 6 : 40;
    stuck.disk.signal('SIGSTOP');
    for (const [file, view] of Object.entries({
      'page-phone.png': { width: 360, height: 1300, dark: true, mobile: true },
      'page.png': { width: 1000, height: 900 },
    })) {
      const page = await browser.open(view);
      await page.goTo(ui.url);
      await logIn(page);
      const shown = await untilShown(page, ([first]) => first?.headline.startsWith('stuck') === true);
      expect(shown.map(({ name }) => name)).toEqual(['database', 'build', 'web']);
      await page.click('.machine:nth-child(3) .console-button');
      await page.waitForText('.machine:nth-child(3) .console pre', /echo\.ready=1/, DEADLINE_MS);
      // Some seconds of rates make a line.
      await page.until(
        '(document.querySelectorAll(".spark path")[1]?.getAttribute("d") ?? "").split("L").length',
        (n) => Number(n) > points,
        2 * DEADLINE_MS,
      );
      expect(await page.evaluate('document.documentElement.scrollWidth - innerWidth')).toBeLessThanOrEqual(0);
      const picture = await page.screenshot();
      expect(picture.length).toBeLessThan(150 * 1024);
      if (pictures !== undefined) writeFileSync(join(pictures, file), picture);
    }
  });

  it('asks for the token first, and for confirmation before it shuts a machine down', async () => {
    const { vmm } = await start({ job: 'load', requests: 1_000_000 });
    const options = ['--token-file', tokenFile(), '--allow-control'];
    const [, page] = await openPage([vmm.apiSocket], options);
    await page.until('location.pathname', (path) => path === '/login');
    expect(await page.text('.machine')).toBe('');
    await page.click('#token');
    await page.type('0123456789abcdef0123456789abcdeX\n');
    await page.waitForText('[role=alert]', /That is not the token/);
    await logIn(page);
    await untilShown(page, (shown) => rateOf(shown) > 0);
    // The refused login was told of by the browser.
    page.complaints.length = 0;

    const button = (label: string): string =>
      `[...document.querySelectorAll('.machine .buttons button')].find((each) => each.textContent === '${label}')`;
    await page.evaluate(`${button('Pause')}.click()`);
    await untilShown(page, ([machine]) => machine?.headline === 'paused');
    expect(await vmm.state()).toBe('Paused');
    await page.evaluate(`${button('Resume')}.click()`);
    await untilShown(page, (shown) => rateOf(shown) > 0);

    await page.evaluate(`${button('Shut down')}.click()`);
    expect(await page.text('#confirm-question')).toMatch(/^Shut api down\? /);
    await page.click('#confirm [value=no]');
    expect(await vmm.state()).toBe('Running');
    await page.evaluate(`${button('Shut down')}.click()`);
    await page.click('#confirm-yes');
    await untilShown(page, ([machine]) => machine?.headline === 'created, not started');
    expect(await vmm.state()).toBe('Created');
    expect(page.complaints).toEqual([]);
  });
});
