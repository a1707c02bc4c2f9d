/**
 * The back end's channel to its front end: requests of ours, and the answers to those that want one. Source: vhost-user,
 * Back-end communication, Back-end message types.
 */

import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { closeAll, Endpoint } from '../../protocol/vhost-user/endpoint.ts';
import { ProtocolError } from '../../protocol/vhost-user/errors.ts';
import type { MessageType } from '../../protocol/vhost-user/messages.ts';
import { U64 } from '../../protocol/vhost-user/payloads.ts';
import { isRefusal } from './dispatcher.ts';
import type { Logger } from './logging.ts';

/** Requests that may wait for an answer: 64 missing pages for each of 256 rings. */
const MAX_UNANSWERED = 64 * 256;

/** Called with whether the front end did what it was asked to. */
type Answer = (done: boolean) => void;

export class BackendChannel {
  readonly #endpoint: Endpoint;
  readonly #log: Logger;
  /** Answers come in the order of the questions. */
  readonly #answers: { readonly id: number; readonly answer: Answer }[] = [];

  /** Takes over the descriptor, a connected stream socket. */
  constructor(socket: OwnedFd, log: Logger) {
    this.#endpoint = new Endpoint(new UnixStream(socket));
    this.#log = log;
    void this.#listen();
  }

  /** Sends a request; with `answer`, it wants one (REPLY_ACK was negotiated). A front end that is gone does not get it. */
  send<Q>(type: MessageType<Q>, value: Q, answer?: Answer): void {
    if (this.#endpoint.isClosed) return;
    if (answer !== undefined) this.#answers.push({ id: type.id, answer });
    try {
      if (this.#answers.length > MAX_UNANSWERED) throw new ProtocolError(`${MAX_UNANSWERED} requests are not answered`);
      this.#endpoint.sendRequest(type, value, { needReply: answer !== undefined });
    } catch (error) {
      if (!(error instanceof ProtocolError) && !isRefusal(error)) throw error;
      this.#log.warn(`cannot send ${type.name} to the front end: ${error.message}`);
      this.#endpoint.close();
    }
  }

  async #listen(): Promise<void> {
    try {
      for (let reply = await this.#endpoint.next(); reply !== undefined; reply = await this.#endpoint.next()) {
        closeAll(reply.fds);
        const asked = this.#answers.shift();
        if (!reply.isReply || asked === undefined || asked.id !== reply.id) {
          throw new ProtocolError(`message ${reply.id} on the back end's channel is no answer to a request of ours`);
        }
        asked.answer(U64.decode(reply.payload) === 0n);
      }
    } catch (error) {
      if (!(error instanceof ProtocolError) && !isRefusal(error)) throw error;
      this.#log.warn(`the back end's channel is closed: ${error.message}`);
    }
    this.close();
  }

  close(): void {
    this.#endpoint.close();
  }
}
