/**
 * The second socket, on which the back end is the one who asks (SET_BACKEND_REQ_FD). Requests that this front end does
 * not know are refused, where they ask for an answer. Source: vhost-user, Back-end message types.
 */

import { makeBlocking, type OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { UnixStream } from '../../protocol/sys/unix-socket.ts';
import { closeAll, Endpoint, type IncomingMessage } from '../../protocol/vhost-user/endpoint.ts';
import { BACKEND } from '../../protocol/vhost-user/messages.ts';
import { IOTLB_TYPE_ACCESS_FAIL, IOTLB_TYPE_MISS, U64 } from '../../protocol/vhost-user/payloads.ts';

const DONE = 0n;
const REFUSED = 1n;

/** What a back end can ask for. Those that return a boolean say whether it was done. */
export interface BackendRequests {
  configChanged(): void;
  /** A mapping of the IOMMU is missing: sends it where there is one. */
  iotlbMissed(iova: bigint, permission: number): boolean;
  /** The device was kept from an access by what is mapped. */
  accessFailed(iova: bigint, permission: number): void;
  vringCalled(index: number): boolean;
  vringFailed(index: number): boolean;
  /** The back end broke the protocol on this channel, which is closed now. */
  channelFailed(error: Error): void;
}

export class BackendChannel {
  readonly #endpoint: Endpoint;
  readonly #requests: BackendRequests;

  private constructor(stream: UnixStream, requests: BackendRequests) {
    this.#endpoint = new Endpoint(stream);
    this.#requests = requests;
    void this.#serve();
  }

  /** Opens a channel. `peer` is for the back end: send it, then close it. @throws SysError - no descriptors left */
  static open(requests: BackendRequests): { channel: BackendChannel; peer: OwnedFd } {
    const [ours, theirs] = UnixStream.pair();
    const peer = theirs.detach();
    // Back ends wait for answers with a blocking read.
    makeBlocking(peer.fd);
    return { channel: new BackendChannel(ours, requests), peer };
  }

  async #serve(): Promise<void> {
    try {
      for (;;) {
        const message = await this.#endpoint.next();
        if (message === undefined) break;
        const isDone = this.#handle(message);
        if (message.needsReply) this.#endpoint.sendReply(message.id, U64.encode(isDone ? DONE : REFUSED));
      }
    } catch (error) {
      // Ends this channel only: the main connection says whether the back end lives.
      this.#requests.channelFailed(error instanceof Error ? error : new Error(String(error)));
    }
    this.close();
  }

  /** Does what is asked. Returns whether it was done. @throws ProtocolError - the payload is malformed */
  #handle({ id, payload, fds }: IncomingMessage): boolean {
    closeAll(fds);
    switch (id) {
      case BACKEND.CONFIG_CHANGE_MSG.id:
        BACKEND.CONFIG_CHANGE_MSG.request.decode(payload);
        this.#requests.configChanged();
        return true;
      case BACKEND.IOTLB_MSG.id:
        return this.#handleIotlb(payload);
      case BACKEND.VRING_CALL.id:
        return this.#requests.vringCalled(BACKEND.VRING_CALL.request.decode(payload).index);
      case BACKEND.VRING_ERR.id:
        return this.#requests.vringFailed(BACKEND.VRING_ERR.request.decode(payload).index);
      default:
        return false;
    }
  }

  #handleIotlb(payload: Uint8Array): boolean {
    const { type, iova, permission } = BACKEND.IOTLB_MSG.request.decode(payload);
    if (type === IOTLB_TYPE_MISS) return this.#requests.iotlbMissed(iova, permission);
    if (type !== IOTLB_TYPE_ACCESS_FAIL) return false;
    this.#requests.accessFailed(iova, permission);
    return true;
  }

  close(): void {
    this.#endpoint.close();
  }
}
