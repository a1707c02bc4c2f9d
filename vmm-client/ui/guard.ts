/**
 * Who may ask the page's server. A browser sends requests for every site that is open in it, so three things are checked
 * besides the token: the Host header (a foreign name that leads here is DNS rebinding), where a request comes from
 * (Sec-Fetch-Site, Origin), and that a request that changes something says so by an Origin of ours. Pure.
 */

import { createHash, timingSafeEqual } from 'node:crypto';
import { isIP } from 'node:net';

/** Characters that a token has at least: 128 bits in hexadecimal. */
export const MIN_TOKEN_CHARACTERS = 32;

/** Why a request is not answered. */
export interface GuardRefusal {
  readonly status: 400 | 403 | 421;
  readonly sentence: string;
}

/** The name in a Host header or the authority of an Origin, in lower case; undefined where it is none. */
export function hostNameOf(authority: string): string | undefined {
  const match = /^(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::\d{1,5})?$/i.exec(authority);
  return (match?.[1] ?? match?.[2])?.toLowerCase();
}

/** Whether an address is the machine's own, which others cannot reach. */
export function isLoopback(address: string): boolean {
  return address === 'localhost' || address === '::1' || (isIP(address) === 4 && address.startsWith('127.'));
}

/**
 * Checks the Host header. An address is nobody's to rebind; of names, `localhost` and those of `names` (in lower case) are
 * ours.
 */
export function checkHost(host: string | undefined, names: ReadonlySet<string>): GuardRefusal | undefined {
  const name = host === undefined ? undefined : hostNameOf(host);
  if (name === undefined) return { status: 400, sentence: 'the request does not say for which host it is' };
  if (isIP(name) !== 0 || name === 'localhost' || names.has(name)) return undefined;
  return { status: 421, sentence: `this is not the host ${name}; --host-name ${name} makes it one` };
}

export interface RequestOrigin {
  readonly host: string | undefined;
  readonly origin: string | undefined;
  /** Sec-Fetch-Site, which browsers send and pages cannot. */
  readonly site: string | undefined;
  /** Whether a token came in the Authorization header, which no browser adds by itself. */
  readonly hasBearer: boolean;
}

/** Checks that a request that reads data is not another site's. */
export function checkReader({ site }: RequestOrigin): GuardRefusal | undefined {
  if (site === undefined || site === 'same-origin' || site === 'none') return undefined;
  return { status: 403, sentence: 'the request comes from another site' };
}

/** Checks that a request that changes something comes from our page, or from a program that has the token. */
export function checkWriter(request: RequestOrigin): GuardRefusal | undefined {
  const { host, origin, hasBearer } = request;
  const foreign = checkReader(request);
  if (foreign !== undefined) return foreign;
  if (origin === undefined) {
    return hasBearer ? undefined : { status: 403, sentence: 'the request has neither an Origin nor a token' };
  }
  // A proxy before us may have ended TLS.
  if (host !== undefined && (origin === `http://${host}` || origin === `https://${host}`)) return undefined;
  return { status: 403, sentence: 'the request comes from another origin' };
}

/** The token of `Authorization: Bearer TOKEN`. */
export function bearerOf(authorization: string | undefined): string | undefined {
  return /^Bearer +([\x21-\x7e]+)$/i.exec(authorization ?? '')?.[1];
}

/** The value of a cookie in a Cookie header. */
export function cookieOf(header: string | undefined, name: string): string | undefined {
  for (const pair of (header ?? '').split(';')) {
    const [key, value] = pair.trim().split('=', 2);
    if (key === name) return value;
  }
  return undefined;
}

/** Compares with the token in a time that says nothing of either, not even the length. */
export class TokenCheck {
  readonly #digest: Buffer;

  constructor(token: string) {
    this.#digest = digestOf(token);
  }

  accepts(given: string): boolean {
    return timingSafeEqual(digestOf(given), this.#digest);
  }
}

function digestOf(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}

/** What every answer says to the browser: nothing from elsewhere, no scripts in the page, no frame around it. */
export const SECURITY_HEADERS: Readonly<Record<string, string>> = {
  'Content-Security-Policy': [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "form-action 'self'",
    "base-uri 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
  ].join('; '),
  'X-Content-Type-Options': 'nosniff',
  'X-Frame-Options': 'DENY',
  // Without any a browser would send `Origin: null` with the login form.
  'Referrer-Policy': 'same-origin',
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Cache-Control': 'no-store',
};
