/** `ringside ui` from dist as a child process. */

import { request } from 'node:http';
import { join } from 'node:path';
import { Child } from '../child.ts';
import type { Cleanup } from '../cleanup.ts';
import { projectDirectory } from '../peers.ts';

const MAIN = join(projectDirectory, 'dist/vmm-client/cli/main.js');

export interface UiAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly body: string;
}

export class UiProcess {
  readonly child: Child;
  /** Where the page is, such as `http://127.0.0.1:40123/`. */
  readonly url: string;

  private constructor(child: Child, url: string) {
    this.child = child;
    this.url = url;
  }

  /** Starts it on a free port of 127.0.0.1. `cleanup` kills it at the latest. */
  static async start(cleanup: Cleanup, args: readonly string[]): Promise<UiProcess> {
    const child = new Child(process.execPath, [MAIN, 'ui', '--listen', '127.0.0.1:0', ...args]);
    cleanup.add(() => child.stop());
    const [url] = await child.waitFor(/^http:\/\/\S+$/m, 15_000);
    return new UiProcess(child, url);
  }

  get port(): number {
    return Number(new URL(this.url).port);
  }

  /** One request; of an answer without an end the first bytes. */
  ask(
    method: string,
    path: string,
    headers: Readonly<Record<string, string>> = {},
    body?: string,
    deadlineMs = 10_000,
  ): Promise<UiAnswer> {
    return new Promise((resolve, reject) => {
      const options = { host: '127.0.0.1', port: this.port, method, path, headers, timeout: deadlineMs };
      const sent = request(options, (response) => {
        let text = '';
        const settle = (): void => resolve({ status: response.statusCode ?? 0, headers: response.headers, body: text });
        response.setEncoding('utf8').on('data', (chunk: string) => {
          text += chunk;
          if (response.headers['content-type']?.startsWith('text/event-stream') !== true) return;
          settle();
          sent.destroy();
        });
        response.on('end', settle);
      });
      sent.on('timeout', () => sent.destroy(new Error(`no answer to ${path} within ${deadlineMs} ms`)));
      sent.on('error', reject);
      sent.end(body);
    });
  }
}
