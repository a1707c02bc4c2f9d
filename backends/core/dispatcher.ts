/**
 * From messages to handlers and back to replies: sizes and descriptor counts are checked here, once for all messages,
 * and so is when an answer is due. Source: vhost-user, Communication, REPLY_ACK.
 */

import { MemoryError } from '../../protocol/memory/memory-error.ts';
import { SysError } from '../../protocol/sys/errors.ts';
import type { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { closeAll, type Endpoint, type IncomingMessage } from '../../protocol/vhost-user/endpoint.ts';
import { ProtocolError } from '../../protocol/vhost-user/errors.ts';
import { FRONTEND, FRONTEND_BY_ID, type MessageType } from '../../protocol/vhost-user/messages.ts';
import { U64 } from '../../protocol/vhost-user/payloads.ts';
import { RingError } from '../../protocol/virtqueue/virtqueue.ts';
import { Refused } from './refused.ts';

/** A reply that also carries descriptors, which are closed once sent. */
export class ReplyWithFds<R> {
  readonly value: R;
  readonly fds: readonly OwnedFd[];

  constructor(value: R, fds: readonly OwnedFd[]) {
    this.value = value;
    this.fds = fds;
  }
}

/** A reply of a message that is only acknowledged as a rule. */
export class SpecialReply {
  readonly payload: Uint8Array;

  constructor(payload: Uint8Array) {
    this.payload = payload;
  }
}

type Result<R> = R | ReplyWithFds<R> | SpecialReply | undefined | void;
/** Does one request. Descriptors it wants to keep it takes (`fd.take()`); the others are closed when it returns. */
export type Handler<Q, R> = (request: Q, fds: readonly OwnedFd[]) => Result<R> | Promise<Result<R>>;

interface Entry {
  readonly type: MessageType;
  readonly handler: Handler<unknown, unknown>;
}

const ACK_OK = U64.encode(0n);
const ACK_FAILED = U64.encode(1n);
const NOTHING = new Uint8Array(0);
/** How messages with a reply of their own say no, where they can: the payload, by the message's number. */
const REFUSALS: ReadonlyMap<number, Uint8Array> = new Map([
  [FRONTEND.GET_CONFIG.id, NOTHING],
  [FRONTEND.IOTLB_MSG.id, U64.encode(1n)],
  // Bits 0-7: an error; bit 8: no descriptor.
  [FRONTEND.SET_DEVICE_STATE_FD.id, U64.encode(0x101n)],
]);

/** Whether an error is the front end's or the host's fault, and not ours. */
export function isRefusal(error: unknown): error is Error {
  return (
    error instanceof Refused || error instanceof MemoryError || error instanceof RingError || error instanceof SysError
  );
}

export class Dispatcher {
  /** REPLY_ACK was negotiated: NEED_REPLY is honoured. */
  acknowledges = false;
  readonly #entries = new Map<number, Entry>();

  on<Q, R>(type: MessageType<Q, R>, handler: Handler<Q, R>): void {
    // The map is keyed by the message's number, and the codec stored beside the handler is the one it was typed with.
    this.#entries.set(type.id, { type, handler } as unknown as Entry);
  }

  /**
   * Handles one message, sends the reply that is due, and closes the message's descriptors.
   * Returns the refusal when the request failed and was answered; the caller logs it.
   * @throws ProtocolError - the message is malformed
   * @throws Refused, MemoryError, RingError, SysError - the request failed and nobody asked for an answer
   */
  async handle(message: IncomingMessage, endpoint: Endpoint): Promise<Error | undefined> {
    try {
      const name = FRONTEND_BY_ID.get(message.id)?.name ?? `message ${message.id}`;
      if (message.isReply) throw new ProtocolError(`${name}: the reply flag is set on a request`);
      const entry = this.#entries.get(message.id);
      if (entry === undefined) return this.#refuse(message, endpoint, new Refused(`${name} is not supported`));
      return await this.#run(entry, message, endpoint);
    } finally {
      closeAll(message.fds);
    }
  }

  async #run({ type, handler }: Entry, message: IncomingMessage, endpoint: Endpoint): Promise<Error | undefined> {
    const { length } = message.fds;
    if (length < type.fds.min || length > type.fds.max) {
      const expected = type.fds.min === type.fds.max ? `${type.fds.min}` : `${type.fds.min} to ${type.fds.max}`;
      throw new ProtocolError(`${type.name}: ${length} file descriptors came along, ${expected} expected`);
    }
    let request: unknown;
    try {
      request = type.request.decode(message.payload);
    } catch (error) {
      if (error instanceof ProtocolError) throw new ProtocolError(`${type.name}: ${error.message}`);
      throw error;
    }
    try {
      const result = await handler(request, message.fds);
      if (result instanceof ReplyWithFds) {
        try {
          endpoint.sendReply(type.id, type.reply?.encode(result.value) ?? NOTHING, result.fds);
        } finally {
          closeAll(result.fds);
        }
      } else if (result instanceof SpecialReply) {
        endpoint.sendReply(type.id, result.payload);
      } else if (type.reply !== undefined) {
        endpoint.sendReply(type.id, type.reply.encode(result));
      } else if (message.needsReply && this.acknowledges) {
        endpoint.sendReply(type.id, ACK_OK);
      }
      return undefined;
    } catch (error) {
      if (!isRefusal(error)) throw error;
      error.message = `${type.name}: ${error.message}`;
      const refusal = REFUSALS.get(type.id);
      if (refusal === undefined) return this.#refuse(message, endpoint, error);
      endpoint.sendReply(type.id, refusal);
      return error;
    }
  }

  /** By the acknowledgement that was asked for. Replies have no way to say no, but those above. */
  #refuse(message: IncomingMessage, endpoint: Endpoint, error: Error): Error {
    const type = FRONTEND_BY_ID.get(message.id);
    if (type?.reply !== undefined || !message.needsReply || !this.acknowledges) throw error;
    endpoint.sendReply(message.id, ACK_FAILED);
    return error;
  }
}
