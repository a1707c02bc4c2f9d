/** A back end that writes down what it is told and answers by script: for tests of the front end's messages. */

import { createSealedMemfd, type OwnedFd } from '../../../../protocol/sys/owned-fd.ts';
import { type Watch, watchReadable } from '../../../../protocol/sys/readiness.ts';
import { UnixListener } from '../../../../protocol/sys/unix-socket.ts';
import { closeAll, Endpoint, type IncomingMessage } from '../../../../protocol/vhost-user/endpoint.ts';
import { FRONTEND, FRONTEND_BY_ID } from '../../../../protocol/vhost-user/messages.ts';

export interface Script {
  features: bigint;
  protocolFeatures: bigint;
  /** Messages that are not answered, answered with failure, or answered as another message. */
  ignore: string[];
  refuse: string[];
  mislabel: string[];
}

const INFLIGHT_BYTES = 4096;

export class ScriptedBackend {
  /** Names of the messages of all connections, in order. */
  readonly log: string[] = [];
  /** Payloads by message name, the last of each. */
  readonly last = new Map<string, unknown>();
  /** The request channel of the last connection. */
  channel: OwnedFd | undefined;
  connections = 0;
  readonly #script: Script;
  readonly #listener: UnixListener;
  readonly #watch: Watch;
  #endpoint: Endpoint | undefined;

  constructor(path: string, script: Partial<Script> = {}) {
    this.#script = { features: 0n, protocolFeatures: 0n, ignore: [], refuse: [], mislabel: [], ...script };
    this.#listener = UnixListener.listen(path);
    this.#watch = watchReadable(this.#listener.fd, () => {
      const stream = this.#listener.accept();
      if (stream === undefined) return;
      this.connections += 1;
      this.#endpoint = new Endpoint(stream);
      void this.#serve(this.#endpoint);
    });
  }

  async #serve(endpoint: Endpoint): Promise<void> {
    for (let message = await endpoint.next(); message !== undefined; message = await endpoint.next()) {
      this.#handle(endpoint, message);
    }
    endpoint.close();
  }

  #handle(endpoint: Endpoint, message: IncomingMessage): void {
    const type = FRONTEND_BY_ID.get(message.id);
    if (type === undefined) throw new Error(`message ${message.id}`);
    const { name } = type;
    this.log.push(message.fds.length === 0 ? name : `${name}+${message.fds.length}`);
    this.last.set(name, type.request.decode(message.payload));
    if (name === 'SET_BACKEND_REQ_FD') {
      this.channel?.close();
      this.channel = message.fds[0];
    } else {
      closeAll(message.fds);
    }
    if (this.#script.ignore.includes(name)) return;
    const id = this.#script.mislabel.includes(name) ? message.id + 1 : message.id;
    const answer = this.#answer(name, message.payload);
    if (answer !== undefined) {
      endpoint.sendReply(id, answer.payload, answer.fds);
      closeAll(answer.fds);
    } else if (message.needsReply) {
      endpoint.sendReply(id, u64(this.#script.refuse.includes(name) ? 1n : 0n));
    }
  }

  #answer(name: string, request: Uint8Array): { payload: Uint8Array; fds: OwnedFd[] } | undefined {
    const plain = (payload: Uint8Array) => ({ payload, fds: [] });
    if (name === 'GET_FEATURES') return plain(u64(this.#script.features));
    if (name === 'GET_PROTOCOL_FEATURES') return plain(u64(this.#script.protocolFeatures));
    if (name === 'GET_QUEUE_NUM') return plain(u64(4n));
    if (name === 'GET_MAX_MEM_SLOTS') return plain(u64(12n));
    if (name === 'GET_CONFIG') return plain(this.#script.refuse.includes(name) ? new Uint8Array() : request);
    if (name === 'GET_VRING_BASE')
      return plain(FRONTEND.GET_VRING_BASE.request.encode({ index: request[0]!, num: 77 }));
    if (name !== 'GET_INFLIGHT_FD') return undefined;
    const area = { ...FRONTEND.GET_INFLIGHT_FD.request.decode(request), mmapSize: INFLIGHT_BYTES };
    return {
      payload: FRONTEND.GET_INFLIGHT_FD.request.encode(area),
      fds: [createSealedMemfd('inflight', INFLIGHT_BYTES)],
    };
  }

  /** Closes the connection as a process that dies does, but goes on listening. */
  die(): void {
    this.#endpoint?.close();
    this.channel?.close();
    this.channel = undefined;
  }

  close(): void {
    this.die();
    this.#watch.close();
    this.#listener.close();
  }
}

function u64(value: bigint): Uint8Array {
  return new Uint8Array(new BigUint64Array([value]).buffer);
}
