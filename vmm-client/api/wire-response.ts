/**
 * Responses as Cloud Hypervisor's HTTP server writes them. Its clients look for more than HTTP promises: ch-remote reads
 * the status line up to its end as a number, so that there must be no reason phrase, and finds `Content-Length: ` only
 * with capital letters.
 */

import { type IncomingMessage, type OutgoingHttpHeaders, ServerResponse } from 'node:http';

const capitalize = (name: string) => name.replace(/(^|-)[a-z]/g, (letter) => letter.toUpperCase());

export class WireResponse<R extends IncomingMessage = IncomingMessage> extends ServerResponse<R> {
  /** Called once by the framework, with all of the headers. */
  override writeHead(status: number, ...rest: unknown[]): this {
    const headers = rest.at(-1);
    const named = typeof headers === 'object' && headers !== null ? (headers as OutgoingHttpHeaders) : {};
    const capitalized = Object.entries(named).map(([name, value]) => [capitalize(name), value] as const);
    return super.writeHead(status, '', Object.fromEntries(capitalized));
  }
}
