/** Logins: what a browser has in its cookie after it gave the token. Lost with the process, and after a while. */

import { randomBytes } from 'node:crypto';

export const SESSION_SECONDS = 12 * 3600;
/** At one time; the oldest one ends for one more. */
const MAX_SESSIONS = 256;

export class Sessions {
  /** When each began, in the order of their beginnings. */
  readonly #begun = new Map<string, number>();

  /** A new one; its secret. */
  open(): string {
    const secret = randomBytes(32).toString('base64url');
    const [oldest] = this.#begun.keys();
    if (this.#begun.size >= MAX_SESSIONS && oldest !== undefined) this.#begun.delete(oldest);
    this.#begun.set(secret, performance.now());
    return secret;
  }

  /** Whether a session has this secret. A guess of 256 bits learns nothing from the time that this takes. */
  has(secret: string): boolean {
    const begun = this.#begun.get(secret);
    if (begun === undefined) return false;
    if (performance.now() - begun < SESSION_SECONDS * 1000) return true;
    this.#begun.delete(secret);
    return false;
  }

  close(secret: string): void {
    this.#begun.delete(secret);
  }
}
