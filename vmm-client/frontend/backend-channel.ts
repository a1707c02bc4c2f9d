/**
 * The second socket, on which the back end is the one who asks (SET_BACKEND_REQ_FD). A changed configuration space is
 * reported; every other request is refused, where it asks for an answer. Source: vhost-user, Back-end message types.
 */

import { makeBlocking, type OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { closeAll, Endpoint, type IncomingMessage } from '../../protocol/vhost-user/endpoint.ts';
import { BACKEND } from '../../protocol/vhost-user/messages.ts';
import { U64 } from '../../protocol/vhost-user/payloads.ts';

const DONE = 0n;
const REFUSED = 1n;

export interface BackendChannelEvents {
  readonly onConfigChange: () => void;
  /** The back end broke the protocol on this channel, which is closed now. */
  readonly onFault: (error: Error) => void;
}

export class BackendChannel {
  readonly #endpoint: Endpoint;
  readonly #events: BackendChannelEvents;

  private constructor(stream: UnixStream, events: BackendChannelEvents) {
    this.#endpoint = new Endpoint(stream);
    this.#events = events;
    void this.#serve();
  }

  /** Opens a channel. `peer` is for the back end: send it, then close it. @throws SysError - no descriptors left */
  static open(events: BackendChannelEvents): { channel: BackendChannel; peer: OwnedFd } {
    const [ours, theirs] = UnixStream.pair();
    const peer = theirs.detach();
    // Back ends wait for answers with a blocking read.
    makeBlocking(peer.fd);
    return { channel: new BackendChannel(ours, events), peer };
  }

  async #serve(): Promise<void> {
    try {
      for (;;) {
        const message = await this.#endpoint.next();
        if (message === undefined) break;
        this.#answer(message);
      }
    } catch (error) {
      // Ends this channel only: the main connection says whether the back end lives.
      this.#events.onFault(error instanceof Error ? error : new Error(String(error)));
    }
    this.close();
  }

  #answer(message: IncomingMessage): void {
    closeAll(message.fds);
    const known = message.id === BACKEND.CONFIG_CHANGE_MSG.id && message.payload.length === 0;
    if (message.needsReply) this.#endpoint.sendReply(message.id, U64.encode(known ? DONE : REFUSED));
    if (known) this.#events.onConfigChange();
  }

  close(): void {
    this.#endpoint.close();
  }
}
