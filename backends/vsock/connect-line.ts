/** What a host's program says first, to be connected to a port of the guest: `CONNECT <port>\n`; and the answer. */

/** Bytes that the line may have, its end included. */
export const MAX_CONNECT_LINE_BYTES = 32;

const MAX_PORT = 0xffff_ffff;
const LINE = /^CONNECT +(\d{1,10}) *\r?\n$/i;
const NEWLINE = 10;

/** More of the line is to come. */
export const LINE_INCOMPLETE = 0;
/** It is none. */
export const LINE_BAD = -1;

/** Bytes of the line at the start of `bytes`, with its end; or LINE_INCOMPLETE, LINE_BAD. */
export function findConnectLine(bytes: Uint8Array): number {
  const end = bytes.subarray(0, MAX_CONNECT_LINE_BYTES).indexOf(NEWLINE);
  if (end >= 0) return end + 1;
  return bytes.length >= MAX_CONNECT_LINE_BYTES ? LINE_BAD : LINE_INCOMPLETE;
}

/** The port that a whole line asks for; undefined when it is not such a line. */
export function parseConnectLine(line: string): number | undefined {
  const match = LINE.exec(line);
  const port = Number(match?.[1] ?? Number.NaN);
  return port <= MAX_PORT ? port : undefined;
}

/** The answer when the guest accepted; the number is our end's port. */
export function connectAnswer(hostPort: number): string {
  return `OK ${hostPort}\n`;
}
