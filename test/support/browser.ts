/**
 * Chromium without a window, driven by the DevTools protocol over a pair of pipes (descriptors 3 and 4): messages are JSON,
 * each ended by a zero byte. Nothing listens anywhere, and the browser ends with its pipes. Source: Chrome DevTools
 * Protocol; `--remote-debugging-pipe`.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import type { Readable, Writable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import type { Cleanup } from './cleanup.ts';
import { peerPath } from './peers.ts';
import { forgetGroup, watchGroup } from './watchdog.ts';

const CALL_MS = 30_000;

type Parameters = Readonly<Record<string, unknown>>;

interface Waiting {
  readonly resolve: (result: unknown) => void;
  readonly reject: (error: Error) => void;
}

interface Message {
  readonly id?: number;
  readonly sessionId?: string;
  readonly method?: string;
  readonly params?: Parameters;
  readonly result?: unknown;
  readonly error?: { readonly message: string };
}

export interface PageOptions {
  readonly width?: number;
  readonly height?: number;
  readonly dark?: boolean;
  readonly mobile?: boolean;
}

export class Browser {
  readonly #process: ChildProcess;
  readonly #toBrowser: Writable;
  readonly #waiting = new Map<number, Waiting>();
  readonly #pages = new Map<string, Page>();
  #errors = '';
  #rest = '';
  #lastId = 0;

  private constructor(profile: string) {
    this.#process = spawn(
      peerPath('chromium'),
      [
        '--headless=new',
        '--remote-debugging-pipe',
        `--user-data-dir=${profile}`,
        '--no-first-run',
        '--no-default-browser-check',
        '--disable-gpu',
        '--disable-dev-shm-usage',
        '--disable-background-networking',
        '--disable-component-update',
        '--disable-extensions',
        '--disable-sync',
        '--force-device-scale-factor=1',
        '--hide-scrollbars',
        // Its sandbox is not for root, and the pages are ours.
        '--no-sandbox',
        'about:blank',
      ],
      {
        stdio: ['ignore', 'ignore', 'pipe', 'pipe', 'pipe'],
        detached: true,
        env: { ...process.env, HOME: profile, TMPDIR: profile },
      },
    );
    const [, , stderr, toBrowser, fromBrowser] = this.#process.stdio as [null, null, Readable, Writable, Readable];
    this.#toBrowser = toBrowser;
    stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#errors = (this.#errors + text).slice(-4000);
    });
    fromBrowser.setEncoding('utf8').on('data', (text: string) => this.#receive(text));
    // A browser that is killed leaves writes without a reader.
    toBrowser.on('error', () => undefined);
    this.#process.once('exit', () => this.#fail(new Error(`chromium ended:\n${this.#errors}`)));
    this.#process.once('error', (error) => this.#fail(error));
    if (this.#process.pid !== undefined) watchGroup(this.#process.pid);
  }

  /** Starts it. `cleanup` ends it at the latest. */
  static async start(cleanup: Cleanup): Promise<Browser> {
    const browser = new Browser(cleanup.directory());
    cleanup.add(() => browser.#stop());
    await browser.call('Browser.getVersion', {});
    return browser;
  }

  /** A new page in a context of its own: no cookies of another. */
  async open(options: PageOptions = {}): Promise<Page> {
    const { browserContextId } = (await this.call('Target.createBrowserContext', {})) as { browserContextId: string };
    const { targetId } = (await this.call('Target.createTarget', { url: 'about:blank', browserContextId })) as {
      targetId: string;
    };
    const { sessionId } = (await this.call('Target.attachToTarget', { targetId, flatten: true })) as {
      sessionId: string;
    };
    const page = new Page(this, sessionId);
    this.#pages.set(sessionId, page);
    await page.prepare(options);
    return page;
  }

  /** One call of the protocol. @throws Error - the browser refuses, or does not answer in time */
  async call(method: string, params: Parameters, sessionId?: string): Promise<unknown> {
    this.#lastId += 1;
    const id = this.#lastId;
    const answer = new Promise<unknown>((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
    this.#toBrowser.write(
      `${JSON.stringify({ id, method, params, ...(sessionId === undefined ? {} : { sessionId }) })}\0`,
    );
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(
        () => reject(new Error(`chromium did not answer ${method} within ${CALL_MS} ms:\n${this.#errors}`)),
        CALL_MS,
      );
    });
    try {
      return await Promise.race([answer, late]);
    } finally {
      clearTimeout(timer);
      this.#waiting.delete(id);
    }
  }

  #receive(text: string): void {
    const parts = (this.#rest + text).split('\0');
    this.#rest = parts.pop() ?? '';
    for (const part of parts) this.#dispatch(JSON.parse(part) as Message);
  }

  #dispatch({ id, sessionId, method, params, result, error }: Message): void {
    if (id === undefined) {
      if (sessionId !== undefined && method !== undefined) this.#pages.get(sessionId)?.hear(method, params ?? {});
      return;
    }
    const waiting = this.#waiting.get(id);
    if (error === undefined) waiting?.resolve(result);
    else waiting?.reject(new Error(`chromium: ${error.message}`));
  }

  #fail(error: Error): void {
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }

  async #stop(): Promise<void> {
    const { pid } = this.#process;
    if (pid === undefined) return;
    const ended = new Promise((resolve) => {
      if (this.#process.exitCode !== null || this.#process.signalCode !== null) resolve(undefined);
      else this.#process.once('exit', resolve);
    });
    try {
      process.kill(-pid, 'SIGKILL');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
    }
    await ended;
    forgetGroup(pid);
  }
}

export class Page {
  /** What its scripts threw, what the policy forbade, what was logged as an error. */
  readonly complaints: string[] = [];
  /** Addresses of all its requests. */
  readonly requests: string[] = [];
  readonly #browser: Browser;
  readonly #sessionId: string;

  constructor(browser: Browser, sessionId: string) {
    this.#browser = browser;
    this.#sessionId = sessionId;
  }

  async prepare({ width = 1100, height = 900, dark = false, mobile = false }: PageOptions): Promise<void> {
    for (const domain of ['Page', 'Runtime', 'Log', 'Network']) await this.call(`${domain}.enable`);
    await this.call('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile });
    const features = [{ name: 'prefers-color-scheme', value: dark ? 'dark' : 'light' }];
    await this.call('Emulation.setEmulatedMedia', { features });
  }

  call(method: string, params: Parameters = {}): Promise<unknown> {
    return this.#browser.call(method, params, this.#sessionId);
  }

  /** An event of the protocol. */
  hear(method: string, params: Parameters): void {
    if (method === 'Runtime.exceptionThrown') this.complaints.push(JSON.stringify(params));
    if (method === 'Log.entryAdded') {
      const { level, text } = params.entry as { level: string; text: string };
      if (level === 'error') this.complaints.push(text);
    }
    if (method === 'Network.requestWillBeSent') this.requests.push((params.request as { url: string }).url);
  }

  async goTo(url: string): Promise<void> {
    await this.call('Page.navigate', { url });
    await this.until('document.readyState === "complete"', Boolean);
  }

  /** The value of an expression in the page. @throws Error - it throws */
  async evaluate<T>(expression: string): Promise<T> {
    const { result, exceptionDetails } = (await this.call('Runtime.evaluate', {
      expression,
      awaitPromise: true,
      returnByValue: true,
    })) as { result: { value: T }; exceptionDetails?: { exception?: { description?: string } } };
    if (exceptionDetails !== undefined) {
      throw new Error(`${expression}: ${exceptionDetails.exception?.description ?? 'throws'}`);
    }
    return result.value;
  }

  /** The first value of an expression that is accepted. @throws Error - none within deadlineMs, with the last one */
  async until<T>(expression: string, accept: (value: T) => boolean, deadlineMs = 15_000): Promise<T> {
    const end = performance.now() + deadlineMs;
    for (;;) {
      // While a page is being left there is nothing to ask.
      const value = await this.evaluate<T>(expression).catch((error: Error) => error);
      if (!(value instanceof Error) && accept(value)) return value;
      if (performance.now() > end) {
        const complaints = this.complaints.join('\n');
        throw new Error(`${expression}: still ${JSON.stringify(value) ?? value} after ${deadlineMs} ms\n${complaints}`);
      }
      await delay(50);
    }
  }

  /** What is to be read in the first element that a selector finds; empty where there is none. */
  text(selector: string): Promise<string> {
    return this.evaluate(`document.querySelector(${JSON.stringify(selector)})?.textContent ?? ''`);
  }

  /** Waits until the first element that a selector finds has a text that matches. */
  waitForText(selector: string, pattern: RegExp, deadlineMs?: number): Promise<string> {
    const expression = `document.querySelector(${JSON.stringify(selector)})?.textContent ?? ''`;
    return this.until<string>(expression, (text) => pattern.test(text), deadlineMs);
  }

  /** Clicks in the middle of the first element that a selector finds, as a mouse does. */
  async click(selector: string): Promise<void> {
    const quoted = JSON.stringify(selector);
    await this.until(`document.querySelector(${quoted}) !== null`, Boolean);
    const [x, y] = await this.evaluate<[number, number]>(`(() => {
      const element = document.querySelector(${quoted});
      element.scrollIntoView({ block: 'center' });
      const { x, y, width, height } = element.getBoundingClientRect();
      return [x + width / 2, y + height / 2];
    })()`);
    for (const type of ['mousePressed', 'mouseReleased']) {
      await this.call('Input.dispatchMouseEvent', { type, x, y, button: 'left', clickCount: 1 });
    }
  }

  /** Types text where the focus is; a line end is Enter. */
  async type(text: string): Promise<void> {
    for (const character of text) {
      const isEnter = character === '\n';
      const key = isEnter ? 'Enter' : character;
      const press = { key, ...(isEnter ? { windowsVirtualKeyCode: 13, text: '\r' } : { text: character }) };
      await this.call('Input.dispatchKeyEvent', { type: 'keyDown', ...press });
      await this.call('Input.dispatchKeyEvent', { type: 'keyUp', key });
    }
  }

  /** A picture of what is to be seen, as PNG. */
  async screenshot(): Promise<Buffer> {
    const { data } = (await this.call('Page.captureScreenshot', { format: 'png' })) as { data: string };
    return Buffer.from(data, 'base64');
  }
}
