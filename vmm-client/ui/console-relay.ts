/**
 * The console of a machine on its way to a browser: bytes of the serial port become text, events of at most CHUNK
 * characters. While a browser has more than MAX_WAITING_BYTES to read, nothing is read of the VMM, which cuts off who
 * falls behind what it keeps.
 */

import type { IncomingMessage } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { type ApiClient, Refusal, Unreachable } from './api-client.ts';
import type { EventStream } from './event-stream.ts';
import type { ConsoleEvent } from './page/model.ts';

const CHUNK = 8192;
const MAX_WAITING_BYTES = 128 * 1024;
const LOOK_AGAIN_MS = 20;

/** Relays until the console, the VMM or the reader ends. Never rejects but for our mistakes. */
export async function relayConsole(client: ApiClient, stream: EventStream): Promise<void> {
  const gone = new AbortController();
  stream.onClose = () => gone.abort();
  const send = (event: ConsoleEvent): void => stream.send('console', event);
  try {
    const response = await client.stream('vm.console', gone.signal);
    await relayText(response, stream, gone.signal, send);
    send({ end: 'the machine has ended' });
  } catch (error) {
    if (gone.signal.aborted) return;
    if (error instanceof Refusal || error instanceof Unreachable) send({ end: error.message });
    else if (error instanceof Error && 'code' in error) send({ end: `the console broke off: ${error.message}` });
    else throw error;
  }
  stream.close();
}

async function relayText(
  response: IncomingMessage,
  stream: EventStream,
  gone: AbortSignal,
  send: (event: ConsoleEvent) => void,
): Promise<void> {
  // A character may come in two pieces; what is none becomes a replacement character.
  const decoder = new TextDecoder();
  for await (const bytes of response as AsyncIterable<Buffer>) {
    const text = decoder.decode(bytes, { stream: true });
    for (let at = 0; at < text.length; at += CHUNK) send({ text: text.slice(at, at + CHUNK) });
    while (stream.waitingBytes > MAX_WAITING_BYTES && !gone.aborted) await delay(LOOK_AGAIN_MS);
  }
}
