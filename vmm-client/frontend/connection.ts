/**
 * The front end's side of one connection: requests out, replies in, matched in the order of the requests, each with a
 * deadline. A connection that once went wrong (closed, timed out, answered out of order) is of no use any more: all that
 * waits is rejected and `onLost` is called, once. What state the back end must have is the front end's business.
 */

import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import type { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { closeAll, Endpoint, type IncomingMessage } from '../../protocol/vhost-user/endpoint.ts';
import { PeerError, ProtocolError } from '../../protocol/vhost-user/errors.ts';
import { VHOST_USER_PROTOCOL_F_REPLY_ACK } from '../../protocol/vhost-user/features.ts';
import type { MessageType } from '../../protocol/vhost-user/messages.ts';
import { U64 } from '../../protocol/vhost-user/payloads.ts';
import { hasFeature } from '../../protocol/virtio/reserved-features.ts';

/** What came back: the undecoded payload, and descriptors that are the receiver's now. */
interface RawReply {
  readonly payload: Uint8Array;
  readonly fds: OwnedFd[];
}

interface Pending {
  readonly type: { readonly id: number; readonly name: string };
  readonly resolve: (reply: RawReply) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
}

export class FrontendConnection {
  /** Set once they were negotiated. */
  protocolFeatures = 0n;
  /** What the back end was told on this connection: features, those of the dirty log included, and device status. */
  features = 0n;
  status = 0;
  readonly #endpoint: Endpoint;
  readonly #timeoutMs: number;
  readonly #onLost: (error: Error) => void;
  readonly #pending: Pending[] = [];
  #ended = false;
  #givenUp = false;

  /** Takes over the stream. `timeoutMs` bounds every answer, counted from its request. */
  constructor(stream: UnixStream, timeoutMs: number, onLost: (error: Error) => void) {
    this.#endpoint = new Endpoint(stream);
    this.#timeoutMs = timeoutMs;
    this.#onLost = onLost;
    void this.#receive();
  }

  get isClosed(): boolean {
    return this.#ended;
  }

  /** Whether it ended because of what the back end said, or did not: it may live, and go on with what it has. */
  get isGivenUp(): boolean {
    return this.#givenUp;
  }

  /** Whether every command is acknowledged. */
  get replyAck(): boolean {
    return this.has(VHOST_USER_PROTOCOL_F_REPLY_ACK);
  }

  /** Whether a protocol feature was negotiated. */
  has(protocolFeature: number): boolean {
    return hasFeature(this.protocolFeatures, protocolFeature);
  }

  /**
   * Sends a request that is answered by a payload of its own, and decodes the answer. Descriptors that come along are
   * closed. What is sent is sent when this returns.
   * @throws PeerError - the connection ended, or the deadline passed
   * @throws ProtocolError - the answer is not one
   */
  async call<Q, R>(type: MessageType<Q, R>, value: Q): Promise<R> {
    const { payload, fds } = await this.callRaw(type, value);
    closeAll(fds);
    return this.decodeReply(type, payload);
  }

  /**
   * Like `call`, for answers with descriptors, which the caller owns. Those that go out stay the caller's and may be closed
   * at once.
   */
  async callWithFds<Q, R>(
    type: MessageType<Q, R>,
    value: Q,
    sent: readonly OwnedFd[] = [],
  ): Promise<{ value: R; fds: OwnedFd[] }> {
    const { payload, fds } = await this.callRaw(type, value, sent);
    try {
      return { value: this.decodeReply(type, payload), fds };
    } catch (error) {
      closeAll(fds);
      throw error;
    }
  }

  /** Like `callWithFds`, without decoding: some answers have a meaning also when they are empty. */
  callRaw<Q>(type: MessageType<Q>, value: Q, sent: readonly OwnedFd[] = []): Promise<RawReply> {
    return this.#request(type, value, sent, false);
  }

  /**
   * Sends a request that has no answer of its own. With REPLY_ACK it is acknowledged and the promise says so; without,
   * the promise is kept as soon as the request is sent. Descriptors stay the caller's and may be closed at once.
   * @throws PeerError - refused, the connection ended, or the deadline passed
   */
  async command<Q>(type: MessageType<Q, never>, value: Q, fds: readonly OwnedFd[] = []): Promise<void> {
    if (!this.replyAck) {
      this.#send(type, value, fds, false);
      return;
    }
    const reply = await this.#request(type, value, fds, true);
    closeAll(reply.fds);
    const status = this.decodeReply({ name: type.name, reply: U64 }, reply.payload);
    if (status !== 0n) throw new PeerError(`${type.name} was refused by the back end (code ${status})`);
  }

  /** Ends the connection. What waits is rejected; `onLost` is not called. Idempotent. */
  close(): void {
    this.#end(new PeerError('the connection was closed on this side'));
  }

  /** The meaning of a payload. One that has none ends the connection. @throws ProtocolError */
  decodeReply<R>(
    type: { readonly name: string; readonly reply: MessageType<unknown, R>['reply'] },
    payload: Uint8Array,
  ): R {
    if (type.reply === undefined) throw new Error(`${type.name} has no answer`);
    try {
      return type.reply.decode(payload);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      const told = new ProtocolError(`answer to ${type.name}: ${error.message}`);
      this.#giveUp(told);
      throw told;
    }
  }

  #request<Q>(type: MessageType<Q>, value: Q, fds: readonly OwnedFd[], needReply: boolean): Promise<RawReply> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#giveUp(new PeerError(`the back end did not answer ${type.name} within ${this.#timeoutMs} ms`));
      }, this.#timeoutMs);
      this.#pending.push({ type, resolve, reject, timer });
      try {
        this.#send(type, value, fds, needReply);
      } catch (error) {
        // Already rejected when the connection was lost just now; a second rejection has no effect.
        reject(error instanceof Error ? error : new Error(String(error)));
      }
    });
  }

  #send<Q>(type: MessageType<Q>, value: Q, fds: readonly OwnedFd[], needReply: boolean): void {
    if (this.#ended) {
      const error = new PeerError(`${type.name} cannot be sent: the connection has ended`);
      this.#rejectPending(error);
      throw error;
    }
    try {
      this.#endpoint.sendRequest(type, value, { fds, needReply });
    } catch (error) {
      const lost = new PeerError(`${type.name} cannot be sent: ${(error as Error).message}`, { cause: error });
      this.#lose(lost);
      throw lost;
    }
  }

  async #receive(): Promise<void> {
    let cause: unknown;
    try {
      for (;;) {
        const message = await this.#endpoint.next();
        if (message === undefined) break;
        this.#match(message);
      }
    } catch (error) {
      if (error instanceof ProtocolError) {
        this.#giveUp(error);
        return;
      }
      // A reset is how a peer ends that had not read everything.
      cause = error;
    }
    const unanswered = this.#pending[0];
    const instead = unanswered === undefined ? '' : ` instead of answering ${unanswered.type.name}`;
    this.#lose(new PeerError(`the back end closed the connection${instead}`, { cause }));
  }

  /** @throws ProtocolError - this is not the answer to the oldest request that waits */
  #match(message: IncomingMessage): void {
    const pending = this.#pending[0];
    if (pending === undefined || !message.isReply || message.id !== pending.type.id) {
      closeAll(message.fds);
      const expected = pending === undefined ? 'none was expected' : `the answer to ${pending.type.name} was expected`;
      throw new ProtocolError(
        `the back end sent ${message.isReply ? 'an answer to' : 'a request'} ${message.id}; ${expected}`,
      );
    }
    this.#pending.shift();
    clearTimeout(pending.timer);
    pending.resolve({ payload: message.payload, fds: message.fds });
  }

  #giveUp(error: Error): void {
    if (!this.#ended) this.#givenUp = true;
    this.#lose(error);
  }

  #lose(error: Error): void {
    if (this.#ended) return;
    this.#end(error);
    this.#onLost(error);
  }

  #end(error: Error): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#rejectPending(error);
    this.#endpoint.close();
  }

  #rejectPending(error: Error): void {
    for (const pending of this.#pending.splice(0)) {
      clearTimeout(pending.timer);
      pending.reject(error);
    }
  }
}
